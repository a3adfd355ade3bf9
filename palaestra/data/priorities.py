"""How likely a row is drawn: a sum tree over all rows, and the factors that it holds the product of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Clock, Priority, Scheduled, Store
from palaestra.functional.schedules import number

WIDTH = 64  # children of a node: one cumulative sum a level, and three levels for a quarter of a million rows


class SumTree:
    """Non-negative numbers by row, their sum, and draws in proportion, each in time O(log rows), many at a time.

    Float64: in float32 a sum over a million rows loses the small ones.
    """

    def __init__(self, rows: int, device: torch.device | str = "cpu") -> None:
        sizes = [-(-rows // WIDTH) * WIDTH]
        while sizes[-1] > WIDTH:
            sizes.append(-(-(sizes[-1] // WIDTH) // WIDTH) * WIDTH)
        self.levels = [torch.zeros(size, dtype=torch.float64, device=device) for size in sizes]

    @property
    def total(self) -> Tensor:
        """The sum of all, 0-d."""
        return self.levels[-1].sum()

    def get(self, index: Tensor) -> Tensor:
        return self.levels[0][index]

    def set(self, index: Tensor, value: Tensor) -> None:
        """Set the leaves of `index` [B] (of equal indices the last counts) and every sum above them."""
        self.levels[0][index] = value.double()
        for below, above in zip(self.levels[:-1], self.levels[1:], strict=True):
            index = torch.unique(index // WIDTH)
            above[index] = below.view(-1, WIDTH)[index].sum(1)

    def sample(self, n: int, rng: Generator) -> Tensor:
        """`n` rows [n], independent, each in proportion to its number, which is never zero."""
        top = self.levels[-1].cumsum(0)
        target = torch.rand(n, dtype=torch.float64, generator=rng).to(top.device) * top[-1]
        index = torch.searchsorted(top, target, right=True).clamp_(max=len(top) - 1)
        target = target - (top[index] - self.levels[-1][index])
        for level in reversed(self.levels[:-1]):
            children = level.view(-1, WIDTH)[index].cumsum(1)
            # rounding may leave a target a hair beyond the sum of the children: draw among those that are not zero
            target = torch.minimum(target, children[:, -1] * (1 - 1e-12))
            child = torch.searchsorted(children, target.unsqueeze(1), right=True).squeeze(1).clamp_(max=WIDTH - 1)
            target = target - (children.gather(1, child.unsqueeze(1)).squeeze(1) - level.view(-1, WIDTH)[index, child])
            index = index * WIDTH + child
        return index

    def state_dict(self) -> dict[str, Any]:
        return {"leaves": self.levels[0].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.levels[0].copy_(state["leaves"])
        for below, above in zip(self.levels[:-1], self.levels[1:], strict=True):
            sums = below.view(-1, WIDTH).sum(1)
            above.zero_()
            above[: len(sums)] = sums


class Proportional:
    """`(error + floor)^sharpness` (Schaul et al. 2016, eq. 1); new rows get the largest one so far.

    Importance weights `(rows * P)^-correction`, divided by the batch's largest, undo the bias in expectation.
    """

    def __init__(self, sharpness: float, correction: Scheduled, floor: float = 1e-6) -> None:
        self.sharpness, self.correction, self.floor = sharpness, correction, floor
        self.largest: Tensor = torch.ones(())

    def insert(self, store: Store, index: Tensor) -> Tensor:
        return self.largest.to(index.device).expand(len(index))

    def update(self, store: Store, index: Tensor, error: Tensor) -> Tensor:
        priority = (error + self.floor) ** self.sharpness
        self.largest = torch.maximum(self.largest.to(priority.device), priority.max())
        return priority

    def weight(self, probability: Tensor, rows: int, clock: Clock) -> Tensor:
        weight = (rows * probability) ** -number(self.correction, clock)
        return (weight / weight.max()).float()

    def state_dict(self) -> dict[str, Any]:
        return {"largest": self.largest.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.largest = state["largest"]


class Prioritised:
    """The priorities of a store's rows and their sum trees, of each of the seeds that draw from it: their own.

    Args:
        priorities: of a buffer; copied for each seed.
        slots: rows that a seed draws from.
        first: of each seed, its first row: seed i draws from `first[i]` to `first[i] + slots`.
    """

    def __init__(
        self, priorities: Sequence[Priority], slots: int, first: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.first, self.device = first, device
        self.priorities = [copy.deepcopy(tuple(priorities)) for _ in first]
        self.trees = [SumTree(slots, device) for _ in first] if priorities else []

    def __bool__(self) -> bool:
        return bool(self.trees)

    def insert(self, store: Store, seed: int, index: Tensor, value: Tensor) -> None:
        """Rows `index` [B] of a seed are new where `value` [B] is 1, and cannot be drawn where it is 0."""
        for priority in self.priorities[seed]:
            value = value * priority.insert(store, index)
        self.trees[seed].set(index - self.first[seed], value)

    def sample(self, n: int, rngs: Sequence[Generator]) -> Tensor:
        """`n` rows of each seed, [S * n]."""
        drawn = [t.sample(n, rng) + at for t, rng, at in zip(self.trees, rngs, self.first, strict=True)]
        return torch.cat(drawn)

    def weights(self, index: Tensor, rows: Sequence[int], clock: Clock | None) -> Tensor:
        """Importance weights [S * n] of rows that `sample` drew; `rows` can be drawn of each seed."""
        assert clock is not None, "prioritised rows are weighted by the clock"
        weights = []
        for seed, own in enumerate(index.view(len(self.trees), -1)):
            tree = self.trees[seed]
            probability = tree.get(own - self.first[seed]) / tree.total
            weights.append(torch.ones(own.shape, device=self.device))
            for priority in self.priorities[seed]:
                if (weight := priority.weight(probability, int(rows[seed]), clock)) is not None:
                    weights[-1] = weights[-1] * weight
        return torch.cat(weights)

    def update(self, store: Store, index: Tensor, error: Tensor, alive: Callable[[Tensor], Tensor]) -> None:
        """Tell the priorities how far off rows were: `error` [B] (or [S, B]). What is not `alive` stays at 0."""
        for seed, tree in enumerate(self.trees):
            own, off = index.view(len(self.trees), -1)[seed], error.view(len(self.trees), -1)[seed]
            value = torch.ones(len(own), dtype=torch.float64, device=self.device)
            for priority in self.priorities[seed]:
                new = priority.update(store, own, off)
                value = value * (priority.insert(store, own) if new is None else new)
            tree.set(own - self.first[seed], torch.where(alive(own), value, 0.0))

    def state_dict(self) -> dict[str, Any]:
        parts = chain(*self.priorities)
        return {
            "trees": [tree.state_dict() for tree in self.trees],
            "priorities": [part.state_dict() if hasattr(part, "state_dict") else {} for part in parts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for tree, saved in zip(self.trees, state["trees"], strict=True):
            tree.load_state_dict(saved)
        for part, saved in zip(chain(*self.priorities), state["priorities"], strict=True):
            if saved:
                part.load_state_dict(saved)  # type: ignore[attr-defined]


class InProportion:
    """A priority: rows are drawn in proportion to column `name` [B], which is not negative; all alike without one.

    Of a column that is true or false, only where it is true.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def insert(self, store: Store, index: Tensor) -> Tensor:
        if self.name not in store.names():
            return torch.ones(index.shape, device=index.device)
        odds: Tensor = store.get(self.name, index)
        return odds.double()

    def update(self, store: Store, index: Tensor, error: Tensor) -> None:
        return None

    def weight(self, probability: Tensor, rows: int, clock: Clock) -> None:
        return None
