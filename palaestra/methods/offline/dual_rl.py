"""Dual RL: V is fitted by the conjugate of another divergence (f-DVL), or all is learnt from an expert's rows (ReCOIL).

    x = min_i Q_target_i(s, a) - V(s),  u = max(x, 0)
    dual-rl (chi-squared):     upward_share (u + u^2 / 4) - (1 - upward_share) x    in place of the base's loss of V
    dual-rl-total-variation:   upward_share u             - (1 - upward_share) x
    recoil:  half of a batch are the expert's rows E, half any rows S; no reward is read
        critic: sum_i (Q_i(s, a) - y)^2,  y = step_cost / (1 - gamma) on E,  y = -step_cost + gamma V(s') on S, or
                -step_cost / (1 - gamma) where s' ends the world
        value:  the base's loss, on S alone        actor: the base's, on both

Paper: Sikchi, Zheng, Zhang and Niekum, "Dual RL: Unification and New Methods for Reinforcement and Imitation Learning"
(2024); lambda is `upward_share`, c is -`step_cost`. Its third divergence, the reverse KL, is the base `xql`. ReCOIL's
fixed target is that of Al-Hafez et al., "LS-IQ: Implicit Reward Regularization for Inverse Reinforcement Learning"
(2023).

The first term pulls V up where Q lies above it, the second pulls it down everywhere. V comes to be the
(2 upward_share - 1) / upward_share quantile of the values of logged actions (total variation), or the number where the
mean of (1 + x / 2) 1{x > 0} is (1 - upward_share) / upward_share (chi-squared). The authors' base is `xql`, whose V has
layer normalisation and whose critic has Huber's loss. ReCOIL needs no ratio of densities, and S need not cover E.

Traps: f-DVL: x is not divided by a temperature: where values differ by much less than 2, chi-squared is total
variation, and a share of 0.5 or less puts V below all of them. ReCOIL: values reach from -step_cost / (1 - gamma) to
its opposite, and the actor's `sharpness` has the inverse unit: look at `weight_clipped`. An episode that a time limit
ended goes on; a state that ends the world is as bad as any can be, unless the expert is the one who gets there.

Differs from the paper: in the authors' code u + u^2 / 4 counts for x < -4 as well, which the truncated conjugate does
not; a far too high V comes down at a constant rate here. Their example has a share of 1 on locomotion, which leaves
nothing to pull V down: it is refused, and 0.7 is the default. Uniformly drawn actions among those that V is fitted on
are left out, as in `xql`. ReCOIL's code squares the critic's error on both bases; here `xql` keeps Huber's loss. With
an expectile it can add `b (mean_S V - mean_E V)`, b unsaid, which its recommended loss ignores: left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Buffer,
    Layout,
    Nets,
    Store,
    Term,
    Transform,
    above,
    add_buffer,
    append_transform,
    expressed,
    gives,
    mix,
    rebind,
    with_layout,
)  # fmt: skip
from palaestra.batch import Columns
from palaestra.data.priorities import InProportion
from palaestra.data.whole import best_episodes, episodes
from palaestra.functional.regressions import chi_squared_regression, total_variation_regression


@gives("expert")
def demonstrated(nets: Nets, columns: Columns, rng: Generator, demonstrations: int) -> Columns:
    """`expert` [R]: as it was logged, or else whether the episode is one of so many of highest return."""
    if "expert" in columns:
        expert = columns["expert"].bool()
    else:
        expert = best_episodes(columns, demonstrations)[episodes(columns)]
    if not (expert & columns["valid"]).any():
        raise ValueError("the dataset's column 'expert' marks no step: recoil needs one that the expert took")
    return {**columns, "expert": expert}


@gives("expert")
def anybodys(store: Store, index: Tensor, rng: Generator, layout: Layout) -> Columns:
    """The rows of `layout` as rows of all of the data, whoever took the step: `expert` [B] is false."""
    return {**layout(store, index, rng), "expert": torch.zeros_like(index, dtype=torch.bool)}


def expert_is_best(nets: Nets, b: Columns, rng: Generator, step_cost: float, gamma: float) -> Columns:
    """Rewards and ends [B] with which `r + gamma (1 - terminated) V(s')` is ReCOIL's target."""
    worth = step_cost / (1.0 - gamma)
    ends = b["expert"] | b["terminated"]
    last = torch.where(b["expert"], worth, -worth)
    return {**b, "reward": torch.where(ends, last, -step_cost), "terminated": ends}


