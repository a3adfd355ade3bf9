"""Losses of a preference: how much a pair, a row or a ranking asks for a higher margin.

Shape legend: `B` pairs or rows, `K` ranked answers. Unless its docstring says otherwise a function takes `chosen` [B]
and `rejected` [B], an answer's log-ratio `log pi(y|x) - log pi_ref(y|x)` summed over its tokens, in nats, and returns
the loss of every pair [B], not averaged. `gap` is `chosen - rejected`; `beta`, above 0, a number or one a pair [B], is
how much a nat of it weighs: a large one keeps the policy near the reference. Losses without a reference take
log-probabilities in the place of log-ratios. What is added to a loss (the negative log-likelihood of CPO, ORPO, SLiC-HF
and RPO, a penalty of length) is a term of its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _logistic(gap: Tensor, smoothing: float = 0.0) -> Tensor:
    """`-(1 - smoothing) log sigma(gap) - smoothing log sigma(-gap)`, as `-log sigma(gap) + smoothing gap`."""
    return smoothing * gap - F.logsigmoid(gap)


# Pairs ----------------------------------------------------------------------------------------------------------------


def logistic(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 0.1, smoothing: float = 0.0) -> Tensor:
    """`-(1 - smoothing) log sigma(beta gap) - smoothing log sigma(-beta gap)`: [B].

    DPO (Rafailov et al. 2023, eq. 7), and cDPO, its conservative form, where `smoothing` in [0, 1/2) is how often a
    label is thought to be wrong (Mitchell 2023): it is least at a gap of `logit(1 - smoothing) / beta`, DPO nowhere.
    """
    return _logistic(beta * (chosen - rejected), smoothing)


def robust(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 0.1, flip_rate: float = 0.1) -> Tensor:
    """`(-(1 - e) log sigma(beta gap) + e log sigma(-beta gap)) / (1 - 2 e)`, e the `flip_rate` in [0, 1/2): [B].

    rDPO (Chowdhury et al. 2024): its mean over labels that are flipped that often is DPO's loss on true ones. It is
    `logistic` with a negative smoothing, `-e / (1 - 2 e)`, and has no lower bound.
    """
    return logistic(chosen, rejected, beta, -flip_rate / (1.0 - 2.0 * flip_rate))


def hinge(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 0.1, margin: float | Tensor = 1.0) -> Tensor:
    """`max(0, margin - beta gap)`: [B].

    The hinge-norm loss of RSO (Liu et al. 2024) with log-ratios; with summed log-probabilities and `beta` 1 the
    calibration loss of SLiC-HF (Zhao et al. 2023), whose delta is `margin`.
    """
    return (margin - beta * (chosen - rejected)).clamp(min=0.0)


def squared(chosen: Tensor, rejected: Tensor, tau: float | Tensor = 0.1) -> Tensor:
    """`(gap - 1 / (2 tau))^2`, least at a gap of `1 / (2 tau)`: [B].

    IPO (Azar et al. 2024, eq. 17), `tau` above 0. Takes summed log-ratios, as the paper, or averaged ones: TRL divides
    each by the number of its tokens, without which long answers outweigh short ones; `tau` then is per token.
    """
    return (chosen - rejected - 0.5 / tau).square()


def simpo(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 2.5, margin: float | Tensor = 1.0) -> Tensor:
    """`-log sigma(beta gap - margin)`: [B]. SimPO (Meng et al. 2024, eq. 6): no reference.

    Takes log-probabilities averaged over an answer's tokens. `margin` is the paper's gamma, usually 0.3 to 0.5 `beta`;
    it is not divided by `beta`.
    """
    return _logistic(beta * (chosen - rejected) - margin)


def log1mexp(a: Tensor) -> Tensor:
    """`log(1 - exp(a))` for `a <= 0`, entry by entry; what is above `-eps` of the dtype counts as `-eps`.

    So a probability of 1 has finite odds; `log1p(-exp(a))` is `-inf` there and its gradient NaN. Its absolute error is
    a rounding of 1 where `a` is very negative.
    """
    return torch.log(-torch.expm1(a.clamp(max=-torch.finfo(a.dtype).eps)))


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """`-log sigma(log odds(chosen) - log odds(rejected))`, `log odds(a) = a - log(1 - e^a)`: [B].

    ORPO (Hong et al. 2024): no reference, and no weight (the paper's lambda is the term's coefficient, 0.1).
    Takes log-probabilities averaged over an answer's tokens, below 0. A chosen answer of probability 1 costs next to
    nothing here; TRL takes `log1p(-exp(a))`, which is infinite there.
    """
    return _logistic((chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected)))


def bco(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 0.1, baseline: float | Tensor = 0.0) -> Tensor:
    """`-log sigma(beta chosen - baseline) - log sigma(-(beta rejected - baseline))`: [B].

    BCO (Jung et al. 2024): a classifier of good and bad whose threshold `baseline` is the running mean of the rewards
    `beta log-ratio`, without gradient. TRL's form for pairs leaves it at 0.
    """
    return _logistic(beta * chosen - baseline) + _logistic(baseline - beta * rejected)


def nca(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 0.1) -> Tensor:
    """`-log sigma(r_w) - log sigma(-r_w) / 2 - log sigma(-r_l) / 2`, r = beta log-ratio: [B].

    NCA for pairs (Chen et al. 2024): the chosen answer's reward stays near `log 2` rather than fall with the other's.
    """
    good, bad = beta * chosen, beta * rejected
    return _logistic(good) + 0.5 * _logistic(-good) + 0.5 * _logistic(-bad)


def exo(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 0.1, smoothing: float = 1e-3) -> Tensor:
    """`KL((sigma(beta gap), sigma(-beta gap)) || (1 - smoothing, smoothing))`, in nats: [B].

    EXO for pairs (Ji et al. 2024, eq. 16): DPO with the divergence the other way around. `smoothing` is in (0, 1/2):
    with 0 it would be infinite (TRL takes 1e-3 for it). Zero where `beta gap` is `logit(1 - smoothing)`.
    """
    gap = beta * (chosen - rejected)
    right, wrong = F.logsigmoid(gap), F.logsigmoid(-gap)
    return right.exp() * (right - math.log1p(-smoothing)) + wrong.exp() * (wrong - math.log(smoothing))


def sppo(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 0.1) -> Tensor:
    """`(chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2`: [B].

    SPPO with hard labels (Wu et al. 2024), `beta` the inverse of the paper's eta: a winner is asked for a win rate of
    1, a loser of 0, each by itself.
    """
    return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 0.1) -> Tensor:
    """`1 - sigma(beta chosen) + sigma(beta rejected)`, in (0, 2): [B].

    APO-zero (D'Oosterlinck et al. 2024): chosen up and rejected down, for answers better than the policy's own.
    """
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 0.1) -> Tensor:
    """`sigma(beta chosen) + 1 - sigma(beta gap)`, in (0, 2): [B].

    APO-down (D'Oosterlinck et al. 2024): both down, the rejected one further, for answers worse than the policy's own.
    """
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def aot(chosen: Tensor, rejected: Tensor, beta: float | Tensor = 0.1, smoothing: float = 0.0) -> Tensor:
    """`logistic` of both columns sorted: the k-th smallest against the k-th smallest, [B].

    AOT (Melnyk et al. 2024): the whole distribution of one column is to lie above that of the other. For unpaired data
    give the log-ratios of good and of bad answers; for pairs give the policy's `log pi(y_w) - log pi(y_l)` as `chosen`
    and the reference's as `rejected`. SORTS ACROSS THE BATCH: a row is of no one pair, so that pairs cannot be weighted
    and a batch must not be split (`across_rows`).
    """
    return logistic(chosen.sort().values, rejected.sort().values, beta, smoothing)


def contrastive(chosen: Tensor, rejected: Tensor, reward_gap: Tensor, beta: float | Tensor = 0.1) -> Tensor:
    """`-(reward_gap - beta gap / 2) gap`, least at a gap of `reward_gap / beta`: [B]. Either may be the better.

    CoPG (Flet-Berliac et al. 2024); `reward_gap` [B] is `R(chosen) - R(rejected)`. Its gradient, through both factors,
    is `-(reward_gap - beta gap) grad(gap)`: detach neither. With averaged log-ratios the optimum is no longer
    `pi_ref exp(R / beta) / Z`.
    """
    gap = chosen - rejected
    return -(reward_gap - 0.5 * beta * gap) * gap


# Rows and rankings ----------------------------------------------------------------------------------------------------


def kto(
    log_ratio: Tensor,
    desirable: Tensor,
    baseline: Tensor,
    beta: float | Tensor = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """`w (1 - sigma(s beta (log_ratio - baseline)))`, s = 1 and -1 for desirable and other rows: [B], single answers.

    KTO (Ethayarajh et al. 2024). `log_ratio` [B] is summed, `desirable` [B] bool; `baseline`, 0-d, in nats and without
    gradient, is `max(0, mean log-ratio of answers set beside other rows' prompts)` of the batch on all devices; w
    is the weight of a row's kind. The paper: `desirable_weight n_desirable / (undesirable_weight n_undesirable)` is to
    be in [1, 4/3].
    """
    gain = beta * (log_ratio - baseline)
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    margin: float | Tensor = 0.0,
    smoothing: float = 0.0,
    centring: float = 0.0,
) -> Tensor:
    """The loss of a reward model, `logistic` of `gap - margin`, plus `centring (chosen + rejected)^2`: [B].

    Bradley and Terry (1952). `chosen` and `rejected` are scores, [B], of the model; `margin` is a number or one a pair
    [B] (Touvron et al. 2023, eq. 2); `centring`, often 0.01, holds scores around 0 (Eisenstein et al. 2023).
    """
    return _logistic(chosen - rejected - margin, smoothing) + centring * (chosen + rejected).square()


def listwise(score: Tensor) -> Tensor:
    """The mean of `-log sigma(s_i - s_j)` over all `K (K - 1) / 2` pairs i before j: [B, K], best first -> [B].

    Ouyang et al. (2022, eq. 1): all pairs of a prompt in one batch. With K = 2 it is `bradley_terry`; no ties.
    """
    better, worse = torch.triu_indices(score.shape[-1], score.shape[-1], 1, device=score.device)
    return _logistic(score[..., better] - score[..., worse]).mean(-1)
