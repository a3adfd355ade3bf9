"""Returns of whole episodes."""

from __future__ import annotations

import torch

from palaestra.algorithm import Nets, Policy
from palaestra.rollout.source import Source

MOST_STEPS = 100_000  # of an episode: a world without an end would be evaluated for ever


def episode_return(nets: Nets, policy: Policy, source: Source) -> dict[str, list[float]]:
    """The undiscounted return of one episode in each environment of `source`, acting most likely (`rng=None`).

    ValueError where an episode has not ended after `MOST_STEPS` steps.
    """
    returns: dict[int, float] = {}
    steps = 0
    with torch.no_grad():
        while len(returns) < source.n:
            if (steps := steps + 1) > MOST_STEPS:
                raise ValueError(
                    f"an evaluation episode has not ended after {MOST_STEPS:,} steps: give the environment a limit, "
                    "for example with gymnasium.wrappers.TimeLimit"
                )
            action, _, source.memory = policy(nets, source.obs, source.memory, None)
            step = source.step(action)
            done = (step["terminated"] | step["truncated"]).cpu().numpy().nonzero()[0]
            for i, episode in zip(done.tolist(), source.finished(), strict=True):
                returns.setdefault(i, episode["episode_return"])
    return {"episode_return": [returns[i] for i in range(source.n)]}


episode_return.one_each = True  # type: ignore[attr-defined]
