"""What is compared: algorithms that are trained, or functions `(seed, budget) -> {name: raw values}`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palaestra.algorithm import Algorithm, Call, changed_parts
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
    """The arms, named by their keys, or else by their functions or by what tells their expressions apart.

    Raises:
        ValueError: fewer than two, or two of one name.
    """
    if isinstance(given, str):
        raise ValueError(f"there is one thing to compare, {given!r}: give a list of at least two")
    made = given.values() if isinstance(given, Mapping) else given
    values = [parse(one) if isinstance(one, str) else one for one in made]
    names = list(given) if isinstance(given, Mapping) else _names(values)
    arms = [Arm(name, value) for name, value in zip(names, values, strict=True)]
    if len(arms) < 2:
        raise ValueError(f"there is nothing to compare {names[0] if names else ''} with: give at least two")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{twice[0]} stands there twice: give each once, or a mapping from names of your own")
    return arms


def _names(values: Sequence[Algorithm | Function]) -> list[str]:
    """Without the settings that are the same in every call of a base or method, where that leaves all apart."""
    whole = [str(value) if isinstance(value, Algorithm) else str(written(value)) for value in values]
    every: dict[str, list[set[str]]] = {}
    for call in (call for value in values if isinstance(value, Algorithm) for call in value.calls):
        every.setdefault(call.slug, []).append(set(_kept(call)))
    same = {slug: set.intersection(*keywords) for slug, keywords in every.items()}
    short = [
        "+".join(_without(call, same[call.slug]) for call in value.calls) if isinstance(value, Algorithm) else name
        for value, name in zip(values, whole, strict=True)
    ]
    return short if all(short) and len(set(short)) == len(values) else whole


def _kept(call: Call) -> list[str]:
    return [f"{key}={value!r}" for key, value in call.keywords]


def _without(call: Call, same: set[str]) -> str:
    inside = ", ".join(keyword for keyword in _kept(call) if keyword not in same)
    return f"{call.slug}({inside})" if inside else call.slug


def slug(arm: Arm, number: int) -> str:
    """A folder's name for an arm: its number tells apart what the letters do not."""
    letters = re.sub(r"[^a-zA-Z0-9]+", "-", arm.name).strip("-").lower()
    return f"{number}-{letters[:40].strip('-')}"


def differing(left: Arm, right: Arm) -> list[str]:
    """The parts of two algorithms that differ."""
    if isinstance(left.made, Algorithm) and isinstance(right.made, Algorithm):
        return list(changed_parts(left.made, right.made))
    return []
