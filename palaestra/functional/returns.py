"""Returns and advantages of rollouts. Shape legend: `T` steps, `N` environments; time comes first."""

from __future__ import annotations

import torch
from torch import Tensor


def generalised_advantage(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float = 0.99,
    lam: float = 0.95,
) -> Tensor:
    """`A_t = delta_t + gamma * lambda * A_{t+1}` within an episode (Schulman et al. 2016, eq. 16). All are [T, N].

    `delta_t = r_t + gamma * (1 - terminated_t) * next_value_t - value_t`, where `next_value` is of the observation
    that the step led to: the final one at an episode's end, so that a truncated episode bootstraps.
    """
    delta = reward + gamma * next_value * ~terminated - value
    carried = gamma * lam * (~(terminated | truncated)).to(delta.dtype)
    following = torch.zeros_like(delta[0])
    advantage = []
    for error, factor in zip(reversed(delta.unbind()), reversed(carried.unbind()), strict=True):
        following = torch.addcmul(error, factor, following)  # one small operation a step is what this costs
        advantage.append(following)
    return torch.stack(advantage[::-1])


def discounted_so_far(reward: Tensor, first: Tensor, before: Tensor, gamma: float = 0.99) -> Tensor:
    """`G_t = r_t + gamma * G_{t-1}` within an episode: what it has paid so far, [T, N]. The past counts less.

    `reward` and `first` (the step begins an episode) are [T, N]; `before` [N] is the last row of the steps before.
    """
    carried = gamma * (~first).to(reward.dtype)
    total, totals = before, []
    for paid, factor in zip(reward.unbind(), carried.unbind(), strict=True):
        total = torch.addcmul(paid, factor, total)
        totals.append(total)
    return torch.stack(totals)
