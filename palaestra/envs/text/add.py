"""Add two numbers, digit by digit or at one go.

Prompts and demonstrations:

    add                   47+85=      132
    add, with scratchpad  47+85=      7+5+0=12;4+8+1=13;132
    marked_add            47+85#=     132#
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from palaestra.envs.text.task import DIGITS, Row, TextTask, replaced
from palaestra.rewards.verifiers import ends_with, exact_match, last_number

SYMBOLS = (*DIGITS, *"+=;#")  # of all variants, so that a model of one can go on with another
MARK = "#"


def add(digits: int = 2, scratchpad: bool = False, mistakes: float = 0.0) -> TextTask:
    """Sums of two numbers. Each is uniform among those of at most `digits` digits.

    Args:
        digits: of the longer number, at least 1.
        scratchpad: demonstrations write a step for each of the `digits` places first, from the right: the two digits,
            the carry, and their sum.
        mistakes: probability, in [0, 1], that a demonstration adds the digits of a place up to another number, with
            which it goes on. Gold would take what comes out for right: such demonstrations are to begin with, and
            prompts come from a task without mistakes.

    Gold is "exact_match", and "last_number" with a scratchpad: only what comes out is judged.
    """
    _checked(digits)
    if not 0 <= mistakes <= 1:
        raise ValueError(f"mistakes={mistakes}: it is a probability, in [0, 1]")
    sample = partial(_sample, digits=digits, scratchpad=scratchpad, mistakes=mistakes)
    if not scratchpad:
        longest = digits + 2
        return TextTask("add", SYMBOLS, "", sample, {"exact_match": exact_match}, longest, _corrupted)
    longest = 9 * digits + digits + 2  # 9: "7+5+0=12;"
    return TextTask("add", SYMBOLS, "", sample, {"last_number": last_number}, longest, _corrupted)


def marked_add(digits: int = 2) -> TextTask:
    """Sums, and a wish for the format: where the prompt ends in "#=", the answer is to end in "#", and only there.

    Gold is "exact_match", of both; "last_number" is the sum alone and "marked" the wish alone. `digits` as of `add`.
    """
    _checked(digits)
    rewards = {"exact_match": exact_match, "last_number": last_number, "marked": marked}
    return TextTask("marked-add", SYMBOLS, "", partial(_marked, digits=digits), rewards, digits + 3, _corrupted)


def marked(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """1 where an answer ends in "#" if and only if the prompt asks for it."""
    ended = ends_with(MARK)(rows, answers)
    return [float((MARK in row["prompt"]) == bool(end)) for row, end in zip(rows, ended, strict=True)]


def _checked(digits: int) -> None:
    if digits < 1:
        raise ValueError(f"digits={digits}: numbers must have at least 1")


def _drawn(rng: np.random.Generator, digits: int) -> tuple[int, int]:
    return int("".join(map(str, rng.integers(10, size=digits)))), int("".join(map(str, rng.integers(10, size=digits))))


def _sample(rng: np.random.Generator, digits: int, scratchpad: bool, mistakes: float) -> Row:
    a, b = _drawn(rng, digits)
    steps, carry, found = [], 0, 0
    for place in range(digits):
        left, right = a // 10**place % 10, b // 10**place % 10
        total = left + right + carry
        if mistakes and rng.random() < mistakes:
            total = (total + int(rng.integers(1, 20))) % 20  # sums of a place are in 0..19
        steps.append(f"{left}+{right}+{carry}={total}")
        found, carry = found + total % 10 * 10**place, total // 10
    answer = str(found + carry * 10**digits)
    return {"prompt": f"{a}+{b}=", "answer": ";".join([*steps, answer]) if scratchpad else answer}


def _marked(rng: np.random.Generator, digits: int) -> Row:
    a, b = _drawn(rng, digits)
    mark = MARK if rng.random() < 0.5 else ""
    return {"prompt": f"{a}+{b}{mark}=", "answer": f"{a + b}{mark}"}


def _corrupted(row: Row, rng: np.random.Generator) -> str:
    """A digit of the sum is wrong: an earlier step would not change what the answer is worth."""
    return replaced(row["answer"], rng, begin=row["answer"].rfind(";") + 1)
