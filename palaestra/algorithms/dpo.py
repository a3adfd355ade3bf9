"""DPO and its family: a policy learns from pairs of answers which of them is preferred, without a reward model.

    g(y) = sum_t log pi(y_t | .) - log pi_ref(y_t | .)        loss = link(g(chosen), g(rejected))

The names differ by their link (`palaestra.functional.preferences`), by whether there is a reference, and by whether
sums over tokens are divided by their number:

    dpo     -log sigma(beta (g_w - g_l))                        ipo     (g_w / n_w - g_l / n_l - 1 / (2 tau))^2
    simpo   -log sigma(beta (S_w / n_w - S_l / n_l) - margin)   slic    max(0, margin - (S_w - S_l)) + c NLL(w)
    orpo    NLL(w) - c log sigma(log odds ratio)                cpo     -log sigma(beta (S_w - S_l)) + c NLL(w)
    kto     one answer a row, good or bad: see `palaestra.functional.preferences.kto`

with S the sum of log pi alone and n the number of tokens.

Papers: Rafailov et al., "Direct Preference Optimization" (2023); Azar et al., "A General Theoretical Paradigm to
Understand Learning from Human Preferences" (2024); Meng et al., "SimPO" (2024); Zhao et al., "SLiC-HF" (2023); Hong et
al., "ORPO" (2024); Xu et al., "Contrastive Preference Optimization" (2024); Ethayarajh et al., "KTO" (2024).

Traps: sums, not means, of log-probabilities, or beta loses its meaning; IPO divides them, as its authors' code does,
since long answers outweigh short ones otherwise, and its `tau` is per token. beta is not tau. A pair's two answers are
passed through the model together. What the reference says is computed once, before the first update.

Differs from the paper: KTO's baseline sets an answer beside the prompt of the row before it in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Nets,
    Term,
    Transform,
    above,
    between,
    expressed,
    rebind,
    replace_term,
)  # fmt: skip
from palaestra.algorithms.texts import Learning, learnt_from_texts, of_answer
from palaestra.batch import Columns
from palaestra.data.tokens import exchanged, labelled, pairs
from palaestra.evaluation.answers import answer_rewards, log_probability, preference_accuracy
from palaestra.functional import preferences
from palaestra.networks.language import reference
from palaestra.rollout.scorers import Reference, of_tokens, reference_logp

Link = Callable[[Tensor, Tensor], Tensor]
TOLD = ("margin", "chosen_gain", "accurate")


def gain(b: Columns) -> Tensor:
    """How much likelier each answer is than under the reference, in nats: [B, K]."""
    return of_answer(b, "logp") - of_answer(b, "reference_logp")


def likelihood(b: Columns) -> Tensor:
    """The log-probability of each answer, in nats: [B, K]."""
    return of_answer(b, "logp")


def a_token(b: Columns, amount: Callable[[Columns], Tensor]) -> Tensor:
    """An amount of each answer, divided by its number of tokens: [B, K]."""
    return amount(b) / b["answer"].sum(-1).clamp(min=1)


def preferring(nets: Nets, b: Columns, link: Link, amount: Callable[[Columns], Tensor]) -> tuple[Tensor, Columns]:
    """`link(amount(chosen), amount(rejected))`: rows [B].

    Gives `margin` and `chosen_gain`, in units of the amount, and whether it is `accurate`, [B] each.
    """
    chosen, rejected = amount(b).unbind(1)
    told = {"margin": chosen - rejected, "chosen_gain": chosen, "accurate": (chosen > rejected).float()}
    return link(chosen, rejected), told


def imitating(nets: Nets, b: Columns) -> Tensor:
    """`-log pi` of the tokens of the answers that were chosen: rows [B, T]."""
    rows: Tensor = -b["logp"][:, 0]
    return rows


def each_chosen_token(columns: Columns) -> Tensor:
    """Every token of a chosen answer counts the same: [B, T]."""
    counted: Tensor = columns["answer"][:, 0].to(columns["weight"].dtype)
    return counted / counted.sum().clamp(min=1)


def _from_pairs(
    link: Link, amount: Callable[[Columns], Tensor], learning: Learning, batch_size: int, longest: int
) -> Algorithm:
    referred = amount is gain or (isinstance(amount, partial) and amount.keywords["amount"] is gain)
    needs = ("answer", "reference_logp") if referred else ("answer",)
    term = Term(partial(preferring, link=link, amount=amount), stream="pairs", needs=needs, gives=TOLD)
    return learnt_from_texts(
        pairs, {"policy": learning.loss({"preference": term})}, batch_size, longest,
        (preference_accuracy, answer_rewards),
        (reference_logp("pairs"),) if referred else (),
    )  # fmt: skip


def _imitating_too(algorithm: Algorithm, coefficient: float, preference: float = 1.0) -> Algorithm:
    """With the log-probability of what was chosen as a further term."""
    loss = algorithm.losses["policy"]
    term = Term(imitating, coefficient, "pairs", each_chosen_token, needs=("answer",))
    terms = {"preference": replace(loss.terms["preference"], coefficient=preference), "imitation": term}
    return replace(algorithm, losses={"policy": replace(loss, terms=terms)})


@expressed
def dpo(
    beta: float = 0.1,
    smoothing: float = 0.0,
    lr: float = 5e-7,
    batch_size: int = 64,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    longest: int = 256,
) -> Algorithm:
    """Direct preference optimisation on pairs (`prompt`, `chosen`, `rejected`).

    The learning rate is one for models of billions of parameters; below a million, 3e-5 to 1e-3.

    Args:
        beta: how strongly the policy is held to the reference.
        smoothing: how often a label is thought to be wrong, in [0, 1/2): cDPO where it is not 0.
        lr: largest learning rate.
        batch_size: pairs of an update.
        warm_up: updates in which the learning rate rises from 0.
        decay_over: updates over which it falls to 0 again; it does not when None.
        weight_decay: of AdamW.
        clip_norm: largest norm of a gradient; not clipped when None.
        longest: tokens of an answer when it is asked.
    """
    above(0, beta=beta)
    between(0, 0.5, smoothing=smoothing)
    link = partial(preferences.logistic, beta=beta, smoothing=smoothing)
    learning = Learning(lr, warm_up, decay_over, weight_decay, clip_norm)
    return _from_pairs(link, gain, learning, batch_size, longest)


@expressed
def ipo(
    tau: float = 0.1,
    lr: float = 5e-7,
    batch_size: int = 64,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    longest: int = 256,
) -> Algorithm:
    """Identity preference optimisation: the gain of what was chosen is to be larger by `1 / (2 tau)`, and no more.

    Args:
        tau: how strongly the policy is held to the reference, a token.
        lr, batch_size, warm_up, decay_over, weight_decay, clip_norm, longest: as for `dpo`.
    """
    above(0, tau=tau)
    learning = Learning(lr, warm_up, decay_over, weight_decay, clip_norm)
    link = partial(preferences.squared, tau=tau)
    return _from_pairs(link, partial(a_token, amount=gain), learning, batch_size, longest)


@expressed
def simpo(
    beta: float = 2.5,
    margin: float = 1.0,
    lr: float = 5e-7,
    batch_size: int = 64,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    longest: int = 256,
) -> Algorithm:
    """Simple preference optimisation: mean log-probabilities, a margin, no reference.

    Args:
        beta: scale of the mean log-probabilities.
        margin: by which what was chosen is to be ahead, after that scale; a third to a half of `beta`.
        lr, batch_size, warm_up, decay_over, weight_decay, clip_norm, longest: as for `dpo`.
    """
    above(0, beta=beta)
    learning = Learning(lr, warm_up, decay_over, weight_decay, clip_norm)
    link = partial(preferences.simpo, beta=beta, margin=margin)
    return _from_pairs(link, partial(a_token, amount=likelihood), learning, batch_size, longest)


@expressed
def slic(
    margin: float = 1.0,
    imitation_coefficient: float = 1.0,
    lr: float = 5e-7,
    batch_size: int = 64,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    longest: int = 256,
) -> Algorithm:
    """Sequence likelihood calibration: a hinge on log-probabilities, and the likelihood of what was chosen.

    Args:
        margin: by which what was chosen is to be ahead, in nats.
        imitation_coefficient: of the negative log-likelihood of what was chosen, a token.
        lr, batch_size, warm_up, decay_over, weight_decay, clip_norm, longest: as for `dpo`.
    """
    learning = Learning(lr, warm_up, decay_over, weight_decay, clip_norm)
    link = partial(preferences.hinge, beta=1.0, margin=margin)
    return _imitating_too(_from_pairs(link, likelihood, learning, batch_size, longest), imitation_coefficient)


@expressed
def cpo(
    beta: float = 0.1,
    imitation_coefficient: float = 1.0,
    lr: float = 5e-7,
    batch_size: int = 64,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    longest: int = 256,
) -> Algorithm:
    """Contrastive preference optimisation: DPO without a reference, and the likelihood of what was chosen.

    Args:
        beta: scale of the log-probabilities.
        imitation_coefficient: of the negative log-likelihood of what was chosen, a token.
        lr, batch_size, warm_up, decay_over, weight_decay, clip_norm, longest: as for `dpo`.
    """
    above(0, beta=beta)
    learning = Learning(lr, warm_up, decay_over, weight_decay, clip_norm)
    link = partial(preferences.logistic, beta=beta)
    return _imitating_too(_from_pairs(link, likelihood, learning, batch_size, longest), imitation_coefficient)


@expressed
def orpo(
    odds_coefficient: float = 0.1,
    lr: float = 5e-6,
    batch_size: int = 64,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    longest: int = 256,
) -> Algorithm:
    """Odds ratio preference optimisation: fine-tuning on what was chosen, with a penalty on the odds of the rest.

    Args:
        odds_coefficient: of the odds ratio; the paper's lambda.
        lr, batch_size, warm_up, decay_over, weight_decay, clip_norm, longest: as for `dpo`.
    """
    learning = Learning(lr, warm_up, decay_over, weight_decay, clip_norm)
    algorithm = _from_pairs(preferences.odds_ratio, partial(a_token, amount=likelihood), learning, batch_size, longest)
    return _imitating_too(algorithm, 1.0, preference=odds_coefficient)


# ---------------------------------------------------------------------------------------------------- single answers


def mismatched_gain(nets: Nets, b: Columns, rng: Generator, model: Reference = reference) -> Columns:
    """With `baseline` [B], the same for all rows: the mean gain of answers to other prompts, 0 where it is negative."""
    other = exchanged(b)
    said = of_tokens(nets["policy"], other["ids"])["logp"]
    with model(nets) as network:
        before = of_tokens(network, other["ids"])["logp"]
    mean = ((said - before) * other["answer"]).sum(-1).mean().clamp(min=0)
    return {**b, "baseline": mean.expand(len(said))}


def worthwhile(nets: Nets, b: Columns, beta: float, desirable: float, undesirable: float) -> tuple[Tensor, Columns]:
    """Ethayarajh et al. 2024, eq. 8: rows [B]."""
    gained = gain(b)
    rows = preferences.kto(gained, b["desirable"], b["baseline"], beta, desirable, undesirable)
    return rows, {"gain": gained}


@expressed
def kto(
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    lr: float = 5e-7,
    batch_size: int = 64,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    longest: int = 256,
) -> Algorithm:
    """Learning from answers that are good or bad (`prompt`, `completion`, `label`), as prospect theory values them.

    Args:
        beta: how strongly the policy is held to the reference.
        desirable_weight, undesirable_weight: of good and of bad answers; choose them so that the first times the number
            of good ones is 1 to 4/3 times as much as the second times the number of bad ones.
        lr, warm_up, decay_over, weight_decay, clip_norm, longest: as for `dpo`.
        batch_size: answers of an update, at least 2.
    """
    above(0, beta=beta)
    above(1, batch_size=batch_size)
    value = partial(worthwhile, beta=beta, desirable=desirable_weight, undesirable=undesirable_weight)
    needs = ("answer", "reference_logp", "desirable", "baseline")
    term = Term(value, stream="labelled", needs=needs, gives=("gain",))
    baseline = Transform(mismatched_gain, stream="labelled", needs=("ids",), gives=("baseline",))
    learning = Learning(lr, warm_up, decay_over, weight_decay, clip_norm)
    losses = {"policy": learning.loss({"worth": term}, transforms=(baseline,))}
    return learnt_from_texts(
        labelled, losses, batch_size, longest, (log_probability, answer_rewards),
        (reference_logp("labelled"),),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------- other links, on `dpo`


def _linked(algorithm: Algorithm, link: Link) -> Algorithm:
    return rebind(algorithm, "policy", "preference", link=link)


@expressed
def robust_link(algorithm: Algorithm, flip_rate: float = 0.1, beta: float = 0.1) -> Algorithm:
    """rDPO: unbiased where labels are flipped at this rate. On `dpo`. Chowdhury et al. (2024)."""
    between(0, 0.499, flip_rate=flip_rate)
    return _linked(algorithm, partial(preferences.robust, beta=beta, flip_rate=flip_rate))


@expressed
def hinge_link(algorithm: Algorithm, beta: float = 0.05) -> Algorithm:
    """The hinge of RSO on gains over the reference. On `dpo`. Liu et al. (2024), whose gamma is `beta`."""
    return _linked(algorithm, partial(preferences.hinge, beta=beta))


@expressed
def bco_link(algorithm: Algorithm, beta: float = 0.1) -> Algorithm:
    """Each answer against a baseline, as a binary classifier. On `dpo`. Jung et al. (2024)."""
    return _linked(algorithm, partial(preferences.bco, beta=beta))


@expressed
def nca_link(algorithm: Algorithm, beta: float = 0.1) -> Algorithm:
    """Noise-contrastive alignment: keeps what was chosen likely. On `dpo`. Chen et al. (2024)."""
    return _linked(algorithm, partial(preferences.nca, beta=beta))


@expressed
def exo_link(algorithm: Algorithm, beta: float = 0.1, smoothing: float = 1e-3) -> Algorithm:
    """The reverse divergence of the smoothed label. On `dpo`. Ji et al. (2024)."""
    return _linked(algorithm, partial(preferences.exo, beta=beta, smoothing=smoothing))


@expressed
def sppo_link(algorithm: Algorithm, beta: float = 0.1) -> Algorithm:
    """Self-play preference optimisation with hard labels. On `dpo`. Wu et al. (2024)."""
    return _linked(algorithm, partial(preferences.sppo, beta=beta))


@expressed
def apo_zero_link(algorithm: Algorithm, beta: float = 0.1) -> Algorithm:
    """Raises what was chosen and lowers the rest, each for itself. On `dpo`. D'Oosterlinck et al. (2024)."""
    return _linked(algorithm, partial(preferences.apo_zero, beta=beta))


