"""PRM, clip and delta: the sums by hand and for any steps, what a base becomes, and its neutral element."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from palaestra.algorithm import Unfit, changed_parts
from palaestra.expression import parse
from palaestra.functional.tokens import discounted_to_go
from palaestra.methods.language.prm_clip_delta import clipped, clipped_delta, delta, prm_clip_delta, summed, with_steps
from tests.parts.texts import begin, run_of
from tests.parts.worlds import small

# three steps, of 1, 2 and 2 tokens; then one of two tokens with something behind it, and no step
ENDS = tensor([[0, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
MASK = tensor([[0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
SCORE = tensor([[0, 0.9, 0, 0.2, 0, 0.7], [0, 0, 0.4, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.float64)
SCORES = "scores='tests.methods.test_prm_clip_delta:by_digits', separator='1'"
SLUGS = ("prm-clip-delta", "prm-clip", "prm-delta", "prm-sum")
GRPO = "grpo(prompts=4, answers=4, longest=5, lr=0.01)"


def by_digits(row, answer):
    """A step ends with a 1, and scores what its first digit is in tenths."""
    steps = answer.removesuffix("1").split("1") if answer.strip() else []
    return [int(step[0]) / 10 if step and step[0].isdigit() else 0.0 for step in steps]


def close(found, expected):
    torch.testing.assert_close(found, tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_by_hand():
    none = [0.0] * 6
    close(summed(SCORE, ENDS), SCORE.tolist())
    close(clipped(SCORE, ENDS, 0.5), [[0, 0, 0, -0.3, 0, 0], [0, 0, -0.1, 0, 0, 0], none])
    close(delta(SCORE, ENDS), [[0, 0.7, 0, -0.5, 0, 0.7], [0, 0, 0.4, 0, 0, 0], none])
    close(clipped_delta(SCORE, ENDS, 0.5), [[0, 0.3, 0, -0.3, 0, 0], [0, 0, -0.1, 0, 0, 0], none])


def test_a_token_answers_for_its_own_step():
    close(discounted_to_go(delta(SCORE, ENDS), MASK), [[0, 0.9, 0.2, 0.2, 0.7, 0.7], [0, 0.4, 0.4, 0, 0, 0], [0.0] * 6])


@st.composite
def steps(draw):
    """Scores and ends of rows [3, 12]."""
    ends = tensor(draw(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=3, max_size=3)))
    values = st.lists(st.floats(0, 1), min_size=12, max_size=12)
    return tensor(draw(st.lists(values, min_size=3, max_size=3)), dtype=torch.float64) * ends, ends


@given(steps())
def test_telescoping_and_bounds(given):
    """Delta's return is the score of the step that a token is in; clip's is at most 0; the sum grows with the steps."""
    score, ends = given
    whole = torch.ones_like(ends)
    own = torch.zeros_like(score)
    for row in range(3):
        for t in range(12):
            behind = [i for i in range(t, 12) if ends[row, i]]
            own[row, t] = score[row, behind[0]] if behind else 0.0
    torch.testing.assert_close(discounted_to_go(delta(score, ends), whole), own)
    assert bool((clipped(score, ends, 0.3) <= 0).all())
    of_both = discounted_to_go(clipped_delta(score, ends, 0.3), whole)
    assert bool(((of_both <= 1e-12) & (of_both >= -0.3 - 1e-12)).all())
    torch.testing.assert_close(discounted_to_go(summed(score, ends), whole)[:, 0], score.sum(1))


def test_above_every_threshold_nothing_is_left():
    assert not clipped_delta(SCORE, ENDS, 0.0).any()
    torch.testing.assert_close(clipped_delta(SCORE, ENDS, 1.0), delta((SCORE - 1) * ENDS, ENDS))


def test_what_steps_add_to_an_advantage():
    """Returns 0.9, 0.2, 0.2, 0.7, 0.7, 0.4, 0.4, 0, 0 of nine tokens have a mean of 3.5 / 9."""
    b = {"step_score": SCORE, "step_end": ENDS, "answer": MASK}
    base = {"advantage": 2.0 * MASK.double(), "old_value": SCORE}
    found = with_steps(None, b, lambda nets, b: base, delta, 0.5)
    mean = 3.5 / 9
    rows = [[0, 0.9, 0.2, 0.2, 0.7, 0.7], [0, 0.4, 0.4, 0, 0, 0], [0.0] * 6]
    expected = [
        [(2 + 0.5 * (g - mean)) * m for g, m in zip(*row, strict=True)] for row in zip(rows, MASK.tolist(), strict=True)
    ]
    close(found["advantage"], expected)
    assert found["old_value"] is SCORE


# ------------------------------------------------------------------------------------------------------------- runs


def learnt(expression, rounds=3):
    one = run_of(expression, reward={"ones": lambda rows, answers: [float("1" in a) for a in answers]})
    for _ in range(rounds):
        one.advance()
    return one, {name: t.clone() for name, t in one.learner.nets.state_dict().items()}


@pytest.mark.parametrize(
    "base", [GRPO, "reinforce-plus-plus(prompts=8, longest=5, lr=0.01)", "ppo-lm(prompts=8, longest=5, lr=0.01)"]
)
@pytest.mark.parametrize("slug", SLUGS)
def test_without_a_coefficient_it_is_the_base(base, slug):
    plain, left = learnt(base)
    changed, right = learnt(f"{base}+{slug}({SCORES}, coefficient=0.0)")
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert {**plain.told} == {name: value for name, value in changed.told.items() if "step" not in name}
    _, other = learnt(f"{base}+{slug}({SCORES})")
    assert any(not torch.equal(left[name], other[name]) for name in left)


def test_steps_are_told_and_count_in_the_round():
    one = run_of(f"{GRPO}+prm-delta({SCORES}, coefficient=2.0)", reward={"none": lambda rows, a: [0.0] * len(a)})
    columns = one._collected()
    # all rewards are 0, so that what is left is twice the score of each token's own step, less the mean
    own = discounted_to_go(delta(columns["step_score"], columns["step_end"]), columns["answer"])
    mean = own[columns["answer"]].mean()
    torch.testing.assert_close(columns["advantage"], 2 * (own - mean) * columns["answer"])
    assert one.told["steps"] == columns["step_end"].sum(1).float().mean()
    assert one.told["steps"] > 1
    assert 0 < one.told["step_score"] < 1


# ----------------------------------------------------------------------------------------------------------- misfits


@pytest.mark.parametrize("slug", SLUGS)
def test_what_it_changes(slug):
    for base in ("grpo", "dr-grpo", "dapo", "reinforce-plus-plus", "ppo-lm"):
        changed = parse(f"{base}+{slug}({SCORES})")
        assert changed_parts(parse(base), changed) == ("collect", "advantage")
        assert parse(str(changed)) == changed
    assert parse(f"grpo+{slug}({SCORES})") != parse(f"grpo+{slug}({SCORES}, coefficient=0.1)")


@pytest.mark.parametrize("base", ["sft", "dpo", small("ppo"), small("td3")])
def test_misfits(base):
    with pytest.raises(
        Unfit, match=r"prm-clip-delta does not fit .*: it changes the advantages of tokens, as those of"
    ):
        parse(f"{base}+prm-clip-delta({SCORES})")


def test_an_answer_that_is_one_action_has_no_steps():
    with pytest.raises(Unfit, match="where an answer is one action: try it on grpo"):
        parse(f"rloo+prm-clip-delta({SCORES})")


def test_settings_that_cannot_be():
    for settings, message in {
        "scores='nothing'": "the step scorer 'nothing' names no function",
        f"{SCORES}, coefficient=-1.0": "coefficient is -1.0",
        "scores='palaestra.envs.text.chain:step_scores', separator=''": "separator is empty",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse(f"grpo+prm-clip-delta({settings})")


def test_a_function_in_place_of_a_name():
    changed = prm_clip_delta(parse(GRPO), scores=partial(by_digits), separator="1")
    one = run_of(changed, model=begin())
    one.advance()
    assert one.told["steps"] > 0
