"""What is compared: algorithms that are trained, or functions `(seed, budget) -> {name: raw values}`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palaestra.algorithm import Algorithm, changed_parts
from palaestra.expression import parse
from palaestra.inspection import settings, written
from palaestra.training import rebuilds

Function = Callable[[int, int], Mapping[str, Sequence[float]]]
Made = str | Algorithm | Function


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared, by the name that people read."""

    name: str
    made: Algorithm | Function

    @property
    def is_trained(self) -> bool:
        return isinstance(self.made, Algorithm)

    @property
    def in_any_process(self) -> bool:
        """Whether its expression is all that another process needs."""
        return isinstance(self.made, Algorithm) and rebuilds(self.made)

    def about(self) -> dict[str, Any]:
        """What it is, as JSON data: `expression`, and of its calls every setting and the parts that they change."""
        if not isinstance(self.made, Algorithm):
            return {"expression": None, "function": str(written(self.made)), "calls": []}
        calls = [{"parts": list(call.parts), **_settings(call)} for call in self.made.calls]
        return {"expression": str(self.made), "function": None, "calls": calls}


def _settings(call: Any) -> dict[str, Any]:
    return {"slug": call.slug, "settings": settings(call.slug, dict(call.keywords))}


def arms_of(given: Sequence[Made] | Mapping[str, Made]) -> list[Arm]:
    """The arms, named by their keys, or else by their expressions or functions.

    Raises:
        ValueError: fewer than two, or two of one name.
    """
    if isinstance(given, str):
        raise ValueError(f"there is one thing to compare, {given!r}: give a list of at least two")
    named = given.items() if isinstance(given, Mapping) else ((None, made) for made in given)
    arms = [_arm(name, made) for name, made in named]
    if len(arms) < 2:
        raise ValueError(f"there are {len(arms)} things to compare: give at least two")
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{twice[0]} stands there twice: give each once, or a mapping from names of your own")
    return arms


def _arm(name: str | None, made: Made) -> Arm:
    value = parse(made) if isinstance(made, str) else made
    own = str(value) if isinstance(value, Algorithm) else str(written(value))
    return Arm(name or own, value)


def slug(arm: Arm, number: int) -> str:
    """A folder's name for an arm: its number tells apart what the letters do not."""
    letters = re.sub(r"[^a-zA-Z0-9]+", "-", arm.name).strip("-").lower()
    return f"{number}-{letters[:40].strip('-')}"


def differing(left: Arm, right: Arm) -> list[str]:
    """The parts of two algorithms that differ."""
    if isinstance(left.made, Algorithm) and isinstance(right.made, Algorithm):
        return list(changed_parts(left.made, right.made))
    return []
