"""Each text task by hand: what its rows are, and what answers are worth."""

import itertools
import math

import numpy as np
import pytest

from palaestra.envs.text.add import add, marked, marked_add
from palaestra.envs.text.chain import chain_sum, step_scores
from palaestra.envs.text.countdown import countdown
from palaestra.envs.text.recall import key_value
from palaestra.envs.text.sent import NEGATIVE, NEUTRAL, POSITIVE, Grammar, count, kindness, sent, two_positive
from palaestra.envs.text.sort import in_place, sort
from palaestra.envs.text.task import rows


def test_add():
    for row in rows(add(digits=3), 300, seed=0):
        left, right = row["prompt"].removesuffix("=").split("+")
        assert int(left) + int(right) == int(row["answer"])
        assert max(int(left), int(right)) < 1000
    gold = add().rewards["exact_match"]
    assert gold([{"answer": "46"}] * 4, ["46", " 46\n", "64", "046"]) == [1, 1, 0, 0]


def test_add_draws_all_numbers_alike():
    lefts = [int(row["prompt"].partition("+")[0]) for row in rows(add(digits=1), 2000, seed=0)]
    assert np.bincount(lefts, minlength=10) == pytest.approx(200, abs=60)  # 200 expected, deviation 13


def test_scratchpad_carries():
    # 47 + 85: 7 + 5 = 12, then 4 + 8 and the 1 that is carried = 13, so 132; 5 + 9 = 14, and no digit stands there
    worked = {row["prompt"]: row["answer"] for row in rows(add(digits=2, scratchpad=True), 20_000, seed=0)}
    assert worked["47+85="] == "7+5+0=12;4+8+1=13;132"
    assert worked["5+9="] == "5+9+0=14;0+0+1=1;14"
    gold = add(scratchpad=True).rewards["last_number"]
    assert gold([{"answer": worked["47+85="]}] * 3, ["7+5+0=12;132", "132;", "7+5+0=12;4+8+1=13;133"]) == [1, 1, 0]


