"""PF-PPO: of several answers to a prompt only those are learnt from whose rewards can be trusted.

    pi answers each prompt N times, all answers are rewarded, advantages are made (and whitened) of all of them
    kept, of each prompt: the best alone, the best and the worst, or the best and one of the rest
    a filter's worth: R^2 of the line from reward to truth, over answers that it keeps (`filter_r2`)

Paper: Shen and Zhang, "Policy Filtration in RLHF to Fine-Tune LLM for Code Generation" (2024): a reward model is right
about the answers it likes best and least, and hardly about those between. Its BR is `pf_ppo`, BW `pf_ppo_best_worst`,
BoN `pf_ppo_best`; without a filter it is PPO with N answers a prompt, `pf_ppo_unfiltered`. The paper finds BR and BW
better than PPO, and BoN not.

What is dropped leaves the rollout: with a weight of 0 it would keep its share of an update, and cost a forward pass.
There are as many updates as without a filter, of fewer answers each.

Traps: advantages of the kept answers alone, whitened, would have the wrong sign where only the best are kept. The old
log-probabilities stay those of the policy: what is learnt from is by intention another distribution. The critic learns
what kept answers earn. A prompt whose answers all earn the same says nothing and is dropped; of other equal rewards
chance decides which is better. If all prompts are such, the rollout is learnt from as it is.

Differs from the paper's code: that one draws from the whole batch, and so may prefer prompts to answers; only
`pf_ppo_power` does so here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Conflict,
    Nets,
    Transform,
    Unfit,
    above,
    append_transform,
    between,
    collect_with,
    expressed,
)
from palaestra.algorithms.texts import ROLLOUT
from palaestra.batch import Columns
from palaestra.data.tokens import picked, rolled
from palaestra.functional import groups
from palaestra.rollout.texts import UntilFull, in_groups

KEPT = "kept"
# How often each answer is learnt from, [B] int64, by its reward and its prompt, [B] each.
Filter = Callable[[Tensor, Tensor, Generator], Tensor]


def everything(reward: Tensor, group: Tensor, rng: Generator) -> Tensor:
    """Every answer."""
    return torch.ones_like(group)


def best(reward: Tensor, group: Tensor, rng: Generator) -> Tensor:
    """The best answer to each prompt."""
    return _of_unequal(_place(reward, group, rng) == 0, reward, group)


def best_and_worst(reward: Tensor, group: Tensor, rng: Generator) -> Tensor:
    """The best answer to each prompt and the worst."""
    place = _place(reward, group, rng)
    return _of_unequal((place == 0) | (place == groups.group_size(group) - 1), reward, group)


def best_and_random(reward: Tensor, group: Tensor, rng: Generator) -> Tensor:
    """The best answer to each prompt and one of the others, each as likely."""
    first = _place(reward, group, rng) == 0
    another = _place(torch.where(first, -1.0, 0.0), group, rng) == 0
    return _of_unequal(first | another, reward, group)


def by_power(reward: Tensor, group: Tensor, rng: Generator, power: float) -> Tensor:
    """As many answers as there are, drawn with odds of `|reward|^power` from all of them and put back."""
    odds = reward.abs().pow(power) + 1e-8  # something to draw from where all rewards are 0
    return torch.multinomial(odds, len(odds), replacement=True, generator=rng).bincount(minlength=len(odds))


def _place(reward: Tensor, group: Tensor, rng: Generator) -> Tensor:
    """Its place among the answers to its prompt, 0 the best, in random order where they are equal: [B]."""
    return groups.rank(reward, group, torch.rand(len(reward), generator=rng, device=reward.device))


def _of_unequal(kept: Tensor, reward: Tensor, group: Tensor) -> Tensor:
    """Once each, what is kept of prompts whose answers differ in reward; everything where there is none."""
    kept = kept & (groups.group_spread(reward, group) > 0)
    return torch.where(kept.any(), kept, True).long()


def filter_r2(reward: Tensor, truth: Tensor, kept: Tensor, bins: int = 20) -> Tensor:
    """How well rewards tell the truth about the answers that a filter keeps: R^2 of a line through bins, in [0, 1].

    Answers are put into `bins` of equal number, in the order of their rewards, and the line is fitted to the means.

    Args:
        reward, truth: of answers that were held out, [B].
        kept: what a filter says of them, [B]: `best(reward, group, rng)`.
        bins: of the answers that are kept; as many as these leave each answer by itself.

    Returns: 0-d; NaN where all rewards or all truths of the bins are equal.
    """
    index = _times(kept)
    parts = index[reward[index].argsort()].tensor_split(min(bins, len(index)))
    means = torch.stack([torch.stack([values[part].mean() for part in parts]) for values in (reward, truth)])
    return torch.corrcoef(means)[0, 1].square()


def _times(kept: Tensor) -> Tensor:
    """The index of each row as often as it is kept."""
    return torch.arange(len(kept), device=kept.device).repeat_interleave(kept)


def counted(nets: Nets, b: Columns, rng: Generator, keep: Filter) -> Columns:
    """With `kept` [B]: how often each answer is to be learnt from."""
    return {**b, KEPT: keep(b["reward"], b["group"], rng)}


def of_kept(nets: Nets, b: Columns, credit: Callable[[Nets, Columns], Columns]) -> Columns:
    """All columns of the answers that are kept, after all answers were credited."""
    return picked({**b, **credit(nets, b)}, _times(b[KEPT]))


@expressed
def pf_ppo(algorithm: Algorithm, answers: int = 5) -> Algorithm:
    """The best answer to each prompt is learnt from, and one of the others. On `ppo-lm` and `grpo`.

    Args:
        answers: times as many answers to each prompt as before, of which there is one in `ppo-lm`.
    """
    return _filtered("pf-ppo", algorithm, answers, best_and_random)


@expressed
def pf_ppo_best_worst(algorithm: Algorithm, answers: int = 5) -> Algorithm:
    """The best answer to each prompt is learnt from, and the worst. On `ppo-lm` and `grpo`.

    Args:
        answers: as for `pf_ppo`.
    """
    return _filtered("pf-ppo-best-worst", algorithm, answers, best_and_worst)


@expressed
def pf_ppo_best(algorithm: Algorithm, answers: int = 5) -> Algorithm:
    """The best answer to each prompt alone is learnt from. On `ppo-lm` and `grpo`.

    Args:
        answers: as for `pf_ppo`.
    """
    return _filtered("pf-ppo-best", algorithm, answers, best)


@expressed
def pf_ppo_power(algorithm: Algorithm, answers: int = 1, power: float = 2.0) -> Algorithm:
    """Answers are learnt from in proportion to a power of their reward's size, as the authors' code has it.

    Args:
        answers: as for `pf_ppo`.
        power: of the reward's size, at least 0.
    """
    between(0, math.inf, power=power)
    return _filtered("pf-ppo-power", algorithm, answers, partial(by_power, power=power))


@expressed
def pf_ppo_unfiltered(algorithm: Algorithm, answers: int = 5) -> Algorithm:
    """Several answers to each prompt, all of them learnt from: what a filter is compared with. On `ppo-lm` and `grpo`.

    Args:
        answers: as for `pf_ppo`.
    """
    return _filtered("pf-ppo-unfiltered", algorithm, answers, everything)


def _filtered(slug: str, algorithm: Algorithm, answers: int, keep: Filter) -> Algorithm:
    above(0, answers=answers)
    rollout, credit = algorithm.buffers.get(ROLLOUT), algorithm.advantage
    if rollout is None or rollout.layout is not rolled or credit is None:
        raise Unfit(f"{slug} does not fit {algorithm}: it chooses among answers that are credited, as those of ppo-lm")
    if any(KEPT in transform.gives for transform in algorithm.transforms):
        raise Conflict(f"{slug} does not fit {algorithm}, which chooses among answers already: leave one of them out")
    if answers > 1 and isinstance(algorithm.collect, UntilFull):
        raise Unfit(f"{slug} cannot repeat prompts that {algorithm} draws until they serve: give it answers=1")
    count = Transform(partial(counted, keep=keep), "collect", ROLLOUT, ("reward", "group"), (KEPT,))
    algorithm = collect_with(append_transform(algorithm, count), partial(in_groups, size=answers))
    return replace(algorithm, advantage=partial(of_kept, credit=credit))
