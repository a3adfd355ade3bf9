"""Ways for any replay algorithm to use experience: rows of several steps, drawn by their error, or from a dataset.

    n-step:       R = sum_{i<n} gamma^i r_{t+i},  bootstrapped from s_{t+n} with gamma^n (fewer where an episode ends)
    prioritised:  P(i) ~ (|error_i| + floor)^sharpness,  weight_i = (rows * P(i))^-correction / max_j weight_j
    prior-data:   a share of every batch comes from a dataset, the rest from what was collected

Papers: Sutton (1988) and Hessel et al., "Rainbow" (2018), for n steps; Schaul et al., "Prioritized Experience Replay"
(2016), their alpha is `sharpness`, their beta is `correction`; Ball et al., "Efficient Online Reinforcement Learning
with Offline Data" (2023), for the dataset's half.

Traps: an n-step row stops at truncation too, and bootstraps there with the right power of gamma. The rewards of a row
stay apart (`reward [B, n]`), so that a transform may replace each of them. New rows get the largest priority so far.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from palaestra.algorithm import (
    Algorithm,
    above,
    add_buffer,
    between,
    expressed,
    given_by,
    mix,
    reprioritise,
    with_layout,
)
from palaestra.data.layouts import n_steps
from palaestra.data.priorities import Proportional
from palaestra.functional.schedules import linear


@expressed
def n_step(algorithm: Algorithm, n: int = 3, buffer: str = "replay") -> Algorithm:
    """Rows of several steps, on every base whose target is `bellman`.

    Args:
        n: steps of a row; with 1 they are transitions.
        buffer: whose rows, and those of the buffers that it takes shares from.
    """
    if n < 1:
        raise ValueError(f"n-step: n is {n}; it must be at least 1")
    rows = algorithm.buffers.get(buffer)
    if rows is not None and "mask" in given_by(rows.layout):
        raise ValueError(f"n-step does not fit {algorithm}: its rows are windows of several steps already")
    for name in (buffer, *(rows.shares if rows else ())):
        algorithm = with_layout(algorithm, name, partial(n_steps, n=n))
    return algorithm


@expressed
def prioritised(
    algorithm: Algorithm,
    sharpness: float = 0.6,
    correction: float = 0.4,
    correction_steps: int = 100_000,
    floor: float = 1e-6,
    buffer: str = "replay",
) -> Algorithm:
    """Rows drawn in proportion to a power of their last error.

    Args:
        sharpness: that power, at least 0; 0 draws uniformly.
        correction: power of the importance weights at the beginning, in [0, 1].
        correction_steps: updates over which it rises linearly to 1.
        floor: added to every error, so that no row is lost.
        buffer: whose rows.
    """
    between(0, 1, correction=correction)
    above(0, correction_steps=correction_steps, floor=floor)
    if sharpness < 0:
        raise ValueError(f"prioritised: sharpness is {sharpness}; it must be at least 0")
    schedule = linear(correction, 1.0, correction_steps, of="updates")
    return reprioritise(algorithm, buffer, Proportional(sharpness, schedule, floor))


@expressed
def prior_data(algorithm: Algorithm, share: float = 0.5, buffer: str = "replay") -> Algorithm:
    """A share of every batch comes from a dataset while it learns in an environment.

    Args:
        share: of the rows of a batch, in (0, 1).
        buffer: whose batches; its layout and priorities are those of the dataset's rows too.
    """
    if "dataset" in algorithm.buffers:
        raise ValueError(f"prior-data does not fit {algorithm}: it draws from a dataset already")
    rows = replace(algorithm.buffers[buffer], shares={})
    return mix(add_buffer(algorithm, "dataset", rows), buffer, dataset=share)
