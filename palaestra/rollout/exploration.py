"""Exploration: functions from policy to policy. They draw from the `rng` that acting passes, and read the clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Memory, Nets, Policy, Scheduled
from palaestra.batch import Columns, Obs
from palaestra.functional.distributions import categorical_sample, only_allowed
from palaestra.functional.schedules import number
from palaestra.networks.encoders import action_mask

Wrapper = Callable[[Policy], Policy]


def nested(*wrappers: Wrapper) -> Wrapper:
    """Wrappers as one; the first is the outermost."""
    return partial(_nested, wrappers=wrappers)


def _nested(policy: Policy, wrappers: tuple[Wrapper, ...]) -> Policy:
    for wrapper in reversed(wrappers):
        policy = wrapper(policy)
    return policy


def uniform_action(nets: Nets, obs: Obs, rows: int, rng: Generator) -> Tensor:
    """Random actions [B, ...], uniform over those that the space (and an `action_mask`) allows."""
    space = nets.spec.action
    device = nets.clock.env_steps.device
    if not space.discrete:
        return torch.rand((rows, *space.shape), generator=rng, device=device) * 2.0 - 1.0
    mask = action_mask(obs)
    if mask is None:
        return torch.randint(space.choices[0], (rows,), generator=rng, device=device)
    return categorical_sample(only_allowed(torch.zeros(mask.shape, device=device), mask), rng)


def uniform_until(policy: Policy, steps: int) -> Policy:
    """Uniformly random actions for the first `steps` environment steps, then the policy's."""

    def act(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
        action, columns, memory = policy(nets, obs, memory, rng)
        if rng is not None and steps:
            early = nets.clock.env_steps < steps
            action = torch.where(early, uniform_action(nets, obs, len(action), rng), action)
        return action, columns, memory

    return act


def noisy(policy: Policy, scale: Scheduled) -> Policy:
    """Independent normal noise on a continuous action, which stays in [-1, 1]. `scale` in half action ranges."""

    def act(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
        action, columns, memory = policy(nets, obs, memory, rng)
        if rng is not None:
            noise = torch.randn(action.shape, generator=rng, device=action.device)
            action = (action + number(scale, nets.clock) * noise).clamp(-1.0, 1.0)
        return action, columns, memory

    return act


def mostly(policy: Policy, random: Scheduled) -> Policy:
    """With probability `random` (of each row) a uniformly random action: epsilon-greedy."""

    def act(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
        action, columns, memory = policy(nets, obs, memory, rng)
        if rng is not None:
            lucky = torch.rand(len(action), generator=rng, device=action.device) < number(random, nets.clock)
            action = torch.where(lucky, uniform_action(nets, obs, len(action), rng), action)
        return action, columns, memory

    return act
