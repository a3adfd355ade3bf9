"""What the recipe `tulu3_rlvr.toml` learns from: demonstrations of a task, and preferences among a model's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palaestra.envs.text.add import marked_add
from palaestra.envs.text.task import rows
from palaestra.speaker import speaker

DEMONSTRATIONS, PROMPTS, ANSWERS = 2_000, 1_000, 4
SEEDS = {"demonstrations": 1, "preferences": 2}


def demonstrations(begin: str | None) -> list[dict[str, Any]]:
    """Prompts and right answers, whatever is begun with."""
    task = marked_add()
    shown = rows(task, DEMONSTRATIONS, SEEDS["demonstrations"])
    return [{"prompt": row["prompt"], "completion": row["answer"]} for row in shown]


def preferences(begin: str | None) -> list[dict[str, Any]]:
    """Of several answers that the run `begin` gives to a prompt, a right one and a wrong one; none where all are alike.

    Differs from the paper: a program judges, not a language model, and all answers are the policy's own.
    """
    assert begin is not None
    task = marked_add()
    asked = rows(task, PROMPTS, SEEDS["preferences"])
    says = speaker(Path(begin))
    gold = next(iter(task.rewards.values()))
    drawn = [says.answers([row["prompt"] for row in asked], seed) for seed in range(ANSWERS)]
    found = []
    for row, *answers in zip(asked, *drawn, strict=True):
        right = [answer for answer in answers if gold([row], [answer]) == [1.0]]
        wrong = [answer for answer in answers if answer and gold([row], [answer]) != [1.0]]
        if right and wrong:
            found.append({"prompt": row["prompt"], "chosen": right[0], "rejected": wrong[0]})
    return found
