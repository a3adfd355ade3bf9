"""Step a vector environment: the base of the `collect` part. Shape legend: `T` steps, `N` environments."""

from __future__ import annotations

import torch
from torch import Generator

from palaestra.algorithm import Nets, Policy
from palaestra.batch import Columns, flatten, unflatten
from palaestra.rollout.source import Source


def step(nets: Nets, policy: Policy, source: Source, n: int, rng: Generator) -> Columns:
    """`n` steps in every environment: columns [T, N, ...] of what was seen, done and paid, and what the policy gave."""
    steps = []
    with torch.no_grad():
        for _ in range(n):
            action, columns, source.memory = policy(nets, source.obs, source.memory, rng)
            steps.append(flatten({**columns, **source.step(action)}))
            nets.clock.env_steps.fill_(source.env_steps)
    if n == 1:
        return unflatten({key: value.unsqueeze(0) for key, value in steps[0].items()})
    return unflatten({key: torch.stack([row[key] for row in steps]) for key in steps[0]})
