"""What is read off a whole dataset before the first update: transforms with `moment="dataset"`.

They get every slot of it at once, in order: columns [R, ...], "valid" where a slot holds a step, "first" where an
episode begins.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Nets, gives
from palaestra.batch import Columns


def episodes(columns: Columns) -> Tensor:
    """The number of the episode that each slot belongs to, [R]."""
    return columns["first"].long().cumsum(0) - 1


def returns(columns: Columns) -> Tensor:
    """The undiscounted return of each episode, float64 [E]."""
    number = int(columns["first"].sum())
    paid = columns["reward"].double() * columns["valid"]
    return torch.zeros(number, dtype=torch.float64, device=paid.device).index_add_(0, episodes(columns), paid)


def best_episodes(columns: Columns, count: int) -> Tensor:
    """Whether an episode is one of the `count` of highest return, [E]; of equal ones the earlier is."""
    found = returns(columns)
    best = torch.zeros(len(found), dtype=torch.bool, device=found.device)
    best[found.argsort(descending=True, stable=True)[:count]] = True
    return best


@gives("timestep")
def timestep(nets: Nets, columns: Columns, rng: Generator) -> Columns:
    """`timestep` [R]: how many steps the episode had before."""
    slots = torch.arange(len(columns["first"]), device=columns["first"].device)
    begins = torch.where(columns["first"], slots, 0).cummax(0).values
    return {**columns, "timestep": slots - begins}


@gives("return_to_go")
def return_to_go(nets: Nets, columns: Columns, rng: Generator, gamma: float = 1.0) -> Columns:
    """`return_to_go` [R]: `sum_k gamma^k r_{t+k}` to the end of the episode, as it was logged."""
    reward = (columns["reward"].double() * columns["valid"]).cpu()
    step = timestep(nets, columns, rng)["timestep"].cpu()
    order = step.argsort(descending=True, stable=True)  # all episodes at once, from the last steps to the first
    found = torch.zeros(len(reward) + 1, dtype=torch.float64)
    for same in torch.split(order, torch.bincount(step).flip(0).tolist()):
        same = same[columns["valid"].cpu()[same]]
        found[same] = reward[same] + gamma * found[same + 1]
    return {**columns, "return_to_go": found[:-1].float().to(columns["reward"].device)}


@gives("episode_return")
def episode_return(nets: Nets, columns: Columns, rng: Generator) -> Columns:
    """`episode_return` [R]: the undiscounted return of the episode that a slot belongs to."""
    return {**columns, "episode_return": returns(columns)[episodes(columns)].float()}
