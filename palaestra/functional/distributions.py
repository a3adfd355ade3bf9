"""Distributions of actions, by their formulas. Shape legend: `B` rows, `A` entries of an action or choices."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
LOG_TWO = math.log(2.0)


def tanh_normal(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """An action `tanh(u)`, `u = mean + exp(log_std) * noise`, and its log-density [B] (Haarnoja et al. 2018, app. C).

    All arguments are [B, A]. `log(1 - tanh(u)^2)` is taken as `2 * (log 2 - u - softplus(-2u))`, which does not
    saturate in float32. The density is that of actions in [-1, 1]: the environment's scale does not shift it.
    """
    u = torch.addcmul(mean, log_std.exp(), noise)
    squash = 2.0 * (LOG_TWO - u - F.softplus(-2.0 * u))
    log_prob = torch.add(noise.square(), log_std + squash, alpha=2.0).sum(-1) * -0.5 - HALF_LOG_TWO_PI * mean.shape[-1]
    return u.tanh(), log_prob


def only_allowed(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values or logits [..., A] with a very low number where `mask` [..., A] is false (None: all allowed).

    Finite, and so after it is multiplied, because `0 * -inf` is NaN in an expectation over actions.
    """
    if mask is None:
        return values
    return values.masked_fill(~mask.bool(), max(-1e32, torch.finfo(values.dtype).min / 4))


def categorical_sample(logits: Tensor, rng: torch.Generator | None) -> Tensor:
    """One choice [B] a row of `logits` [B, A]; the most likely one when `rng` is None (Gumbel-max otherwise)."""
    if rng is None:
        return logits.argmax(-1)
    uniform = torch.rand(logits.shape, generator=rng, device=logits.device)
    return (logits - (-uniform.clamp_min(1e-20).log()).log()).argmax(-1)
