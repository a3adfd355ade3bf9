"""Buffers that are filled from a dataset before a loop begins."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from palaestra.batch import unflatten
from palaestra.data.dataset import Dataset
from palaestra.data.fixed import Fixed, columns_of
from palaestra.envs.border import Border
from palaestra.learner import Learner, generator

DATASET = "dataset"  # the buffer that a run in an environment fills from a dataset; the others it fills itself
ALWAYS = ("valid", "first", "obs")  # what a dataset transform gets and cannot change


def filled(learner: Learner, dataset: Dataset, border: Border, names: Iterable[str]) -> dict[str, Fixed]:
    """The buffers of these names, filled with a dataset after the algorithm's transforms of datasets.

    What they measure or fit depends on the dataset alone: they run once, with a random stream of its own, and every
    seed's networks get the numbers that they wrote into those of the first.
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
    return {name: Fixed(buffers[name], dataset, border, new, seeds) for name in names}


def whole(dataset: Dataset, border: Border) -> dict[str, Tensor]:
    """Every slot of a dataset as its transforms get them: columns [R, ...], actions in [-1, 1]."""
    columns = unflatten(columns_of(dataset, border))
    columns["action"] = border.inner_action(dataset.columns["action"])
    columns["valid"] = torch.from_numpy(dataset.is_step).to(border.device)
    columns["first"] = torch.zeros_like(columns["valid"])
    columns["first"][torch.from_numpy(dataset.first).to(border.device)] = True
    return columns
