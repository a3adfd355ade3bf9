"""Returns of whole episodes of a policy that is asked for a return.

Such a policy has a network `returns` (`palaestra.networks.statistics.ReturnRange`) and, in its memory, two numbers of
each environment: `seen` [N], its steps in the episode, and `paid` [N], what it was paid for them. What it still has to
reach is the largest return less what was paid. A policy is not told rewards: this part writes `paid`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from palaestra.algorithm import Nets, Policy
from palaestra.evaluation.returns import MOST_STEPS
from palaestra.rollout.source import Source


@dataclass(frozen=True)
class AskedReturns:
    """The undiscounted return of an episode at each target, one after the other, in each environment.

    Args:
        targets: as shares of the way from the smallest return of the dataset's episodes to the largest: 1 asks for the
            largest, and more for more. That of the first is called "episode_return", that of another, 0.5 for example,
            "episode_return at 0.5 of the range".

    ValueError without a target, for one twice, and where an episode has not ended after `MOST_STEPS` steps.
    """

    targets: tuple[float, ...] = (1.0, 0.5)
    one_each: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets are {self.targets}: give at least one, and each once")

    @property
    def names(self) -> tuple[str, ...]:
        return ("episode_return", *(f"episode_return at {target:g} of the range" for target in self.targets[1:]))

    def __call__(self, nets: Nets, policy: Policy, source: Source) -> dict[str, list[float]]:
        returns: Any = nets["returns"]
        spread = (returns.high - returns.low).view(-1).repeat_interleave(source.group)  # of each seed its own
        # A lower target is the largest, some of which has been paid before the episode begins.
        before = torch.stack([(1 - target) * spread for target in self.targets])
        found = [[0.0] * source.n for _ in self.targets]
        ended = torch.zeros(source.n, dtype=torch.int64)
        source.memory = {"paid": before[0]}
        with torch.no_grad():
            for _ in range(MOST_STEPS * len(found)):
                action, _, source.memory = policy(nets, source.obs, source.memory, None)
                reward = source.step(action)["reward"]
                for episode in source.finished():
                    i = int(episode["environment"])
                    if ended[i] < len(found):
                        found[ended[i]][i] = episode["episode_return"]
                    ended[i] += 1
                if ended.min() >= len(found):
                    return dict(zip(self.names, found, strict=True))
                asked = ended.clamp(max=len(found) - 1).to(spread.device)
                advance = before.gather(0, asked.unsqueeze(0)).squeeze(0)
                memory = source.memory
                source.memory = {**memory, "paid": torch.where(memory["seen"] == 0, advance, memory["paid"] + reward)}
        raise ValueError(
            f"an evaluation episode has not ended after {MOST_STEPS:,} steps: give the environment a limit, "
            "for example with gymnasium.wrappers.TimeLimit"
        )
