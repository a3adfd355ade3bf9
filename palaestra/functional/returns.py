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
    goes_on = (~(terminated | truncated)).to(delta.dtype)
    advantage = torch.zeros_like(delta)
    following = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        following = delta[t] + gamma * lam * goes_on[t] * following
        advantage[t] = following
    return advantage
