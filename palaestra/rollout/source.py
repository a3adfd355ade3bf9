"""A vector environment as a source of steps, with the final observation right in each of Gymnasium's autoreset modes.

Shape legend: `N` environments, in as many equal groups as there are seeds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Generator, Tensor

from palaestra.algorithm import InitialStates, Memory, Nets, TaskSampler
from palaestra.batch import Columns, Obs, each
from palaestra.envs.border import Border
from palaestra.envs.starts import start_from
from palaestra.envs.state import get_state, set_state, state_problem
from palaestra.faults import EnvironmentFailed, NotFinite
from palaestra.teachers.episodes import Episode, played
from palaestra.teachers.teacher import Policies, teacher_of

NEVER = np.iinfo(np.int64).max


@dataclass
class Chooser:
    """An algorithm's parts that choose an episode's task and first state, and what they are asked with."""

    tasks: TaskSampler | None
    initial_states: Sequence[InitialStates]
    nets: Nets
    rng: Generator

    @property
    def parts(self) -> list[Any]:
        return [self.tasks, *self.initial_states]


class Source:
    """Steps of `N` environments: `obs` now, `step(action)`, finished `episodes`.

    Args:
        env: any `gymnasium.vector.VectorEnv`; its `metadata["autoreset_mode"]` says how it resets.
        seed: of the first reset, by Gymnasium's rule (environment i gets `seed + i`). With several, as many equal
            groups of environments are each seeded so, and step together: `env_steps` counts those of one group.
        device: where columns are put.

    Raises `EnvironmentFailed` where the environment raises, `NotFinite` where it gives NaN or infinity, or gets them.
    """

    def __init__(
        self,
        env: VectorEnv,
        seed: int | Sequence[int] | None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.env, self.n = env, env.num_envs
        self.seeds = list(seed) if isinstance(seed, Sequence) else [seed]
        if self.n % len(self.seeds):
            raise ValueError(f"{self.n} environments cannot be shared by {len(self.seeds)} seeds: give a multiple")
        self.group = self.n // len(self.seeds)
        self.border = Border(env.single_observation_space, env.single_action_space, device)
        mode = env.metadata.get("autoreset_mode")
        if mode is None:
            raise ValueError(
                f"{type(env).__name__} does not say how it resets: set metadata['autoreset_mode'] to a "
                "gymnasium.vector.AutoresetMode"
            )
        self.mode = AutoresetMode(mode)
        if self.mode is AutoresetMode.NEXT_STEP and len(self.seeds) > 1:
            raise ValueError(
                "several seeds need an environment that resets within a step or on demand, so that they stay in step: "
                "set its autoreset_mode to AutoresetMode.DISABLED or SAME_STEP"
            )
        self.choosers: list[Chooser] = []
        self.begun = True
        self.task: list[Any] = [None] * self.n
        self.limit = np.full(self.n, NEVER)
        self.env_steps = 0
        self.returns = np.zeros(self.n)
        self.lengths = np.zeros(self.n, np.int64)
        self.episodes: list[dict[str, float]] = []
        self.memory: Memory = None
        self._device = torch.device(device)
        self._void = np.zeros(self.n, bool)  # NEXT_STEP: the coming step only resets
        self._first = np.ones(self.n, bool)
        self.obs: Obs = self._seen(self._asked(env.reset, seed=self._first_seeds())[0])

    def choose(
        self,
        tasks: TaskSampler | None,
        initial_states: Sequence[InitialStates],
        nets: Sequence[Nets],
        rngs: Sequence[Generator],
    ) -> None:
        """Let an algorithm's parts choose each episode's task and first state, from the very first on: see `begin`.

        They are copied for each seed, so that two runs never share state; `nets` and `rngs` hold one a seed. ValueError
        for an environment that resets by itself.
        """
        if self.mode is not AutoresetMode.DISABLED:
            raise ValueError("tasks and initial states need an environment with autoreset_mode=AutoresetMode.DISABLED")
        self.choosers = [
            Chooser(copy.deepcopy(tasks), copy.deepcopy(tuple(initial_states)), own, rng)
            for own, rng in zip(nets, rngs, strict=True)
        ]
        self.begun = False

    def begin(self, seed: int | Sequence[int] = 0, policies: Policies | None = None) -> list[dict[str, float]]:
        """Let the parts that choose prepare themselves, then begin the first episodes; what each seed's parts tell.

        A teacher's episodes are seeded from `seed`, one or one of each group; `policies` opens a run's folder, where
        such a run is to be the teacher.
        """
        seeds = list(seed) if isinstance(seed, Sequence) else [seed]

        @cache  # the copies of all seeds are played in at once
        def everywhere(teacher: str, rounds: int, every: int) -> list[list[Episode]]:
            begins = [[own + r * self.group + i for own in seeds for i in range(self.group)] for r in range(rounds)]
            return played(self.env, teacher_of(teacher, self.env, policies), begins, every)

        told: list[dict[str, float]] = []
        for number, chooser in enumerate(self.choosers):
            play = partial(self._played, everywhere, number)
            preparing = [states.prepare(play) for states in chooser.initial_states if hasattr(states, "prepare")]
            told.append({name: value for one in preparing for name, value in one.items()})
        self._begin_first()
        return told

    def _played(self, everywhere: Any, number: int, teacher: str, episodes: int, every: int) -> list[Episode]:
        """The first so many episodes of a teacher in the copies of one seed."""
        own = slice(number * self.group, (number + 1) * self.group)
        rounds = everywhere(teacher, math.ceil(episodes / self.group), every)
        return [episode for one in rounds for episode in one[own]][:episodes]

    def _begin_first(self) -> None:
        """The environment has just been reset: only a task would have to be there before that."""
        for i, chooser in enumerate(chooser for chooser in self.choosers for _ in range(self.group)):
            if chooser.tasks is not None:
                self._give_task(i, chooser)
            self._place(i, chooser)
        self.begun = True

    def step(self, action: Tensor) -> Columns:
        """Columns [N, ...]: `obs, action, reward, terminated, truncated, next_obs, first, valid`.

        `next_obs` is what the step led to, the final observation at an episode's end; `first` marks an observation
        that begins an episode; `valid` is false where a step only reset.
        """
        wanted = self.border.action(action)
        self._finite("action", wanted)
        raw, reward, terminated, truncated, info = self._asked(self.env.step, wanted)
        self._finite("reward", reward)
        terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
        valid = ~self._void
        self.env_steps += int(valid.sum()) // len(self.seeds)
        self.returns += reward
        self.lengths += valid
        truncated = truncated | (~terminated & (self.lengths >= self.limit))
        done = terminated | truncated
        obs, next_obs = self.obs, self._seen(raw)
        first, self._first = self._first, done if self.mode is not AutoresetMode.NEXT_STEP else self._void
        self.obs = next_obs
        if done.any():
            if self.mode is AutoresetMode.SAME_STEP:
                next_obs = self.border.with_final(next_obs, info, done)
            self._finish(done)
            if self.mode is AutoresetMode.DISABLED:
                self._begin(done)
        if self.mode is AutoresetMode.NEXT_STEP:
            self._void = done
        if self.memory is not None and self._first.any():
            fresh = torch.from_numpy(self._first).to(self._device)
            self.memory = each(lambda m: m.masked_fill(fresh.view(-1, *[1] * (m.dim() - 1)), 0), self.memory)
        return {
            "obs": obs,
            "action": action,
            "reward": self._tensor(np.asarray(reward, np.float32)),
            "terminated": self._tensor(terminated),
            "truncated": self._tensor(truncated),
            "next_obs": next_obs,
            "first": self._tensor(first),
            "valid": self._tensor(valid),
        }

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _first_seeds(self) -> Any:
        """What the first reset is given: a seed, or one for each environment of each group."""
        if len(self.seeds) == 1:
            return self.seeds[0]
        return [int(seed) + i for seed in self.seeds if seed is not None for i in range(self.group)]

    def _asked(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """What the environment answers; `EnvironmentFailed` with what it raised, at which step."""
        try:
            return method(*args, **kwargs)
        except Exception as problem:
            text = str(problem).partition("\n")[0]
            raise EnvironmentFailed(
                f"the environment {_name(self.env)} raised {type(problem).__name__} in {method.__name__} after "
                f"{self.env_steps:,} steps{f': {text}' if text else ''}"
            ) from problem

    def _seen(self, raw: Any) -> Obs:
        """Observations as columns."""
        for key, array in raw.items() if isinstance(raw, dict) else (("", raw),):
            self._finite(f"observation{f' {key!r}' if key else ''}", array)
        return self.border.obs(raw)

    def _finite(self, what: str, array: Any) -> None:
        array = np.asarray(array)
        if array.dtype.kind != "f" or np.isfinite(array).all():
            return
        i, *place = np.argwhere(~np.isfinite(array))[0].tolist()
        whose = f" (seed {self.seeds[i // self.group]})" if len(self.seeds) > 1 else ""
        entry = f"[{', '.join(map(str, place))}]" if place else ""
        raise NotFinite(
            f"the {what}{entry} of environment {i}{whose} is {array[i][tuple(place)]} after {self.env_steps:,} steps"
        )

    def _finish(self, done: np.ndarray) -> None:
        who = done.nonzero()[0].tolist()
        ended: list[dict[str, float]] = [
            {"environment": i, "episode_return": float(self.returns[i]), "episode_length": int(self.lengths[i])}
            for i in who
        ]
        self.episodes += ended
        for number, chooser in enumerate(self.choosers):
            own = [episode for episode in ended if episode["environment"] // self.group == number]
            if chooser.tasks is not None and own:
                chooser.tasks.update([self.task[int(episode["environment"])] for episode in own], own)
            for states in chooser.initial_states:
                for episode in own:
                    states.observe(episode)
        self.returns[done] = 0.0
        self.lengths[done] = 0

    def _begin(self, who: np.ndarray) -> None:
        """Reset the environments of `who`, each to its task and its initial state."""
        if not any(chooser.tasks is not None for chooser in self.choosers):
            self._reset(who, {})
        if not self.choosers:
            return
        for i in map(int, who.nonzero()[0]):
            chooser = self.choosers[i // self.group]
            if chooser.tasks is not None:
                self._give_task(i, chooser)
            self._place(i, chooser)

    def _give_task(self, i: int, chooser: Chooser) -> None:
        assert chooser.tasks is not None
        self.task[i] = chooser.tasks.sample(chooser.nets, chooser.rng)
        self._reset(np.arange(self.n) == i, {"task": self.task[i]})

    def _reset(self, who: np.ndarray, options: dict[str, Any]) -> None:
        raw, _ = self._asked(self.env.reset, options={"reset_mask": who, **options})
        self.obs = _where(torch.from_numpy(who).to(self._device), self._seen(raw), self.obs)

    def _place(self, i: int, chooser: Chooser) -> None:
        """Put an environment that was just reset into its initial state, and say when the episode is cut off."""
        self.limit[i] = NEVER
        for states in chooser.initial_states:
            start = states.sample(self.task[i], self.env_steps, chooser.rng)
            if start is not None:
                left = NEVER if start.until is None else math.ceil((start.until - self.env_steps) / self.group)
                self.limit[i] = min(NEVER if start.time_limit is None else start.time_limit, left)
                self.obs = _with_row(self.obs, i, self.border.obs(start_from(self.env, i, start.state, start.obs)))
                return

    def finished(self) -> list[dict[str, float]]:
        """The episodes that ended since this was last asked: `environment, episode_return, episode_length` of each."""
        ended, self.episodes = self.episodes, []
        return ended

    # ---------------------------------------------------------------------------------------------- checkpoints

    @property
    def problem(self) -> str | None:
        """Why the environment's state cannot be given and taken; None where it can."""
        return state_problem(self.env)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "env": None if self.problem else get_state(self.env),
            "obs": self.obs,
            "memory": self.memory,
            "first": self._first,
            "void": self._void,
            "returns": self.returns,
            "lengths": self.lengths,
            "limit": self.limit,
            "task": self.task,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "random": [chooser.rng.get_state() for chooser in self.choosers],
        }
        parts = [part for chooser in self.choosers for part in chooser.parts]
        state["parts"] = [part.state_dict() if hasattr(part, "state_dict") else None for part in parts]
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken; where the environment cannot, begin new episodes from there."""
        self.env_steps = int(state["env_steps"])
        parts = [part for chooser in self.choosers for part in chooser.parts]
        for part, saved in zip(parts, state["parts"], strict=True):
            if saved is not None:
                part.load_state_dict(saved)
        self.episodes = state["episodes"]
        for chooser, saved in zip(self.choosers, state["random"], strict=True):
            chooser.rng.set_state(saved)
        if state["env"] is None:
            if not self.begun:
                self._begin_first()
            return
        self.begun = True
        set_state(self.env, state["env"])
        self.obs, self.memory, self.task = state["obs"], state["memory"], state["task"]
        self._first, self._void = state["first"], state["void"]
        self.returns, self.lengths, self.limit = state["returns"], state["lengths"], state["limit"]


def _where(mask: Tensor, new: Obs, old: Obs) -> Obs:
    if isinstance(new, dict):
        assert isinstance(old, dict)
        return {key: _where(mask, new[key], old[key]) for key in new}  # type: ignore[misc]
    assert isinstance(old, Tensor)
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)


def _with_row(obs: Obs, i: int, row: Obs) -> Obs:
    """A copy of `obs` in which row i is the only row of `row`."""
    if isinstance(obs, dict):
        assert isinstance(row, dict)
        return {key: _with_row(obs[key], i, row[key]) for key in obs}  # type: ignore[misc]
    assert isinstance(row, Tensor)
    obs = obs.clone()
    obs[i] = row[0]
    return obs


def _name(env: VectorEnv) -> str:
    single: Any = (getattr(env, "envs", None) or [env])[0]
    return single.spec.id if single.spec is not None else type(single.unwrapped).__name__
