"""PRDC: where the data do the wrong thing in some states, td3 does the right one if it may take it from others.

A point mass is to come to the origin and stay there. On every other square of a board, of 0.5 a side, the scripted
controller is misled and pushes the opposite way; on the others, and outside of the board, it pushes as it should. The
right action was thus never logged on half of the board, and was beside it. It is the idea of the paper's "lineworld".

Paper: Ran et al., "Policy Regularization with Dataset Constraint for Offline Reinforcement Learning" (2023).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Memory, Nets
from palaestra.batch import Columns, Obs
from palaestra.claims.claim import Claim, Scale
from palaestra.data.dataset import Dataset, from_episodes
from palaestra.envs.make import make_vector
from palaestra.factories.behaviours import COPIES, Player, controlled, played
from palaestra.factories.datasets import until

WORLD = "palaestra/PointMass-v0"
SQUARE, BOARD, STEPS = 0.5, 1.0, 10_000
TD3_BC = "td3-bc(improvement=40.0, lr=1e-3, batch_size=128, hidden=(64, 64))"
STACKED = {"together": "stacked"}


def misled(player: Player) -> Player:
    """One who does the opposite on every other square of the board."""

    def act(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
        assert isinstance(obs, Tensor)
        action, columns, memory = player.policy(nets, obs, memory, rng)
        position = obs[:, :2]
        black = (position / SQUARE).floor().sum(-1) % 2 == 0
        wrong = black & (position.abs().amax(-1) < BOARD)
        return torch.where(wrong[:, None], -action, action), columns, memory

    return Player(player.nets, act)


def dataset() -> Dataset:
    """Whole episodes of the misled controller, of 10,000 steps."""
    env = make_vector(WORLD, COPIES)
    episodes = until(STEPS, played(env, misled(controlled(env)), 0, "misled"))
    return from_episodes([*episodes], env.single_observation_space, env.single_action_space)


CLAIM = Claim(
    slug="prdc",
    says="Where logged actions are wrong in some states and right in others, TD3 held to the nearest logged pair earns "
    "more than TD3 held to the logged action of the state.",
    baseline=TD3_BC,
    treatment=f"{TD3_BC}+prdc",
    world=WORLD,
    measure="final",
    dataset=dataset,
    scales={
        "smoke": Scale(steps=20, group=2, max_groups=1, train={"episodes": 2, **STACKED}),
        "cpu": Scale(steps=2_000, train={"episodes": 20, **STACKED}),
        "paper": Scale(steps=1_000_000, train={"episodes": 50, "evaluate_every": 5_000, **STACKED}),
    },
    differs="",
    tried="",
)
