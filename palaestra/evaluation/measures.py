"""A learning curve to one number: steps [n], increasing, and the values measured there [n]."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def auc(steps: ArrayLike, values: ArrayLike) -> float:
    """The area under the curve divided by its width: the mean height, in the unit of the values.

    Trapezoids between the points; of one point its value. It rewards learning early, where `final` does not.
    """
    steps, values = _curve(steps, values)
    if len(steps) == 1:
        return float(values[0])
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def final(steps: ArrayLike, values: ArrayLike) -> float:
    """The last value."""
    return float(_curve(steps, values)[1][-1])


def best(steps: ArrayLike, values: ArrayLike) -> float:
    """The highest value: optimistic, the more so the noisier the values and the more of them there are."""
    return float(_curve(steps, values)[1].max())


MEASURES: Mapping[str, Callable[[ArrayLike, ArrayLike], float]] = {"auc": auc, "final": final, "best": best}


def interpolated(steps: ArrayLike, values: ArrayLike, grid: ArrayLike) -> Array:
    """The curve at the points of `grid`, linear between its own; NaN before the first and after the last."""
    steps, values = _curve(steps, values)
    return np.interp(np.asarray(grid, dtype=float), steps, values, left=np.nan, right=np.nan)


def _curve(steps: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if steps.ndim != 1 or steps.shape != values.shape or not len(steps):
        raise ValueError(f"steps has shape {steps.shape}, values {values.shape}: give one value a step, at least one")
    if not (np.diff(steps) > 0).all():
        raise ValueError("steps do not increase: sort the curve and keep one value a step")
    if np.isnan(values).any():
        where = steps[np.isnan(values)][0]
        raise ValueError(f"values are NaN at step {where:g}: leave out what was not measured, or score a failed run")
    return steps, values
