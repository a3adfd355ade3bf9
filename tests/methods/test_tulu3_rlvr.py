"""Verified rewards and means of gains, by hand; without them, ppo-lm and dpo."""

import math

import pytest
import torch
from torch import tensor

from palaestra.algorithm import Unfit
from palaestra.expression import parse
from tests.parts.texts import batches, ground, run_of, textual

PPO, DPO = textual("ppo-lm"), textual("dpo")


def after(expression, rounds=2, **given):
    run = run_of(expression, **given)
    for _ in range(rounds):
        run.advance()
    return run.learner.nets.state_dict()


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def collected(expression, reward):
    run = ground(expression, reward=reward).begin(parse(expression), (0,), None)
    a = run.algorithm
    return a.collect(run.learner.nets, run.policy, run.source, 16, run.acting)


def long_answers(rows, answers):
    """Half a point for each token, for instance."""
    return [len(answer) / 2 for answer in answers]


def test_what_an_answer_earns():
    plain = collected(PPO, {"long": long_answers})
    verified = collected(f"{PPO}+tulu3-rlvr(reward=10.0, without_end=-3.0)", {"long": long_answers})
    assert [note["answer"] for note in verified.notes] == [note["answer"] for note in plain.notes]
    ended = [note["ended"] for note in plain.notes]
    assert set(ended) == {True, False}
    wanted = [10 * len(note["answer"]) / 2 if note["ended"] else -3.0 for note in plain.notes]
    assert verified.columns["reward"].tolist() == wanted
    assert verified.notes[0]["rewards"] == plain.notes[0]["rewards"]  # what was verified stands there still


def test_a_reward_of_one_and_no_penalty_is_the_base():
    base = after(PPO, reward={"long": long_answers})
    assert same(after(f"{PPO}+tulu3-rlvr(reward=1.0, without_end=None)", reward={"long": long_answers}), base)
    assert not same(after(f"{PPO}+tulu3-rlvr", reward={"long": long_answers}), base)


def test_gains_are_means_of_tokens():
    """Gains of 6 over 3 tokens and of 1 over one: -log sigma(5 (2 - 1)); dpo's own is -log sigma(0.1 (6 - 1))."""
    columns = {
        "logp": tensor([[[0.0, 2.0, 3.0, 1.0], [9.0, 1.5, 9.0, 9.0]]]),
        "reference_logp": tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0]]]),
        "answer": tensor([[[False, True, True, True], [False, True, False, False]]]),
    }

    def loss(expression):
        rows, told = parse(expression).losses["policy"].terms["preference"].value(None, columns)
        return rows.item(), told["margin"].item()

    assert loss("dpo+dpo-norm") == pytest.approx((math.log1p(math.exp(-5.0)), 1.0))
    assert loss("dpo") == pytest.approx((math.log1p(math.exp(-0.5)), 5.0))


def test_answers_of_one_length_are_compared_as_by_dpo():
    """With beta times as many tokens: all answers of these pairs are of 3 tokens, their end among them."""
    pairs = [
        {"prompt": f"{a}+{b}=", "chosen": f"{a + b}", "rejected": f"{a + b + 1}"} for a in (5, 6) for b in (5, 7, 9)
    ]
    runs = [run_of(e, dataset=pairs) for e in (f"{DPO}+dpo-norm(beta=0.3)", DPO)]
    left, right = (run.learner.update(batches(run))[0]["loss/policy"] for run in runs)
    torch.testing.assert_close(left, right)
    for run in runs:
        for _ in range(3):
            run.advance()
    for (name, one), other in zip(
        runs[0].learner.nets.named_parameters(), runs[1].learner.nets.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("expression", ["dpo+tulu3-rlvr", "sft+tulu3-rlvr", "simpo+dpo-norm", "ppo-lm+dpo-norm"])
def test_what_they_do_not_fit(expression):
    with pytest.raises(Unfit, match="does not fit"):
        parse(expression)


@pytest.mark.parametrize("expression", ["ppo-lm+tulu3-rlvr(reward=0.0)", "dpo+dpo-norm(beta=0.0)"])
def test_settings_are_checked(expression):
    with pytest.raises(ValueError, match="must be larger than 0"):
        parse(expression)
