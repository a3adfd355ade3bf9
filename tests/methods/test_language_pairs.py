"""Methods for language models on top of each other: the combinations that a practitioner would try first."""

from __future__ import annotations

import pytest
import torch

from palaestra.algorithm import Unfit, same
from palaestra.expression import parse
from tests.parts.texts import run_of

GRPO = "grpo(prompts=4, answers=4, longest=5, lr=0.01)"
PPO = "ppo-lm(prompts=8, longest=5, lr=0.01, epochs=1)"
BALANCED = "balanced-difficulty-filtering(low=0.25, high=0.75)"
STEPS = "prm-clip-delta(scores='tests.methods.test_language_pairs:evenness', separator='1')"
COMBINATIONS = {  # and the parts that each method changes
    f"{GRPO}+{BALANCED}+{STEPS}": [("collect",), ("collect", "advantage")],
    f"{GRPO}+{STEPS}+{BALANCED}": [("collect", "advantage"), ("collect",)],
    f"dapo(prompts=4, answers=4, longest=5, lr=0.01)+{BALANCED}+{STEPS}": [("collect",), ("collect", "advantage")],
    f"{GRPO}+{BALANCED}+importance-corrected": [("collect",), ("transforms", "losses")],
    f"{GRPO}+pf-ppo(answers=2)+{STEPS}": [("collect", "transforms", "advantage"), ("collect", "advantage")],
    f"{PPO}+pf-ppo(answers=4)+{BALANCED}": [("collect", "transforms", "advantage"), ("collect",)],
    f"{PPO}+{STEPS}+adaptive-kl": [("collect", "advantage"), ("transforms",)],
}


def evenness(row: dict[str, str], answer: str) -> list[float]:
    """A step ends with a 1; it is good if it has an even digit."""
    steps = answer.removesuffix("1").split("1") if answer.strip() else []
    return [0.9 if any(c in "02468" for c in step) else 0.1 for step in steps]


def even(rows: list[dict[str, str]], answers: list[str]) -> list[float]:
    return [float(answer[:1] in ("0", "2", "4", "6", "8")) for answer in answers]


@pytest.mark.parametrize("expression", COMBINATIONS)
def test_they_learn_together(expression: str) -> None:
    algorithm = parse(expression)
    base, *methods = algorithm.calls
    assert [call.parts for call in methods] == COMBINATIONS[expression]
    assert parse(str(algorithm)) == algorithm
    run, again, alone = (run_of(e, reward={"even": even}) for e in (algorithm, expression, str(base)))
    for _ in range(2):
        for each in (run, again, alone):
            each.advance()
    run.learner.check_finite()
    assert all(torch.isfinite(value).all() for value in run.metrics.values())
    assert same(run.told, again.told)
    left, right, plain = (each.learner.nets.state_dict() for each in (run, again, alone))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert any(not torch.equal(left[name], plain[name]) for name in plain)
    if BALANCED in expression:
        assert 0.25 <= run.told["reward"] <= 0.75
        assert run.answers >= alone.answers


def test_the_order_does_not_matter_to_what_is_learnt() -> None:
    """Steps are scored before prompts are admitted, or of those that are: the same rows are learnt from."""
    one, other = (run_of(e, reward={"even": even}) for e in list(COMBINATIONS)[:2])
    for _ in range(2):
        one.advance()
        other.advance()
    left, right = (each.learner.nets.state_dict() for each in (one, other))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert one.told == other.told


def test_more_answers_are_asked_for_before_prompts_are_admitted() -> None:
    with pytest.raises(Unfit, match="pf-ppo"):
        parse(f"{GRPO}+{BALANCED}+pf-ppo")
