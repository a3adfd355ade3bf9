"""Distributions of actions, by their formulas. Shape legend: `B` rows, `A` entries of an action or choices."""

from __future__ import annotations

import math
from typing import NamedTuple

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


def categorical_by(noise: Tensor, log_probs: Tensor) -> Tensor:
    """One choice [B] a row of `log_probs` [B, K], by standard normal `noise` [B]: where its quantile Phi(noise) falls.

    For terms, whose noise is drawn outside. As the quantile grows, the choice goes from the first to the last.
    """
    bounds = log_probs.exp().cumsum(-1)[..., :-1]  # the last one's is 1, but for rounding
    quantile = 0.5 * torch.erfc(noise * -(0.5**0.5))  # torch.special.ndtr is 0 below -5.4
    choice: Tensor = (bounds < quantile.unsqueeze(-1)).sum(-1)
    return choice


class Normal(NamedTuple):
    """A normal distribution of `A` independent numbers, not squashed: `mean` and `log_std` are [..., A]."""

    mean: Tensor
    log_std: Tensor

    def sample(self, rng: torch.Generator | None) -> Tensor:
        """An action [..., A]; the mean when `rng` is None."""
        if rng is None:
            return self.mean
        noise = torch.randn(self.mean.shape, generator=rng, device=self.mean.device)
        return torch.addcmul(self.mean, self.log_std.exp(), noise)

    def log_prob(self, action: Tensor) -> Tensor:
        """`-sum((action - mean)^2 / (2 std^2) + log std + log(2 pi) / 2)`: [...]."""
        gap = ((action - self.mean) * (-self.log_std).exp()).square()
        return torch.add(self.log_std, gap, alpha=0.5).sum(-1).neg() - HALF_LOG_TWO_PI * action.shape[-1]

    def entropy(self) -> Tensor:
        """`sum(log std + (1 + log(2 pi)) / 2)`, in nats: [...]."""
        return self.log_std.sum(-1) + (0.5 + HALF_LOG_TWO_PI) * self.mean.shape[-1]

    def kl(self, other: Normal) -> Tensor:
        """KL(self || other), `sum(log s2 - log s1 + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2)`, in nats: [...]."""
        gap = ((2 * self.log_std).exp() + (self.mean - other.mean).square()) * (-2 * other.log_std).exp()
        return (other.log_std - self.log_std + 0.5 * (gap - 1)).sum(-1)


class Categorical(NamedTuple):
    """One choice out of `A` by its log-probabilities [..., A]."""

    log_probs: Tensor

    def sample(self, rng: torch.Generator | None) -> Tensor:
        """A choice [...]; the most likely one when `rng` is None."""
        return categorical_sample(self.log_probs, rng)

    def log_prob(self, action: Tensor) -> Tensor:
        """The chosen log-probability: [...]."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """`-sum_a p(a) log p(a)`, in nats: [...]. A choice that is not allowed adds nothing."""
        return (self.log_probs.exp() * self.log_probs).sum(-1).neg()

    def kl(self, other: Categorical) -> Tensor:
        """KL(self || other), `sum_a p(a) (log p(a) - log q(a))`, in nats: [...]."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)
