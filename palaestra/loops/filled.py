"""Buffers that are filled from a dataset before a loop begins."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from palaestra.algorithm import Unfit
from palaestra.batch import unflatten
from palaestra.data.dataset import Dataset
from palaestra.data.fixed import Fixed, columns_of
from palaestra.data.values import without_actions
from palaestra.envs.border import Border
from palaestra.learner import Learner, generator

DATASET = "dataset"  # the buffer that a run in an environment fills from a dataset; the others it fills itself
ALWAYS = ("valid", "first", "obs")  # what a dataset transform gets and cannot change


def filled(learner: Learner, dataset: Dataset, border: Border, names: Iterable[str]) -> dict[str, Fixed]:
    """The buffers of these names, filled with a dataset after the algorithm's transforms of datasets.

    What they measure or fit depends on the dataset alone: they run once, with a random stream of its own, and every
    seed's networks get the numbers that they wrote into those of the first.

    Raises `Unfit` where steps of episodes without actions would be drawn as they are.
    """
    new: dict[str, Tensor] = {}
    if transforms := [t for t in learner.algorithm.transforms if t.moment == "dataset"]:
        columns = before = whole(dataset, border)
        rng = generator(int(dataset.hash[:15], 16), "dataset", border.device)
        networks = learner.nets_of(learner.seeds[0]).state_dict()
        old = {name: number.clone() for name, number in networks.items()}
        with torch.no_grad():
            for transform in transforms:
                columns = transform.fn(learner.nets_of(learner.seeds[0]), columns, rng)
            written = {name: number for name, number in networks.items() if not torch.equal(number, old[name])}
            for seed in learner.seeds[1:]:
                own = learner.nets_of(seed).state_dict()
                for name, number in written.items():
                    own[name].copy_(number)
        new = {key: value for key, value in columns.items() if key not in ALWAYS and value is not before.get(key)}
    seeds, buffers = len(learner.seeds), learner.algorithm.buffers
    replays = {name: Fixed(buffers[name], dataset, border, new, seeds) for name in names}
    watched = without_actions(dataset.columns["action"], dataset.lengths)
    slots = np.repeat(watched, dataset.lengths + 1)
    if "action" not in new and watched.any() and (watched.all() or _drawn(replays.values(), slots)):
        raise Unfit(
            f"{watched.sum():,} of {dataset.episodes:,} episodes have no actions (NaN in all of their steps): add "
            f"+ss-orl to {learner.algorithm}, which labels them, or +labelled-alone, which leaves them out"
        )
    return replays


def _drawn(replays: Iterable[Fixed], slots: np.ndarray) -> bool:
    """Whether a buffer would draw any of these slots, [R] bool."""
    index = torch.from_numpy(slots.nonzero()[0])
    return any(not own.prioritised or bool(own.prioritised.trees[0].get(index).any()) for own in replays)


def whole(dataset: Dataset, border: Border) -> dict[str, Tensor]:
    """Every slot of a dataset as its transforms get them: columns [R, ...], actions in [-1, 1]."""
    columns = unflatten(columns_of(dataset, border))
    columns["action"] = border.inner_action(dataset.columns["action"])
    columns["valid"] = torch.from_numpy(dataset.is_step).to(border.device)
    columns["first"] = torch.zeros_like(columns["valid"])
    columns["first"][torch.from_numpy(dataset.first).to(border.device)] = True
    return columns
