"""Rewards by name, and what they gave, looked at before anything learns from it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from palaestra.envs.text.task import Reward, Row
from palaestra.faults import RewardFailed
from palaestra.rewards.verifiers import countdown, exact_match, final_answer, last_number

REWARDS: dict[str, Reward] = {
    "exact_match": exact_match,
    "last_number": last_number,
    "final_answer": final_answer,
    "countdown": countdown,
}


def reward_of(name: str) -> Reward:
    """The reward of a name: one of `REWARDS`, with - or _, "package.module:function", or "file.py:function".

    Raises ValueError, in one line, where there is no such thing or it cannot be imported.
    """
    if (ours := REWARDS.get(name.replace("-", "_"))) is not None:
        return ours
    if ":" not in name:
        near = _nearest(name.replace("-", "_"), REWARDS)
        raise ValueError(f"there is no reward {name!r}; {near}; or give module:function or file.py:function")
    return function_of(name, "reward")


def function_of(name: str, what: str) -> Any:
    """The function of "package.module:function" or "file.py:function"; `what` it is to be, for errors.

    Raises ValueError, in one line, where there is no such thing or it cannot be imported.
    """
    where, colon, function = name.rpartition(":")
    if not colon:
        raise ValueError(f"the {what} {name!r} names no function: give module:function or file.py:function")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as wrong:  # whatever a module raises when it is imported
        raise ValueError(f"the {what} {name!r} cannot be imported: {_first_line(wrong)}") from wrong
    found = getattr(module, function, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{where} has no function {function!r}; {_nearest(function, functions)}")
    return found


def scored(rewards: Mapping[str, Reward], rows: Sequence[Row], answers: Sequence[str]) -> dict[str, list[float]]:
    """What each reward says of the answers to the rows' prompts: {name: [B]}, finite numbers all.

    Raises `RewardFailed` where a reward raises, or gives anything but one finite number an answer.
    """
    if len(rows) != len(answers):
        raise ValueError(f"there are {len(rows)} rows and {len(answers)} answers: give one answer a row")
    return {name: _values(name, reward, rows, answers) for name, reward in rewards.items()}


def _values(name: str, reward: Reward, rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    try:
        given = list(reward(rows, answers))
    except Exception as wrong:  # whatever anyone's reward raises
        where = _place(rows, _first_that_raises(reward, rows, answers))
        raise RewardFailed(
            f"the reward {name!r} raised {_first_line(wrong)} at {where}: let it return numbers for any answer"
        ) from wrong
    if len(given) != len(rows):
        raise RewardFailed(
            f"the reward {name!r} gave {len(given)} values for {len(rows)} answers, from {_place(rows, 0)} on: let it "
            "return one number an answer"
        )
    numbers = [_number(value) for value in given]
    for place, number in enumerate(numbers):
        if not math.isfinite(number):
            raise RewardFailed(
                f"the reward {name!r} gave {_short(given[place])} at {_place(rows, place)}: let it return a finite "
                "number, such as 0.0, for an answer that it cannot judge"
            )
    return numbers


def _number(value: Any) -> float:
    """A number of any library's, NaN where it is none; text is none even if it could be read as one."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _first_that_raises(reward: Reward, rows: Sequence[Row], answers: Sequence[str]) -> int | None:
    """The first row that makes a reward raise by itself; None where only the batch does."""
    for place in range(len(rows)):
        try:
            list(reward(rows[place : place + 1], answers[place : place + 1]))
        except Exception:  # noqa: BLE001 (the same as was caught above, and is told there)
            return place
    return None


def _place(rows: Sequence[Row], place: int | None) -> str:
    if place is None or not rows:
        return f"a batch of {len(rows)} rows (at none of them alone)"
    prompt = str(rows[place].get("prompt", ""))
    return f"row {place + 1} of {len(rows)} (prompt {prompt[:40] + ('...' if len(prompt) > 40 else '')!r})"


def _from_file(path: Path) -> ModuleType:
    """The module in a file, run anew. It is known under its path while it lives: dataclasses look their module up."""
    name = str(path.resolve())
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _short(value: Any) -> str:
    return repr(value).partition("\n")[0][:40]


def _first_line(wrong: Exception) -> str:
    return f"{type(wrong).__name__}: {wrong}".partition("\n")[0].removesuffix(": ")


def _nearest(name: str, names: Iterable[str]) -> str:
    known = sorted(names)
    near = difflib.get_close_matches(name, known, 3, 0.5)
    return f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(known) or 'none'}"