def test_marked_add():
    task = marked_add()
    drawn = rows(task, 400, seed=0)
    asked = [row["prompt"].endswith("#=") for row in drawn]
    assert 150 < sum(asked) < 250  # half, deviation 10
    assert [row["answer"].endswith("#") for row in drawn] == asked
    asks, silent = {"prompt": "3+4#=", "answer": "7#"}, {"prompt": "3+4=", "answer": "7"}
    answers = ["7#", "7", "8#"]
    judged = [[reward([row] * 3, answers) for reward in task.rewards.values()] for row in (asks, silent)]
    assert judged[0] == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]  # exact, the sum alone, the wish alone
    assert judged[1] == [[0, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert marked([asks, silent], ["", ""]) == [0, 1]


def test_countdown():
    drawn = rows(countdown(), 500, seed=0)
    for row in drawn:
        given, _, target = row["prompt"].removesuffix("=").partition(">")
        assert [int(number) for number in given.split(",")] == row["numbers"]
        assert int(target) == row["target"]
        assert 1 <= row["target"] <= 99
        assert min(row["numbers"]) >= 1
        assert max(row["numbers"]) <= 20
    sizes = [len(row["numbers"]) for row in drawn]
    assert set(sizes) == {3, 4}
    for operator in "+-*/":
        assert sum(operator in row["answer"] for row in drawn) > 20


def test_sort():
    drawn = rows(sort(lengths=(6, 10)), 300, seed=0)
    assert {len(row["answer"]) for row in drawn} == {6, 7, 8, 9, 10}
    for row in drawn:
        assert list(row["answer"]) == sorted(row["prompt"].removesuffix("="))
    # of "abcd": all; a and d; all four of six that were written; three, of four; none
    answers = ["abcd", "acbd", "abcdxy", "abc", ""]
    assert in_place([{"answer": "abcd"}] * 5, answers) == pytest.approx([1, 0.5, 4 / 6, 3 / 4, 0])


def test_key_value():
    for row in rows(key_value(pairs=5, width=3), 200, seed=0):
        given, _, asked = row["prompt"].removesuffix("=").partition("?")
        values = {pair[0]: pair[1:] for pair in given.split(",")}
        assert len(values) == 5
        assert values[asked] == row["answer"]
        assert len(row["answer"]) == 3


def test_every_place_is_asked_for():
    drawn = rows(key_value(pairs=4), 400, seed=0)
    places = [[pair[0] for pair in row["prompt"].split(",")].index(row["prompt"][-2]) for row in drawn]
    assert np.bincount(places, minlength=4) == pytest.approx(100, abs=40)  # deviation 9


# Chain sums.

CHAIN = {"prompt": "3+8-5+2=", "answer": "+8=1;-5=6;+2=8", "terms": [3, 8, -5, 2], "steps": 3}


def test_add_with_mistakes():
    for row in rows(add(2, scratchpad=True, mistakes=1.0), 50, seed=0):
        *steps, answer = row["answer"].split(";")
        (sums, totals) = zip(*(step.split("=") for step in steps), strict=True)
        assert all(eval(terms) != int(total) for terms, total in zip(sums, totals, strict=True))
        assert int(answer) == int(totals[0]) % 10 + 10 * int(totals[1])  # it goes on with what it wrote
        assert int(sums[1][-1]) == int(totals[0]) // 10
    plain = rows(add(3, mistakes=0.1), 500, seed=0)
    right = [int(row["answer"]) == eval(row["prompt"].removesuffix("=")) for row in plain]
    assert np.mean(right) == pytest.approx(0.9**3, abs=0.08)  # deviation of the mean 0.02


def test_chain_sum():
    drawn = rows(chain_sum(), 700, seed=0)
    assert set(np.bincount([row["steps"] for row in drawn]).nonzero()[0]) == set(range(1, 8))
    for row in drawn:
        assert eval(row["prompt"].removesuffix("=")) == sum(row["terms"])
        assert int(row["answer"][-1]) == sum(row["terms"]) % 10
        assert row["answer"].count(";") == row["steps"] - 1
        assert len(row["terms"]) == row["steps"] + 1
        assert step_scores(row, row["answer"]) == [1.0] * row["steps"]


def test_chain_sum_with_checks():
    drawn = rows(chain_sum(steps=(5, 5), checks=0.5), 200, seed=0)
    checks = [sum(step.startswith("=") for step in row["answer"].split(";")) for row in drawn]
    assert np.mean(checks) == pytest.approx(2.5, abs=0.4)  # deviation of the mean 0.08
    for row in drawn:
        assert set(step_scores(row, row["answer"])) == {1.0}
    always = rows(chain_sum(steps=(2, 2), checks=1.0), 5, seed=0)
    assert all(row["answer"].count(";=") == 2 for row in always)


def test_chain_sum_with_mistakes():
    for row in rows(chain_sum(steps=(4, 4), mistakes=1.0), 50, seed=0):
        said = [row["terms"][0], *(int(step[-1]) for step in row["answer"].split(";"))]
        assert all((b - a - term) % 10 for a, b, term in zip(said, said[1:], row["terms"][1:], strict=False))
    drawn = rows(chain_sum(steps=(4, 4), mistakes=0.2), 500, seed=0)
    right = [step_scores(row, row["answer"]) == [1.0] * 4 for row in drawn]
    assert np.mean(right) == pytest.approx(0.8**4, abs=0.07)  # deviation of the mean 0.02


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ("+8=1;-5=6;+2=8", [1, 1, 1]),
        ("+8=1;-5=6;+2=8;", [1, 1, 1]),  # a separator at the end begins no step
        ("", []),
        ("+8=1;=1;=1;-5=6;+2=8;=8", [1, 1, 1, 1, 1, 1]),  # checks are right, however many
        ("=3;+8=1", [1, 1]),  # the first term said again
        ("+8=1;=2;-5=6", [1, 0, 1]),
        ("+8=1;-5=7;+2=8", [1, 0, 1]),  # the sum is the true one again
        ("+8=1;-5=7;+2=9", [1, 0, 0]),  # the mistake is carried on
        ("+8=1;+5=6;+2=8", [1, 0, 1]),  # another sign than the prompt's
        ("+8=1;+2=3;-5=8", [1, 0, 0]),  # right sums, in another order than the prompt's
        ("+8=1;-5=6;+2=8;+8=6", [1, 1, 1, 0]),  # there is no fourth
        ("+8=1;;-5=6", [1, 0, 1]),
        ("8=1;+8=11;8", [0, 0, 0]),  # not of the form of a step
    ],
)
def test_step_scores(answer, scores):
    assert step_scores(CHAIN, answer) == scores


def test_only_the_sum_is_gold():
    gold = chain_sum().rewards["last_number"]
    assert gold([CHAIN] * 4, ["8", "+8=1;-5=7;+2=8", "+8=1;-5=6;+2=9", ""]) == [1, 1, 0, 0]


# Sentences.


def test_sent():
    drawn = rows(sent(), 500, seed=0)
    lengths = [len(f"{row['prompt']} {row['answer']}".split(" ")) for row in drawn]
    assert {len(row["prompt"].split(" ")) for row in drawn} == {4}
    assert set(lengths) == {11, 12, 13, 17, 18, 19, 20}  # two clauses of five or six words, or three
    assert 70 <= len(sent().symbols) <= 90
    long = [len(f"{row['prompt']} {row['answer']}".split(" ")) for row in rows(sent(length=(32, 40)), 200, seed=0)]
    assert min(long) >= 32
    assert max(long) <= 40


