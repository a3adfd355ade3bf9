"""Put letters in order.

A prompt and a demonstration:

    dbeaca=     aabcde
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from string import ascii_lowercase

import numpy as np

from palaestra.envs.text.task import Row, TextTask, between, replaced
from palaestra.rewards.verifiers import exact_match


def sort(lengths: tuple[int, int] = (6, 10)) -> TextTask:
    """Letters to be put in alphabetical order. Each is uniform among 26, so that some come twice.

    Args:
        lengths: least and most letters, each number as likely; at least 1.

    Gold is "exact_match"; "in_place" is the share of letters that stand where they should.
    """
    least, most = between("lengths", lengths, 1)
    rewards = {"exact_match": exact_match, "in_place": in_place}
    sample = partial(_sample, least=least, most=most)
    return TextTask("sort", (*ascii_lowercase, "="), "", sample, rewards, most + 1, _corrupted)


def in_place(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """Share of characters that equal the demonstration's at their place, of the longer of the two texts; in [0, 1]."""
    pairs = [(row["answer"], answer.strip()) for row, answer in zip(rows, answers, strict=True)]
    return [sum(a == b for a, b in zip(*pair, strict=False)) / max(map(len, pair)) for pair in pairs]


def _sample(rng: np.random.Generator, least: int, most: int) -> Row:
    letters = [ascii_lowercase[i] for i in rng.integers(26, size=rng.integers(least, most + 1))]
    return {"prompt": f"{''.join(letters)}=", "answer": "".join(sorted(letters))}


def _corrupted(row: Row, rng: np.random.Generator) -> str:
    return replaced(row["answer"], rng, (ascii_lowercase,))
