"""Held-out evaluation units that may be looked at many times: Thresholdout.

Who picks among many candidates by the same held-out seeds, levels or prompts fits those units, and what is reported is
too good. Thresholdout answers from the development units as long as they agree with the held-out ones, so that an
answer says little about the latter. With a_d and a_h the two means of a query and Lap(b) Laplace noise of scale b,

    t = threshold + Lap(2 noise)
    answer = a_d                   if |a_h - a_d| <= t + Lap(4 noise)
             a_h + Lap(noise)      otherwise: one of the budget is spent, and t is drawn anew.

Papers: Dwork, Feldman, Hardt, Pitassi, Reingold and Roth, "Preserving statistical validity in adaptive data analysis"
(2015), and their "The reusable holdout: preserving validity in adaptive data analysis" (2015).

Traps: noise hides what it protects. With fewer than 200 held-out units, and wherever units can be made, as a simulator
makes seeds, evaluate on fresh ones instead. The picked candidate may be slightly worse than the one that looking freely
would pick; what is said about it is true.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_UNITS = 200


@dataclass(frozen=True)
class Answer:
    """An entry of the log.

    Args:
        name: of the query.
        value: what was answered.
        source: "development" or "held-out", where the value comes from.
        left: the budget after it.
    """

    name: str
    value: float
    source: str
    left: int


class ReusableHoldout:
    """Answers queries about held-out units; `log` has every answer, `left` is the budget that is left.

    Args:
        units: the number of held-out units, in an order that means nothing; every query gives one score for each.
        low, high: the range of a score.
        reserved: the last so many units have no part in `ask` and all of it in `measure`; by default a quarter.
        threshold: how far the two means may lie apart; by default 4 / sqrt(n) half ranges, n the units that are not
            reserved, which is four standard errors of the held-out mean, or more.
        noise: the scale of the noise, by default threshold / 16, so that the comparison's is threshold / 4. This is a
            heuristic: with threshold / 4, noise alone spent the budget in the paper's experiment.
        budget: answers from the held-out units, by default units / 10.

    Warns:
        UserWarning: fewer than 200 units.
    """

    def __init__(
        self,
        units: int,
        *,
        low: float = 0.0,
        high: float = 1.0,
        reserved: int | None = None,
        threshold: float | None = None,
        noise: float | None = None,
        budget: int | None = None,
        rng: np.random.Generator,
    ) -> None:
        if units < 1 or not low < high:
            raise ValueError(f"units is {units}, the range {low} to {high}: give at least one unit and low < high")
        self.reserved = units // 4 if reserved is None else reserved
        if not 0 <= self.reserved < units:
            raise ValueError(f"reserved is {reserved}: leave some of the {units} units for `ask`")
        if units < FEWEST_UNITS:
            warnings.warn(
                f"{units} held-out units are few: the answers are rough; prefer fresh seeds where they can be had",
                stacklevel=2,
            )
        self.units, self.low, self.high = units, low, high
        self.threshold = 2 * (high - low) / (units - self.reserved) ** 0.5 if threshold is None else threshold
        self.noise = self.threshold / 16 if noise is None else noise
        self.left = max(1, units // 10) if budget is None else budget
        self.log: list[Answer] = []
        self._rng = rng
        self._now = self._noisy_threshold()

    def ask(self, name: str, development: Sequence[float], held_out: Sequence[float]) -> float:
        """The mean score over units, as far as it may be told. Asked again by the same name, the same answer.

        Raises:
            ValueError: the budget is spent, scores outside of the range or NaN, or not one score a held-out unit.
        """
        if (known := self._known(name)) is not None:
            return known
        seen = self._scores(name, development).mean()
        hidden = self._scores(name, held_out, self.units)[: self.units - self.reserved].mean()
        self._check_budget()
        if abs(hidden - seen) <= self._now + self._rng.laplace(scale=4 * self.noise):
            return self._answer(name, seen, "development")
        self._now = self._noisy_threshold()
        return self._spend(name, hidden)

    def measure(self, name: str, held_out: Sequence[float]) -> float:
        """The mean score over the reserved units, with noise. Spends one of the budget.

        Raises:
            ValueError: as in `ask`, or no units are reserved.
        """
        if (known := self._known(name)) is not None:
            return known
        if not self.reserved:
            raise ValueError("reserved is 0: reserve some of the units to measure on")
        hidden = self._scores(name, held_out, self.units)[-self.reserved :].mean()
        self._check_budget()
        return self._spend(name, hidden)

    def state_dict(self) -> dict[str, Any]:
        """For JSON: a budget that begins anew with every process protects nothing."""
        log = [asdict(answer) for answer in self.log]
        return {"left": self.left, "threshold": self._now, "log": log, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.left, self._now = state["left"], state["threshold"]
        self.log = [Answer(**answer) for answer in state["log"]]
        self._rng.bit_generator.state = state["rng"]

    def _known(self, name: str) -> float | None:
        # Noise that could be drawn again could be averaged away.
        return next((answer.value for answer in self.log if answer.name == name), None)

    def _scores(self, name: str, scores: Sequence[float], units: int | None = None) -> NDArray[np.float64]:
        values: NDArray[np.float64] = np.asarray(scores, dtype=float)
        if values.ndim != 1 or not len(values) or (units is not None and len(values) != units):
            expected = "at least one score" if units is None else f"one score for each of the {units} held-out units"
            raise ValueError(f"scores of {name!r} have shape {values.shape}: give {expected}")
        if not ((values >= self.low) & (values <= self.high)).all():
            raise ValueError(f"scores of {name!r} are not all in [{self.low}, {self.high}]: set low and high, no NaN")
        return values

    def _check_budget(self) -> None:
        if self.left < 1:
            raise ValueError("the budget of answers from the held-out units is spent: get fresh held-out units")

    def _noisy_threshold(self) -> float:
        return self.threshold + self._rng.laplace(scale=2 * self.noise)

    def _spend(self, name: str, hidden: float) -> float:
        self.left -= 1
        return self._answer(name, hidden + self._rng.laplace(scale=self.noise), "held-out")

    def _answer(self, name: str, value: float, source: str) -> float:
        self.log.append(Answer(name, float(value), source, self.left))
        return float(value)


@dataclass(frozen=True)
class Selection:
    """What `select` returns.

    Args:
        winner: the name of the candidate with the highest answer.
        answers: of every candidate.
        estimate: of the winner, on the reserved units.
        standard_error: of the estimate, at most.
        log: the holdout's, as of then.
    """

    winner: str
    answers: dict[str, float]
    estimate: float
    standard_error: float
    log: tuple[Answer, ...]


def select(candidates: Mapping[str, tuple[Sequence[float], Sequence[float]]], holdout: ReusableHoldout) -> Selection:
    """Ask once for each candidate, given as (development scores, held-out scores), and take the highest answer.

    The highest of many answers is too high, also where each alone is right. So the estimate is not the winner's answer,
    but a measurement on the reserved units, which had no part in the choice.

    Raises:
        ValueError: no candidates, or as in `ReusableHoldout.ask`.
    """
    if not candidates:
        raise ValueError("candidates is empty: give at least one")
    answers = {name: holdout.ask(name, *scores) for name, scores in candidates.items()}
    winner = max(answers, key=answers.__getitem__)
    estimate = holdout.measure(f"winner: {winner}", candidates[winner][1])
    spread = (holdout.high - holdout.low) / 2  # the largest standard deviation that a score can have
    standard_error = (spread**2 / holdout.reserved + 2 * holdout.noise**2) ** 0.5
    return Selection(winner, answers, estimate, standard_error, tuple(holdout.log))
