"""MA-RLHF: a critic and its advantages see runs of tokens as one action each, of which an answer has fewer.

    macro w: a run of tokens   R_w: the sum of their rewards   V_w: the mean of their values
    A_w = delta_w + gamma lam A_{w+1},   delta_w = R_w + gamma V_{w+1} - V_w
    each token of w: `ppo-lm`'s surrogate with A_w, and its value is regressed on A_w + V_w

Paper: Chai et al., "MA-RLHF: Reinforcement Learning from Human Feedback with Macro Actions" (2025). `length` is its n;
sigma, the weights of values within a macro, is equal. With a length of 1 this is `ppo-lm`; with the longest answer's,
a bandit. What differs is where a macro begins: after so many tokens (`ma_rlhf`), after numbers of tokens that are drawn
(`ma_rlhf_random`), or where the reference model finds a token less likely than the one before (`ma_rlhf_perplexity`).

Traps: the last token, which is paid the answer's score, is a macro of its own. A discount is by macros: with `gamma`
below 1, longer ones see further; so does a larger `lam`, without any macros. Nothing is learnt of where macros begin.

Differs from the paper: advantages are whitened over the rollout's tokens, as `ppo-lm` whitens them. Macros that end
with a clause, which need a parser, are left out.

Differs from the paper's code: a macro's rewards are summed, as in the paper, where the code averages them: there a
divergence costs less the longer macros are. Where perplexity rises, the token that it rises at begins the new macro, as
in the paper; in the code that is the token before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Nets,
    Transform,
    Unfit,
    above,
    append_transform,
    expressed,
    gives,
    replace_term,
)
from palaestra.algorithms.grpo import before
from palaestra.algorithms.ppo_lm import token_credit, token_rewards
from palaestra.algorithms.texts import ROLLOUT
from palaestra.batch import Columns
from palaestra.functional import tokens

MACRO = "macro"
LENGTHS = (1, 2, 3, 5, 10)
Begins = Callable[[Columns, Generator], Tensor]  # whether a token begins a macro: [B, T] bool


def regularly(b: Columns, rng: Generator, length: int) -> Tensor:
    """After every `length` tokens of the answer."""
    begins: Tensor = (b["answer"].cumsum(1) - 1) % length == 0
    return begins


def randomly(b: Columns, rng: Generator, lengths: Sequence[int], repeats: int) -> Tensor:
    """After numbers of tokens drawn from `repeats` of each of `lengths`, none put back; what then follows is one."""
    place = b["answer"].cumsum(1) - 1
    all_of_them = torch.tensor([*lengths] * repeats, device=place.device)
    order = torch.rand(len(place), len(all_of_them), generator=rng, device=place.device).argsort(1)
    begins: Tensor = (place.unsqueeze(2) == all_of_them[order].cumsum(1).unsqueeze(1)).any(2)
    return begins


def surprisingly(b: Columns, rng: Generator) -> Tensor:
    """Where the reference finds a token less likely than the one before: its perplexity rises."""
    begins: Tensor = b["reference_logp"] < b["reference_logp"].roll(1, 1)
    return begins


@gives(MACRO)
def divided(nets: Nets, b: Columns, rng: Generator, begins: Begins) -> Columns:
    """With `macro` [B, T]: which of its answer's macros a token belongs to. The last token is one of its own."""
    mask = b["answer"]
    last = mask.cumsum(1) == mask.sum(1, keepdim=True)
    return {**b, MACRO: tokens.macros_from(begins(b, rng) | last, mask)}


@gives("advantage", "lambda_return")
def macro_credit(nets: Nets, b: Columns, gamma: float, lam: float) -> Columns:
    """As `token_credit`, of macros: `advantage`, whitened, and `lambda_return`, at each of their tokens [B, T]."""
    mask, macro, value = b["answer"], b[MACRO], b["old_value"]
    advantage = tokens.macro_advantage(token_rewards(nets, b), value, macro, mask, gamma, lam)
    target = advantage + tokens.macro_mean(value, macro, mask)
    return {"advantage": tokens.masked_whitened(advantage, mask), "lambda_return": target}


def of_macros(
    nets: Nets, b: Columns, term: Callable[[Nets, Columns], tuple[Tensor, Columns]]
) -> tuple[Tensor, Columns]:
    """The term with a macro's ratio, that of its tokens together; each of its tokens bears the same part of it."""
    old, macro, mask = before(b), b[MACRO], b["answer"]
    rows, told = term(nets, {**b, "logp": old + tokens.macro_sum(b["logp"] - old, macro, mask)})
    return rows / tokens.macro_sum(torch.ones_like(rows), macro, mask).clamp(min=1), told


@expressed
def ma_rlhf(algorithm: Algorithm, length: int = 5) -> Algorithm:
    """Macro actions of `length` tokens each. On `ppo-lm`.

    Args:
        length: tokens of a macro; the last of an answer may have fewer.
    """
    above(0, length=length)
    return _with_macros("ma-rlhf", algorithm, partial(regularly, length=length))


@expressed
def ma_rlhf_random(algorithm: Algorithm, lengths: Sequence[int] = LENGTHS, repeats: int = 3) -> Algorithm:
    """Macro actions of random numbers of tokens, drawn anew for each answer. On `ppo-lm`.

    Args:
        lengths: the numbers of tokens.
        repeats: how often each can be drawn for one answer; the rest of a longer one is a single macro.
    """
    above(0, lengths=min(lengths, default=0), repeats=repeats)
    return _with_macros("ma-rlhf-random", algorithm, partial(randomly, lengths=tuple(lengths), repeats=repeats))


@expressed
def ma_rlhf_perplexity(algorithm: Algorithm) -> Algorithm:
    """Macro actions within which tokens become more and more likely to the reference. On `ppo-lm`."""
    return _with_macros("ma-rlhf-perplexity", algorithm, surprisingly)


@expressed
def ma_rlhf_macro_ratios(algorithm: Algorithm, length: int = 5) -> Algorithm:
    """As `ma_rlhf`, with the ratio of a macro in place of a token's, as in the paper's equations. On `ppo-lm`.

    Each macro counts once, in units of a token's share: as much as a token without macros, however long it is.

    Args:
        length: tokens of a macro; the last of an answer may have fewer.
    """
    above(0, length=length)
    algorithm = _with_macros("ma-rlhf-macro-ratios", algorithm, partial(regularly, length=length))
    term = algorithm.losses["policy"].terms["surrogate"]
    term = replace(term, value=partial(of_macros, term=term.value), needs=(*term.needs, MACRO))
    return replace_term(algorithm, "policy", "surrogate", term)


def _with_macros(slug: str, algorithm: Algorithm, begins: Begins) -> Algorithm:
    credit = algorithm.advantage
    if not (isinstance(credit, partial) and credit.func is token_credit):
        raise Unfit(f"{slug} does not fit {algorithm}: it divides the answers of ppo-lm; write it right behind that")
    needs = ("answer", "reference_logp")
    divide = Transform(partial(divided, begins=begins), "collect", ROLLOUT, needs, (MACRO,))
    return replace(append_transform(algorithm, divide), advantage=partial(macro_credit, **credit.keywords))