def each_of_anybodys(b: Columns) -> Tensor:
    """Every row that was not drawn as the expert's counts the same, [B]."""
    counted = (~b["expert"]).to(b["weight"].dtype)
    return counted / counted.sum().clamp(min=1.0)


@expressed
def dual_rl(algorithm: Algorithm, upward_share: float = 0.7) -> Algorithm:
    """V is fitted by the conjugate of the chi-squared divergence. On `iql`, `iql-discrete` and `xql`.

    Args:
        upward_share: of what pulls V up, against what pulls it down, in (0, 1): towards 1, V is the largest value.
    """
    return _fitted_by("dual-rl", algorithm, chi_squared_regression, upward_share, 0.0)


@expressed
def dual_rl_total_variation(algorithm: Algorithm, upward_share: float = 0.8) -> Algorithm:
    """V is fitted by the conjugate of the total variation, a quantile. On `iql`, `iql-discrete` and `xql`.

    Args:
        upward_share: of what pulls V up, against what pulls it down, in (0.5, 1): towards 1, V is the largest value.
    """
    return _fitted_by("dual-rl-total-variation", algorithm, total_variation_regression, upward_share, 0.5)


@expressed
def recoil(algorithm: Algorithm, demonstrations: int = 1, step_cost: float = 2.0) -> Algorithm:
    """An expert is imitated with the help of all other rows, without rewards. On `iql`, `iql-discrete` and `xql`.

    The dataset says which rows are the expert's in a column "expert" [R] of its own; only where it has none, they are
    those of the episodes of highest return.

    Args:
        demonstrations: how many episodes these are.
        step_cost: what a step costs that is not the expert's. The expert's are worth its opposite, forever.
    """
    above(0, demonstrations=demonstrations, step_cost=step_cost)
    term = _in_sample("recoil", algorithm)
    gamma = signature(algorithm.losses["critic"].terms["td"].value).parameters["gamma"].default
    if not gamma < 1:
        raise ValueError(f"recoil does not fit gamma={gamma}: what is worth its cost forever needs one below 1")
    layout = algorithm.buffers["replay"].layout
    changed = add_buffer(algorithm, "expert", Buffer(layout, priority=(InProportion("expert"),)))
    changed = mix(with_layout(changed, "replay", partial(anybodys, layout=layout)), "replay", expert=0.5)
    for transform in (
        Transform(partial(demonstrated, demonstrations=demonstrations), "dataset", gives=("expert",)),
        Transform(partial(expert_is_best, step_cost=step_cost, gamma=gamma), needs=("expert",)),
    ):
        changed = append_transform(changed, transform)
    return _with_in_sample(changed, share=each_of_anybodys, needs=(*term.needs, "expert"))


def _fitted_by(
    slug: str, algorithm: Algorithm, regression: Callable[..., Tensor], upward_share: float, least: float
) -> Algorithm:
    _in_sample(slug, algorithm)
    if not least < upward_share < 1:
        lacks = "nothing holds V up" if upward_share <= least else "nothing pulls V down"
        remedy = f"choose it between {least:g} and 1, both excluded"
        raise ValueError(f"upward_share is {upward_share}, with which {lacks}: {remedy}")
    value_loss = partial(regression, share=upward_share)
    changed = rebind(algorithm, "value", "in_sample", value_loss=value_loss)
    return _with_in_sample(changed, gives=("target_q", "value"), across_rows=False)


def _in_sample(slug: str, algorithm: Algorithm) -> Term:
    """The term that V is fitted by. ValueError where there is none."""
    value = algorithm.losses.get("value")
    if value is None or "in_sample" not in value.terms:
        raise ValueError(f"{slug} does not fit {algorithm}, which fits no V to logged actions: choose iql or xql")
    return value.terms["in_sample"]


def _with_in_sample(algorithm: Algorithm, **changes: Any) -> Algorithm:
    """The term with another declaration; it computes the same."""
    value = algorithm.losses["value"]
    terms = {**value.terms, "in_sample": replace(value.terms["in_sample"], **changes)}
    return replace(algorithm, losses={**algorithm.losses, "value": replace(value, terms=terms)})
