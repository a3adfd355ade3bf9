"""Columns of tokens: means, returns, advantages and ratios of the tokens that count.

Shape legend: `B` answers, `T` tokens. Columns are [B, T]; `mask` [B, T] is bool, true for the tokens that count: those
that the policy wrote, the first end-of-text among them. It may have gaps (what a tool or a user said), which are left
out as if the tokens on either side were neighbours. To what takes a mask it does not matter what a column holds where
the mask is false, NaN included, and results are 0 there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from palaestra.functional.returns import generalised_advantage

LARGEST_RATIO = math.exp(20.0)  # float32 overflows at e^89, and there infinity times zero is a NaN gradient


# Means ----------------------------------------------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """The mean of what counts, 0 of nothing: over all of the batch, 0-d, or along `dim` (1: of each answer, [B]).

    For a loss use shares instead of the mean over all: they stay right when an update is split.
    """
    return values.masked_fill(~mask, 0.0).sum(dim) / mask.sum(dim).clamp(min=1)


def masked_whitened(values: Tensor, mask: Tensor) -> Tensor:
    """`(v - mean) / sqrt(variance + 1e-8)` over all that counts in the batch, its variance biased: [B, T].

    For advantages (Huang et al., "The N Implementation Details of RLHF with PPO", 2024); before a rollout is split.
    """
    gap = values - masked_mean(values, mask)
    return (gap * (masked_mean(gap.square(), mask) + 1e-8).rsqrt()).masked_fill(~mask, 0.0)


def at_last(mask: Tensor, value: Tensor) -> Tensor:
    """`value` [B] at the last token that counts and 0 elsewhere: [B, T]. An answer's score as rewards of its tokens."""
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    return torch.where(last, value.unsqueeze(1), 0.0)


# Macro actions --------------------------------------------------------------------------------------------------------
# A macro action is a run of tokens that is judged as one action (Chai et al., "MA-RLHF: Reinforcement Learning from
# Human Feedback with Macro Actions", 2025). `macro` [B, T] int64 says which one a token belongs to: those of an answer
# are numbered from 0 in their order, with no number left out; any number in [0, T) where the mask is false.


def macro_ids(mask: Tensor, length: int) -> Tensor:
    """The macro of each token where one ends after every `length` (1 or more) tokens that count: [B, T] int64.

    1 makes every token an action; the longest answer's length or more makes the answer one, as in a bandit.
    """
    return torch.div(mask.cumsum(1) - 1, length, rounding_mode="floor").clamp(min=0)


def macros_from(begins: Tensor, mask: Tensor) -> Tensor:
    """The macro of each token where one begins at every token of `begins` [B, T] bool, and at the first: [B, T] int64.

    What `begins` holds where the mask is false does not matter.
    """
    place = mask.cumsum(1)
    return ((begins | (place == 1)) & mask).cumsum(1).sub(1).clamp(min=0)


def _by_macro(values: Tensor, macro: Tensor, mask: Tensor) -> Tensor:
    """The sum over macro m of an answer at place m, [B, T]; 0 behind the last one."""
    return torch.zeros_like(values).scatter_add(1, macro, values.masked_fill(~mask, 0.0))


def macro_sum(values: Tensor, macro: Tensor, mask: Tensor) -> Tensor:
    """The sum of `values` over a token's macro, at each of its tokens: [B, T]. Of log-ratios: the macro's log-ratio."""
    return _by_macro(values, macro, mask).gather(1, macro).masked_fill(~mask, 0.0)


