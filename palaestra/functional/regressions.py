"""Regressions on more than the mean: rows of an error `target - prediction`, any shape."""

from __future__ import annotations

import torch
from torch import Tensor


def expectile(error: Tensor, share: float = 0.7) -> Tensor:
    """`|share - 1{error < 0}| error^2`, entry by entry (Newey and Powell 1987): half a square where `share` is 0.5.

    What minimises it is the mean for 0.5, and goes to the largest target as `share` goes to 1.
    """
    return torch.where(error < 0, 1.0 - share, share) * error.square()


def gumbel_regression(error: Tensor, max_clip: float = 7.0) -> Tensor:
    """`(e^z - z - 1) e^-m`, `z = min(error, max_clip)`, `m = max(max z, -1)` without gradient: entry by entry.

    Garg et al. (2023). Where `error` is `(target - prediction) / temperature`, what minimises it is
    `temperature * log mean exp(target / temperature)`. The division by `e^m` moves no minimum and keeps every number
    finite, whatever the error. An error beyond `max_clip` has no gradient any more.
    """
    z = error.clamp(max=max_clip)
    m = z.detach().amax().clamp(min=-1.0)
    return (z - m).exp() - z * (-m).exp() - (-m).exp()


def total_variation_regression(error: Tensor, share: float = 0.8) -> Tensor:
    """`share max(error, 0) - (1 - share) error`, entry by entry (Sikchi et al. 2024): for `share` in (0.5, 1).

    It is `share` times the loss of quantile regression: what minimises it is the `(2 share - 1) / share` quantile of
    the targets, their largest as `share` goes to 1. With 0.5 or less nothing holds it up, with 1 nothing down.
    """
    return share * error.clamp(min=0.0) - (1.0 - share) * error


def chi_squared_regression(error: Tensor, share: float = 0.7) -> Tensor:
    """`share (u + u^2 / 4) - (1 - share) error`, `u = max(error, 0)`, entry by entry (Sikchi et al. 2024).

    What minimises it is where the mean of `(1 + error / 2) 1{error > 0}` is `(1 - share) / share`, for `share` in
    (0, 1): the largest target as it goes to 1. Small errors count as in `total_variation_regression`.
    """
    up = error.clamp(min=0.0)
    return share * (up + 0.25 * up.square()) - (1.0 - share) * error
