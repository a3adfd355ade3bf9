"""The space of strings that language models read and write."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Language(gym.Space[str]):
    """Any string of at most `max_length` characters, the empty one included.

    Gymnasium's `Text` admits letters and digits alone unless it is given a set of characters: by default not even a
    space character. What a language model writes is not known beforehand.
    """

    def __init__(self, max_length: int = 65_536, seed: int | np.random.Generator | None = None) -> None:
        if max_length < 1:
            raise ValueError(f"max_length={max_length}: there must be room for at least one character")
        self.max_length = int(max_length)
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """No: a string is not an array."""
        return False

    def contains(self, x: Any) -> bool:
        """Whether it is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """One to eight random lower-case words, cut where they are too long; neither argument is for strings."""
        if mask is not None or probability is not None:
            raise ValueError("Language has neither a mask nor probabilities: leave them out")
        words = self.np_random.integers(ord("a"), ord("z") + 1, size=(self.np_random.integers(1, 9), 4))
        return " ".join("".join(map(chr, word)) for word in words)[: self.max_length]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Language) and self.max_length == other.max_length

    def __repr__(self) -> str:
        return f"Language({self.max_length})"
