"""A vector environment as a source of steps, with the final observation right in each of Gymnasium's autoreset modes.

Shape legend: `N` environments.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Generator, Tensor

from palaestra.algorithm import InitialStates, Memory, Nets, Start, TaskSampler
from palaestra.batch import Columns, Obs, each
from palaestra.envs.border import Border
from palaestra.envs.starts import start_from
from palaestra.envs.state import get_state, set_state, state_problem


class Source:
    """Steps of `N` environments: `obs` now, `step(action)`, finished `episodes`.

    Args:
        env: any `gymnasium.vector.VectorEnv`; its `metadata["autoreset_mode"]` says how it resets.
        seed: of the first reset, by Gymnasium's rule (environment i gets `seed + i`).
        device: where columns are put.
    """

    def __init__(
        self,
        env: VectorEnv,
        seed: int | None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.env, self.n = env, env.num_envs
        self.border = Border(env.single_observation_space, env.single_action_space, device)
        mode = env.metadata.get("autoreset_mode")
        if mode is None:
            raise ValueError(
                f"{type(env).__name__} does not say how it resets: set metadata['autoreset_mode'] to a "
                "gymnasium.vector.AutoresetMode"
            )
        self.mode = AutoresetMode(mode)
        self.tasks: TaskSampler | None = None
        self.initial_states: tuple[InitialStates, ...] = ()
        self.nets: Nets | None = None
        self.rng: Generator | None = None
        self.task: list[Any] = [None] * self.n
        self.limit = np.full(self.n, np.iinfo(np.int64).max)
        self.env_steps = 0
        self.returns = np.zeros(self.n)
        self.lengths = np.zeros(self.n, np.int64)
        self.episodes: list[dict[str, float]] = []
        self.memory: Memory = None
        self._device = torch.device(device)
        self._void = np.zeros(self.n, bool)  # NEXT_STEP: the coming step only resets
        self._first = np.ones(self.n, bool)
        self.obs: Obs = self.border.obs(env.reset(seed=seed)[0])

    def choose(
        self, tasks: TaskSampler | None, initial_states: Sequence[InitialStates], nets: Nets, rng: Generator
    ) -> None:
        """Let an algorithm's parts choose each episode's task and first state, from the very first on.

        They are copied, so that two runs never share state. ValueError for an environment that resets by itself.
        """
        if self.mode is not AutoresetMode.DISABLED:
            raise ValueError("tasks and initial states need an environment with autoreset_mode=AutoresetMode.DISABLED")
        self.tasks, self.initial_states = copy.deepcopy(tasks), copy.deepcopy(tuple(initial_states))
        self.nets, self.rng = nets, rng
        self._begin(np.ones(self.n, bool))

    def step(self, action: Tensor) -> Columns:
        """Columns [N, ...]: `obs, action, reward, terminated, truncated, next_obs, first, valid`.

        `next_obs` is what the step led to, the final observation at an episode's end; `first` marks an observation
        that begins an episode; `valid` is false where a step only reset.
        """
        raw, reward, terminated, truncated, info = self.env.step(self.border.action(action))
        terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
        valid = ~self._void
        self.env_steps += int(valid.sum())
        self.returns += reward
        self.lengths += valid
        truncated = truncated | (~terminated & (self.lengths >= self.limit))
        done = terminated | truncated
        obs, next_obs = self.obs, self.border.obs(raw)
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

    def _finish(self, done: np.ndarray) -> None:
        ended = [
            {"episode_return": float(self.returns[i]), "episode_length": int(self.lengths[i])}
            for i in done.nonzero()[0]
        ]
        self.episodes += ended
        if self.tasks is not None:
            self.tasks.update([self.task[i] for i in done.nonzero()[0]], ended)
        for states in self.initial_states:
            for episode in ended:
                states.observe(episode)
        self.returns[done] = 0.0
        self.lengths[done] = 0

    def _begin(self, who: np.ndarray) -> None:
        """Reset the environments of `who`, each to its task and its initial state."""
        if self.tasks is None:
            raw, _ = self.env.reset(options={"reset_mask": who})
            self.obs = _where(torch.from_numpy(who).to(self._device), self.border.obs(raw), self.obs)
        if self.tasks is None and not self.initial_states:
            return
        for i in map(int, who.nonzero()[0]):
            if self.tasks is not None:
                assert self.nets is not None
                assert self.rng is not None
                self.task[i] = self.tasks.sample(self.nets, self.rng)
                alone = np.arange(self.n) == i
                raw, _ = self.env.reset(options={"reset_mask": alone, "task": self.task[i]})
                self.obs = _where(torch.from_numpy(alone).to(self._device), self.border.obs(raw), self.obs)
            start = self._start(self.task[i])
            self.limit[i] = np.iinfo(np.int64).max if start is None or start.time_limit is None else start.time_limit
            if start is not None:
                self.obs = _with_row(self.obs, i, self.border.obs(start_from(self.env, i, start.state)))

    def _start(self, task: Any) -> Start | None:
        for states in self.initial_states:
            assert self.rng is not None
            start = states.sample(task, self.rng)
            if start is not None:
                return start
        return None

    def finished(self) -> list[dict[str, float]]:
        """The episodes that ended since this was last asked, in order."""
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
            "random": None if self.rng is None else self.rng.get_state(),
        }
        parts: list[Any] = [self.tasks, *self.initial_states]
        state["parts"] = [part.state_dict() if hasattr(part, "state_dict") else None for part in parts]
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken; where the environment cannot, begin new episodes from there."""
        self.env_steps = int(state["env_steps"])
        for part, saved in zip([self.tasks, *self.initial_states], state["parts"], strict=True):
            if saved is not None:
                part.load_state_dict(saved)  # type: ignore[union-attr]
        self.episodes = state["episodes"]
        if state["random"] is not None:
            assert self.rng is not None
            self.rng.set_state(state["random"])
        if state["env"] is None:
            return
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
