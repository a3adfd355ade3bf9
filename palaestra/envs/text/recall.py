"""Recall a value by its key, of several that are given.

A prompt and a demonstration:

    a31,k07,c95?k=      07
"""

from __future__ import annotations

from functools import partial
from string import ascii_lowercase

import numpy as np

from palaestra.envs.text.task import DIGITS, Row, TextTask, replaced
from palaestra.rewards.verifiers import exact_match

SYMBOLS = (*ascii_lowercase, *DIGITS, *",?=")


def key_value(pairs: int = 4, width: int = 2) -> TextTask:
    """One of several keys is asked for. Keys are letters, all different; values are strings of digits.

    Args:
        pairs: how many are given, 1 to 26.
        width: digits of a value, at least 1.

    Gold is "exact_match".
    """
    if not 1 <= pairs <= len(ascii_lowercase):
        raise ValueError(f"pairs={pairs}: keys are different letters, so there must be 1 to {len(ascii_lowercase)}")
    if width < 1:
        raise ValueError(f"width={width}: values must have at least 1 digit")
    sample = partial(_sample, pairs=pairs, width=width)
    return TextTask("key-value", SYMBOLS, "", sample, {"exact_match": exact_match}, width + 1, _corrupted)


def _sample(rng: np.random.Generator, pairs: int, width: int) -> Row:
    keys = [ascii_lowercase[i] for i in rng.permutation(len(ascii_lowercase))[:pairs]]
    values = ["".join(map(str, digits)) for digits in rng.integers(10, size=(pairs, width))]
    asked = rng.integers(pairs)
    given = ",".join(key + value for key, value in zip(keys, values, strict=True))
    return {"prompt": f"{given}?{keys[asked]}=", "answer": values[asked]}


def _corrupted(row: Row, rng: np.random.Generator) -> str:
    return replaced(row["answer"], rng)
