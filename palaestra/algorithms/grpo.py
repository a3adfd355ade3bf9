"""Policy gradients for answers without a critic: the baseline of an answer is what others to its prompt earned.

    ratio_t = pi(y_t) / pi_old(y_t)        surrogate: -min(ratio A, clip(ratio, 1 - low, 1 + high) A)        kl: k3

The names differ by who is credited and by what counts as one:

    grpo                  A = (r - mean) / std of the group         an answer, divided among its tokens
    dr_grpo               A = r - mean                              a token, one of `longest` of its answer
    dapo                  A as grpo; clip 0.2 and 0.28; groups all right or all wrong drawn again     a token
    rloo                  A = R - mean of the others, R = r - c KL  an answer, with one ratio
    reinforce_plus_plus   A = whitened return to go of r - c KL     a token

Papers: Shao et al., "DeepSeekMath" (2024); Liu et al., "Understanding R1-Zero-Like Training" (2025); Yu et al., "DAPO"
(2025); Ahmadian et al., "Back to Basics" (2024); Hu, "REINFORCE++" (2025).

Traps: what is sampled at a temperature is learnt from at that temperature. Where a rollout is learnt from in one piece
and once, the ratio is one and what it was before needs no pass of its own. A group is whole when its advantages are
made; only then are rows shuffled. k3 differentiated is not the gradient of the reverse divergence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from palaestra.algorithm import (
    Algorithm,
    Nets,
    Term,
    Transform,
    Unfit,
    above,
    append_transform,
    expressed,
    gives,
    prepend_transform,
)  # fmt: skip
from palaestra.algorithms.texts import ROLLOUT, Learning, learnt_from_answers, of_answer, per_token, spoken
from palaestra.batch import Columns, Share, constant_length, each_answer, each_row, each_token
from palaestra.data.tokens import rolled
from palaestra.functional import divergences, groups, tokens
from palaestra.networks.language import Sampling
from palaestra.rollout.scorers import old_logp, reference_logp
from palaestra.rollout.texts import TextCollect, Texts, UntilFull
from palaestra.tasks.admission import unmixed

TOLD = ("mismatch", "drift", "clipped")


def before(b: Columns) -> Tensor:
    """`log pi_old` of each token [B, T]: as it was when the rollout began; without a record of it, as it is."""
    return b["old_logp"] if "old_logp" in b else b["logp"].detach()


def told_of(b: Columns, beyond: Tensor) -> Columns:
    """Means of each answer [B]: the sampler's `mismatch` |log pi_old - log pi_sampled|, the `drift` since (k3), and
    how many tokens are `clipped`."""
    with torch.no_grad():
        mask, old = b["answer"], before(b)
        return {
            "mismatch": tokens.masked_mean((old - b["sampled_logp"]).abs(), mask, 1),
            "drift": tokens.masked_mean(divergences.k3(old - b["logp"]), mask, 1),
            "clipped": tokens.masked_mean(beyond.float(), mask, 1),
        }


def surrogate(nets: Nets, b: Columns, low: float, high: float) -> tuple[Tensor, Columns]:
    """Of each token: rows [B, T]. Gives `mismatch`, `drift` and `clipped`, see `told_of`."""
    log_ratio = b["logp"] - before(b)
    rows = tokens.clipped_surrogate(log_ratio, b["advantage"], low, high)
    return rows, told_of(b, (log_ratio.exp() - 1 > high) | (log_ratio.exp() - 1 < -low))


def answer_surrogate(nets: Nets, b: Columns, low: float, high: float) -> tuple[Tensor, Columns]:
    """An answer is one action, with the ratio of its tokens together: rows [B]."""
    log_ratio = of_answer({**b, "log_ratio": b["logp"] - before(b)}, "log_ratio")
    rows = tokens.clipped_surrogate(log_ratio, tokens.masked_mean(b["advantage"], b["answer"], 1), low, high)
    beyond = (log_ratio.exp() - 1 > high) | (log_ratio.exp() - 1 < -low)
    return rows, told_of(b, beyond[:, None] & b["answer"])


def reference_kl(nets: Nets, b: Columns) -> Tensor:
    """k3 of the policy from its reference, of each token: rows [B, T]."""
    return divergences.k3(b["logp"] - b["reference_logp"])


# -------------------------------------------------------------------------------------------------------- advantages


@gives("advantage")
def group_advantage(nets: Nets, b: Columns, credit: Callable[[Tensor, Tensor], Tensor]) -> Columns:
    """`credit(reward [B], group [B])` at every token of the answer."""
    return per_token(b, credit(b["reward"], b["group"]))


@gives("advantage")
def penalised_leave_one_out(nets: Nets, b: Columns, kl_coefficient: float) -> Columns:
    """What an answer earned, less its divergence from the reference, against the mean of the others'."""
    kl = of_answer({**b, "log_ratio": b["sampled_logp"] - b["reference_logp"]}, "log_ratio")
    return per_token(b, groups.leave_one_out(b["reward"] - kl_coefficient * kl, b["group"]))


