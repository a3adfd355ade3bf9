"""Make a number of some others: each is used at most once, with +, -, *, / and brackets.

A prompt and a demonstration:

    3,7,25>46=        25+(3*7)
"""

from __future__ import annotations

from functools import partial

import numpy as np

from palaestra.envs.text.task import DIGITS, Row, TextTask, between, replaced
from palaestra.rewards import verifiers

OPERATORS = "+-*/"
SYMBOLS = (*DIGITS, *OPERATORS, *"(),>=")


def countdown(numbers: tuple[int, int] = (3, 4), largest: int = 20, largest_target: int = 99) -> TextTask:
    """A target to be made of given numbers. There is always a way; the demonstration is one that uses them all.

    Args:
        numbers: least and most that are given, each as likely; at least 2.
        largest: the numbers are uniform in 1..largest.
        largest_target: the target lies in 1..largest_target.

    Gold is "countdown": 1 where the expression is right.
    """
    least, most = between("numbers", numbers, 2)
    if largest < 1 or largest_target < 1:
        raise ValueError(f"largest={largest}, largest_target={largest_target}: both must be at least 1")
    sample = partial(_sample, least=least, most=most, largest=largest, largest_target=largest_target)
    # numbers, operators, brackets around all expressions within another, end of text
    longest = most * len(str(largest)) + (most - 1) + 2 * (most - 2) + 1
    return TextTask("countdown", SYMBOLS, "", sample, {"countdown": verifiers.countdown}, longest, _corrupted)


def _sample(rng: np.random.Generator, least: int, most: int, largest: int, largest_target: int) -> Row:
    while True:
        numbers = [int(number) for number in rng.integers(1, largest + 1, size=rng.integers(least, most + 1))]
        text, target = _combined(numbers, rng)
        if 1 <= target <= largest_target:
            prompt = f"{','.join(map(str, numbers))}>{target}="
            return {"prompt": prompt, "answer": text, "numbers": numbers, "target": target}


def _combined(numbers: list[int], rng: np.random.Generator) -> tuple[str, int]:
    """A random expression of all numbers and its value: two parts are joined by an operator until there is one."""
    parts = [(str(number), number) for number in numbers]
    while len(parts) > 1:
        (left, a), (right, b) = (parts.pop(rng.integers(len(parts))) for _ in range(2))
        divides = b != 0 and a % b == 0  # all values stay whole
        operator = OPERATORS[rng.integers(len(OPERATORS) if divides else len(OPERATORS) - 1)]
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if divides else 0}[operator]
        parts.append((f"({left}{operator}{right})", value))
    return parts[0][0][1:-1], parts[0][1]


def _corrupted(row: Row, rng: np.random.Generator) -> str:
    """A digit or an operator is another one, and the expression wrong."""
    while True:
        text = replaced(row["answer"], rng, (DIGITS, OPERATORS))
        if verifiers.countdown([row], [text]) == [0.0]:
            return text
