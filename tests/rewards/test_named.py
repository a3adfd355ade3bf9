"""Rewards by name, and what is said of those that fail."""

import math

import numpy as np
import pytest
import torch

from palaestra.faults import RewardFailed
from palaestra.rewards.named import REWARDS, reward_of, scored
from palaestra.rewards.verifiers import exact_match

ROWS = [
    {"prompt": "3+4=", "answer": "7"},
    {"prompt": "a prompt that is longer than forty characters are", "answer": "x"},
]


def test_ours_with_either_hyphen():
    assert reward_of("exact_match") is reward_of("exact-match") is exact_match
    for name, reward in REWARDS.items():
        assert reward_of(name) is reward


def test_of_a_module():
    assert reward_of("palaestra.rewards.verifiers:exact_match") is exact_match


def test_of_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Judge:\n    worth: float = 0.5\n    def __call__(self, rows, answers):\n"
        "        return [self.worth] * len(rows)\njudge = Judge()\nNAME = 'n'\n"
    )
    assert scored({"mine": reward_of(f"{file}:judge")}, ROWS, ["", ""]) == {"mine": [0.5, 0.5]}
    file.write_text("def judge(rows, answers):\n    return [2.0] * len(rows)\n")
    assert reward_of(f"{file}:judge")(ROWS, ["", ""]) == [2, 2]  # read anew
    with pytest.raises(ValueError, match=r"mine.py has no function 'juge'; did you mean judge\?"):
        reward_of(f"{file}:juge")


def test_names_that_are_none(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    for name, message in {
        "exact-mach": r"there is no reward 'exact-mach'; did you mean exact_match\?; or give module:function or file",
        "zzz": "there are: countdown, exact_match, final_answer, last_number",
        "no.such.module:f": "'no.such.module:f' cannot be imported: ModuleNotFoundError: No module named 'no'",
        "palaestra.rewards.verifiers:exact": r"palaestra.rewards.verifiers has no function 'exact'; .*exact_match",
        "palaestra.rewards.verifiers:NUMBER": "has no function 'NUMBER'",
        f"{tmp_path}/none.py:f": "cannot be imported: FileNotFoundError",
        f"{broken}:f": "cannot be imported: ZeroDivisionError: division by zero",
    }.items():
        with pytest.raises(ValueError, match=message) as raised:
            reward_of(name)
        assert "\n" not in str(raised.value)


def test_scored():
    found = scored({"exact": exact_match, "length": lambda rows, answers: map(len, answers)}, ROWS, ["7", "yyy"])
    assert found == {"exact": [1, 0], "length": [1, 3]}
    assert all(type(value) is float for values in found.values() for value in values)
    assert scored({}, ROWS, ["", ""]) == {}
    assert scored({"exact": exact_match}, [], []) == {"exact": []}


@pytest.mark.parametrize("values", [[True, 0], np.array([1, 0], np.float32), torch.tensor([1.0, 0.0]), (1, 0.0)])
def test_numbers_of_any_library(values):
    assert scored({"any": lambda rows, answers: values}, ROWS, ["", ""]) == {"any": [1.0, 0.0]}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, None, "1", 1j, [1.0], 10**400])
def test_what_is_no_finite_number(wrong):
    with pytest.raises(RewardFailed) as raised:
        scored({"exact": exact_match, "mine": lambda rows, answers: [0.5, wrong]}, ROWS, ["", ""])
    where = "row 2 of 2 (prompt 'a prompt that is longer than forty chara...')"
    said = f"the reward 'mine' gave {repr(wrong)[:40]} at {where}: let it return a finite number, such as 0.0, for an "
    assert str(raised.value) == f"{said}answer that it cannot judge"


def test_the_wrong_number_of_values():
    with pytest.raises(
        RewardFailed, match=r"'mine' gave 1 values for 2 answers, from row 1 of 2 \(prompt '3\+4='\) on"
    ):
        scored({"mine": lambda rows, answers: [0.5]}, ROWS, ["", ""])
    with pytest.raises(RewardFailed, match=r"'mine' raised TypeError: .*not iterable"):
        scored({"mine": lambda rows, answers: 0.5}, ROWS, ["", ""])


def test_a_reward_that_raises_is_told_with_its_row():
    with pytest.raises(RewardFailed) as raised:
        scored({"mine": lambda rows, answers: [1 / len(answer) for answer in answers]}, ROWS, ["7", ""])
    assert str(raised.value).startswith(
        "the reward 'mine' raised ZeroDivisionError: division by zero at row 2 of 2 (prompt 'a p"
    )
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with pytest.raises(RewardFailed, match=r"'exact' raised KeyError: 'answer' at row 1 of 1 \(prompt 'hm'\)"):
        scored({"exact": exact_match}, [{"prompt": "hm"}], ["7"])

    def together(rows, answers):
        assert len(rows) == 1, "one\nat a time"
        return [0.0]

    with pytest.raises(RewardFailed, match=r"AssertionError: one at a batch of 2 rows \(at none of them alone\): let"):
        scored({"mine": together}, ROWS, ["", ""])


def test_as_many_answers_as_rows():
    with pytest.raises(ValueError, match="2 rows and 1 answers"):
        scored({"exact": exact_match}, ROWS, ["7"])
