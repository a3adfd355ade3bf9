"""PF-PPO: PPO adds better if it learns from the best of five answers and one other, where the reward is noisy between.

The reward is the share of an answer's digits that stand where they should, in [0, 1], with as much noise as leaves it
there: none where all are right or all are wrong. An answer's noise is always the same. Both arms give five answers to
each prompt and make as many updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b

from palaestra.claims.claim import Claim, Scale
from palaestra.envs.text.add import add
from palaestra.envs.text.sort import in_place
from palaestra.envs.text.task import Row
from palaestra.expression import parse
from palaestra.factories.language import TINY, made
from palaestra.text_ground import text_ground

PPO = "ppo-lm(prompts=32, longest=4, lr=1e-4, critic_lr=1e-3, warm_up=20, epochs=2, kl_coefficient=0.02)"
EPISODES = 500


def noise(row: Row, answer: str) -> float:
    """Uniform in [-1, 1), always the same for an answer to a prompt."""
    digest = blake2b(f"{row['prompt']}{answer}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**31 - 1


def blurred(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """`s + u min(s, 1 - s)`, where s is the share of digits in place and u the noise: in [0, 1], with s as its mean."""
    shares = zip(rows, answers, in_place(rows, answers), strict=True)
    return [share + noise(row, answer) * min(share, 1 - share) for row, answer, share in shares]


def exact(seed: int, budget: int, expression: str) -> dict[str, list[float]]:
    """Whether the most likely answer to each of 500 sums is right, after `budget` rounds."""
    tiny = TINY["add"]
    tiny = replace(tiny, updates=min(tiny.updates, 10 * budget))  # a smoke run need not wait for a model that can add
    algorithm, task = parse(expression), add()
    ground = text_ground(algorithm, model=made(tiny, name="add"), env=task, reward={"blurred": blurred})
    run = ground.begin(algorithm, (seed,), None, EPISODES)
    while run.count < budget:
        run.advance()
    run.learner.check_finite()
    assert run.asked is not None
    run.asked.rewards = task.rewards  # it is judged by the truth
    return {"exact_match": run.evaluate()[seed]["reward"]}


CLAIM = Claim(
    slug="pf-ppo",
    says="PPO that learns from the best of five answers and a random other one is right more often than from all five.",
    baseline=partial(exact, expression=f"{PPO}+pf-ppo-unfiltered"),
    treatment=partial(exact, expression=f"{PPO}+pf-ppo"),
    world="palaestra/Add-v0, with a reward that is noisy between right and wrong",
    measure="exact_match",
    scales={"smoke": Scale(steps=2, group=2, max_groups=1), "cpu": Scale(steps=40), "paper": Scale(steps=400)},
    differs="",
    tried="",
)
