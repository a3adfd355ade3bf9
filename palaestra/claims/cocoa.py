"""COCOA: where episodes begin in a quarter of the plane that no logged one began in, iql does better with it.

A point mass is logged on its way to the origin, by a controller that acts at random half of the time, from three of
the plane's four quadrants. Both arms learn from these data, and are judged from the fourth.

Paper: Song, Lee and Kim, "Compositional Conservatism: A Transductive Approach in Offline Reinforcement Learning"
(2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial

import numpy as np

from palaestra.claims.claim import Claim, Scale
from palaestra.data.dataset import Dataset, from_episodes
from palaestra.envs.native import Floats
from palaestra.envs.point_mass import PointMassVectorEnv
from palaestra.expression import parse
from palaestra.factories.behaviours import clumsy, controlled, played
from palaestra.factories.datasets import until
from palaestra.loops.offline import Offline

IQL = "iql(lr=1e-3, hidden=(64, 64), batch_size=128, decay_over=None)"
COCOA = (
    "cocoa(features=64, embedding=4, embedding_hidden=(64, 64), members=3, model_hidden=(64, 64), "
    "seeker_hidden=(64, 64), fit_updates=5000)"
)
SEEN, UNSEEN = (0,), (3,)  # quadrants where logged episodes begin, and where policies are judged
STEPS = 10_000  # that are logged
NOISE = 0.5  # the share of the controller's steps in which it acts at random
EPISODES = 20
TOGETHER = 5  # seeds that are trained at once


class Quadrants(PointMassVectorEnv):
    """The point mass, beginning in some of four quadrants: x < 0 in the odd ones, y < 0 in 2 and 3."""

    def __init__(self, copies: int, quadrants: tuple[int, ...]) -> None:
        super().__init__(copies, autoreset_mode="Disabled")
        self.quadrants = np.array(quadrants)

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """At rest, uniformly in one of them."""
        which, x = np.divmod(uniforms[:, 0] * len(self.quadrants), 1)
        quadrant = self.quadrants[which.astype(np.int64)]
        position = np.stack([np.where(quadrant % 2, -x, x), np.where(quadrant > 1, -1, 1) * uniforms[:, 1]], 1)
        return np.concatenate([position, np.zeros_like(position)], 1)


@cache
def logged() -> Dataset:
    """Whole episodes from the first three quadrants."""
    world = Quadrants(20, SEEN)
    episodes = until(STEPS, played(world, clumsy(controlled(world), NOISE), 0, "logged"))
    return from_episodes([*episodes], world.single_observation_space, world.single_action_space)


@cache
def learnt_together(first: int, budget: int, expression: str) -> Mapping[int, dict[str, list[float]]]:
    """The scores of seeds that are trained at once, after `budget` updates, from the fourth quadrant and the others."""
    run = Offline(parse(expression), logged(), range(first, first + TOGETHER))
    while run.count < budget:
        run.advance()
    far, near = (run.evaluate(Quadrants(TOGETHER * EPISODES, where), budget) for where in (UNSEEN, SEEN))
    return {seed: {"unseen": far[seed]["episode_return"], "seen": near[seed]["episode_return"]} for seed in run.seeds}


def learnt(seed: int, budget: int, expression: str) -> dict[str, list[float]]:
    """Returns of one seed, "unseen" and "seen"."""
    return learnt_together(seed - seed % TOGETHER, budget, expression)[seed]


CLAIM = Claim(
    slug="cocoa",
    says="Where episodes begin in states that were not logged, IQL with COCOA gets higher returns than IQL.",
    baseline=partial(learnt, expression=IQL),
    treatment=partial(learnt, expression=f"{IQL}+{COCOA}"),
    world="palaestra/PointMass-v0, logged from three quadrants, played from the fourth",
    measure="unseen",
    scales={
        "smoke": Scale(steps=20, group=2, max_groups=1),
        "cpu": Scale(steps=3_000),
        "paper": Scale(steps=1_000_000),
    },
)
