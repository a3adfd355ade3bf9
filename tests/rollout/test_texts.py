"""What is collected of texts: which rows, in which groups, and what is left over."""

import copy
from functools import partial

import pytest
import torch
from torch import tensor

from palaestra.algorithm import Nets, Unfit, same
from palaestra.data.tokens import after_prompts
from palaestra.expression import parse
from palaestra.rollout.texts import (
    Texts,
    UntilFull,
    answers_to_each,
    filtered,
    generate,
    in_groups,
    scored,
    together,
)
from palaestra.runs.states import load_state, save_state
from palaestra.tasks.admission import in_band, unmixed
from tests.parts.texts import begin, run_of

ADD = "grpo(prompts=4, answers=4, longest=3, lr=0.01)"


def texts(rewards, groups, lengths=None, thrown_away=0):
    """One token a row, which is its number, in answers of so many tokens."""
    lengths = tensor(lengths or [1] * len(rewards))
    ids = torch.arange(len(rewards))[:, None] * (torch.arange(int(lengths.max())) < lengths[:, None])
    columns = {"ids": ids, "length": lengths, "reward": tensor(rewards), "group": tensor(groups)}
    return Texts(
        columns, [{"row": {"prompt": str(i)}, "answer": "a", "number": i} for i in range(len(rewards))], thrown_away
    )


class Told:
    """A collect that gives texts one after another, and counts how often it was asked."""

    def __init__(self, *parts):
        self.parts, self.asked = parts, 0

    def __call__(self, nets, policy, source, n, rng):
        self.asked += 1
        return self.parts[self.asked - 1]


def nets():
    made = Nets(None)
    made["policy"] = torch.nn.Linear(1, 1)
    return made


def collected(collect, n=2, source=None):
    return collect(nets(), None, source, n, torch.Generator())


def numbers(texts):
    return [note["number"] for note in texts.notes]


def half(right, size=4):
    """Rewards of a group with so many right answers."""
    return [1.0] * right + [0.0] * (size - right)


# ------------------------------------------------------------------------------------------------- rows of columns


def test_answers_follow_their_prompts_without_padding_between():
    prompts = tensor([[0, 0, 7], [5, 6, 7]])
    there = tensor([[0, 0, 1], [1, 1, 1]])
    answers = {
        "ids": tensor([[8, 9, 2], [8, 2, 2]]),
        "answer": tensor([[True, True, True], [True, True, False]]),
        "sampled_logp": tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, 0.0]]),
    }
    found = after_prompts(prompts, there, answers)
    assert found["ids"].tolist() == [[7, 8, 9, 2, 0], [5, 6, 7, 8, 2]]
    assert found["answer"].tolist() == [[False, True, True, True, False], [False, False, False, True, True]]
    assert found["sampled_logp"].tolist() == [[0, -1, -2, -3, 0], [0, 0, 0, -4, -5]]
    assert found["length"].tolist() == [4, 5]


def test_generated_rows_say_what_was_asked():
    """Prompts of one batch and of several come out alike, and the notes are the tokens."""
    run = run_of(ADD)
    whole, parts = (
        generate(run.learner.nets, run.learner.deployed(), copy.deepcopy(run.source), 6, None, at_once=at_once)
        for at_once in (6, 4)
    )
    assert [note["row"] for note in whole.notes] == [note["row"] for note in parts.notes]
    assert all(torch.equal(whole.columns[name], parts.columns[name]) for name in ("ids", "answer", "length"))
    assert parts.columns["group"].tolist() == [0, 1, 2, 3, 4, 5]
    tokenizer = begin().tokenizer
    for i, note in enumerate(whole.notes):
        length = int(whole.columns["length"][i])
        text = tokenizer.decode(whole.columns["ids"][i, :length].tolist(), skip_special_tokens=True)
        assert text == note["row"]["prompt"] + note["answer"]


def test_together_keeps_groups_apart_and_fills_up():
    found = together(
        [texts([1.0, 2.0], [0, 0], [1, 2]), texts([3.0], [0], [3], 5), texts([4.0, 5.0], [0, 1], thrown_away=2)]
    )
    assert found.columns["group"].tolist() == [0, 0, 1, 2, 3]
    assert found.columns["ids"].tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert numbers(found) == [0, 1, 0, 0, 1]
    assert found.thrown_away == 7


def test_groups_are_of_one_prompt():
    run = run_of(ADD)
    collect = in_groups(in_groups(scored(generate), 2), 3)
    found = collect(run.learner.nets, run.policy, run.source, 2, run.acting)
    assert found.columns["group"].tolist() == [0] * 6 + [1] * 6
    prompts = [note["row"]["prompt"] for note in found.notes]
    assert len(set(prompts[:6])) == len(set(prompts[6:])) == 1
    assert answers_to_each(collect) == answers_to_each(filtered(collect, unmixed)) == 6
    assert answers_to_each(UntilFull(collect, unmixed)) == 6
    assert answers_to_each(generate) == answers_to_each(scored(generate)) == 1


