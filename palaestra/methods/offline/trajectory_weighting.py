"""Trajectory weighting: the steps of a dataset's better episodes are drawn more often; what is learnt stays the same.

    x = (score - min score) / (max score - min score)                of each episode
    P(step) = exp(x / temperature) / sum_steps exp(x / temperature)  x of the step's episode, the sum over all steps

    trajectory-weighting:  score = G, the undiscounted return
    advantage-weighting:   score = G - V(s_0), V the linear function of the first observation nearest to all G
    top-trajectories:      P(step) the same for all steps of the best floor(share * episodes) episodes, 0 for others

Paper: Hong, Agrawal, Tachet des Combes and Laroche, "Harnessing Mixed Offline Reinforcement Learning Datasets via
Trajectory Weighting" (2023); alpha is `temperature`, RW is trajectory-weighting, AW advantage-weighting.

It pays where a few episodes are much better than most: `palaestra dataset info` says so by the positive-sided variance.
No importance weight undoes it, and what is measured of a dataset (`normalised-obs`) is measured of all steps alike.

Traps: odds are of steps, so a long episode is drawn more often than a short one of the same score. A step of the best
episode is drawn exp(1 / temperature) times as often as one of the worst, 22026 times with the default: learning then
rests on about `1 / sum P^2` steps, which may be few. Where luck decides, the best episodes are the lucky ones. Where
episodes are hardly more than the numbers of an observation, V fits all returns and leaves no advantage. Two of these
together multiply their odds. `prioritised` corrects for all that makes a row likely, so it takes these odds back as its
`correction` nears 1. Rows that are collected have odds 1: in an environment this changes what is drawn from a buffer
called "dataset", or nothing.

Differs from the paper: returns are of rewards as they were logged, where its code takes 1 from AntMaze's first, so that
an early goal counts for more. At least one episode is the best, and symbols in an observation are indicators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Nets,
    Transform,
    above,
    append_transform,
    between,
    expressed,
    reprioritise,
)  # fmt: skip
from palaestra.batch import Columns, each
from palaestra.data.priorities import InProportion
from palaestra.data.whole import best_episodes, episodes, returns
from palaestra.networks.encoders import as_numbers

ROUNDING = 1e-6  # of the largest return, whose rewards are float32: scores that differ by less are the same


def softened(score: Tensor, largest: Tensor, temperature: float) -> Tensor:
    """`exp((x - 1) / temperature)`, [E]: 1 for the best score, and for all where they differ by rounding alone.

    `largest` (0-d) is the size of the returns that scores [E] were computed of.
    """
    spread = score.max() - score.min()
    alike = spread <= ROUNDING * largest
    return (torch.where(alike, 0.0, (score - score.max()) / spread) / temperature).exp()


def return_odds(nets: Nets, columns: Columns, temperature: float) -> Tensor:
    """By the return of each episode, [E]."""
    found = returns(columns)
    return softened(found, found.abs().max(), temperature)


def advantage_odds(nets: Nets, columns: Columns, temperature: float) -> Tensor:
    """By what each episode's return exceeds the value of its first observation, [E]."""
    found = returns(columns)
    return softened(found - linear_value(nets, columns, found), found.abs().max(), temperature)


def linear_value(nets: Nets, columns: Columns, target: Tensor) -> Tensor:
    """Of the first observations, [E]: the linear function, with a constant, nearest to `target` in least squares."""
    first = each(lambda x: x[columns["first"]], columns["obs"])
    start = as_numbers(nets.spec.obs, first).double().cpu()  # on a GPU PyTorch asks for linearly independent ones
    count, size = start.shape
    if count <= size + 1:
        raise ValueError(
            f"advantage-weighting fits {size + 1} numbers to the returns of {count} episodes: use trajectory-weighting"
        )
    inputs = torch.cat((torch.ones_like(start[:, :1]), start), 1)
    fit = torch.linalg.lstsq(inputs, target.cpu().unsqueeze(1), driver="gelsd").solution
    return (inputs @ fit).squeeze(1).to(target.device)


def among_top(nets: Nets, columns: Columns, share: float) -> Tensor:
    """Whether an episode is one of the best `floor(share * E)`, [E]; of equal returns, the earlier ones are."""
    number = int(columns["first"].sum())
    return best_episodes(columns, max(math.floor(share * number + 1e-9), 1)).double()  # 0.29 * 100 is less than 29


def with_odds(
    nets: Nets, columns: Columns, rng: Generator, name: str, odds: Callable[[Nets, Columns], Tensor]
) -> Columns:
    """`name` [R]: the odds of the episode that a slot belongs to."""
    return {**columns, name: odds(nets, columns)[episodes(columns)].float()}


@expressed
def trajectory_weighting(algorithm: Algorithm, temperature: float = 0.1) -> Algorithm:
    """Steps of a dataset are drawn by the return of their episode. On whatever draws from one.

    Args:
        temperature: of the softmax over returns that are scaled to [0, 1]; the larger, the nearer to uniform.
    """
    above(0, temperature=temperature)
    return _weighted("trajectory-weighting", algorithm, "return_odds", partial(return_odds, temperature=temperature))


@expressed
def advantage_weighting(algorithm: Algorithm, temperature: float = 0.1) -> Algorithm:
    """Steps of a dataset are drawn by how much better their episode went than expected. On whatever draws from one.

    Args:
        temperature: of the softmax over advantages that are scaled to [0, 1]; the larger, the nearer to uniform.
    """
    above(0, temperature=temperature)
    return _weighted(
        "advantage-weighting", algorithm, "advantage_odds", partial(advantage_odds, temperature=temperature)
    )


@expressed
def top_trajectories(algorithm: Algorithm, share: float = 0.1) -> Algorithm:
    """Only the steps of a dataset's best episodes are drawn, all alike. On whatever draws from one.

    Args:
        share: of the episodes, in (0, 1]; 1 draws all steps alike.
    """
    above(0, share=share)
    between(0, 1, share=share)
    return _weighted("top-trajectories", algorithm, "among_top", partial(among_top, share=share))


def _weighted(slug: str, algorithm: Algorithm, name: str, odds: Callable[[Nets, Columns], Tensor]) -> Algorithm:
    """Of the buffer "dataset", or the first, rows are drawn in proportion to a column `name` of the dataset."""
    if algorithm.schedule.epochs:
        raise ValueError(f"{slug} does not fit {algorithm}, which draws nothing from a dataset: try iql or td3-bc")
    if any(name in transform.gives for transform in algorithm.transforms):
        raise ValueError(f"{slug} does not fit {algorithm}: it is there already")
    buffer = "dataset" if "dataset" in algorithm.buffers else next(iter(algorithm.buffers))
    measured = Transform(partial(with_odds, name=name, odds=odds), "dataset", buffer, gives=(name,))
    return reprioritise(append_transform(algorithm, measured), buffer, InProportion(name))
