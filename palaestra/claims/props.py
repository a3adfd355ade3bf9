"""PROPS: with the same number of samples, what PROPS collects looks more like its policy's own than what that draws.

Two arms sample one fixed, random softmax policy in a contextual bandit of four contexts and six actions, whose exact
sampling error is a sum over a table. What collects is `props` itself, around a `collect` that draws in the bandit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from palaestra.algorithm import Algorithm, Nets, Policy
from palaestra.algorithms.ppo import drawn, ppo
from palaestra.batch import Columns, Space, Spec
from palaestra.claims.claim import Claim, Scale
from palaestra.functional.distributions import Categorical
from palaestra.learner import generator
from palaestra.methods.online.props import props, sampling_error

CONTEXTS, ACTIONS = 4, 6
SPEC = Spec(Space((), torch.int64, (CONTEXTS,)), Space((), torch.int64, (ACTIONS,)))


class Table(nn.Module):
    """A softmax policy with a parameter for each context and action."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, obs: Tensor) -> Categorical:
        return Categorical(torch.log_softmax(self.logits[obs], -1))


def draws(nets: Nets, policy: Policy, source: Any, n: int, rng: Generator) -> Columns:
    """A `Collect` of one-step episodes: `n` contexts, each as likely, and what the policy does there: [n, 1] each."""
    obs = torch.randint(CONTEXTS, (n,), generator=rng)
    with torch.no_grad():
        action, _, _ = policy(nets, obs, None, rng)
    steps = {"obs": obs, "action": action, "reward": torch.zeros(n), "valid": torch.ones(n, dtype=torch.bool)}
    return {name: column.unsqueeze(1) for name, column in steps.items()}


def sampled(seed: int, budget: int, method: Callable[[Algorithm], Algorithm]) -> dict[str, list[float]]:
    """The sampling error, in nats, of `budget` samples that the method collects for a random policy."""
    rng = generator(seed, "sampling error")
    nets = Nets(SPEC)
    nets["actor"] = Table(torch.randn(CONTEXTS, ACTIONS, generator=rng))
    steps = method(replace(ppo(), collect=draws)).collect(nets, drawn, None, budget, rng)
    counts = torch.zeros(CONTEXTS, ACTIONS)
    counts.index_put_((steps["obs"].flatten(), steps["action"].flatten()), torch.ones(budget), accumulate=True)
    with torch.no_grad():
        error = sampling_error(counts, nets["actor"](torch.arange(CONTEXTS)).log_probs)
    return {"sampling_error": [float(error)]}


def unchanged(algorithm: Algorithm) -> Algorithm:
    return algorithm


CLAIM = Claim(
    slug="props",
    says="Data that PROPS collects have a smaller sampling error than as many that the policy itself draws.",
    baseline=partial(sampled, method=unchanged),
    treatment=partial(sampled, method=partial(props, every=8, lr=0.05, target_kl=0.05)),
    world="a fixed random softmax policy in a contextual bandit: 4 contexts, 6 actions",
    measure="sampling_error",
    direction="smaller",
    scales={"smoke": Scale(steps=64, group=3, max_groups=1), "cpu": Scale(steps=1024), "paper": Scale(steps=16_384)},
    differs="A bandit with a table for a policy, whose sampling error is exact, in place of networks that learn in "
    "MuJoCo, CartPole and LunarLander; the behaviour policy's learning rate, target_kl and period are a table's "
    "(0.05, 0.05 and 8).",
)
