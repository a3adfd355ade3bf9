"""MEX: td3 learns to reach the goals of a maze sooner where its critic favours the policy's own action.

The maze is a U; start and goal are any two of its cells, and nothing but the goal is worth anything.
"""

from palaestra.claims.claim import Claim, Scale

TD3 = "td3(lr=1e-3, batch_size=64, start=1000, updates=0.5, exploration_noise=0.2, hidden=(64, 64))"

CLAIM = Claim(
    slug="mex",
    says="Where rewards are sparse, TD3 with MEX's term in the critic's loss reaches higher returns than TD3.",
    baseline=TD3,
    treatment=f"{TD3}+mex",
    world="palaestra/PointMazeUMaze-v0",
    scales={
        "smoke": Scale(steps=1_100, group=2, max_groups=1, train={"evaluate_every": 550, "episodes": 2}),
        "cpu": Scale(steps=20_000, train={"evaluate_every": 2_000, "episodes": 20}),
        "paper": Scale(steps=1_000_000, train={"evaluate_every": 50_000, "episodes": 20}),
    },
    differs="A maze of two dimensions with one reward, at the goal, in place of MuJoCo's bodies that are paid above a "
    "speed; networks of 64 units and 1,000 random steps in place of 256 and 25,000.",
    tried="One setting of td3, the same in both arms. 5 seeds each: optimism of 0.001 (the paper's), 0.01 and 0.1 in "
    "this maze, 8,000 steps (mean heights of the curve 0.32, 0.27 and 0.27; td3 0.32); 0.001 in the medium maze, 8,000 "
    "steps (0.14; td3 0.13); 0.001 and 0.1 in MountainCarContinuous, 10,000 steps (-0.16 and -36; td3 "
    "-0.16: reaching the hill would be worth more than 90).",
)
