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
ALWAYS = ("valid", "first", "obs", "action")  # what a dataset transform gets and cannot change


def filled(learner: Learner, dataset: Dataset, border: Border, names: Iterable[str]) -> dict[str, Fixed]:
    """The buffers of these names, filled with a dataset after the algorithm's transforms of datasets.

    A transform that measures does so into the networks of each seed.
    """
    transforms = [t for t in learner.algorithm.transforms if t.moment == "dataset"]
    new: dict[str, Tensor] = {}
    if transforms:
        before = unflatten(columns_of(dataset, border))
        before["action"] = border.inner_action(dataset.columns["action"])
        before["valid"] = torch.from_numpy(dataset.is_step).to(border.device)
        before["first"] = torch.zeros_like(before["valid"])
        before["first"][torch.from_numpy(dataset.first).to(border.device)] = True
        with torch.no_grad():
            for seed in learner.seeds:
                columns, rng = before, generator(seed, "dataset", border.device)
                for transform in transforms:
                    columns = transform.fn(learner.nets_of(seed), columns, rng)
        new = {key: value for key, value in columns.items() if key not in ALWAYS and value is not before.get(key)}
    seeds, buffers = len(learner.seeds), learner.algorithm.buffers
    return {name: Fixed(buffers[name], dataset, border, new, seeds) for name in names}
