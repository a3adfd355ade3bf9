"""An algorithm taken apart, and lists of what there is: what `show`, `list` and a run's settings tell people."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import Any

from palaestra.algorithm import PARTS, Algorithm, Buffer, Loss, Schedule, changed_parts, same
from palaestra.envs.registration import TEXTS, WORLDS
from palaestra.expression import Entry, ExpressionError, catalogue, nearest, parse

LISTS = ("algorithms", "methods", "envs", "datasets", "claims")


def show(algorithm: str | Algorithm) -> dict[str, Any]:
    """An algorithm taken apart: `{"expression", "base", "methods": [{"slug", "parts"}], "parts": {part: text}}`."""
    value = parse(algorithm) if isinstance(algorithm, str) else algorithm
    base = value.calls[0].slug if value.calls else None
    methods = [{"slug": call.slug, "parts": list(call.parts)} for call in value.calls[1:]]
    parts = {part: written(getattr(value, part)) for part in PARTS}
    return {"expression": str(value), "base": base, "methods": methods, "parts": parts}


def listed(what: str) -> list[dict[str, Any]]:
    """What there is: "algorithms", "methods" or "envs", each with `slug` and `title` (and what a method changes)."""
    if what == "envs":
        titles = {name: _title(*world) for name, world in WORLDS.items()}
        titles |= {name: _text_title(*task.split(":")) for name, task in TEXTS.items()}
        return [{"slug": name, "title": title} for name, title in titles.items()]
    if what not in ("algorithms", "methods"):
        raise ValueError(f"there is no list of {what!r}; {nearest(what, LISTS)}")
    entries = catalogue(what).values()
    rows = [_row(entry) for entry in entries]
    if what == "methods":
        for row, entry in zip(rows, entries, strict=True):
            family = [entry.package, *entry.reference.partition(":")[0].split(".")][-2]
            row |= {"parts": _changes(entry), "family": family, "claim": None}
    return rows


def _row(entry: Entry) -> dict[str, Any]:
    """What a list says of an entry. A plug-in that cannot be imported does not hide the others: it has a `problem`."""
    try:
        title, problem = entry.title, None
    except ExpressionError as wrong:
        title, problem = "", str(wrong)
    return {"slug": entry.slug, "title": title, "package": entry.package, "problem": problem}


def _title(module: str, world: str, limit: int | None, options: Mapping[str, Any]) -> str:
    found = getattr(import_module(f"palaestra.envs.{module}"), f"{world}VectorEnv")
    set_to = "".join(f", {key} {value}" for key, value in options.items())
    about = (inspect.getdoc(found) or "").partition("\n")[0].partition(". ")[0].rstrip(".")
    ends = f"{limit} steps" if limit is not None else "episodes end by themselves"
    return f"{about}; {ends}{set_to}"


def _text_title(module: str, function: str) -> str:
    found = getattr(import_module(f"palaestra.envs.text.{module}"), function)
    return f"{(inspect.getdoc(found) or '').partition('. ')[0]}; text, one answer an episode"


def _changes(entry: Entry) -> list[str]:
    """The parts that a method changes on the first base that it fits."""
    for base in catalogue("algorithms"):
        try:
            return list(changed_parts(parse(base), parse(f"{base}+{entry.slug}")))
        except (ValueError, TypeError, LookupError, AttributeError):  # a method may take its base to be another
            continue
    return []


def settings(slug: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a call, defaults included, as JSON data."""
    entry = catalogue("algorithms").get(slug) or catalogue("methods").get(slug)
    if entry is None:
        return {key: written(value) for key, value in given.items()}
    parameters = inspect.signature(entry.load()).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {key: written(value) for key, value in {**defaults, **given}.items()}


def written(value: Any) -> Any:
    """A part as a person reads it: functions by name with what is bound to them, mappings by key."""
    if isinstance(value, Mapping):
        return {key: written(entry) for key, entry in value.items()}
    if isinstance(value, functools.partial):
        inside = [f"{k}={_inline(written(v))}" for k, v in value.keywords.items()]
        return f"{written(value.func)}({', '.join([*(_inline(written(v)) for v in value.args), *inside])})"
    if isinstance(value, tuple | list):
        return [written(entry) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: written(getattr(value, f.name)) for f in fields(value) if _told(value, f)}
    if inspect.isfunction(value):
        return value.__qualname__.lstrip("_")
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__


def _inline(value: Any) -> str:
    """Lists and mappings within a call, on one line and without quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_inline(entry)}" for key, entry in value.items()) + "}"
    return "(" + ", ".join(map(_inline, value)) + ")" if isinstance(value, list) else str(value)


ALWAYS_TOLD = {Schedule: None, Loss: ("lr",), Buffer: ("capacity",)}


def _told(value: Any, field: Any) -> bool:
    """Defaults are left out, except the numbers that people look for."""
    told = ALWAYS_TOLD.get(type(value), ())
    if told is None or field.name in told:
        return True
    if field.default_factory is not MISSING:
        return not same(getattr(value, field.name), field.default_factory())
    return field.default is MISSING or not same(getattr(value, field.name), field.default)