@gives("advantage")
def whitened_return(nets: Nets, b: Columns, kl_coefficient: float, gamma: float) -> Columns:
    """The return from each token on, of rewards less the token's divergence, whitened over the rollout's tokens."""
    mask = b["answer"]
    kl = b["sampled_logp"] - b["reference_logp"]
    reward = tokens.at_last(mask, b["reward"]) - kl_coefficient * kl * mask
    return {"advantage": tokens.masked_whitened(tokens.discounted_to_go(reward, mask, gamma), mask)}


# -------------------------------------------------------------------------------------------------------------- bases


def _by_groups(
    term: Callable[..., tuple[Tensor, Columns]],
    share: Share,
    advantage: Callable[[Nets, Columns], Columns],
    kl: float,
    *,
    learning: Learning,
    low: float,
    high: float,
    referred: bool,
    temperature: float,
    epochs: int,
    minibatches: int,
    prompts: int,
    answers: int,
    longest: int,
) -> Algorithm:
    """`kl` is the coefficient of the term that holds the policy to the reference; `referred`, whether there is one."""
    above(0, clip_low=low, clip_high=high)
    again = epochs * minibatches > 1
    needs = ("advantage", "answer", "sampled_logp")
    value = partial(term, low=low, high=high)
    terms = {"surrogate": Term(value, stream=ROLLOUT, share=share, needs=needs, gives=TOLD)}
    if kl:
        terms["kl"] = Term(reference_kl, kl, ROLLOUT, share, needs=("reference_logp",))
    return learnt_from_answers(
        {"policy": learning.loss(terms, outputs=partial(spoken, temperature=temperature))},
        advantage,
        sampling=Sampling(temperature),
        epochs=epochs,
        minibatches=minibatches,
        transforms=(
            *((reference_logp(ROLLOUT, temperature),) if referred else ()),
            *((old_logp(temperature),) if again else ()),
        ),
        prompts=prompts,
        answers=answers,
        longest=longest,
    )