def test_what_is_filtered_out_is_counted():
    collect = filtered(Told(texts([1.0, 2.0, 3.0], [0, 1, 2], thrown_away=4)), lambda texts, rng: tensor([2, 2, 0]))
    found = collected(collect)
    assert numbers(found) == [2, 2, 0]
    assert found.thrown_away == 4 + 1


# ------------------------------------------------------------------------------------------------- until it is full


def test_what_is_left_over_waits():
    first = texts(half(2) + half(4) + half(1), [0] * 4 + [1] * 4 + [2] * 4)
    second = texts(half(0) + half(3) + half(2), [0] * 4 + [1] * 4 + [2] * 4)
    told = Told(first, second)
    collect = UntilFull(told, in_band(0.25, 0.75))
    found = collected(collect, n=1)
    assert (numbers(found), found.columns["group"].tolist(), found.thrown_away) == ([0, 1, 2, 3], [0] * 4, 4)
    found = collected(collect, n=2)  # one has waited, of the next two one is left over
    assert numbers(found) == [8, 9, 10, 11, 4, 5, 6, 7]
    assert (found.columns["group"].tolist(), found.thrown_away) == ([0] * 4 + [1] * 4, 4)
    found = collected(collect, n=1)
    assert (numbers(found), found.thrown_away, told.asked) == ([8, 9, 10, 11], 0, 2)
    assert collect.waiting == []


def test_after_the_last_draw_the_nearest_fill_up():
    """Shares of 0, 1, 3/4 and 0 again: the third is nearest to the band [0.5, 0.5], then the first of the others."""
    told = Told(texts(half(0) + half(4), [0] * 4 + [3] * 4), texts(half(3) + half(0), [7] * 4 + [2] * 4, thrown_away=1))
    found = collected(UntilFull(told, in_band(0.5, 0.5), most=2))
    assert told.asked == 2
    # groups are told apart in the order of their numbers: 2, then 7
    assert numbers(found) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert found.columns["reward"].tolist() == half(3) + half(0)
    assert found.thrown_away == 1 + 2 * 4


def test_everything_is_admitted_by_the_whole_band():
    given = texts(half(0) + half(4), [0] * 4 + [1] * 4, [1, 2, 3, 1, 1, 1, 1, 1])
    found = collected(UntilFull(Told(given), in_band(0.0, 1.0)))
    assert numbers(found) == numbers(given)
    assert same(found, given)


def test_admission_comes_last():
    run = run_of(ADD)
    collect = in_groups(UntilFull(in_groups(scored(generate), 2), unmixed), 3)
    with pytest.raises(Unfit, match="admit them last"):
        collect(run.learner.nets, run.policy, run.source, 2, run.acting)


def test_values_are_compared_by_what_they_do():
    made = partial(UntilFull, in_groups(scored(generate), 4))
    assert same(made(in_band(0.2, 0.8)), made(in_band(0.2, 0.8)))
    assert not same(made(in_band(0.2, 0.8)), made(in_band(0.2, 0.7)))
    assert parse("dapo(most_draws=3)") == parse("dapo(most_draws=3)") != parse("dapo(most_draws=4)")


def digits(rows, answers):
    """Half of the answers of a model that knows nothing are right by this."""
    return [float(any(c in "02468" for c in answer[:1])) for answer in answers]


@pytest.mark.parametrize(
    "expression", [f"{ADD}+balanced-difficulty-filtering", "dapo(prompts=4, answers=4, longest=3)"]
)
def test_a_run_goes_on_from_disk_with_what_was_waiting(expression, tmp_path):
    """As one that was not stopped; and answers are counted when they are learnt from or thrown away."""
    expression = f"{expression}+balanced-difficulty-filtering(low=0.5, high=0.5)"  # one within the other
    whole, first, second = (run_of(expression, reward={"digits": digits}) for _ in range(3))
    for _ in range(2):
        whole.advance()
        first.advance()
    waiting = first.algorithm.collect.waiting
    assert waiting  # otherwise nothing is shown
    save_state(tmp_path, first.state_dict())
    second.load_state_dict(load_state(tmp_path), {})
    assert same(second.algorithm.collect.waiting, waiting)
    assert same(second.algorithm.collect.collect.waiting, whole.algorithm.collect.collect.waiting)
    for _ in range(3):
        whole.advance()
        second.advance()
    left, right = (run.learner.nets.state_dict() for run in (whole, second))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (whole.told, whole.answers) == (second.told, second.answers)
    assert whole.told["thrown_away"] > 0
    assert whole.answers > 5 * 16
