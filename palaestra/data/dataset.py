"""A dataset: episodes that were logged, in flat arrays, an observation kept once, named by the hash of its arrays.

Shape legend: `E` episodes, `N` steps in all, `R = N + E` slots. An episode of T steps has T + 1 slots: each holds an
observation and the step that was taken from it; the last holds the final observation alone, and zeros.

    obs     o0 o1 o2 | p0 p1 | ...        dtype float32, int64 or uint8; of a Dict space an array a key, "obs/KEY"
    action  a0 a1 .  | b0 .  | ...        in the environment's own units
    reward  r0 r1 .  | s0 .  | ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np

NEEDED = ("action", "reward", "terminated", "truncated")  # and "obs", or "obs/KEY" for each key of a Dict space
Arrays = Mapping[str, np.ndarray]


class DatasetError(ValueError):
    """A dataset cannot be read as one: says which file, where in it, what is wrong, and what would be right."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Episodes in flat arrays.

    Args:
        columns: by name, [R, ...]: "obs" (or "obs/KEY"), "action", "reward" float32, "terminated" and "truncated"
            bool, and whatever else was logged of each step. They may be memory-mapped.
        lengths: steps of each episode, int64 [E], each at least 1.
        observation_space, action_space: of one environment.
        about: what is known besides, as JSON data: "env" (an id that makes the environment), "provenance", "seed", ...
    """

    columns: Arrays
    lengths: np.ndarray
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = {"observations": self.obs_names, "columns": NEEDED}
        for what, names in wanted.items():
            if missing := [name for name in names if name not in self.columns]:
                raise DatasetError(f"a dataset's {what} lack {missing[0]!r}: there are {', '.join(self.columns)}")
        if not len(self.lengths) or self.lengths.min() < 1:
            raise DatasetError("a dataset has at least one episode, and each has at least one step")
        for name, column in self.columns.items():
            if len(column) != self.slots:
                raise DatasetError(f"column {name!r} has {len(column)} rows: {self.slots} are steps and episodes")

    @cached_property
    def obs_names(self) -> tuple[str, ...]:
        space = self.observation_space
        return tuple(f"obs/{key}" for key in space.spaces) if isinstance(space, gym.spaces.Dict) else ("obs",)

    @property
    def episodes(self) -> int:
        return len(self.lengths)

    @property
    def steps(self) -> int:
        return int(self.lengths.sum())

    @property
    def slots(self) -> int:
        return self.steps + self.episodes

    @cached_property
    def first(self) -> np.ndarray:
        """The slot in which each episode begins, [E]; slot `first + lengths` holds its final observation."""
        ends = np.cumsum(self.lengths + 1)
        return ends - self.lengths - 1

    @cached_property
    def is_step(self) -> np.ndarray:
        """Whether a slot holds a step, [R]."""
        found = np.ones(self.slots, bool)
        found[self.first + self.lengths] = False
        return found

    def returns(self) -> np.ndarray:
        """The undiscounted return of each episode, float64 [E]."""
        return np.add.reduceat(np.asarray(self.columns["reward"], np.float64), self.first)

    def episode(self, number: int) -> dict[str, np.ndarray]:
        """One episode: observations [T + 1, ...], everything else [T, ...]."""
        begin, length = int(self.first[number]), int(self.lengths[number])
        return {
            name: np.asarray(column[begin : begin + length + (name in self.obs_names)])
            for name, column in self.columns.items()
        }

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return map(self.episode, range(self.episodes))

    def __len__(self) -> int:
        return self.episodes

    @cached_property
    def hash(self) -> str:
        """Of what was observed, done and paid, and of where episodes end: the same for the same data in any file.

        Only the columns that every dataset has count, and only what is in them: final slots do but for observations.
        """
        digest = hashlib.sha256()
        digest.update(np.ascontiguousarray(self.lengths, np.int64).tobytes())
        for name in (*sorted(self.obs_names), *NEEDED):
            column = self.columns[name]
            digest.update(f"{name} {column.dtype.str} {column.shape[1:]}".encode())
            for begin in range(0, self.slots, 1 << 16):
                part = np.ascontiguousarray(column[begin : begin + (1 << 16)])
                digest.update(part.view(np.uint8).reshape(-1).data)
        return digest.hexdigest()


def canonical(array: np.ndarray) -> np.ndarray:
    """Numbers as the library keeps them: images uint8, choices int64, flags bool, everything else float32."""
    if array.dtype == np.uint8 or array.dtype == np.bool_:
        return array
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32, copy=False)


def from_episodes(
    episodes: Sequence[Mapping[str, np.ndarray]],
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    about: Mapping[str, Any] | None = None,
) -> Dataset:
    """A dataset of episodes as `Dataset.episode` gives them. DatasetError where they do not fit together."""
    if not episodes:
        raise DatasetError("a dataset has at least one episode")
    lengths = np.array([len(episode["reward"]) for episode in episodes], np.int64)
    begins = np.cumsum(lengths + 1) - lengths - 1
    columns: dict[str, np.ndarray] = {}
    for name, sample in episodes[0].items():
        first = canonical(np.asarray(sample))
        whole = np.zeros((int(lengths.sum()) + len(lengths), *first.shape[1:]), first.dtype)
        for number, (episode, begin, length) in enumerate(zip(episodes, begins, lengths, strict=True)):
            rows = np.asarray(episode[name])
            wanted = length + (name == "obs" or name.startswith("obs/"))
            if rows.shape != (wanted, *first.shape[1:]):
                raise DatasetError(
                    f"episode {number}: {name!r} has shape {rows.shape}, and {(int(wanted), *first.shape[1:])} is right"
                )
            whole[begin : begin + wanted] = rows
        columns[name] = whole
    return Dataset(columns, lengths, observation_space, action_space, dict(about or {}))
