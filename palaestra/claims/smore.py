"""SMORe: iql reaches more goals where its critic scores the way to a goal than where it is paid for reaching it.

Episodes of a maze with any start and any goal, a tenth of whose steps are a controller's and the others random. Both
arms learn towards goals in hindsight, the same ones as often; judged is in how many episodes the goal is reached.
"""

from palaestra.claims.claim import Claim, Scale
from palaestra.data.dataset import Dataset
from palaestra.factories.datasets import make_dataset

WORLD = "palaestra/PointMazeUMaze-v0"
IQL = "iql(gamma=0.95, lr=1e-3, sharpness={sharpness}, decay_over=None, batch_size=128, hidden=(64, 64))"


def dataset() -> Dataset:
    """20,000 steps: some 240 short ways of the controller, and 180 episodes of random actions."""
    return make_dataset(WORLD, "mixed", 20_000, expert_share=0.1)


CLAIM = Claim(
    slug="smore",
    says="From few controlled and many random episodes, SMORe reaches goals more often than IQL with hindsight goals.",
    baseline=f"{IQL.format(sharpness=10.0)}+hindsight-goals",
    treatment=f"{IQL.format(sharpness=0.3)}+smore",
    world=WORLD,
    dataset=dataset,
    measure="final",
    scales={
        "smoke": Scale(steps=20, group=2, max_groups=1, train={"evaluate_every": 20, "episodes": 2}),
        "cpu": Scale(steps=8_000, train={"evaluate_every": 2_000, "episodes": 100, "together": "stacked"}),
        "paper": Scale(steps=500_000, train={"evaluate_every": 5_000, "episodes": 100, "together": "stacked"}),
    },
)
