"""What a value is regressed on, and how far off it is.

Shape legend: `B` rows, `n` rewards of an n-step row, `E` members of an ensemble.
"""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_sum(reward: Tensor, gamma: float) -> Tensor:
    """`sum_i gamma^i reward_i` over the last axis: [B, n] -> [B]; a row's rewards after its end must be zero."""
    powers = gamma ** torch.arange(reward.shape[-1], device=reward.device, dtype=reward.dtype)
    return (reward * powers).sum(-1)


def bellman(reward: Tensor, terminated: Tensor, value: Tensor, gamma: float, steps: Tensor | None = None) -> Tensor:
    """`r + gamma * (1 - terminated) * value` (Sutton and Barto 2018, eq. 4.4), or its n-step form. Shape [B].

    `reward` is [B], or [B, n] with `steps` [B] rewards each (zero after that); `value` [B] is of the state behind the
    last of them, or [B, M] for M values of a distribution, and the result as well. Truncated episodes bootstrap: only
    `terminated` cuts.
    """
    live = (~terminated).to(value.dtype)
    if steps is not None:
        reward, live, gamma = discounted_sum(reward, gamma), gamma ** steps.to(value.dtype) * live, 1.0
    if value.dim() > live.dim():
        reward, live = reward.unsqueeze(-1), live.unsqueeze(-1)
    return torch.addcmul(reward, live, value, value=gamma)


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    """`(prediction - target)^2`, summed over the ensemble's axis: [E, B] and [B] -> [B]; [B] and [B] -> [B]."""
    gap = (prediction - target).square()
    return gap.sum(0) if gap.dim() > 1 else gap


def half_squared(prediction: Tensor, target: Tensor) -> Tensor:
    """`(prediction - target)^2 / 2`, entry by entry."""
    return 0.5 * (prediction - target).square()


def huber(prediction: Tensor, target: Tensor, width: float = 1.0) -> Tensor:
    """Huber's loss (1964): quadratic within `width`, linear beyond; summed over the ensemble's axis as `squared`."""
    gap = torch.nn.functional.huber_loss(prediction, target.expand_as(prediction), reduction="none", delta=width)
    return gap.sum(0) if gap.dim() > 1 else gap
