"""Episodes that a teacher plays in an environment that is only borrowed.

Shape legend: `N` copies of the environment, `T` steps of an episode, `M` of its states that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from palaestra.envs.starts import snapshot
from palaestra.envs.state import get_state, set_state, state_problem
from palaestra.teachers.teacher import Teacher

MOST_STEPS = 100_000  # of an episode: a teacher that never ends one would be watched for ever


@dataclass
class Episode:
    """What it paid, [T], and of every so many steps the state before it and what was seen there, [M]."""

    rewards: list[float] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)


def played(env: VectorEnv, teacher: Teacher, seeds: Sequence[Sequence[int]], every: int) -> list[list[Episode]]:
    """An episode of each copy for each of its `seeds` [rounds][N], with the states before steps 0, `every`, ...

    The environment, which resets on demand, is then as it was, its random streams included. ValueError where it cannot
    give and take its state, or where an episode does not end within `MOST_STEPS` steps.
    """
    if problem := state_problem(env):
        raise ValueError(f"a teacher cannot borrow this environment: {problem}")
    before = get_state(env)
    episodes = [_round(env, teacher, own, every) for own in seeds]
    set_state(env, before)
    return episodes


def _round(env: VectorEnv, teacher: Teacher, seeds: Sequence[int], every: int) -> list[Episode]:
    """An episode of each copy, begun together; a copy whose episode is over goes on unwatched until all are."""
    episodes = [Episode() for _ in range(env.num_envs)]
    running = np.ones(env.num_envs, bool)
    obs, _ = env.reset(seed=list(seeds))  # type: ignore[arg-type]
    teacher.reset()
    for t in range(MOST_STEPS):
        watched = running.nonzero()[0].tolist()
        if t % every == 0:
            for i in watched:
                episodes[i].states.append(snapshot(env, i))
                episodes[i].seen.append(_row(obs, i))
        obs, reward, terminated, truncated, _ = env.step(teacher.act(obs))
        for i in watched:
            episodes[i].rewards.append(float(reward[i]))
        done = np.asarray(terminated) | np.asarray(truncated)
        running &= ~done
        if not running.any():
            return episodes
        if done.any():
            obs, _ = env.reset(options={"reset_mask": done})
    raise ValueError(f"a teacher's episode has not ended after {MOST_STEPS:,} steps: give the environment a limit")


def _row(obs: Any, i: int) -> Any:
    """Row i of observations, as a batch of one."""
    return {key: _row(value, i) for key, value in obs.items()} if isinstance(obs, dict) else np.array(obs[i : i + 1])
