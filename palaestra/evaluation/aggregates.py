"""Raw scores to one number, and how sure one can be of it.

Scores are [runs] (one task) or [runs, tasks], with any leading axes before them, which are kept; a run is one seed.
Every aggregate is NaN when there is no score or one is NaN: a failed run must not vanish from a mean.

Source: Agarwal, Schwarzer, Castro, Courville and Bellemare, "Deep reinforcement learning at the edge of the statistical
precipice" (2021). Agrees with its library, rliable, where both define a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
AT_ONCE = 4_000_000  # numbers of resampled scores: what bounds the memory of a bootstrap


class Interval(NamedTuple):
    """A statistic of the data, and the bounds of its confidence interval: of the statistic's shape each."""

    estimate: Array
    low: Array
    high: Array


def interquartile_mean(scores: ArrayLike) -> Array:
    """The mean without the lowest and the highest floor(n / 4) of all n scores, runs and tasks together."""
    ordered = np.sort(_pooled(scores), axis=-1)  # NaN last
    count = ordered.shape[-1]
    if not count:
        return np.full(ordered.shape[:-1], np.nan)
    middle = ordered[..., count // 4 : count - count // 4].mean(axis=-1)
    return np.where(np.isnan(ordered[..., -1]), np.nan, middle)


def optimality_gap(scores: ArrayLike, target: float = 1.0) -> Array:
    """The mean of how far scores fall short of `target`: max(0, target - score)."""
    pooled = _pooled(scores)
    return np.maximum(0, target - pooled).mean(axis=-1) if pooled.shape[-1] else np.full(pooled.shape[:-1], np.nan)


def probability_of_improvement(left: ArrayLike, right: ArrayLike) -> Array:
    """The probability that a run of `left` is better than one of `right`, ties counting half; the mean over tasks.

    Numbers of runs may differ, tasks may not.
    """
    difference = _table(left)[..., :, None, :] - _table(right)[..., None, :, :]
    return (np.sign(difference) / 2 + 0.5).mean(axis=(-3, -2, -1))


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Array:
    """The share of scores above each threshold [..., thresholds]."""
    pooled = _pooled(scores)[..., None]
    above = np.where(np.isnan(pooled), np.nan, pooled > np.asarray(thresholds, dtype=float))
    return above.mean(axis=-2)


def sample_efficiency(curves: ArrayLike, aggregate: Callable[[Array], Array] = interquartile_mean) -> Array:
    """The aggregate at each point of a grid that all curves share; `curves` [..., runs, tasks, points], returns points.

    One task: `curves[:, None]`. Bring curves to one grid with `measures.interpolated`.
    """
    curves = np.asarray(curves, dtype=float)
    if curves.ndim < 3:
        raise ValueError(f"curves has shape {curves.shape}: give [runs, tasks, points], with one task curves[:, None]")
    return aggregate(np.moveaxis(curves, -1, -3))


def bootstrap(
    statistic: Callable[..., Array],
    *samples: ArrayLike,
    repetitions: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """Percentile interval of `statistic(*samples)`, resampling the runs of each task, and each sample, by themselves.

    With few runs it is too narrow: of 95 % intervals of the interquartile mean of normal scores, 74 % held the truth
    with 3 runs, 89 % with 5 and 94 % with 10.

    Args:
        statistic: keeps leading axes, as all aggregates here do.
        samples: [runs], [runs, tasks] or [runs, tasks, ...], such as curves.

    Raises:
        ValueError: a sample without runs, or a confidence outside of (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: give a probability between 0 and 1, for example 0.95")
    tables = [_table(sample) if np.ndim(sample) < 3 else np.asarray(sample, dtype=float) for sample in samples]
    for place, table in enumerate(tables):
        if not table.size:
            raise ValueError(f"samples[{place}] has shape {table.shape}: give at least one run")
    pieces = -(-repetitions * max(table.size for table in tables) // AT_ONCE)
    counts = [len(piece) for piece in np.array_split(np.arange(repetitions), min(pieces, repetitions))]
    drawn = np.concatenate([statistic(*(_resampled(table, count, rng) for table in tables)) for count in counts])
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Interval(*map(np.asarray, (statistic(*tables), low, high)))


def _resampled(table: Array, count: int, rng: np.random.Generator) -> Array:
    """[count, runs, tasks, ...]: in each task as many runs as there were, drawn with replacement."""
    runs, tasks = table.shape[:2]
    return table[rng.integers(runs, size=(count, runs, tasks)), np.arange(tasks)]


def _table(scores: ArrayLike) -> Array:
    """[..., runs, tasks]"""
    table: Array = np.asarray(scores, dtype=float)
    if table.ndim == 0:
        raise ValueError("scores is one number: give [runs] or [runs, tasks]")
    return table[:, None] if table.ndim == 1 else table


def _pooled(scores: ArrayLike) -> Array:
    """[..., runs * tasks]"""
    table = _table(scores)
    return table.reshape(*table.shape[:-2], table.shape[-2] * table.shape[-1])
