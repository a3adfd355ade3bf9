"""SMORe: a critic scores how likely a pair (s, a) is on its way to a goal, taught by steps that enter their goals.

    rows towards a goal:  goal = what a later step of the episode achieves, with probability `share`; else the row's own
    entering rows:        the later step that enters that goal
    value, actor:  the base's, on rows towards a goal, without any reward
    smore:              critic: sum_i mean_towards [(S_i - y)^2 / 2 + shrinkage (1 - gamma) S_i^2]
                                + mean_entering (S_i - 2 / (1 - gamma))^2,         y = -2 + gamma V(s', g)
    smore-contrastive:  critic: sum_i mean_towards [(S_i - y)^2 / 2 + shrinkage S_i] - mean_entering S_i,
                                                                                   y = gamma V(s', g)
    hindsight-goals:    the base on rows towards a goal, paid 1 and over where it is reached

Papers: Sikchi et al., "SMORe: Score Models for Offline Goal-Conditioned Reinforcement Learning" (2024); S is the
critic, M is V, beta is the base's `expectile`. Hindsight goals alone are those of Andrychowicz et al., "Hindsight
Experience Replay" (2017).

Rows towards a goal and entering rows are two streams of one dataset, so that every other term sees the former alone.
There is no reward and no end: after the goal, too, a score bootstraps from what comes next. Scores lie between
-2 / (1 - gamma) and 2 / (1 - gamma): `sharpness`, and `temperature` on xql, mean another scale than for rewards.

Traps: where a goal stands in an observation is a setting (a Dict observation needs none), and so is the distance at
which it counts as reached: half a cell in a point maze, 1 / its longer side: 0.2 in the U maze. Weights of the actor
reach their limit early: look at `weight_clipped`. Learning rates must let the critic reach 2 / (1 - gamma). What was
measured of a whole dataset, such as the returns that cal-ql reads, stays that of its own goals.

Differs from the paper: the authors' entering rows of own goals come from all steps near a goal that was reached, these
from the ends of successful episodes; where there is no success, the goal is always a later step's. V has no layer
normalisation but on xql. The last steps of an episode are among those drawn. Goals and what is achieved are not
standardised.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from palaestra.algorithm import (
    Algorithm,
    Layout,
    Nets,
    Term,
    add_buffer,
    add_term,
    between,
    expressed,
    replace_term,
    with_layout,
)  # fmt: skip
from palaestra.algorithms.iql import in_sample_td, said_of_logged
from palaestra.batch import Columns
from palaestra.data.goals import Goal, entering, hindsight
from palaestra.data.layouts import transition
from palaestra.functional.targets import squared
from palaestra.networks.critics import Regression, regressed, value_of

A_STEP = -2.0  # what a step away from the goal is worth
ENTERING = "entering"  # the stream


def consistency(
    nets: Nets, b: Columns, gamma: float, shrinkage: float, regression: Regression = squared
) -> tuple[Tensor, Columns]:
    """`sum_i (S_i - y)^2 / 2 + shrinkage (1 - gamma) S_i^2`: rows [B]."""
    with torch.no_grad():
        target = A_STEP + gamma * nets["value"](b["next_obs"])
    said = said_of_logged(nets["critic"], b)
    rows, columns = regressed(nets["critic"], said, target, regression)
    size = value_of(nets["critic"], said).square().sum(0)
    return rows / 2 + shrinkage * (1 - gamma) * size, columns


def arrival(nets: Nets, b: Columns, gamma: float, regression: Regression = squared) -> tuple[Tensor, Columns]:
    """`sum_i (S_i - 2 / (1 - gamma))^2`: rows [B]."""
    target = torch.full_like(b["reward"], -A_STEP / (1 - gamma))
    return regressed(nets["critic"], said_of_logged(nets["critic"], b), target, regression)


def contrastive_consistency(nets: Nets, b: Columns, gamma: float, shrinkage: float) -> tuple[Tensor, Columns]:
    """`sum_i (S_i - y)^2 / 2 + shrinkage S_i`: rows [B]."""
    with torch.no_grad():
        target = gamma * nets["value"](b["next_obs"])
    said = said_of_logged(nets["critic"], b)
    rows, columns = regressed(nets["critic"], said, target, squared)
    return rows / 2 + shrinkage * said.sum(0), columns


def negative_score(nets: Nets, b: Columns) -> Tensor:
    """`-sum_i S_i`: rows [B]."""
    return -said_of_logged(nets["critic"], b).sum(0)


@expressed
def smore(
    algorithm: Algorithm,
    share: float = 0.8,
    shrinkage: float = 1e-4,
    goal: tuple[int, ...] = (-2, -1),
    achieved: tuple[int, ...] = (0, 1),
    distance: float = 0.2,
) -> Algorithm:
    """Score models in place of values, bounded and taught by regression. On `iql`, `iql-discrete` and `xql`.

    Args:
        share: probability that a row's goal is what a later step achieves, in [0, 1].
        shrinkage: how much scores are drawn to 0, at least 0, in units of 1 - gamma.
        goal: entries of a vector observation that are the goal; the default is that of a point maze without a view.
        achieved: entries that are compared with them.
        distance: below which a goal is reached, in the observation's units.
    """
    gamma = _gamma("smore", algorithm)
    between(0, torch.inf, shrinkage=shrinkage)
    if gamma == 1:
        raise ValueError(
            f"smore does not fit {algorithm}: scores are bounded by 2 / (1 - gamma), so gamma is less than 1"
        )
    td = Term(partial(consistency, gamma=gamma, shrinkage=shrinkage), gives=("error", "q"))
    arriving = Term(partial(arrival, gamma=gamma), stream=ENTERING, gives=("error", "q"))
    return _scored("smore", algorithm, td, arriving, Goal(goal, achieved, distance), share)


@expressed
def smore_contrastive(
    algorithm: Algorithm,
    share: float = 0.8,
    shrinkage: float = 1e-4,
    goal: tuple[int, ...] = (-2, -1),
    achieved: tuple[int, ...] = (0, 1),
    distance: float = 0.2,
) -> Algorithm:
    """Score models in place of values, by the paper's contrastive loss, whose scores have no bound.

    Args:
        share, goal, achieved, distance: as for `smore`.
        shrinkage: how much scores of rows towards a goal are pushed down, at least 0.
    """
    gamma = _gamma("smore-contrastive", algorithm)
    between(0, torch.inf, shrinkage=shrinkage)
    td = Term(partial(contrastive_consistency, gamma=gamma, shrinkage=shrinkage), gives=("error", "q"))
    arriving = Term(negative_score, stream=ENTERING)
    return _scored("smore-contrastive", algorithm, td, arriving, Goal(goal, achieved, distance), share)


@expressed
def hindsight_goals(
    algorithm: Algorithm,
    share: float = 0.8,
    goal: tuple[int, ...] = (-2, -1),
    achieved: tuple[int, ...] = (0, 1),
    distance: float = 0.2,
) -> Algorithm:
    """Rows towards goals that their episodes reached later, paid for reaching them. On all that replay single steps.

    Args:
        share, goal, achieved, distance: as for `smore`; every row is paid by the distance, those with their own goal
            too.
    """
    return _towards_goals("hindsight-goals", algorithm, Goal(goal, achieved, distance), share)


def _gamma(slug: str, algorithm: Algorithm) -> float:
    """The discount factor of a base whose critic is regressed on the value of what was logged. ValueError otherwise."""
    critic = algorithm.losses.get("critic")
    td = critic.terms.get("td") if critic is not None else None
    if td is None or not isinstance(td.value, partial) or td.value.func is not in_sample_td:
        raise ValueError(f"{slug} does not fit {algorithm}, whose critic has no in-sample target: choose iql or xql")
    return float(td.value.keywords["gamma"])


def _scored(slug: str, algorithm: Algorithm, td: Term, arriving: Term, goal: Goal, share: float) -> Algorithm:
    """The base with its critic's target replaced, and a second stream of rows that enter their goals."""
    rows = replace(algorithm.buffers["replay"], layout=partial(entering, goal=goal, share=share), shares={})
    algorithm = add_buffer(_towards_goals(slug, algorithm, goal, share), ENTERING, rows)
    return add_term(replace_term(algorithm, "critic", "td", td), "critic", "arrival", arriving)


def _towards_goals(slug: str, algorithm: Algorithm, goal: Goal, share: float) -> Algorithm:
    """Hindsight goals for the rows of a replay, and of the buffers that it takes shares from."""
    between(0, 1, share=share)
    replay = algorithm.buffers.get("replay")
    if replay is None or replay.layout is not transition:
        raise ValueError(f"{slug} does not fit {algorithm}, which does not replay single steps: choose iql, bc or td3")
    layout: Layout = partial(hindsight, goal=goal, share=share)
    for name in ("replay", *replay.shares):
        algorithm = with_layout(algorithm, name, layout)
    return algorithm
