"""Two ways to bring the numbers of any environment to one scale: observations and rewards by what was measured so far.

    normalised-obs:     (obs - mean) / std, within +-clip; mean and std of every observation that was acted on
    normalised-reward:  reward / std, within +-clip; std of G_t = r_t + gamma G_{t-1}, an episode's rewards so far

Details as in Huang et al., "The 37 Implementation Details of Proximal Policy Optimization" (2022), who follow Dhariwal
et al., "OpenAI Baselines" (2017).

A rollout algorithm gets its observations standardised as they were when it acted, all by the same numbers, and then
these take the rollout in: until the first update the policy is the one that acted. A replay algorithm keeps its rows as
they came and standardises those that it draws by the newest numbers. Either way acting, evaluating and deploying read
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
    above,
    add_networks,
    append_transform,
    between,
    expressed,
    replace_policy,
)  # fmt: skip
from palaestra.batch import Columns, Obs
from palaestra.functional.returns import discounted_so_far
from palaestra.networks.statistics import obs_statistics, running_statistics


def acting(
    nets: Nets, obs: Obs, memory: Memory, rng: Generator | None, policy: Policy
) -> tuple[Tensor, Columns, Memory]:
    """`policy` of the standardised observation."""
    return policy(nets, nets["obs_statistics"](obs), memory, rng)


def standardise_obs(nets: Nets, batch: Columns, rng: Generator) -> Columns:
    seen = [key for key in ("obs", "next_obs") if key in batch]
    return {**batch, **{key: nets["obs_statistics"](batch[key]) for key in seen}}


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
    measured = add_networks(algorithm, obs_statistics=obs_statistics(clip))
    algorithm = replace_policy(measured, partial(acting, policy=algorithm.policy))
    if algorithm.schedule.epochs:
        return _when_collected(algorithm, standardise_then_measure_obs)
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


def _when_collected(algorithm: Algorithm, fn: Callable[[Nets, Columns, Generator], Columns]) -> Algorithm:
    return append_transform(algorithm, Transform(fn, "collect", next(iter(algorithm.buffers))))


def _when_drawn(algorithm: Algorithm, fn: Callable[[Nets, Columns, Generator], Columns]) -> Algorithm:
    for stream in algorithm.buffers:
        algorithm = append_transform(algorithm, Transform(fn, "update", stream))
    return algorithm
