"""How much of what can be seen and done a dataset holds: different state-action pairs, and repeated transitions.

Coverage u(D) is the number of different (s, a). Against a reference, by the same cells and limits for both:

    SACo(D) = u(D) / u(reference)        lSACo(D) = log u(D) / log u(reference)

Schweighofer, Dinu, Radler, Hofmarcher, Patil, Bitto-Nemling, Eghbal-zadeh, Hochreiter, "A Dataset Perspective on
Offline Reinforcement Learning", 2022. Card: dataset-perspective. Traps: SACo compares only datasets of one size with
one reference; the measure is stated for deterministic environments.

Differs from the paper: pairs are counted exactly, not by HyperLogLog; and in many dimensions every pair is a bin of its
own, so that from `MANY` on random projections tell pairs apart (SimHash: Charikar, "Similarity Estimation Techniques
from Rounding Algorithms", 2002).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from palaestra.data.dataset import Dataset, DatasetError

BINS = 100  # edges a dimension
MANY = 8  # dimensions in which 100 bins each have no meaning any more
BITS = 16  # of SimHash: 65,536 cells
SATURATED = 0.9

_BLOCK = 1 << 24  # bytes of a column that are looked at together

Cells = Callable[[np.ndarray], np.ndarray]


def blocks(dataset: Dataset, *names: str, shift: int = 0) -> Iterator[list[np.ndarray]]:
    """Columns of all steps, some steps at a time; with `shift=1`, of the slots that follow them."""
    slots = np.flatnonzero(dataset.is_step) + shift
    widest = max(dataset.columns[name][:1].nbytes for name in names)
    size = max(1, _BLOCK // max(1, widest))
    for begin in range(0, len(slots), size):
        yield [np.asarray(dataset.columns[name][slots[begin : begin + size]]) for name in names]


def unique(parts: Iterable[Sequence[np.ndarray]]) -> int:
    """How many different rows there are in blocks of columns [n, ...]: bit for bit, as far as 128-bit digests tell."""
    seen: set[bytes] = set()
    for columns in parts:
        flat = [np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8) for column in columns]
        seen.update(blake2b(row, digest_size=16).digest() for row in np.concatenate(flat, 1))
    return len(seen)


def duplicates(dataset: Dataset) -> float:
    """The share of transitions (s, a, r, s', terminated) that repeat an earlier one, bit for bit, in [0, 1)."""
    now, then = (*dataset.obs_names, "action", "reward", "terminated"), dataset.obs_names
    both = zip(blocks(dataset, *now), blocks(dataset, *then, shift=1), strict=True)
    return 1 - unique([*here, *after] for here, after in both) / dataset.steps


def coverage(dataset: Dataset, reference: Dataset | None = None) -> dict[str, Any]:
    """Different state-action pairs, how they are told apart, and SACo and lSACo where there is a reference.

    Whole numbers (choices, images) are told apart exactly, real ones by cells between the limits of the reference, or
    of the dataset itself. `saturated` says that nearly every step, or every cell, counts once: such a number is a size.
    """
    against = reference or dataset
    how, cells, most = _cells(dataset, against)
    found = _count(dataset, cells)
    result: dict[str, Any] = {"unique": found, "how": how, "limits": "reference" if reference else "itself"}
    result["saturated"] = found >= SATURATED * min(dataset.steps, most) and how != "exact"
    if reference is not None:
        whole = _count(reference, cells)
        log = math.log(found) / math.log(whole) if whole > 1 else None
        result["reference"] = {"unique": whole, "steps": reference.steps, "hash": reference.hash}
        result |= {"saco": found / whole, "lsaco": log}
    return result


def _count(dataset: Dataset, cells: Cells) -> int:
    def told_apart(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
        real = [column.reshape(len(column), -1) for column in columns if column.dtype.kind == "f"]
        rest = [column for column in columns if column.dtype.kind != "f"]
        return [*rest, cells(np.concatenate(real, 1))] if real else rest

    return unique(map(told_apart, blocks(dataset, *dataset.obs_names, "action")))


def _cells(dataset: Dataset, reference: Dataset) -> tuple[str, Cells, float]:
    """How real numbers [n, d] are made whole ones, in words and as a function, and how many cells that makes."""
    names = [*dataset.obs_names, "action"]
    for name in names:
        ours, theirs = dataset.columns[name], reference.columns.get(name)
        if theirs is None or (ours.shape[1:], ours.dtype) != (theirs.shape[1:], theirs.dtype):
            kind = "absent" if theirs is None else f"{theirs.dtype} {list(theirs.shape[1:])}"
            right = f"{ours.dtype} {list(ours.shape[1:])}"
            raise DatasetError(f"{name!r} is {kind} in the reference and {right} here: give one of this environment")
    real = [name for name in names if dataset.columns[name].dtype.kind == "f"]
    if not real:
        return "exact", np.asarray, math.inf
    flat = [np.concatenate([c.reshape(len(c), -1) for c in part], 1) for part in blocks(reference, *real)]
    dimensions = flat[0].shape[1]
    if dimensions < MANY:
        low, high = np.min([x.min(0) for x in flat], 0), np.max([x.max(0) for x in flat], 0)
        edges = np.linspace(low, high, BINS).T
        words = f"{BINS} bins in each of {dimensions} dimensions"
        return words, lambda x: _binned(x, edges), math.inf
    everything = np.concatenate(flat)
    middle, spread = everything.mean(0, np.float64), everything.std(0, dtype=np.float64)
    # One matrix for all datasets: what it is does not matter, that it is the same does.
    directions = np.random.default_rng(0).standard_normal((dimensions, BITS)) / np.maximum(spread, 1e-8)[:, None]
    words = f"signs of {BITS} random projections, since there are {dimensions} dimensions"
    return words, lambda x: np.packbits((x - middle) @ directions > 0, axis=1), 2.0**BITS


def _binned(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.stack([np.digitize(*pair) for pair in zip(x.T, edges, strict=True)], 1).astype(np.uint8)
