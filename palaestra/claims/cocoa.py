"""COCOA: from angles of a pendulum that were never logged, iql swings up better with it.

A controller that acts at random some of the time swings up a pendulum; every step on one side, about the horizontal, is
cut out of its episodes. Both arms learn from the rest, and are judged where episodes begin in what was cut out.

Paper: Song, Lee and Kim, "Compositional Conservatism: A Transductive Approach in Offline Reinforcement Learning"
(2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial

import numpy as np

from palaestra.claims.claim import Claim, Scale
from palaestra.data.dataset import Dataset, from_episodes
from palaestra.envs.make import make_vector
from palaestra.envs.native import Floats
from palaestra.envs.pendulum import PendulumVectorEnv
from palaestra.expression import parse
from palaestra.factories.behaviours import Episode, clumsy, controlled, played
from palaestra.factories.datasets import until
from palaestra.loops.offline import Offline

IQL = "iql(lr=1e-3, gamma=0.97, sharpness=0.1, hidden=(64, 64), batch_size=128, decay_over=None)"
COCOA = (
    "cocoa(features=64, embedding=4, embedding_hidden=(64, 64), members=3, model_hidden=(64, 64), "
    "seeker_hidden=(64, 64), fit_updates=5000)"
)
UNSEEN, SEEN = (-2.5, -0.5), (0.5, 2.5)  # angles, from upright: what is cut out, and as far on the other side
STEPS = 20_000  # that are played, before those are cut out
NOISE = 0.3  # the share of the controller's steps in which it acts at random
SHORTEST = 5  # steps of an episode that is logged
EPISODES = 20
TOGETHER = 5  # seeds that are trained at once


class Between(PendulumVectorEnv):
    """The pendulum, beginning at an angle between these two."""

    def __init__(self, copies: int, low: float, high: float) -> None:
        super().__init__(copies, autoreset_mode="Disabled")
        self.range = low, high

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """The standard world's small speed."""
        low, high = self.range
        return np.stack([low + (high - low) * uniforms[:, 0], 2 * uniforms[:, 1] - 1], 1)


@cache
def logged() -> Dataset:
    """The pieces of the controller's episodes that lie outside of the angles that are cut out."""
    world = make_vector("palaestra/Pendulum-v0", 20)
    episodes = until(STEPS, played(world, clumsy(controlled(world), NOISE), 0, "logged"))
    pieces = [piece for episode in episodes for piece in outside(episode) if len(piece["reward"]) >= SHORTEST]
    return from_episodes(pieces, world.single_observation_space, world.single_action_space)


def outside(episode: Episode) -> Iterator[Episode]:
    """An episode, cut into pieces whose every observation lies outside of `UNSEEN`; they are truncated."""
    cos, sin = episode["obs"][:, 0], episode["obs"][:, 1]
    angle = np.arctan2(sin, cos)
    kept = np.concatenate([[False], (angle < UNSEEN[0]) | (angle > UNSEEN[1]), [False]])
    edges = np.flatnonzero(kept[1:] != kept[:-1])
    for begin, end in edges.reshape(-1, 2):
        piece = {name: rows[begin : end if name == "obs" else end - 1] for name, rows in episode.items()}
        yield {**piece, "truncated": np.arange(begin + 1, end) == end - 1}


@cache
def learnt_together(first: int, budget: int, expression: str) -> Mapping[int, dict[str, list[float]]]:
    """The scores of seeds that are trained at once, after `budget` updates, from where it was cut out, and not."""
    run = Offline(parse(expression), logged(), range(first, first + TOGETHER))
    while run.count < budget:
        run.advance()
    far, near = (run.evaluate(Between(TOGETHER * EPISODES, *where), budget) for where in (UNSEEN, SEEN))
    return {seed: {"unseen": far[seed]["episode_return"], "seen": near[seed]["episode_return"]} for seed in run.seeds}


def learnt(seed: int, budget: int, expression: str) -> dict[str, list[float]]:
    """Returns of one seed, "unseen" and "seen"."""
    return learnt_together(seed - seed % TOGETHER, budget, expression)[seed]


CLAIM = Claim(
    slug="cocoa",
    says="Where episodes begin in states that were not logged, IQL with COCOA gets higher returns than IQL.",
    baseline=partial(learnt, expression=IQL),
    treatment=partial(learnt, expression=f"{IQL}+{COCOA}"),
    world="palaestra/Pendulum-v0, played from angles that were cut out of what was logged",
    measure="unseen",
    scales={
        "smoke": Scale(steps=20, group=2, max_groups=1),
        "cpu": Scale(steps=1_500),
        "paper": Scale(steps=1_000_000),
    },
    differs="A pendulum from which a range of angles is cut out, in place of MuJoCo's bodies, whose states are out of "
    "the data only as far as the policy's own mistakes lead; networks of 64 units, ensembles of 3 with two layers of "
    "64, the embeddings of the authors' IQL (two layers of 64, products of 4 numbers), 1,500 updates of a larger "
    "learning rate.",
    tried="Both arms have the same iql, whose settings were guessed once and not tuned; cocoa's are the paper's, with "
    "the anchor one step away, in smaller networks. Each was run with 5 seeds that are not among those compared; "
    "mean returns from unseen angles, and from as far on the other side, which was logged: iql -546 and -590, "
    "with cocoa -332 and -368. The gain is as large where nothing was cut out, and more than half of it is not "
    "the anchors': actor, critics and V together have 18,053 parameters in iql and 162,189 with cocoa; iql with "
    "208 units a layer has 178,469, and -405 and -449; cocoa whose anchors are the observations themselves "
    "(horizon=0) has -373 and -409. Before that a point mass was tried, logged from three quadrants and played "
    "from the fourth: iql alone plays as well from there (-10.9) as from the others (-11.2), with cocoa it is "
    "-11.6 and -11.5. Logged from one quadrant and played from the opposite one, iql alone has no gap either "
    "(-11.2 and -10.9), and anchors led farther from the data; cocoa was not run to the end there.",
)
