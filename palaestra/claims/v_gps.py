"""V-GPS: a policy cloned from mixed demonstrations succeeds more often if a learned value chooses among its draws.

Three fifths of the steps in a maze are random, two fifths a scripted controller's. In both arms the same clone, with the
same values learnt beside it from the same rows, draws its actions when it is deployed; in one arm it takes the first,
in the other one of ten, by its value. The values see a reward of -1 a step and 0 at the goal; what is measured is the
share of episodes that reach it.

Paper: Nakamoto et al., "Steering Your Generalists: Improving Robotic Foundation Models via Value Guidance" (2024).
"""

from __future__ import annotations

from palaestra.claims.claim import Claim, Scale
from palaestra.data.dataset import Dataset
from palaestra.factories.datasets import make_dataset

WORLD = "palaestra/PointMazeUMaze-v0"
CLONE = (
    "gaussian-bc(hidden=(64, 64), batch_size=128)+in-sample-values(hidden=(64, 64))+shifted-reward"
)


def dataset() -> Dataset:
    """20,000 steps, 40 % of which are the controller's, and the others random."""
    return make_dataset(WORLD, "mixed", 20_000, expert_share=0.4)


CLAIM = Claim(
    slug="v-gps",
    says="Taking one of ten draws of a cloned policy by a learned value, it succeeds more often than as it draws.",
    baseline=f"{CLONE}+v-gps(candidates=1)",
    treatment=f"{CLONE}+v-gps(candidates=10)",
    world=WORLD,
    measure="final",
    dataset=dataset,
    scales={
        "smoke": Scale(steps=20, group=2, max_groups=1, train={"evaluate_every": 20, "episodes": 2}),
        "cpu": Scale(steps=3_000, train={"evaluate_every": 3_000, "episodes": 50, "together": "stacked"}),
        "paper": Scale(steps=500_000, train={"evaluate_every": 50_000, "episodes": 100, "together": "stacked"}),
    },
)