@expressed
def grpo(
    kl_coefficient: float = 0.04,
    clip: float = 0.2,
    lr: float = 1e-6,
    prompts: int = 32,
    answers: int = 8,
    epochs: int = 1,
    minibatches: int = 1,
    temperature: float = 1.0,
    longest: int = 256,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> Algorithm:
    """Group relative policy optimisation: rewards standardised within the answers to a prompt, no critic.

    The learning rate is one for models of billions of parameters; below a million, 1e-4 to 1e-3.

    Args:
        kl_coefficient: of the divergence from the reference, in the loss; with 0 there is no reference.
        clip: how far from 1 a ratio of probabilities is rewarded to move.
        lr: largest learning rate.
        prompts: of a round.
        answers: to each prompt, at least 2.
        epochs: passes over a round's answers.
        minibatches: updates of a pass.
        temperature: of sampling, and of the policy that is learnt.
        longest: tokens of an answer, with its end.
        warm_up: updates in which the learning rate rises from 0.
        decay_over: updates over which it falls to 0 again; it does not when None.
        weight_decay: of AdamW.
        clip_norm: largest norm of a gradient; not clipped when None.
    """
    above(1, answers=answers)
    return _by_groups(
        surrogate, each_answer("answer"), partial(group_advantage, credit=groups.standardised), kl_coefficient,
        learning=Learning(lr, warm_up, decay_over, weight_decay, clip_norm), low=clip, high=clip,
        referred=kl_coefficient > 0, temperature=temperature, epochs=epochs, minibatches=minibatches,
        prompts=prompts, answers=answers, longest=longest,
    )  # fmt: skip


@expressed
def dr_grpo(
    kl_coefficient: float = 0.0,
    clip: float = 0.2,
    lr: float = 1e-6,
    prompts: int = 32,
    answers: int = 8,
    epochs: int = 1,
    minibatches: int = 1,
    temperature: float = 1.0,
    longest: int = 256,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> Algorithm:
    """GRPO done right: not divided by the group's standard deviation, nor by an answer's own length.

    Args:
        kl_coefficient, clip, lr, prompts, answers, epochs, minibatches, temperature: as for `grpo`.
        longest: tokens of an answer, and what every answer's sum is divided by.
        warm_up, decay_over, weight_decay, clip_norm: as for `grpo`.
    """
    above(1, answers=answers)
    return _by_groups(
        surrogate, constant_length("answer", longest), partial(group_advantage, credit=groups.centred), kl_coefficient,
        learning=Learning(lr, warm_up, decay_over, weight_decay, clip_norm), low=clip, high=clip,
        referred=kl_coefficient > 0, temperature=temperature, epochs=epochs, minibatches=minibatches,
        prompts=prompts, answers=answers, longest=longest,
    )  # fmt: skip


@expressed
def rloo(
    kl_coefficient: float = 0.05,
    clip: float = 0.2,
    lr: float = 1e-6,
    prompts: int = 64,
    answers: int = 4,
    epochs: int = 1,
    minibatches: int = 1,
    temperature: float = 1.0,
    longest: int = 256,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> Algorithm:
    """REINFORCE, leave one out: an answer is one action, and its baseline is what the others to its prompt earned.

    Args:
        kl_coefficient: of an answer's divergence from the reference, in its reward.
        clip, lr, prompts, answers, epochs, minibatches, temperature, longest: as for `grpo`.
        warm_up, decay_over, weight_decay, clip_norm: as for `grpo`.
    """
    above(1, answers=answers)
    return _by_groups(
        answer_surrogate, each_row, partial(penalised_leave_one_out, kl_coefficient=kl_coefficient), 0.0,
        learning=Learning(lr, warm_up, decay_over, weight_decay, clip_norm), low=clip, high=clip,
        referred=True, temperature=temperature, epochs=epochs, minibatches=minibatches,
        prompts=prompts, answers=answers, longest=longest,
    )  # fmt: skip


@expressed
def reinforce_plus_plus(
    kl_coefficient: float = 0.01,
    gamma: float = 1.0,
    clip: float = 0.2,
    lr: float = 1e-6,
    prompts: int = 256,
    answers: int = 1,
    epochs: int = 1,
    minibatches: int = 1,
    temperature: float = 1.0,
    longest: int = 256,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> Algorithm:
    """REINFORCE with the divergence in each token's reward, and returns whitened over the whole rollout.

    Args:
        kl_coefficient: of a token's divergence from the reference, in its reward.
        gamma: discount factor of a token, in [0, 1].
        clip, lr, prompts, epochs, minibatches, temperature, longest: as for `grpo`.
        answers: to each prompt; one is enough.
        warm_up, decay_over, weight_decay, clip_norm: as for `grpo`.
    """
    advantage = partial(whitened_return, kl_coefficient=kl_coefficient, gamma=gamma)
    return _by_groups(
        surrogate, each_token("answer"), advantage, 0.0,
        learning=Learning(lr, warm_up, decay_over, weight_decay, clip_norm), low=clip, high=clip,
        referred=True, temperature=temperature, epochs=epochs, minibatches=minibatches,
        prompts=prompts, answers=answers, longest=longest,
    )  # fmt: skip


def shortened(collect: TextCollect, limit: int, cache: int) -> TextCollect:
    """Answers that come near the limit of tokens earn up to 1 less."""
    return partial(_shortened, collect=collect, limit=limit, cache=cache)


def _shortened(*given: object, collect: TextCollect, limit: int, cache: int) -> Texts:
    texts = collect(*given)
    length = texts.columns["answer"].sum(-1)
    reward = texts.columns["reward"] + tokens.overlong_penalty(length, limit, cache)
    return replace(texts, columns={**texts.columns, "reward": reward})


@expressed
def dapo(
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    overlong_cache: int = 0,
    most_draws: int = 8,
    lr: float = 1e-6,
    prompts: int = 32,
    answers: int = 8,
    epochs: int = 1,
    minibatches: int = 1,
    temperature: float = 1.0,
    longest: int = 256,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> Algorithm:
    """Decoupled clip and dynamic sampling: no reference, every token alike, groups without a difference drawn again.

    Args:
        clip_low, clip_high: how far below and above 1 a ratio of probabilities is rewarded to move.
        overlong_cache: tokens before `longest` from which on an answer earns less, down to 1 less; never when 0.
        most_draws: times that prompts are drawn for one round, at most; then it takes what there is.
        lr, prompts, answers, epochs, minibatches, temperature, longest: as for `grpo`.
        warm_up, decay_over, weight_decay, clip_norm: as for `grpo`.
    """
    above(1, answers=answers)
    above(0, most_draws=most_draws)
    algorithm = _by_groups(
        surrogate, each_token("answer"), partial(group_advantage, credit=groups.standardised), 0.0,
        learning=Learning(lr, warm_up, decay_over, weight_decay, clip_norm), low=clip_low, high=clip_high,
        referred=False, temperature=temperature, epochs=epochs, minibatches=minibatches,
        prompts=prompts, answers=answers, longest=longest,
    )  # fmt: skip
    if overlong_cache:
        algorithm = replace(algorithm, collect=shortened(algorithm.collect, longest, overlong_cache))
    return replace(algorithm, collect=UntilFull(algorithm.collect, unmixed, most_draws))


# --------------------------------------------------------------------------------- when the sampler is not the policy


def corrected(nets: Nets, b: Columns, rng: torch.Generator, cap: float) -> Columns:
    """Advantages times the ratio of the policy that collected to what was drawn from, at most `cap`: [B, T]."""
    ratio = tokens.truncated_ratio(b["old_logp"] - b["behaviour_logp"], cap)
    return {**b, "advantage": b["advantage"] * ratio}


@expressed
def importance_corrected(algorithm: Algorithm, cap: float = 2.0) -> Algorithm:
    """Answers that were drawn from something else than the policy count by a truncated ratio of the two.

    Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025).

    Args:
        cap: of the ratio, in (0, inf).
    """
    above(0, cap=cap)
    algorithm = _with_old_logp("importance-corrected", algorithm)
    loss = algorithm.losses["policy"]
    change = Transform(partial(corrected, cap=cap), stream=ROLLOUT, needs=("advantage", "old_logp", "behaviour_logp"))
    losses = {**algorithm.losses, "policy": replace(loss, transforms=(*loss.transforms, change))}
    return replace(algorithm, losses=losses)


def _with_old_logp(slug: str, algorithm: Algorithm) -> Algorithm:
    if not (ROLLOUT in algorithm.buffers and algorithm.buffers[ROLLOUT].layout is rolled):
        raise Unfit(f"{slug} does not fit {algorithm}, which samples no answers of a language model: try it on grpo")
    if any("old_logp" in t.gives for t in algorithm.transforms):
        return algorithm
    temperature = algorithm.policy.keywords["sampling"].temperature  # type: ignore[attr-defined]
    return prepend_transform(algorithm, old_logp(temperature))


def refuse(nets: Nets, b: Columns, rng: torch.Generator, limit: float) -> Columns:
    """The batch, where the two log-probabilities of its tokens differ by no more than `limit` in the mean."""
    gap = float(tokens.masked_mean((b["old_logp"] - b["sampled_logp"]).abs(), b["answer"]))
    if gap > limit:
        raise ValueError(
            f"the sampler and the policy disagree by {gap:.3g} nats a token, and {limit:g} are allowed: sample in the "
            "precision that is learnt in, or correct for it with +importance-corrected"
        )
    return b


@expressed
def mismatch_refused(algorithm: Algorithm, limit: float = 0.05) -> Algorithm:
    """A run stops where the sampler's log-probabilities are not the policy's.

    Args:
        limit: mean difference, in nats a token.
    """
    above(0, limit=limit)
    change = Transform(partial(refuse, limit=limit), "collect", ROLLOUT, ("old_logp", "sampled_logp"))
    return append_transform(_with_old_logp("mismatch-refused", algorithm), change)