def test_kinds_of_words_are_disjoint():
    words = Grammar((10, 20)).words
    assert len(set(words)) == len(words)
    assert len(POSITIVE) == len(NEGATIVE)
    assert {*POSITIVE, *NEGATIVE, *NEUTRAL} <= {*words}


def test_rewards_of_sentences():
    # two positive; one of each; two negative; one positive and a noun; nothing
    answers = ["very good and the old film was great", "good but the film was dull", "bad and dull", "kind film", ""]
    nothing = [{}] * len(answers)
    assert count(nothing, answers) == [2, 0, -2, 1, 0]
    logistic = [1 / (1 + math.exp(-2)), 0.5, 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-1)), 0.5]
    assert kindness(nothing, answers) == pytest.approx(logistic, abs=1e-12)
    assert two_positive(nothing, answers) == [1, 0, 0, 0, 0]
    assert two_positive([{}], ["good good"]) == [1]
    assert kindness([{}], ["good " * 5000])[0] == 1  # without an overflow
    assert kindness([{}], ["bad " * 5000])[0] == 0


SMALL = {
    "determiners": ("the",),
    "adjectives": ("good", "bad"),
    "nouns": ("film",),
    "verbs": ("was", "is"),
    "adverbs": ("very",),
    "conjunctions": ("and",),
}


def all_sentences(clauses):
    """Every sentence of the small grammar of at most so many clauses, in all ways of putting clauses together."""
    words = SMALL["adjectives"], SMALL["verbs"], ((), ("very",)), SMALL["adjectives"]
    every = [("the", a, "film", verb, *adverb, b) for a, verb, adverb, b in itertools.product(*words)]
    for number in range(1, clauses + 1):
        for chosen in itertools.product(every, repeat=number):
            yield " and ".join(" ".join(clause) for clause in chosen)


def test_probabilities_of_a_small_grammar_sum_to_one():
    grammar = Grammar((5, 13), **SMALL)  # one or two clauses: 16 + 16 * 16 sentences
    total = [math.exp(grammar.log_probability(sentence)) for sentence in all_sentences(3)]
    assert sum(total) == pytest.approx(1, abs=1e-12)
    assert sum(p > 0 for p in total) == 16 + 16 * 16
    longer = Grammar((7, 13), **SMALL)  # a single clause would be too short, and three too long
    total = [math.exp(longer.log_probability(sentence)) for sentence in all_sentences(3)]
    assert sum(total) == pytest.approx(1, abs=1e-12)
    assert sum(p > 0 for p in total) == 16 * 16


def test_log_probability_by_hand():
    # the: 1; good: 1/2; film: 1; was: 1/2; no adverb and bad: 1/2 * 1/2; it ends: 1/2
    grammar = Grammar((5, 13), **SMALL)
    assert grammar.log_probabilities("the good film was bad") == pytest.approx(
        [0, math.log(1 / 2), 0, math.log(1 / 2), math.log(1 / 4), math.log(1 / 2)]
    )
    # an adverb: 1/2; the adjective after it: 1/2; with 13 words it must end: 1
    text = "the good film was very bad and the good film is very good"
    assert grammar.log_probability(text) == pytest.approx(6 * math.log(1 / 2) + math.log(1 / 2) + 2 * math.log(1 / 2))
    for wrong in (
        "",
        "the good film was",
        "good the film was bad",
        "the odd film was bad",
        "the good film was bad and",
        "the good  film was bad",
        "the good film was bad  and the good film was bad",
    ):
        assert grammar.log_probability(wrong) == -math.inf


def test_samples_follow_the_probabilities():
    task = sent(length=(10, 20))
    drawn = rows(task, 2000, seed=0)
    each = [task.log_probabilities(f"{row['prompt']} {row['answer']}") for row in drawn]
    assert np.isfinite(np.concatenate(each)).all()
    # the prompt's four words: 1/4, 1/36, 1/20, 1/4
    assert np.array([numbers[:4] for numbers in each]) == pytest.approx(np.log([[1 / 4, 1 / 36, 1 / 20, 1 / 4]] * 2000))
    # by hand: a clause has -log p = log(4 * 36 * 20 * 4) + log 2 + log(36) + (an adverb in half) log(6) / 2 nats
    clause = math.log(4 * 36 * 20 * 4) + math.log(2) + math.log(36) + math.log(6) / 2
    # Two clauses have 11, 12 or 13 words, with probability 1/4, 1/2, 1/4: another fits always, and comes in half of the
    # cases. Then there are 17 to 20 words: none fits any more. So 2.5 clauses, 1.5 conjunctions and one free choice.
    entropy = 2.5 * clause + 1.5 * math.log(5) + math.log(2)
    assert -np.mean([sum(numbers) for numbers in each]) == pytest.approx(entropy, abs=0.6)  # deviation 0.16
