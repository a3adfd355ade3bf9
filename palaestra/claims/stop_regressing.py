"""Stop regressing: dqn balances a pole on a cart sooner where its critic classifies than where it regresses.

What a state is worth is known: a step is worth 1 and 500 of them are the end, so that discounted returns are between 0
and 100. The bins reach a little further, where labels are not drawn inwards.
"""

from palaestra.claims.claim import Claim, Scale

DQN = "dqn(lr=1e-3, batch_size=64, start=500, updates=0.5, target_every=200, exploration_steps=5000, hidden=(64, 64))"

CLAIM = Claim(
    slug="stop-regressing",
    says="A Q-network that classifies its targets (HL-Gauss) reaches higher returns than one that regresses on them.",
    baseline=DQN,
    treatment=f"{DQN}+stop-regressing(v_min=-10.0, v_max=110.0, bins=101)",
    world="palaestra/CartPole-v0",
    scales={
        "smoke": Scale(steps=600, group=2, max_groups=1, train={"evaluate_every": 300, "episodes": 2}),
        "cpu": Scale(steps=20_000, train={"evaluate_every": 2_000, "episodes": 5}),
        "paper": Scale(steps=500_000, train={"evaluate_every": 25_000, "episodes": 10}),
    },
    differs="Cart-pole and two layers of 64 units in place of Atari and convolutional or residual networks; 101 bins "
    "in [-10, 110] in place of 51 in [-10, 10]; Huber's loss, as the paper's DQN, in the baseline.",
    tried="Learning rates of 1e-3, 3e-4 and 3e-3 for both arms, 5 seeds each, 15,000 steps: 1e-3 is the best of both "
    "(mean heights of the curve 178 and 218; 162 and 193; 150 and 172).",
)
