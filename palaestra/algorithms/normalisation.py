"""Ways to bring the numbers of any environment or dataset to one scale: observations and rewards by what was measured.

    normalised-obs:     (obs - mean) / std, within +-clip; mean and std of every observation that was acted on
    normalised-return:  reward * span / (largest - smallest return), of a dataset's episodes
    normalised-reward:  reward / std, within +-clip; std of G_t = r_t + gamma G_{t-1}, an episode's rewards so far

Details as in Huang et al., "The 37 Implementation Details of Proximal Policy Optimization" (2022), who follow Dhariwal
et al., "OpenAI Baselines" (2017).

A rollout algorithm gets its observations standardised as they were when it acted, all by the same numbers, and then
these take the rollout in: until the first update the policy is the one that acted. A replay algorithm keeps its rows as
they came and standardises those that it draws by the newest numbers. Of a dataset all observations are measured before
the first update. Either way acting, evaluating and deploying read
the numbers and do not change them.

Traps: before the first rollout was measured, observations are as they came. The deviation is about a mean, but rewards
lose no mean: they keep their sign.

Differs from the papers: the numbers move once a collection, not with every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Memory,
    Nets,
    Policy,
    Transform,
    Unfit,
    above,
    add_networks,
    append_transform,
    between,
    expressed,
    given_by,
    replace_policy,
)  # fmt: skip
from palaestra.batch import Columns, Obs, each
from palaestra.data.whole import returns
from palaestra.functional.returns import discounted_so_far
from palaestra.networks.statistics import measured_number, obs_statistics, running_statistics

MOST_ROWS = 65_536


def acting(
    nets: Nets, obs: Obs, memory: Memory, rng: Generator | None, policy: Policy
) -> tuple[Tensor, Columns, Memory]:
    """`policy` of the standardised observation."""
    return policy(nets, nets["obs_statistics"](obs), memory, rng)


def standardise_obs(nets: Nets, batch: Columns, rng: Generator) -> Columns:
    seen = [key for key in ("obs", "next_obs") if key in batch]
    return {**batch, **{key: nets["obs_statistics"](batch[key]) for key in seen}}


def measure_obs_of_dataset(nets: Nets, columns: Columns, rng: Generator) -> Columns:
    obs, valid = columns["obs"], columns["valid"]
    for begin in range(0, len(valid), MOST_ROWS):  # sums are taken in float64: not of everything at once
        part = slice(begin, begin + MOST_ROWS)
        nets["obs_statistics"].measure(each(lambda x: x[part], {"obs": obs})["obs"], valid[part])  # type: ignore[operator] # noqa: B023
    return columns


def measure_obs(nets: Nets, steps: Columns, rng: Generator) -> Columns:
    nets["obs_statistics"].measure(steps["obs"], steps["valid"])  # type: ignore[operator]
    return steps


def standardise_then_measure_obs(nets: Nets, steps: Columns, rng: Generator) -> Columns:
    standardised = standardise_obs(nets, steps, rng)
    measure_obs(nets, steps, rng)
    return standardised


class SoFar:
    """What the episode that each environment is in has paid so far, carried from one collection to the next."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last = state["last"]


def measure_reward(nets: Nets, steps: Columns, rng: Generator, so_far: SoFar, gamma: float) -> Columns:
    reward = steps["reward"]
    last = torch.zeros_like(reward[0]) if so_far.last is None else so_far.last.to(reward.device)
    paid = discounted_so_far(reward, steps["first"], last, gamma)
    so_far.last = paid[-1]
    nets["reward_statistics"].measure(paid, steps["valid"])  # type: ignore[operator]
    return steps


def scale_reward(nets: Nets, batch: Columns, rng: Generator, clip: float) -> Columns:
    reward = batch["reward"]
    scaled = (reward * nets["reward_statistics"].scale()).clamp(-clip, clip)  # type: ignore[operator]
    return {**batch, "reward": scaled.to(reward.dtype)}


