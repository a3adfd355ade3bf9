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
