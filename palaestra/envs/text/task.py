"""What a text task is, and its Gymnasium environment: a prompt is the observation, an answer the action.

A task is a function of its settings, `add(digits=3)`; `gymnasium.make("palaestra/Add-v0", digits=3)` makes its
environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np

from palaestra.envs.native import generator_from
from palaestra.envs.text.space import Language

Row = dict[str, Any]  # JSON data: "prompt", "answer" (a demonstration), and whatever else a reward needs
Reward = Callable[[Sequence[Row], Sequence[str]], Sequence[float]]  # one number an answer; a batch at once

DIGITS = "0123456789"


@dataclass(frozen=True)
class TextTask:
    """A source of prompts, and what an answer is worth.

    Attributes:
        name: what the task is called.
        symbols: every character (or word) of prompts and answers, in a fixed order, without special tokens.
        separator: between symbols: "" where they are characters, " " where they are words.
        sample: draws a row.
        rewards: by name; the first is the gold one, in [0, 1].
        longest: tokens of the longest demonstration, with its end-of-text token.
        corrupted: a row's demonstration with exactly one wrong token, which is worth less than 1; None where there is
            no such thing.
        log_probabilities: of every token of a whole text, prompt and answer, and of its end, given what stands before
            it, under the distribution of `sample`; None where it has no simple form.
    """

    name: str
    symbols: tuple[str, ...]
    separator: str
    sample: Callable[[np.random.Generator], Row]
    rewards: Mapping[str, Reward]
    longest: int
    corrupted: Callable[[Row, np.random.Generator], str] | None = None
    log_probabilities: Callable[[str], list[float]] | None = None

    def tokens(self, text: str) -> list[str]:
        """The symbols of a text."""
        return text.split(self.separator) if self.separator else list(text)


def rows(task: TextTask, number: int, seed: int) -> list[Row]:
    """So many rows; the same seed gives the same ones, and fewer of them are the first of more."""
    rng = np.random.default_rng(seed)
    return [task.sample(rng) for _ in range(number)]


def replaced(text: str, rng: np.random.Generator, kinds: Sequence[str] = (DIGITS,), begin: int = 0) -> str:
    """`text` with one of its characters, from place `begin` on, replaced by another of its kind."""
    places = [place for place in range(begin, len(text)) if any(text[place] in kind for kind in kinds)]
    place = places[rng.integers(len(places))]
    others = [c for kind in kinds if text[place] in kind for c in kind if c != text[place]]
    return text[:place] + others[rng.integers(len(others))] + text[place + 1 :]


def between(name: str, span: tuple[int, int], least: int) -> tuple[int, int]:
    """The least and the most of a setting that is a range; ValueError unless `least` <= first <= last."""
    first, last = span
    if not least <= first <= last:
        raise ValueError(f"{name}={span}: give the least, at least {least}, and the most, which is not less")
    return int(first), int(last)


class TextEnv(gym.Env[str, str]):
    """One question an episode. obs: the prompt; action: the answer; reward: the gold one, in [0, 1].

    `reset` tells `info["row"]`, with a demonstration in it; `step` gives the observation "", terminates, and tells
    `info["rewards"]`, all rewards of the task by name.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (as Gymnasium)

    def __init__(self, task: TextTask) -> None:
        self.task = task
        self.observation_space, self.action_space = Language(), Language()
        self._row: Row | None = None  # None: no question is open

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Ask a new question."""
        super().reset(seed=seed)
        self._row = self.task.sample(self.np_random)
        return self._row["prompt"], {"row": self._row}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge an answer; ValueError unless it is a string, not longer than the space allows."""
        if self._row is None:
            raise gym.error.ResetNeeded("no question is open: call reset before each step")
        if action not in self.action_space:
            raise ValueError(f"an answer must be in {self.action_space}, and it is {repr(action)[:40]}")
        row, self._row = [self._row], None
        rewards = {name: float(reward(row, [action])[0]) for name, reward in self.task.rewards.items()}
        return "", next(iter(rewards.values())), True, False, {"rewards": rewards}

    def get_state(self) -> dict[str, Any]:
        """The open question and the stream that the next ones are drawn from."""
        return {"row": self._row, "rng": self.np_random.bit_generator.state}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `get_state` gave."""
        self._row, self.np_random = state["row"], generator_from(state["rng"])


def text_env(task: str, **settings: Any) -> TextEnv:
    """What the ids are made by: of the task's function, "MODULE:FUNCTION" in this package, and its settings."""
    module, _, function = task.partition(":")
    return TextEnv(getattr(import_module(f"palaestra.envs.text.{module}"), function)(**settings))
