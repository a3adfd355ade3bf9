"""Batches whose rows come from several buffers in fixed shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Clock
from palaestra.batch import Columns, flatten, unflatten
from palaestra.data.fixed import Fixed
from palaestra.data.replay import Replay

Rows = Replay | Fixed


def counts(replays: Mapping[str, Rows], name: str, n: int) -> dict[str, int]:
    """How many of `n` rows of stream `name` come from which buffer, its own first.

    As long as nothing was kept in its own, the first of the others gives those rows too.
    """
    shares = replays[name].buffer.shares
    others = {other: round(n * share) for other, share in shares.items()}
    own = n - sum(others.values())
    if others and not replays[name].rows.all():
        first, *_ = others
        return {**others, first: others[first] + own}
    return {name: own, **others}


def sample(
    replays: Mapping[str, Rows], name: str, n: int, rng: Generator | Sequence[Generator], clock: Clock
) -> Columns:
    """A batch of `n` rows (of every seed) of stream `name`: the columns that all of its sources have."""
    sources = counts(replays, name, n)
    for source in sources:
        if not replays[source].rows.all():
            raise ValueError(f"buffer {source!r} is empty: nothing was kept in it before the first update")
    if len(sources) == 1:
        return replays[next(iter(sources))].sample(n, rng, clock)
    parts = [flatten(replays[source].sample(count, rng, clock)) for source, count in sources.items()]
    common = [key for key in parts[0] if all(key in part for part in parts)]
    dim = int(replays[name].seeds > 1)
    return unflatten({key: torch.cat([part[key] for part in parts], dim) for key in common})


def feed_back(replays: Mapping[str, Rows], name: str, index: Tensor, error: Tensor) -> None:
    """Tell each source how far off its rows were: `index` and `error` [B] (or [S, B]) of a batch that `sample` drew."""
    begin = 0
    for source, count in counts(replays, name, index.shape[-1]).items():
        rows = (..., slice(begin, begin + count))
        replays[source].update(index[rows], error[rows])
        begin += count
