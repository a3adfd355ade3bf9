"""IFT: a small model that reads some of its own predictions as it learns writes more right answers of its own.

A model learns to put letters in order, or to add with a scratchpad, from few demonstrations; both arms make as many
updates. Judged are its own answers, each token after those that it wrote itself: exposure to its own mistakes is what
the method is for.

Paper: Hua et al., "Intuitive Fine-Tuning: Towards Unifying SFT and RLHF into a Single Process" (2024).
"""

from __future__ import annotations

from functools import cache, partial

from palaestra.claims.claim import Claim, Scale
from palaestra.envs.text.sort import sort
from palaestra.envs.text.task import rows
from palaestra.expression import parse
from palaestra.factories.language import Tiny, untrained
from palaestra.text_ground import text_ground

TASK = sort()
BEGIN = Tiny("sort:sort", layers=2, context=24)
SFT = "sft(lr=2e-3, batch_size=64, warm_up=20, decay_over={}, longest=11)"
DEMONSTRATIONS = 3_000
JUDGED = 400


@cache
def demonstrations(seed: int) -> list[dict[str, str]]:
    """Each seed has its own."""
    return [{"prompt": r["prompt"], "completion": r["answer"]} for r in rows(TASK, DEMONSTRATIONS, seed)]


def learnt(seed: int, budget: int, method: str) -> dict[str, list[float]]:
    """Whether each of so many answers is right, after `budget` updates of a model that knew nothing."""
    algorithm = parse(SFT.format(budget) + method)
    begin = untrained(TASK, BEGIN, seed)
    ground = text_ground(algorithm, model=begin, env=TASK, dataset=demonstrations(seed))
    run = ground.begin(algorithm, (seed,), None, JUDGED)
    while run.count < budget:
        run.advance()
    return run.evaluate()[seed]


CLAIM = Claim(
    slug="ift",
    says="Of as many demonstrations and updates, IFT makes a model whose own answers are right more often than SFT.",
    baseline=partial(learnt, method=""),
    treatment=partial(learnt, method="+ift"),
    world="palaestra/Sort-v0, learnt from 3,000 demonstrations",
    measure="reward",
    scales={"smoke": Scale(steps=3, group=2, max_groups=1), "cpu": Scale(steps=600), "paper": Scale(steps=10_000)},
)