@expressed
def normalised_obs(algorithm: Algorithm, clip: float = 10.0) -> Algorithm:
    """Observations with running mean 0 and standard deviation 1: the vectors of numbers, not images nor symbols.

    Args:
        clip: largest standardised number.
    """
    above(0, clip=clip)
    if "obs_statistics" in algorithm.networks:
        raise ValueError(f"normalised-obs does not fit {algorithm}: it standardises observations already")
    measured = add_networks(algorithm, obs_statistics=obs_statistics(clip))
    algorithm = replace_policy(measured, partial(acting, policy=algorithm.policy))
    if algorithm.schedule.epochs:
        return _when_collected(algorithm, standardise_then_measure_obs)
    algorithm = append_transform(algorithm, Transform(measure_obs_of_dataset, "dataset", next(iter(algorithm.buffers))))
    return _when_drawn(_when_collected(algorithm, measure_obs), standardise_obs)


@expressed
def normalised_reward(algorithm: Algorithm, gamma: float = 0.99, clip: float = 10.0) -> Algorithm:
    """Rewards over the running standard deviation of the discounted sum of an episode's rewards so far.

    Args:
        gamma: discount factor of that sum, in [0, 1]: the base's own, usually.
        clip: largest size of a reward.
    """
    between(0, 1, gamma=gamma)
    above(0, clip=clip)
    changed = add_networks(algorithm, reward_statistics=running_statistics)
    changed = _when_collected(changed, partial(measure_reward, so_far=SoFar(), gamma=gamma))
    return (_when_collected if algorithm.schedule.epochs else _when_drawn)(changed, partial(scale_reward, clip=clip))


def measure_return_range(nets: Nets, columns: Columns, rng: Generator, span: float) -> Columns:
    found = returns(columns)
    spread = found.max() - found.min()
    nets["return_range"].value.fill_(torch.where(spread > 0, span / spread, 1.0))  # type: ignore[operator]
    return columns


def scale_by_return_range(nets: Nets, batch: Columns, rng: Generator) -> Columns:
    return {**batch, "reward": batch["reward"] * nets["return_range"].value}


@expressed
def normalised_return(algorithm: Algorithm, span: float = 1000.0) -> Algorithm:
    """Rewards times `span / (largest - smallest return of an episode)` of the dataset; as they are without a dataset.

    Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning" (2022), do so on locomotion.

    Args:
        span: what the returns of the dataset's episodes then span.
    """
    above(0, span=span)
    changed = add_networks(algorithm, return_range=measured_number)
    measure = Transform(partial(measure_return_range, span=span), "dataset", next(iter(algorithm.buffers)))
    return _when_drawn(append_transform(changed, measure), scale_by_return_range)


@expressed
def shifted_reward(algorithm: Algorithm, by: float = -1.0) -> Algorithm:
    """Rewards plus `by`: -1 where 1 is paid at a goal alone, so that every step on the way costs something.

    Args:
        by: what is added to every reward when it is drawn.
    """
    return _when_drawn(algorithm, partial(_shifted, by=by))


def _shifted(nets: Nets, batch: Columns, rng: Generator, by: float) -> Columns:
    return {**batch, "reward": batch["reward"] + by}


def _of_steps(algorithm: Algorithm) -> None:
    """Unfit for an algorithm of language models, whose rows are answers."""
    if any("answer" in given_by(buffer.layout) for buffer in algorithm.buffers.values()):
        names = "normalised-obs, normalised-reward, normalised-return and shifted-reward"
        raise Unfit(f"{names} are for steps, and not for {algorithm}")


def _when_collected(algorithm: Algorithm, fn: Callable[[Nets, Columns, Generator], Columns]) -> Algorithm:
    _of_steps(algorithm)
    return append_transform(algorithm, Transform(fn, "collect", next(iter(algorithm.buffers))))


def _when_drawn(algorithm: Algorithm, fn: Callable[[Nets, Columns, Generator], Columns]) -> Algorithm:
    _of_steps(algorithm)
    for stream in algorithm.buffers:
        algorithm = append_transform(algorithm, Transform(fn, "update", stream))
    return algorithm
