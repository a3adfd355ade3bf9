"""How far one distribution is from another: estimates from samples, the exact number, and rewards that bring it down.

Two directions have names here: forward is `D(p || pi)`, from the target to the policy, and reverse `D(pi || p)`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from palaestra.functional.distributions import LOG_TWO, Categorical

# Estimates of KL(pi || ref) from samples of pi: functions of `log_ratio` l = log pi - log ref, of tokens [B, T] or of
# whole answers [B], in nats (Schulman, "Approximating KL Divergence", 2020).


def k1(log_ratio: Tensor) -> Tensor:
    """`l`: unbiased, of either sign and noisy. For rewards: as a loss, its gradient is zero on average."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """`l^2 / 2`: biased, but its gradient `l grad log pi` is that of KL(pi || ref) on average."""
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor) -> Tensor:
    """`exp(-l) - 1 + l`: unbiased and never negative; infinite in float32 below `l` = -88.

    As a loss, its gradient `(1 - exp(-l)) grad log pi` is that of KL(ref || pi) on average: see `k3_with_k2_gradient`.
    """
    return torch.expm1(-log_ratio) + log_ratio


def k3_with_k2_gradient(log_ratio: Tensor) -> Tensor:
    """The value of `k3` and the gradient of `k2`: unbiased both, on average, for KL(pi || ref)."""
    straight = k2(log_ratio)
    return k3(log_ratio.detach()) + (straight - straight.detach())


def exact_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """`KL(p || q) = sum_v p_v (log p_v - log q_v)` of softmaxes, in nats: [..., V] and [..., V] -> [...]."""
    return Categorical(logits_p.log_softmax(-1)).kl(Categorical(logits_q.log_softmax(-1)))


# Rewards of f-DPG (Go et al., "Aligning Language Models with Preferences through f-divergence Minimization", 2023). For
# a convex f with f(1) = 0, the gradient of D_f = E_p[f(pi / p)] is E_pi[f'(t) grad log pi], t = pi / p: that of a
# policy whose reward is -f'(t). Each is a function of `log_t` [B] = log pi - (log P - log Z), in nats and without
# gradient, and is held within +-LARGEST_REWARD. An answer that the target rules out (P = 0) has the lowest reward there
# is in the reverse directions, so that log P = -50 or so serves them better than -inf; the others bound it themselves.

LARGEST_REWARD = 1_000.0


def _held(reward: Tensor) -> Tensor:
    return reward.clamp(-LARGEST_REWARD, LARGEST_REWARD)


def forward_kl_reward(log_t: Tensor) -> Tensor:
    """`1 / t`, for KL(p || pi) with `f = -log t`: [B]. The reward of DPG and GDC; in (0, LARGEST_REWARD]."""
    return _held((-log_t).exp())


def reverse_kl_reward(log_t: Tensor) -> Tensor:
    """`-(log t + 1)`, for KL(pi || p) with `f = t log t`: [B]. Z only shifts it, which a baseline takes away."""
    return _held(-log_t - 1.0)


def jensen_shannon_reward(log_t: Tensor) -> Tensor:
    """`-log(2 t / (1 + t))`, for `KL(pi || m) + KL(p || m)`, `m = (pi + p) / 2`: [B], at least -log 2.

    That is twice the Jensen-Shannon divergence: `f = t log t - (t + 1) log((t + 1) / 2)`.
    """
    return _held(F.softplus(-log_t) - LOG_TWO)


def total_variation_reward(log_t: Tensor) -> Tensor:
    """`-sign(log t) / 2`, for the total variation with `f = |t - 1| / 2`: [B]."""
    return -0.5 * log_t.sign()


def forward_chi_squared_reward(log_t: Tensor) -> Tensor:
    """`1 / t^2 - 1`, for chi^2(p || pi) = sum (p - pi)^2 / pi with `f = (1 - t)^2 / t`: [B], at least -1."""
    return _held(torch.expm1(-2.0 * log_t))


def reverse_chi_squared_reward(log_t: Tensor) -> Tensor:
    """`-2 (t - 1)`, for chi^2(pi || p) = sum (pi - p)^2 / p with `f = (t - 1)^2`: [B], at most 2."""
    return _held(-2.0 * torch.expm1(log_t))
