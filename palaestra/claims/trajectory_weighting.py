"""Trajectory weighting: td3-bc gets more out of mostly random data if the few good episodes are drawn more often.

A point mass, 200 episodes of 100 steps: ten of them by its scripted controller, the others uniformly random. The
advantage-weighted form, which the paper recommends, against plain td3-bc.

Paper: Hong et al., "Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory Weighting" (2023).
"""

from functools import partial

from palaestra.claims.claim import Claim, Scale
from palaestra.factories.datasets import make_dataset

WORLD = "palaestra/PointMass-v0"
TD3_BC = "td3-bc(lr=1e-3, batch_size=64, hidden=(64, 64))"
STACKED = {"together": "stacked"}

CLAIM = Claim(
    slug="trajectory-weighting",
    says="On a dataset of random episodes and a few of an expert, advantage-weighted TD3+BC earns more than TD3+BC.",
    baseline=TD3_BC,
    treatment=f"{TD3_BC}+advantage-weighting",
    world=WORLD,
    measure="final",
    dataset=partial(make_dataset, WORLD, "mixed", 20_000, expert_share=0.05),
    scales={
        "smoke": Scale(steps=40, group=2, max_groups=1, train={**STACKED, "evaluate_every": 20, "episodes": 2}),
        "cpu": Scale(steps=5_000, train={**STACKED, "evaluate_every": 1_000, "episodes": 20}),
        "paper": Scale(steps=500_000, train={**STACKED, "evaluate_every": 10_000, "episodes": 20}),
    },
    differs="One world and one share of an expert's steps, 5 %, of the paper's many datasets; a point mass and its "
    "scripted controller in place of MuJoCo's bodies and trained policies; 20,000 steps in place of a million; layers "
    "of 64 units, batches of 64 and a learning rate of 1e-3, for both arms.",
    tried="One setting of td3-bc, the same in both arms, and the paper's temperature; seeds that are not among those "
    "compared, 20 episodes each. Random actions earn -131 here, the controller -9. After 2,000 updates (3 seeds) "
    "td3-bc alone earned -58, with trajectory-weighting -20, with advantage-weighting -19. In the pendulum, where "
    "random actions earn -1213 and the controller -148, it was -1270, -992 and -1308: so few updates taught little "
    "there, and advantage-weighting did not help; the point mass was chosen for that. After the 5,000 updates of the "
    "claim (5 seeds) it was -38 alone, -53 after half of them, and -13 with advantage-weighting. With iql "
    "in place of td3-bc, 1,500 updates and 3 seeds, it was -35 and -13.",
)
