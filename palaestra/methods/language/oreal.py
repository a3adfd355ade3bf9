"""OREAL: right answers are cloned, wrong ones pushed away, and each token counts as much as it seems to matter.

    L+ = -sum_right A g+_t log pi(y_t) / n_right         L- = -sum_wrong A g-_t ratio_t / n_wrong         A: RLOO of +-1
    g+ = clip(2 P_t - 1, 0, 1)     g- = clip(1 - 2 P_t, 0, 1)     P_t = sigma(mean_{s <= t} w_s)     n: tokens in all
    w:   -log sigma(mean_t w_t) of right answers, -log sigma(-mean_t w_t) of wrong ones
    policy: L+ + L- / 2 + c k3(pi, pi_ref)

w is a second network, the token reward model: a number after each token, learnt beside the policy from the outcomes
alone. Of each prompt one right and one wrong answer are learnt from, after the advantages of all are known; prompts
that are answered always or never right are left out.

Paper: Lyu et al., "Exploring the Limit of Outcome Reward for Learning Mathematical Reasoning" (2025).

Traps: right and wrong tokens are counted apart, each over the whole update, or long wrong answers outweigh the right
ones. All weights g are near 0 until w has learnt something: it learns alone first. Rewards above 0 are right, others
wrong, whatever their size. Where no prompt of a round has both kinds of answers, all are kept with advantages of 0:
the token reward model and the divergence learn.

Differs from the paper: advantages are those of the authors' code. With p the share of right answers they are in
proportion to 1 - p for right ones and -p for wrong ones, where the paper has 1 and p - 1: `oreal-reshaped` has these.
Prompts do not come more often where they are harder; that is a part of its own (`tasks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from palaestra.algorithm import (
    Algorithm,
    Loss,
    Nets,
    Term,
    Transform,
    Unfit,
    above,
    add_loss,
    add_networks,
    between,
    expressed,
    gives,
    prepend_transform,
)  # fmt: skip
from palaestra.algorithms.grpo import before, reference_kl
from palaestra.algorithms.texts import POLICY, ROLLOUT, per_token
from palaestra.batch import Columns, each_token
from palaestra.data.tokens import picked, rolled
from palaestra.functional import groups, tokens
from palaestra.networks.language import token_scalars
from palaestra.rollout.scorers import reference_logp

TOKEN_REWARD = "token_reward"  # the network, and its loss
Credit = Callable[[Tensor, Tensor], Tensor]


def reshaped_credit(right: Tensor, group: Tensor) -> Tensor:
    """1 for a right answer and `p - 1` for a wrong one, p the share of right ones in its group: [B]."""
    share = groups.group_mean(right.float(), group)
    return torch.where(right, 1.0, share - 1.0)


def leave_one_out_credit(right: Tensor, group: Tensor) -> Tensor:
    """1 or -1, less the mean of the others of the group: [B]."""
    return groups.leave_one_out(2.0 * right - 1.0, group)


def one_of_each(right: Tensor, group: Tensor, noise: Tensor) -> Tensor:
    """Whether a row is the one right or the one wrong answer that its group is learnt from: [B].

    Among equals that with the most `noise` [B]; none of a group whose answers are all right or all wrong.
    """
    share = groups.group_mean(right.float(), group)
    first, last = (groups.rank(score, group, noise) == 0 for score in (right.float(), -right.float()))
    return (first | last) & (share > 0) & (share < 1)


def chosen(nets: Nets, b: Columns, rng: Generator, credit: Credit) -> Columns:
    """The rows that are learnt from, with `right` and `credit` [B], which was given while groups were whole."""
    right, group = b["reward"] > 0, b["group"]
    noise = torch.rand(len(right), generator=rng, device=right.device)
    kept = one_of_each(right, group, noise)
    rows = {**b, "right": right, "credit": torch.where(kept, credit(right, group), 0.0)}
    return picked(rows, kept.nonzero()[:, 0]) if kept.any() else rows


@gives("advantage", "correct_answer", "wrong_answer")
def credited(nets: Nets, b: Columns) -> Columns:
    """`advantage`, and which tokens are of right and of wrong answers: [B, T]."""
    right = b["right"][:, None]
    return {**per_token(b, b["credit"]), "correct_answer": b["answer"] & right, "wrong_answer": b["answer"] & ~right}


def importance(said: Tensor, answer: Tensor, right: Tensor) -> Tensor:
    """g, in [0, 1], of what the token reward model said [B, T] and of which answers are right [B]: [B, T]."""
    sign = torch.where(right, 1.0, -1.0)[:, None]
    return (sign * (2.0 * tokens.running_mean(said, answer).sigmoid() - 1.0)).clamp(0.0, 1.0)


def weighed(nets: Nets, b: Columns, rng: Generator) -> Columns:
    """Advantages times how much each token matters: [B, T]."""
    said = nets[TOKEN_REWARD](b["ids"])
    return {**b, "advantage": b["advantage"] * importance(said, b["answer"], b["right"])}


def cloned(nets: Nets, b: Columns) -> Tensor:
    """`-A log pi` of each token: rows [B, T]."""
    rows: Tensor = -b["advantage"] * b["logp"]
    return rows


def pushed_away(nets: Nets, b: Columns) -> Tensor:
    """`-A ratio` of each token, not clipped: rows [B, T]."""
    rows: Tensor = -b["advantage"] * tokens.truncated_ratio(b["logp"] - before(b))
    return rows


def outcome(nets: Nets, b: Columns) -> tuple[Tensor, Columns]:
    """The cross-entropy of right or wrong and the mean over an answer's tokens: rows [B]. Gives whether it is
    `accurate` [B]."""
    score = tokens.masked_mean(nets[TOKEN_REWARD](b["ids"]), b["answer"], 1)
    rows = binary_cross_entropy_with_logits(score, b["right"].to(score.dtype), reduction="none")
    return rows, {"accurate": ((score > 0) == b["right"]).float()}


def after(update: int, first: int) -> int:
    """`Loss.times`: once in every update after the first ones."""
    return int(update > first)


def _cloning(slug: str, algorithm: Algorithm, credit: Credit, wrong: float, kl: float) -> Algorithm:
    """Without the token reward model."""
    between(0, float("inf"), negative_coefficient=wrong, kl_coefficient=kl)
    rollout, loss = algorithm.buffers.get(ROLLOUT), algorithm.losses.get(POLICY)
    in_groups = rollout is not None and rollout.layout is rolled and list(algorithm.losses) == [POLICY]
    if not in_groups or loss is None or not loss.terms.keys() <= {"surrogate", "kl"}:
        raise Unfit(f"{slug} does not fit {algorithm}: it takes the place of what rloo and grpo learn by")
    temperature = algorithm.policy.keywords["sampling"].temperature  # type: ignore[attr-defined]
    if kl and not any("reference_logp" in t.gives for t in algorithm.transforms):
        algorithm = prepend_transform(algorithm, reference_logp(ROLLOUT, temperature))
    needs = ("advantage", "correct_answer", "wrong_answer")
    terms = {
        "right": Term(cloned, 1.0, ROLLOUT, each_token("correct_answer"), needs),
        "wrong": Term(pushed_away, wrong, ROLLOUT, each_token("wrong_answer"), needs),
    }
    if kl:
        terms["kl"] = Term(reference_kl, kl, ROLLOUT, each_token("answer"), ("answer", "reference_logp"))
    filtered = Transform(
        partial(chosen, credit=credit), "collect", ROLLOUT, ("reward", "group", "answer"), ("right", "credit")
    )
    losses = {**algorithm.losses, POLICY: replace(loss, terms=terms)}
    return prepend_transform(replace(algorithm, losses=losses, advantage=credited), filtered)


def _weighing(algorithm: Algorithm, alone: int, lr: float) -> Algorithm:
    """With the token reward model."""
    above(-1, alone=alone)
    above(0, token_reward_lr=lr)
    loss = algorithm.losses[POLICY]
    change = Transform(weighed, stream=ROLLOUT, needs=("advantage", "answer", "right"))
    policy = replace(loss, transforms=(*loss.transforms, change), times=partial(after, first=alone))
    term = Term(outcome, stream=ROLLOUT, needs=("answer", "right"), gives=("accurate",))
    learning = Loss({"outcome": term}, (TOKEN_REWARD,), optimiser=loss.optimiser, lr=lr, clip_norm=loss.clip_norm)
    algorithm = add_networks(replace(algorithm, losses={POLICY: policy}), **{TOKEN_REWARD: token_scalars()})
    return add_loss(algorithm, TOKEN_REWARD, learning)


@expressed
def oreal(
    algorithm: Algorithm,
    negative_coefficient: float = 0.5,
    kl_coefficient: float = 0.01,
    alone: int = 10,
    token_reward_lr: float = 2e-6,
) -> Algorithm:
    """Clones right answers and pushes wrong ones away, token by token as a reward model learns that they matter.

    On `rloo` and `grpo`, for rewards that tell right from wrong; of their settings those of the loss do not count. The
    paper: `lr=5e-7, prompts=64, answers=16`, 90 rounds.

    Args:
        negative_coefficient: of wrong answers.
        kl_coefficient: of a token's divergence from the reference; with 0 there is none.
        alone: updates at the beginning in which only the token reward model learns.
        token_reward_lr: its learning rate, four times the policy's in the paper.
    """
    algorithm = _cloning("oreal", algorithm, leave_one_out_credit, negative_coefficient, kl_coefficient)
    return _weighing(algorithm, alone, token_reward_lr)


@expressed
def oreal_reshaped(
    algorithm: Algorithm,
    negative_coefficient: float = 0.5,
    kl_coefficient: float = 0.01,
    alone: int = 10,
    token_reward_lr: float = 2e-6,
) -> Algorithm:
    """As `oreal`, with the paper's rewards: 1 for right answers, and what is reshaped for wrong ones.

    Args:
        negative_coefficient, kl_coefficient, alone, token_reward_lr: as for `oreal`.
    """
    algorithm = _cloning("oreal-reshaped", algorithm, reshaped_credit, negative_coefficient, kl_coefficient)
    return _weighing(algorithm, alone, token_reward_lr)


@expressed
def oreal_without_tokens(
    algorithm: Algorithm, negative_coefficient: float = 0.5, kl_coefficient: float = 0.01
) -> Algorithm:
    """As `oreal`, without the token reward model: all tokens of an answer matter alike, and the policy learns at once.

    With `negative_coefficient=0` wrong answers are not learnt from: right ones are cloned.

    Args:
        negative_coefficient, kl_coefficient: as for `oreal`.
    """
    slug = "oreal-without-tokens"
    return _cloning(slug, algorithm, leave_one_out_credit, negative_coefficient, kl_coefficient)
