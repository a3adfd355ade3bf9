"""OREAL: wrong answers, and which of their tokens matter, tell more than cloning the right ones alone.

A tiny model adds with a scratchpad: for each digit a step, then the sum. One arm clones one right answer to each prompt
that is answered now right and now wrong; the other is OREAL, which learns from a wrong one as well and weighs tokens by
a reward model that it learns beside. Both begin as the same model and sample as many answers.

Paper: Lyu et al., "Exploring the Limit of Outcome Reward for Learning Mathematical Reasoning" (2025).
"""

from __future__ import annotations

from functools import partial

from palaestra.claims.claim import Claim, Scale
from palaestra.envs.text.add import add
from palaestra.expression import parse
from palaestra.factories.language import Tiny, made
from palaestra.text_ground import text_ground

TASK = add(scratchpad=True)
MODEL = Tiny("add:add", {"scratchpad": True}, updates=160, layers=2)
BASE = f"rloo(lr=3e-4, prompts=32, answers=8, longest={TASK.longest})"
EPISODES = 300


def learnt(seed: int, budget: int, method: str) -> dict[str, list[float]]:
    """Whether the most likely answers are right after `budget` rounds, to 300 prompts that are not learnt from."""
    algorithm = parse(f"{BASE}+{method}")
    run = text_ground(algorithm, model=str(made(MODEL)), env=TASK).begin(algorithm, (seed,), None, EPISODES)
    while run.count < budget:
        run.advance()
    return {"right": run.evaluate()[seed]["reward"]}


CLAIM = Claim(
    slug="oreal",
    says="At as many samples, OREAL ends with more right answers than cloning right answers alone.",
    baseline=partial(learnt, method="oreal-without-tokens(negative_coefficient=0.0)"),
    treatment=partial(learnt, method="oreal(token_reward_lr=1e-3)"),
    world="sums of two numbers below 100, worked out digit by digit",
    measure="right",
    scales={"smoke": Scale(steps=1, group=2, max_groups=1), "cpu": Scale(steps=40), "paper": Scale(steps=1_000)},
    differs="Sums and a model of 0.1 million parameters in place of mathematics and 7 or 32 billion; a program judges; "
    "32 prompts with 8 answers each in place of 64 with 16, and prompts are not repeated by difficulty.",
    tried="",
)
