"""What an algorithm learns from: an environment, a dataset, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv

from palaestra.algorithm import Algorithm, Unfit
from palaestra.data.dataset import Dataset
from palaestra.data.files import read
from palaestra.envs.border import Border, describe
from palaestra.envs.make import UnknownEnvironment, World
from palaestra.loops.filled import DATASET
from palaestra.loops.offline import Offline
from palaestra.loops.online import Online, same_spaces
from palaestra.stored import load, made
from palaestra.together import Live

IN_MEMORY = "(in memory)"  # what run.json says of a dataset that was read from no file


@dataclass(frozen=True)
class Ground:
    """What there is to learn from.

    Args:
        env: where it learns; where it learns from a dataset alone, where it is judged, or None.
        dataset: what it learns from, alone or beside an environment; or None.
        file: of the dataset, where it was read from one.
    """

    env: World | None
    dataset: Dataset | None
    file: Path | None
    offline: bool

    @property
    def episodes(self) -> int:
        """Of an evaluation, where nothing is said."""
        return 10

    @property
    def steps_worlds(self) -> bool:
        """Whether it learns in copies of an environment that are stepped."""
        return not self.offline

    @property
    def by_name(self) -> bool:
        """Whether another process can have the same from what run.json says."""
        return isinstance(self.env, str | None) and (self.dataset is None or self.file is not None)

    def world(self, copies: int) -> VectorEnv | None:
        """The environment that it learns in; None where it learns from a dataset alone."""
        if self.offline:
            return None
        assert self.env is not None
        return made(self.env, copies)

    def border(self, world: VectorEnv | None) -> Border:
        """Of the spaces that networks are built for."""
        if world is not None:
            return Border(world.single_observation_space, world.single_action_space)
        assert self.dataset is not None
        return Border(self.dataset.observation_space, self.dataset.action_space)

    def spaces(self, world: VectorEnv | None) -> dict[str, Any]:
        """What run.json says of them."""
        border = self.border(world)
        return {"obs": describe(border.observation), "action": describe(border.action_space)}

    def begin(
        self, algorithm: Algorithm, seeds: Sequence[int], world: VectorEnv | None, episodes: int = 0, **machine: Any
    ) -> Live:
        """A run in memory. `machine` is what `Online` and `Offline` take."""
        if self.offline:
            assert self.dataset is not None
            return Offline(algorithm, self.dataset, seeds, **machine)
        assert world is not None
        return Online(algorithm, world, seeds, policies=load, dataset=self.dataset, **machine)

    def keep(self, folder: Path) -> None:
        """What a run's folder needs besides: nothing."""

    def score(self) -> str:
        """The usual score of an evaluation."""
        return "episode_return" if self.env is not None else "fitted_q_value"

    def judge(self, world: VectorEnv | None, copies: int) -> VectorEnv | None:
        """Separate copies to evaluate in; None where there is no environment, or one that cannot be made again."""
        if self.env is None or self.env is world:
            return None
        judge = made(self.env, copies)
        if self.offline:
            same_spaces(self.border(None), Border(judge.single_observation_space, judge.single_action_space))
        return judge

    def about(self) -> dict[str, Any]:
        """What run.json says of the dataset; None where there is none."""
        if self.dataset is None:
            return {
                "dataset": None, "dataset_sha256": None, "dataset_steps": None, "offline": False,
                "counts": "env_steps",
            }  # fmt: skip
        file = IN_MEMORY if self.file is None else str(self.file.absolute())
        known = {"dataset": file, "dataset_sha256": self.dataset.hash, "dataset_steps": self.dataset.steps}
        return {**known, "offline": self.offline, "counts": "updates" if self.offline else "env_steps"}


def ground_of(algorithm: Algorithm, env: World | None, dataset: str | Path | Dataset | None) -> Ground:
    """What an algorithm learns from, of what was given.

    With a dataset it learns from that alone, and is judged in `env`, or in the dataset's own where that can be made;
    unless it has a buffer called "dataset": then it learns in `env`, and fills that buffer from the dataset.

    ValueError where something is missing, DatasetError where a dataset cannot be read.
    """
    mixes = DATASET in algorithm.buffers
    if dataset is None:
        if env is None:
            raise ValueError("there is nothing to learn from: give an environment or a dataset")
        if mixes:
            raise Unfit(f"{algorithm} draws from a dataset beside what it collects: give one")
        return Ground(env, None, None, offline=False)
    data = dataset if isinstance(dataset, Dataset) else read(dataset)
    file = None if isinstance(dataset, Dataset) else Path(dataset)
    if mixes and env is None:
        raise Unfit(f"{algorithm} learns in an environment beside a dataset: give one")
    return Ground(env if env is not None else _own(data), data, file, offline=not mixes)


def _own(data: Dataset) -> str | None:
    """The environment that a dataset names, where it can be made and has the dataset's spaces."""
    name = data.about.get("env")
    if not isinstance(name, str):
        return None
    try:
        world = made(name, 1)
    except UnknownEnvironment:
        return None
    there = Border(world.single_observation_space, world.single_action_space)
    world.close()
    try:
        same_spaces(Border(data.observation_space, data.action_space), there)
    except Unfit:
        return None
    return name
