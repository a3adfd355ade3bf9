"""Rewards that a program decides, by hand."""

from fractions import Fraction

import pytest

from palaestra.rewards.verifiers import countdown, ends_with, evaluated, exact_match, final_answer, last_number


def judged(reward, right, answers):
    return reward([{"answer": right}] * len(answers), answers)


def test_exact_match():
    assert judged(exact_match, "a b", ["a b", " a b\n", "ab", "A b", ""]) == [1, 1, 0, 0, 0]
    assert judged(exact_match, 7, ["7", "7.0"]) == [1, 0]  # a number in a data file is read as text


def test_last_number():
    answers = ["so 3 + 4 = 7", "7 or 8", "7.00", "it is 7.", "-7", "3-7", "none", "", "x7"]
    assert judged(last_number, "7", answers) == [1, 0, 1, 1, 0, 1, 0, 0, 1]
    assert judged(last_number, "#### -1,234.50", ["-1234.5", "is -1,234.5 metres", "1234.5", "-1,234"]) == [1, 1, 0, 0]
    assert judged(last_number, "0.5", [".5", "1/.5", "-.5", "5"]) == [1, 1, 0, 0]
    assert judged(last_number, "3", ["1,2,3", "1,2,34"]) == [1, 0]  # a list, not one number
    assert judged(last_number, "nothing", ["nothing", "0"]) == [0, 0]  # a row without a number matches none
    huge = "9" * 6000  # more digits than int() reads
    assert judged(last_number, huge, [huge, huge[1:]]) == [1, 0]


def test_final_answer():
    answers = ["so #### 12", "####12\nand more", "#### 1 #### 12", "12", "#### 13", "####", r"it is \boxed{12}"]
    assert judged(final_answer, "12", answers) == [1, 1, 1, 0, 0, 0, 1]
    right = r"so \boxed{\frac{1}{2}}"
    answers = [
        r"\boxed{\frac{1}{2}}",
        r"\boxed{1} then \boxed{ \frac{1}{2} }.",
        r"\boxed{\frac{1}{3}}",
        r"\boxed{\frac{1}",
    ]
    assert judged(final_answer, right, answers) == [1, 1, 0, 0]
    assert judged(final_answer, "6*7 #### 1,042", ["#### 1042.0", r"\boxed{1042}", "#### 1,043"]) == [1, 1, 0]
    assert judged(final_answer, "yes", ["#### yes", "#### no"]) == [1, 0]


def test_ends_with():
    assert ends_with("#")([{}] * 4, ["7#", "7# \n", "7", "#7"]) == [1, 1, 0, 0]


def made(numbers, target, answers):
    return countdown([{"numbers": numbers, "target": target}] * len(answers), answers)


def test_countdown():
    right = ["25+(3*7)", "3*7+25", " (25 + 3 * 7) ", "(7*3)+25"]
    assert made([3, 7, 25], 46, right) == [1] * len(right)
    wrong = ["25+3*8", "25+3+7", "25+21", "46", "25+3*7=46", "", "25+(3*7", "3*7+25+0"]
    assert made([3, 7, 25], 46, wrong) == [0] * len(wrong)
    assert made([3, 7, 25], 7, ["7", "(25-3)-(7+7)-1", "7*(3-3)+7"]) == [1, 0, 0]  # not all have to be used
    assert made([5, 5, 1], 25, ["5*5", "5*5*1", "5*5*1*1"]) == [1, 1, 0]  # each as often as it is given
    assert made([1, 3, 6], 2, ["6/3", "1/3*6", "6/(3*1)"]) == [1, 1, 1]  # exact on the way
    assert made([1, 2, 3], 1, ["3/2", "1/(3-2-1)", "3/(2-2)"]) == [0, 0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "2**5", "7//2", "7%2", "-3", "+3", "~1", "1 if 1 else 2", "x", "abs(3)", "(3)(4)", "3.0", "1e3", "0x1F", "1_0",
        "True", "1,2", "[1]", "'a'", "1<2", "1 2", "03", "__import__('os')", "(lambda: 1)()", "1;2", "3\n", "é", "²",
        "(" * 200 + "1" + ")" * 200, "1+" * 400 + "1",
    ],
)  # fmt: skip
def test_nothing_but_arithmetic_is_worth_anything(text):
    if text == "3\n":
        assert evaluated(text) == (3, [3])  # white space at the ends is none of the expression
    else:
        assert evaluated(text) == (None, [])


def test_evaluated():
    assert evaluated("(1+2)*3-4/8") == (Fraction(17, 2), [1, 2, 3, 4, 8])
    assert evaluated("9" * 200 + "*" + "1") == (int("9" * 200), [int("9" * 200), 1])
    assert evaluated("1/0") == (None, [])
    assert evaluated("(" * 100 + "1" + ")" * 100) == (1, [1])