def macro_mean(values: Tensor, macro: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` over a token's macro, at each of its tokens: [B, T]. Of values: the macro's value."""
    return macro_sum(values, macro, mask) / macro_sum(torch.ones_like(values), macro, mask).clamp(min=1)


def macro_advantage(
    reward: Tensor, value: Tensor, macro: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> Tensor:
    """Generalised advantages of macro actions, at each of their tokens: [B, T].

    `delta_w = R_w + gamma V_{w+1} - V_w` and `A_w = delta_w + gamma lam A_{w+1}`, where `R_w` is the sum of a macro's
    rewards, `V_w` the mean of its tokens' values and V behind the last one 0 (Chai et al. 2025). A macro is one step of
    `gamma`. A value is of the prefix *before* its token. The critic's target is this plus the `macro_mean` of values.

    Differs from the paper's code: rewards are summed, not averaged, so that a penalty a token is as large as without
    macros, and a score keeps its size wherever it lies.
    """
    paid = _by_macro(reward, macro, mask)
    size = _by_macro(torch.ones_like(value), macro, mask)
    worth = _by_macro(value, macro, mask) / size.clamp(min=1)
    following = torch.cat([worth[:, 1:], torch.zeros_like(worth[:, :1])], 1)
    never = torch.zeros_like(mask)  # behind the last macro everything is 0, which is how an answer ends
    advantage = generalised_advantage(paid.mT, worth.mT, following.mT, never.mT, never.mT, gamma, lam).mT
    return advantage.gather(1, macro).masked_fill(~mask, 0.0)


# Tokens ---------------------------------------------------------------------------------------------------------------


def token_advantage(reward: Tensor, value: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """`A_t = delta_t + gamma lam A_{t+1}`, `delta_t = r_t + gamma V_{t+1} - V_t`, t + 1 the next that counts: [B, T].

    Schulman et al. (2016), eq. 16: macros of one token. V behind the last token is 0; `value` is of the prefix before
    its token.
    """
    return macro_advantage(reward, value, macro_ids(mask, 1), mask, gamma, lam)


def discounted_to_go(reward: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """`G_t = r_t + gamma G_{t+1}`, t + 1 the next token that counts: [B, T]. An advantage without values, `lam` 1."""
    return token_advantage(reward, torch.zeros_like(reward), mask, gamma, 1.0)


def discounted_future(loss: Tensor, mask: Tensor, gamma: float = 0.95) -> Tensor:
    """Weights in proportion to `sum_{i >= t} gamma^(i - t) loss_i`, with mean 1 over an answer: [B, T].

    IFT (Hua et al. 2024): a token answers for the mistakes that follow it. `loss` is at least 0, `gamma` in (0, 1]: 0
    weights a token by its own loss, while the official code then weights all alike. Gradients pass through the weights,
    as they do there: detach `loss` to stop them. An answer without any loss gets weights of 0.
    """
    future = discounted_to_go(loss, mask, gamma)
    return future / masked_mean(future, mask, dim=1).unsqueeze(1).clamp(min=torch.finfo(loss.dtype).tiny)


def overlong_penalty(length: Tensor, limit: int, cache: int) -> Tensor:
    """0 up to `limit - cache` tokens, then falling in a line to -1 at `limit`, and -1 beyond: `length` [B] -> [B].

    DAPO (Yu et al. 2025). `cache`, 1 or more, is how many tokens before the limit it begins.
    """
    return ((limit - cache - length) / cache).clamp(-1.0, 0.0)


# Ratios ---------------------------------------------------------------------------------------------------------------
# `log_ratio` is `log pi - log pi_old` of a token, of a macro (`macro_sum`) or of an answer (`sequence_log_ratio`).
# Losses are entry by entry; `advantage` has the same shape, or one that broadcasts to it, as [B, 1].


def truncated_ratio(log_ratio: Tensor, cap: float = LARGEST_RATIO) -> Tensor:
    """`min(exp(log_ratio), cap)`, with no gradient beyond the cap, which is above 0.

    Detached and with a cap of a few, the weight that corrects for a sampler with other log-probabilities than the
    learner's.
    """
    return log_ratio.clamp(max=math.log(cap)).exp()


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The mean log-ratio of the answer, at each of its tokens: [B, T]. GSPO's ratio (Zheng et al. 2025) is its `exp`.

    Clips are then of the order of 3e-4, not 0.2. Every token's entry depends on all tokens of its answer: where an
    answer's tokens have the same share and advantage, the gradients add up to those of the paper.
    """
    return torch.where(mask, masked_mean(log_ratio, mask, dim=1).unsqueeze(1), 0.0)


def clipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, low: float = 0.2, high: float = 0.2, bound: float = LARGEST_RATIO
) -> Tensor:
    """`-min(w A, clip(w, 1 - low, 1 + high) A)`, w the ratio: entry by entry.

    Schulman et al. (2017, eq. 7); `high` above `low` is DAPO's clip-higher. A `bound` (`1 + high` or more; usually 3)
    holds `w` below it and so a loss with A < 0 below `-bound A`, without gradient there: the dual clip of Ye et al.
    (2020). Where A > 0 it changes nothing.
    """
    ratio = truncated_ratio(log_ratio, bound)
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - low, 1.0 + high) * advantage)


def cispo(logp: Tensor, log_ratio: Tensor, advantage: Tensor, cap: float) -> Tensor:
    """`-min(w, cap) A log pi`, w the ratio without gradient: entry by entry. `cap` is the paper's 1 + eps_high.

    CISPO (MiniMax, "MiniMax-M1", 2025): beyond the cap a token counts less than it should, but never nothing.
    """
    return -truncated_ratio(log_ratio.detach(), cap) * advantage * logp


# Prefixes -------------------------------------------------------------------------------------------------------------


def running_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of what counts up to a token, its own value among it: [B, T]."""
    total = values.masked_fill(~mask, 0.0).cumsum(1) / mask.cumsum(1).clamp(min=1)
    return total.masked_fill(~mask, 0.0)
