"""Sums modulo 10 of many terms, worked out step by step.

A prompt and demonstrations:

    3+8-5+2=        +8=1;-5=6;+2=8            a step adds the next term and says the sum so far
                    +8=1;=1;-5=6;+2=8         a check says it again: right, and of no use
"""

from __future__ import annotations

import re
from functools import partial
from itertools import accumulate

import numpy as np

from palaestra.envs.text.task import DIGITS, Row, TextTask, between, replaced
from palaestra.rewards.verifiers import last_number

SEPARATOR = ";"  # between steps
SYMBOLS = (*DIGITS, *"+-=", SEPARATOR)


def chain_sum(steps: tuple[int, int] = (1, 7), checks: float = 0.0, mistakes: float = 0.0) -> TextTask:
    """Sums of digits modulo 10. Terms are uniform in 1..9, all but the first with a sign, each as likely.

    Args:
        steps: least and most additions, each number as likely, at least 1: (1, 7) is two to eight terms.
        checks: probability, in [0, 1], that a step of the demonstration is followed by one that says the same sum
            again.
        mistakes: probability, in [0, 1], that a step of the demonstration says a wrong sum, from which the next goes
            on. Gold would take its end for right: such demonstrations are to begin with, and prompts come from a task
            without mistakes.

    Rows tell "terms", signed, and "steps", their number less one. Gold is "last_number": whether the sum is right.
    `step_scores` says which steps are.
    """
    least, most = between("steps", steps, 1)
    for name, value in {"checks": checks, "mistakes": mistakes}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: it is a probability, in [0, 1]")
    sample = partial(_sample, least=least, most=most, checks=checks, mistakes=mistakes)
    longest = most * (5 if checks == 0 else 8)  # "+8=1;" and "=1;"; the last separator's place is the end-of-text's
    return TextTask("chain-sum", SYMBOLS, "", sample, {"last_number": last_number}, longest, _corrupted)


def step_scores(row: Row, answer: str) -> list[float]:
    """1 for every step of an answer that is right, else 0; none for an empty answer.

    A step is what stands before a separator, or before the end. It is right if it takes the next term of the prompt,
    with its sign, and says the true sum so far; a check, which takes none, is right if it says that. A step that takes
    a term counts as one whether it is right or not, so that those after a wrong number can be right again.
    """
    sums, taken, scores = list(accumulate(row["terms"])), 0, []
    for step in answer.strip().removesuffix(SEPARATOR).split(SEPARATOR) if answer.strip() else ():
        found = re.fullmatch(r"([+-][0-9])?=([0-9])", step)
        if found and found[1]:
            taken += 1
        scores.append(
            float(
                found is not None
                and taken < len(sums)
                and (found[1] is None or int(found[1]) == row["terms"][taken])
                and int(found[2]) == sums[taken] % 10
            )
        )
    return scores


def _sample(rng: np.random.Generator, least: int, most: int, checks: float, mistakes: float) -> Row:
    number = int(rng.integers(least, most + 1))
    sizes, signs = rng.integers(1, 10, size=number + 1), rng.integers(2, size=number + 1)
    signs[0] = 0
    terms = [int(size) * (-1 if sign else 1) for size, sign in zip(sizes, signs, strict=True)]
    prompt = f"{terms[0]}{''.join(f'{term:+d}' for term in terms[1:])}="
    written, total = [], terms[0]
    for term in terms[1:]:
        total += term
        if mistakes and rng.random() < mistakes:
            total += int(rng.integers(1, 10))
        written.append(f"{term:+d}={total % 10}")
        if rng.random() < checks:
            written.append(f"={total % 10}")
    return {"prompt": prompt, "answer": SEPARATOR.join(written), "terms": terms, "steps": number}


def _corrupted(row: Row, rng: np.random.Generator) -> str:
    """The last digit, the sum, is wrong: an earlier one would not change what the answer is worth."""
    return replaced(row["answer"], rng, begin=len(row["answer"]) - 1)
