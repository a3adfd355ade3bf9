"""Two ways for any replay algorithm to use its experience: rows of several steps, and rows drawn by their error.

    n-step:       R = sum_{i<n} gamma^i r_{t+i},  bootstrapped from s_{t+n} with gamma^n (fewer where an episode ends)
    prioritised:  P(i) ~ (|error_i| + floor)^sharpness,  weight_i = (rows * P(i))^-correction / max_j weight_j

Papers: Sutton (1988) and Hessel et al., "Rainbow" (2018), for n steps; Schaul et al., "Prioritized Experience Replay"
(2016), their alpha is `sharpness`, their beta is `correction`.

Traps: an n-step row stops at truncation too, and bootstraps there with the right power of gamma. The rewards of a row
stay apart (`reward [B, n]`), so that a transform may replace each of them. New rows get the largest priority so far.
"""

from __future__ import annotations

from functools import partial

from palaestra.algorithm import Algorithm, above, between, expressed, reprioritise, with_layout
from palaestra.data.layouts import n_steps
from palaestra.data.priorities import Proportional
from palaestra.functional.schedules import linear


@expressed
def n_step(algorithm: Algorithm, n: int = 3, buffer: str = "replay") -> Algorithm:
    """Rows of several steps, on every base whose target is `bellman`.

    Args:
        n: steps of a row; with 1 they are transitions.
        buffer: whose rows.
    """
    if n < 1:
        raise ValueError(f"n-step: n is {n}; it must be at least 1")
    return with_layout(algorithm, buffer, partial(n_steps, n=n))


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
