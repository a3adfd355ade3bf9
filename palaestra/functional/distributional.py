"""Distributions of returns: on fixed atoms, in bins, or by their quantiles.

Shape legend: `B` rows, `M` atoms or values of a distribution, `N` quantiles.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def atoms(low: float, high: float, like: Tensor) -> Tensor:
    """As many atoms as `like` [..., M] has entries, from `low` to `high` at equal distances: [M]."""
    return torch.linspace(low, high, like.shape[-1], dtype=like.dtype, device=like.device)


def categorical_projection(values: Tensor, probs: Tensor, support: Tensor) -> Tensor:
    """A distribution on `values` [B, M] with `probs` [B, M], on the atoms of `support` [K] instead: [B, K].

    Each value gives its mass to the two atoms next to it, the more the nearer: atom i gets
    `sum_j p_j max(1 - |y_j - z_i| / dz, 0)` (Bellemare et al. 2017, eq. 7). The mass stays 1, and the mean the same;
    but values beyond the ends count as the ends. The atoms are at equal distances, two at least.
    """
    size, low, high = len(support), support[0], support[-1]
    place = (values.clamp(low, high) - low) / (high - low) * (size - 1)
    below = place.floor().clamp(max=size - 2)  # a value on an atom gives all of its mass to it; none is lost at the top
    share = place - below
    lower = below.long()
    projected = torch.zeros((*values.shape[:-1], size), dtype=probs.dtype, device=probs.device)
    return projected.scatter_add(-1, lower, probs * (1.0 - share)).scatter_add(-1, lower + 1, probs * share)


def mean_of_atoms(logits: Tensor, support: Tensor) -> Tensor:
    """`sum_i z_i softmax(logits)_i`: [..., M] and [M] -> [...]."""
    return (logits.softmax(-1) * support).sum(-1)  # no matrix product: autocast would round that to bfloat16


def gaussian_in_bins(mean: Tensor, std: float, edges: Tensor) -> Tensor:
    """The bins' probabilities of a normal distribution, cut off at the outer of `edges` [M + 1]: [...] -> [..., M].

    `(F(e_{i+1}) - F(e_i)) / (F(e_M) - F(e_0))` (Imani and White 2018). A mean far beyond the edges leaves no
    probability to divide by: clip it first.
    """
    below = torch.erf((edges - mean.unsqueeze(-1)) / (std * 2**0.5))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """`-sum_i label_i log softmax(logits)_i`: [..., M] -> [...]."""
    return -(label * logits.log_softmax(-1)).sum(-1)


def quantile_huber(prediction: Tensor, target: Tensor, width: float = 1.0) -> Tensor:
    """`sum_i mean_j |tau_i - 1{u_ij < 0}| huber(u_ij) / width`, u_ij = target_j - prediction_i: [B, N], [B, M] -> [B].

    Dabney et al. (2018), eq. 10 and algorithm 1; `prediction` i is the quantile at tau_i = (i + 1/2) / N.
    """
    count = prediction.shape[-1]
    tau = ((torch.arange(count, dtype=prediction.dtype, device=prediction.device) + 0.5) / count).unsqueeze(-1)
    prediction, target = prediction.unsqueeze(-1), target.unsqueeze(-2)
    weight = torch.where(target < prediction, 1.0 - tau, tau)  # [B, N, M]
    gap = F.huber_loss(prediction.expand_as(weight), target.expand_as(weight), reduction="none", delta=width)
    return (weight * gap).mean(-1).sum(-1) / width
