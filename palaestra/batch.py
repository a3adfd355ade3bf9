"""Columns, what one entry of a column looks like, and the shares by which rows are added up.

Shape legend, used everywhere: `B` rows of a batch, `T` steps of a window or tokens of an answer, `N` environments,
`E` members of an ensemble, `A` entries of a continuous action or number of discrete ones.

A batch is a flat dictionary of tensors, rows first (`obs [B, ...]`, `action`, `reward`, `terminated`, `weight`).
Two keys may hold a dictionary of tensors instead: `obs` and `next_obs`, when the environment's space is a `Dict`.
0-d tensors (`env_steps`, `updates`) belong to the batch as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Obs = Tensor | dict[str, Tensor]
Columns = dict[str, Any]
Share = Callable[[Columns], Tensor]


@dataclass(frozen=True)
class Space:
    """One entry of a column: its shape, its dtype and, where its values are names rather than numbers, how many.

    `choices` holds the number of values of each discrete entry: `(n,)` for one choice out of n (shape `()`),
    `(n, m)` for a vector of two. It is empty for numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    choices: tuple[int, ...] = ()

    @property
    def discrete(self) -> bool:
        return bool(self.choices)

    @property
    def image(self) -> bool:
        return self.dtype == torch.uint8 and len(self.shape) == 3


@dataclass(frozen=True)
class Spec:
    """What networks are built for: the observation (one space, or one a key), the action, and measured statistics.

    Continuous actions are in [-1, 1] everywhere inside the library; the environment's border knows the real bounds.
    """

    obs: Space | Mapping[str, Space]
    action: Space
    statistics: Mapping[str, Any] = field(default_factory=dict)


def each(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`function` of a tensor, or of every tensor of a nested dictionary (None stays None)."""
    if isinstance(value, dict):
        return {key: each(function, entry) for key, entry in value.items()}
    return None if value is None else function(value)


def flatten(columns: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """`{"obs": {"position": x}}` becomes `{"obs/position": x}`; tensors keep their names."""
    flat: dict[str, Tensor] = {}
    for key, value in columns.items():
        flat.update(flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def unflatten(flat: Mapping[str, Tensor]) -> Columns:
    """The inverse of `flatten`."""
    columns: Columns = {}
    for key, value in flat.items():
        *path, leaf = key.split("/")
        place = columns
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = value
    return columns


def number_of_rows(columns: Columns, dim: int = 0) -> int:
    """How many rows a batch has: the length of its first column that is not 0-d. They lie along `dim`."""
    return next(value.shape[dim] for value in flatten(columns).values() if value.dim() > dim)


def pieces(columns: Columns, count: int, dim: int = 0) -> list[Columns]:
    """The batch in `count` pieces of (nearly) equal size, none of them empty; 0-d columns are in all of them."""
    count = min(count, number_of_rows(columns, dim))
    split = {k: v.tensor_split(count, dim) if v.dim() > dim else (v,) * count for k, v in flatten(columns).items()}
    return [unflatten({key: parts[i] for key, parts in split.items()}) for i in range(count)]


# Shares: what the unit of an update is. Each returns [B] or [B, T] and sums to one over the whole update; the learner
# fixes it before it splits the update into pieces, so that 1, 4 and 16 pieces give the same gradient.


def each_row(columns: Columns) -> Tensor:
    """Every row counts the same: `1 / B`. Shape [B]."""
    like = columns["weight"]
    return torch.full_like(like, 1.0 / len(like))


def each_token(mask: str) -> Share:
    """Every token (or step) where column `mask` [B, T] is set counts the same, whatever row it is in. Shape [B, T]."""

    def share(columns: Columns) -> Tensor:
        counted: Tensor = columns[mask].to(columns["weight"].dtype)
        return counted / counted.sum().clamp(min=1)

    return share


def each_answer(mask: str) -> Share:
    """Every row counts the same and divides its share among its tokens. Shape [B, T]; rows without a token count 0."""

    def share(columns: Columns) -> Tensor:
        counted: Tensor = columns[mask].to(columns["weight"].dtype)
        return counted / counted.sum(1, keepdim=True).clamp(min=1) / len(counted)

    return share


def constant_length(mask: str, length: int) -> Share:
    """Every token counts `1 / (B * length)`, however long its answer: sums to one only if all are `length` long."""

    def share(columns: Columns) -> Tensor:
        counted: Tensor = columns[mask].to(columns["weight"].dtype)
        return counted / (len(counted) * length)

    return share