@expressed
def apo_down_link(algorithm: Algorithm, beta: float = 0.1) -> Algorithm:
    """Lowers both, the rejected more, for a policy better than its data. On `dpo`. D'Oosterlinck et al. (2024)."""
    return _linked(algorithm, partial(preferences.apo_down, beta=beta))


def sorted_margins(nets: Nets, b: Columns, beta: float) -> Tensor:
    """Melnyk et al. 2024: the k-th smallest margin of the policy against the reference's k-th smallest: rows [B]."""
    (chosen, rejected), (chosen_before, rejected_before) = (
        of_answer(b, name).unbind(1) for name in ("logp", "reference_logp")
    )
    return preferences.aot(chosen - rejected, chosen_before - rejected_before, beta)


@expressed
def aot(algorithm: Algorithm, beta: float = 0.1) -> Algorithm:
    """The whole distribution of margins is to lie above the reference's. On `dpo`; a batch is never split.

    Melnyk et al., "Distributional Preference Alignment of LLMs via Optimal Transport" (2024).
    """
    term = replace(
        algorithm.losses["policy"].terms["preference"], value=partial(sorted_margins, beta=beta), gives=(),
        across_rows=True,
    )  # fmt: skip
    return replace_term(algorithm, "policy", "preference", term)


@expressed
def also_imitated(algorithm: Algorithm, coefficient: float = 1.0) -> Algorithm:
    """With the log-likelihood of what was chosen as a further term (RPO). On `dpo` and `ipo`."""
    return _imitating_too(algorithm, coefficient)
