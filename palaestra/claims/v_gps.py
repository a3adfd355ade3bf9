"""V-GPS: a policy cloned from mixed demonstrations succeeds more often if a learned value chooses among its draws.

Three fifths of the steps in a maze are random, two fifths a scripted controller's. In both arms the same clone, with
the same values learnt beside it from the same rows, draws its actions when it is deployed; in one arm it takes its
draw, in the other one of ten, by value. The values see a reward of -1 a step and 0 at the goal; what is measured is the
share of episodes that reach it.

Paper: Nakamoto et al., "Steering Your Generalists: Improving Robotic Foundation Models via Value Guidance" (2024).
"""

from functools import partial

from palaestra.claims.claim import Claim, Scale
from palaestra.factories.datasets import make_dataset

WORLD = "palaestra/PointMazeUMaze-v0"
CLONE = "gaussian-bc(batch_size=128, hidden=(64, 64))+in-sample-values(hidden=(64, 64))+shifted-reward"
STACKED = {"together": "stacked"}

CLAIM = Claim(
    slug="v-gps",
    says="A policy cloned from mixed data succeeds more often if it takes one of ten draws by a value than one draw.",
    baseline=f"{CLONE}+v-gps(candidates=1)",
    treatment=f"{CLONE}+v-gps(sharpness=10.0)",
    world=WORLD,
    measure="final",
    dataset=partial(make_dataset, WORLD, "mixed", 20_000, expert_share=0.4),
    scales={
        "smoke": Scale(steps=20, group=2, max_groups=1, train={**STACKED, "evaluate_every": 20, "episodes": 2}),
        "cpu": Scale(steps=3_000, train={**STACKED, "evaluate_every": 3_000, "episodes": 50}),
        "paper": Scale(steps=500_000, train={**STACKED, "evaluate_every": 50_000, "episodes": 50}),
    },
    differs="A maze of two dimensions, random steps and a scripted controller's, and a clone with a normal "
    "distribution, in place of robots, people's demonstrations and generalists; values by iql's losses in place of "
    "Cal-QL's, of the clone's own data; networks of 64 units and batches of 128, for both arms; ten times the paper's "
    "sharpness, since the actions of one step differ by less than a step's reward here. The baseline is the clone as "
    "it draws, as in the paper; what it does where it acts most likely is in what was tried.",
    tried="One setting of the clone and of the values, the same in both arms; the sharpness is one of three that were "
    "tried. 3 seeds that are not among those compared, 20 episodes each. After 3,000 updates 0.82 of the episodes "
    "succeed as the clone draws, 0.50 where it acts most likely, 0.92 with one of ten by a sharpness of 1, and 1.00 "
    "with 10, with the best of ten and with the best of thirty. After 1,500 updates it was 0.80, 0.68, 0.85, 0.80, "
    "0.75 and 0.57: so early the best of thirty finds where the values are mistaken. Random actions succeed in 0.23. "
    "In the point mass, 10,000 steps, 3,000 updates, the clone earned -113 as it draws, -51 most likely, -40 with a "
    "sharpness of 1, -13 with 10, -12 and -10 with the best of ten and of thirty.",
)
