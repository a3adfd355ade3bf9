"""TULU 3: rewards that a program decides still improve a model that was fine-tuned and learnt from preferences.

Both arms are the recipe of `palaestra/staged/tulu3_rlvr.toml`, from the same seed: one is judged before its last
stage, the other after it.

Paper: Lambert et al., "Tulu 3: Pushing Frontiers in Open Language Model Post-Training" (2024).
"""

from __future__ import annotations

import math
import tempfile
from functools import partial
from typing import Any

from palaestra.claims.claim import Claim, Scale
from palaestra.evaluation.answers import REWARD
from palaestra.staged import read, stages

RECIPE, EPISODES = "tulu3-rlvr", 400


def after(stage: str, seed: int, budget: int) -> dict[str, list[float]]:
    """Whether answers match after a stage, where the last one is of `budget` rounds and the others in proportion."""
    _, recipe = read(RECIPE)
    share = budget / recipe["stage"][-1]["rounds"]
    plan: dict[str, Any] = {**recipe, "seed": seed, "episodes": EPISODES, "evaluate_every": 10**9, "stage": []}
    for one in recipe["stage"]:
        amount = {clock: math.ceil(share * one[clock]) for clock in ("steps", "rounds") if clock in one}
        plan["stage"].append({**one, **amount})
        if one["name"] == stage:
            break
    with tempfile.TemporaryDirectory() as folder:
        run = stages(plan, folder)[stage]
        *_, last = (row for row in run.metrics() if row["kind"] == "evaluation")
    return {"exact_match": last["scores"][REWARD]}


CLAIM = Claim(
    slug="tulu3-rlvr",
    says="After RLVR more answers are right than after fine-tuning and DPO alone.",
    baseline=partial(after, "dpo"),
    treatment=partial(after, "rlvr"),
    world="palaestra/MarkedAdd-v0: sums whose answers end in a mark where the prompt asks for it",
    measure="exact_match",
    scales={"smoke": Scale(steps=2, group=2, max_groups=1), "cpu": Scale(steps=60), "paper": Scale(steps=1_000)},
    differs="A tiny model and sums in place of 8 to 405 billion parameters, mathematics and instructions; preferences "
    "are judged by a program, and among the policy's own answers; the arm with RLVR learns longer, as in the paper.",
    tried="",
)
