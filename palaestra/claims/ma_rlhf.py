"""MA-RLHF: with macro actions of five tokens, PPO gets to kind sentences of 36 words in fewer rounds than without.

What a sentence is worth, its kindness, is said at its end alone, and the critic begins by saying 0 of every word. Each
arm is scored by what its sampled answers earned, over all rounds: that is how good they are and how soon.
"""

from __future__ import annotations

from functools import partial

from palaestra.claims.claim import Claim, Scale
from palaestra.envs.text.sent import sent
from palaestra.expression import parse
from palaestra.factories.language import Tiny, made
from palaestra.text_ground import text_ground

LENGTH = (32, 40)  # words of a sentence; four of them are the prompt
PPO = "ppo-lm(prompts=64, longest=37, lr=1e-3, epochs=2, kl_coefficient=0.02)"
UPDATES = 300


def rewards(seed: int, budget: int, expression: str) -> dict[str, list[float]]:
    """What answers earned in each of `budget` rounds, in the mean."""
    updates = min(UPDATES, 10 * budget)  # a smoke run need not wait for a model that has learnt the grammar
    tiny = Tiny("sent:sent", {"length": LENGTH}, updates=updates, layers=2, context=48)
    algorithm = parse(expression)
    ground = text_ground(algorithm, model=made(tiny, name="sent-long"), env=sent(LENGTH))
    run = ground.begin(algorithm, (seed,), None)
    earned = []
    while run.count < budget:
        run.advance()
        earned.append(run.told["reward"])
    run.learner.check_finite()
    return {"reward": earned}


CLAIM = Claim(
    slug="ma-rlhf",
    says="With macro actions of five tokens, PPO earns more reward in as many rounds than with tokens as actions.",
    baseline=partial(rewards, expression=PPO),
    treatment=partial(rewards, expression=f"{PPO}+ma-rlhf(length=5)"),
    world="palaestra/Sent-v0 with sentences of 32 to 40 words",
    measure="reward",
    scales={"smoke": Scale(steps=2, group=2, max_groups=1), "cpu": Scale(steps=40), "paper": Scale(steps=400)},
    differs="Sentences of a grammar and a reward that counts adjectives, in place of summaries, dialogues and code that "
    "a reward model judges; a model of 0.1 million parameters in place of 2 to 27 billion; a critic that begins at 0 in "
    "place of one that begins as the reward model.",
    tried="",
)
