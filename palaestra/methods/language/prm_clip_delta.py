"""PRM, clip and delta: what a process reward model says of steps is bounded before answers are reinforced with it.

    advantage of a token: A + c (G - mean G),  G = sum of q_k over the steps that end there or later
    of step k of K, whose score is r_k:

    sum            q_k = r_k                              grows with every step that scores well, needed or not
    clip           q_k = min(r_k - threshold, 0)          a good step earns nothing, a bad one costs: G <= 0
    delta          q_k = r_k - r_{k+1},  q_K = r_K        G of a token is the score of its own step
    clip + delta   delta of clip                          a token pays for its own step, and only if that is bad

A is the base's own advantage, of what the answer earned; c is `coefficient`, the paper's alpha, `threshold` its eta.

Paper: Gao et al., "On Designing Effective RL Reward at Training Time for LLM Reasoning" (2024): with the sum, policies
learn to repeat short correct steps.

Traps: the last step keeps its whole score under delta, or returns would depend on the number of steps. The threshold
belongs to the scale of the scorer: about three quarters of the first policy's steps should be above it; metrics tell
their mean, `step_score`. A policy can divide its steps, or merge them: look at `steps` and `length`. Where an answer is
one action, as in `rloo`, steps cannot be told apart.

Differs from the paper: its PPO adds q_k to the rewards and learns values of both. Here G is undiscounted whatever the
base discounts by, so that the sums above are exact, and its baseline is its mean over the rollout's tokens; critics
know what answers earn, and not what steps do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from palaestra.algorithm import Algorithm, Nets, Unfit, between, collect_with, expressed, gives
from palaestra.algorithms.texts import POLICY, ROLLOUT
from palaestra.batch import Columns, each_row
from palaestra.functional import tokens
from palaestra.rollout.steps import StepScorer, StepsScored

Shaping = Callable[[Tensor, Tensor], Tensor]  # of `step_score` and `step_end`, [B, T] each: [B, T], 0 but at ends


def clipped(score: Tensor, ends: Tensor, threshold: float) -> Tensor:
    """`min(r - threshold, 0)` where a step ends and 0 elsewhere: [B, T]."""
    return torch.where(ends, (score - threshold).clamp(max=0.0), 0.0)


def delta(score: Tensor, ends: Tensor) -> Tensor:
    """A step's score less that of the step behind it, 0 behind the last, where a step ends and 0 elsewhere: [B, T]."""
    width = score.shape[1]
    place = torch.where(ends, torch.arange(width, device=ends.device), width)
    behind = pad(place.flip(1).cummin(1).values.flip(1)[:, 1:], (0, 1), value=width)
    return torch.where(ends, score - pad(score, (0, 1)).gather(1, behind), 0.0)


def clipped_delta(score: Tensor, ends: Tensor, threshold: float) -> Tensor:
    """`delta` of what `clipped` leaves: [B, T]."""
    return delta(clipped(score, ends, threshold), ends)


def summed(score: Tensor, ends: Tensor) -> Tensor:
    """A step's score where it ends and 0 elsewhere: [B, T]."""
    return torch.where(ends, score, 0.0)


@gives("advantage", "step_advantage")
def with_steps(
    nets: Nets, b: Columns, credit: Callable[[Nets, Columns], Columns], shaping: Shaping, coefficient: float
) -> Columns:
    """All columns, with the steps' returns, less their mean over all tokens of answers, in `advantage` [B, T].

    They are a column, `step_advantage`, before `credit` is asked, since that may leave rows out.
    """
    mask = b["answer"]
    to_go = tokens.discounted_to_go(shaping(b["step_score"], b["step_end"]), mask)
    b = {**b, "step_advantage": coefficient * (to_go - tokens.masked_mean(to_go, mask)) * mask}
    credited = {**b, **credit(nets, b)}
    return {**credited, "advantage": credited["advantage"] + credited["step_advantage"]}


@expressed
def prm_clip_delta(
    algorithm: Algorithm,
    scores: str | StepScorer,
    separator: str = "\n",
    coefficient: float = 0.5,
    threshold: float = 0.5,
) -> Algorithm:
    """Steps are scored, good ones alike, and a token answers for its own step alone. On `grpo` and its like, `ppo-lm`.

    Args:
        scores: of a prompt's row and an answer a number for each step, usually in [0, 1]; or the name of that function,
            "package.module:function" or "file.py:function".
        separator: a token with it ends a step; so does an answer's end.
        coefficient: of a score, in units of the base's advantage.
        threshold: scores from here on are alike.
    """
    return _stepwise(
        "prm-clip-delta", algorithm, scores, separator, coefficient, partial(clipped_delta, threshold=threshold)
    )


@expressed
def prm_clip(
    algorithm: Algorithm,
    scores: str | StepScorer,
    separator: str = "\n",
    coefficient: float = 0.5,
    threshold: float = 0.5,
) -> Algorithm:
    """Steps are scored, good ones alike, and a token answers for all from its own on. On `grpo` and its like, `ppo-lm`.

    Args:
        scores, separator, coefficient, threshold: as for `prm_clip_delta`.
    """
    return _stepwise("prm-clip", algorithm, scores, separator, coefficient, partial(clipped, threshold=threshold))


@expressed
def prm_delta(
    algorithm: Algorithm, scores: str | StepScorer, separator: str = "\n", coefficient: float = 0.5
) -> Algorithm:
    """Steps are scored, and a token answers for its own step alone. On `grpo` and its like, `ppo-lm`.

    Args:
        scores, separator, coefficient: as for `prm_clip_delta`.
    """
    return _stepwise("prm-delta", algorithm, scores, separator, coefficient, delta)


@expressed
def prm_sum(
    algorithm: Algorithm, scores: str | StepScorer, separator: str = "\n", coefficient: float = 0.5
) -> Algorithm:
    """Steps are scored and the scores added up, which policies exploit. On `grpo` and its like, `ppo-lm`.

    Args:
        scores, separator, coefficient: as for `prm_clip_delta`.
    """
    return _stepwise("prm-sum", algorithm, scores, separator, coefficient, summed)


def _stepwise(
    slug: str, algorithm: Algorithm, scores: str | StepScorer, separator: str, coefficient: float, shaping: Shaping
) -> Algorithm:
    between(0, float("inf"), coefficient=coefficient)
    if not separator:
        raise ValueError("separator is empty: give what stands at the end of a step, as '\\n'")
    loss, credit = algorithm.losses.get(POLICY), algorithm.advantage
    surrogate = None if loss is None else loss.terms.get("surrogate")
    if surrogate is None or surrogate.stream != ROLLOUT or credit is None:
        raise Unfit(f"{slug} does not fit {algorithm}: it changes the advantages of tokens, as those of grpo")
    if surrogate.share is each_row:
        raise Unfit(f"{slug} does not fit {algorithm}, where an answer is one action: try it on grpo")
    changed = collect_with(algorithm, partial(StepsScored, scores=scores, separator=separator))
    return replace(changed, advantage=partial(with_steps, credit=credit, shaping=shaping, coefficient=coefficient))
