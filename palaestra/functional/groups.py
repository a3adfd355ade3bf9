"""Rewards beside those of their group: the answers to one prompt, the samples of one start.

Shape legend: `B` rows. `reward` is [B], and `group` [B] int64: any numbers, equal within a group, whose rows may lie
anywhere in the batch and need not be as many as another's. All results are [B]. A group must be whole, so these come
before rows are split. The row of a group of one has nothing to be compared with: its advantage is 0 (verl's is its raw
reward).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _begin(group: Tensor) -> Tensor:
    """Where a row's group begins once rows are sorted by group, [B] in [0, B): a number for each group, traceable."""
    return torch.searchsorted(group.sort().values, group.contiguous())


def _total(values: Tensor, group: Tensor) -> Tensor:
    """The sum of `values` [B] over the group of each row."""
    place = _begin(group)
    return torch.zeros_like(values).index_add(0, place, values)[place]


def group_size(group: Tensor) -> Tensor:
    """How many rows the group has: int64, 1 at least."""
    return _total(torch.ones_like(group), group)


def group_mean(reward: Tensor, group: Tensor) -> Tensor:
    """The mean reward of the group."""
    return _total(reward, group) / group_size(group)


def group_std(reward: Tensor, group: Tensor) -> Tensor:
    """The standard deviation of the group's rewards, unbiased (divided by one less than they are); 1 in a group of one.

    Not for gradients: that of a root is infinite at 0, where all of a group are equal.
    """
    size = group_size(group)
    variance = _total(centred(reward, group).square(), group) / (size - 1).clamp(min=1)
    return torch.where(size == 1, 1.0, variance.sqrt())


def centred(reward: Tensor, group: Tensor) -> Tensor:
    """`r - mean of the group`: Dr. GRPO's advantage (Liu et al. 2025), which goes with a share of constant length."""
    return reward - group_mean(reward, group)


def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """`r - mean of the others of the group`, as `n / (n - 1) (r - mean)`: RLOO (Ahmadian et al. 2024)."""
    size = group_size(group)
    return centred(reward, group) * size / (size - 1).clamp(min=1)


def standardised(reward: Tensor, group: Tensor, eps: float = 1e-6) -> Tensor:
    """`(r - mean) / (std + eps)` within the group: GRPO's advantage (Shao et al. 2024).

    `eps` is verl's; TRL has 1e-4. All rewards equal: 0, but for a rounding of the mean, divided by `eps`.
    """
    return centred(reward, group) / (group_std(reward, group) + eps)


def batch_standardised(reward: Tensor, group: Tensor, eps: float = 1e-6) -> Tensor:
    """`(r - mean of the group) / (std of the batch + eps)`: a group whose rewards differ more counts more.

    The deviation is that of the raw rewards, unbiased, as where TRL scales rewards by "batch"; the REINFORCE++ baseline
    (Hu et al. 2025) takes that of the centred ones.
    """
    return centred(reward, group) / (group_std(reward, torch.zeros_like(group)) + eps)


def length_weighted_baseline(reward: Tensor, group: Tensor, length: Tensor) -> Tensor:
    """`sum_j length_j r_j / sum_j length_j` over the group: OPO's baseline (Hao et al. 2025), taken from `r`.

    `length` [B], above 0, is an answer's number of tokens: it stands for the squared norm of the answer's gradient.
    """
    weight = length.to(reward.dtype)
    return _total(weight * reward, group) / _total(weight, group)


def passing(reward: Tensor, group: Tensor, threshold: float = 0.0) -> Tensor:
    """The share of the group whose reward is above `threshold`, in [0, 1]: how easy its prompt is."""
    return group_mean((reward > threshold).to(reward.dtype), group)


def rank(reward: Tensor, group: Tensor, noise: Tensor) -> Tensor:
    """The place within the group, int64: 0 for the highest reward, of equal ones for that with more `noise` [B]."""
    order = noise.argsort(descending=True)
    order = order[reward[order].argsort(descending=True, stable=True)]
    order = order[group[order].argsort(stable=True)]  # by group, then by reward, then by noise
    return order.argsort() - _begin(group)


def group_spread(reward: Tensor, group: Tensor) -> Tensor:
    """What the best of the group earned more than the worst: 0 where all earned the same, and only there."""
    place = _begin(group)
    highest, lowest = (
        torch.zeros_like(reward).scatter_reduce(0, place, reward, how, include_self=False) for how in ("amax", "amin")
    )
    return (highest - lowest)[place]
