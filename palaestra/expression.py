"""`"iql(gamma=0.99)+trajectory-weighting"` <-> `Algorithm`: split at top-level `+`, literals read with `ast`, no eval.

An expression is a base and the methods that change it, left to right, each with keyword arguments that are Python
literals. Names may be written with hyphens or underscores.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

GROUPS = {"algorithms": "palaestra.algorithms", "methods": "palaestra.methods"}


class ExpressionError(ValueError):
    """An expression that cannot be read; says where, and what would be right."""


@dataclass(frozen=True)
class Entry:
    """A name that expressions may use, and the function behind it ("module:function"), not yet imported."""

    slug: str
    reference: str
    group: str
    package: str = "palaestra"
    problem: str | None = None  # why it cannot be used

    def load(self) -> Callable[..., Any]:
        """The function; ExpressionError where a plug-in's cannot be imported, or its name is taken."""
        from palaestra.algorithm import expressed

        if self.problem:
            raise ExpressionError(self.problem)
        module, _, name = self.reference.partition(":")
        try:
            function: Callable[..., Any] = getattr(importlib.import_module(module), name)
            return expressed(function, self.slug)
        except Exception as wrong:  # whatever a plug-in raises when imported: it must not hide the others
            raise ExpressionError(
                f"{self.slug} ({self.reference}) of {self.package} cannot be loaded: {wrong}"
            ) from wrong

    @property
    def title(self) -> str:
        """The first line of the function's docstring, or of its module's."""
        doc = inspect.getdoc(self.load()) or ""
        return doc.partition("\n")[0]


@cache
def catalogue(group: str) -> dict[str, Entry]:
    """The entries of "algorithms" or "methods": ours, then those of installed packages (entry points)."""
    from palaestra.algorithms import ALGORITHMS, VARIANTS
    from palaestra.methods import METHODS

    ours = ALGORITHMS if group == "algorithms" else {**VARIANTS, **METHODS}
    entries = {slug: Entry(slug, reference, group) for slug, reference in ours.items()}
    for point in entry_points(group=GROUPS[group]):
        slug = hyphened(point.name)
        if slug in entries:
            problem = f"{slug!r} of {_package(point)} is taken by {entries[slug].package}: "
            problem += "its entry point needs another name"
            slug = f"{_package(point)}:{slug}"  # listed, but no name that an expression could say
            entries[slug] = Entry(slug, point.value, group, _package(point), problem)
        else:
            entries[slug] = Entry(slug, point.value, group, _package(point))
    return entries


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def hyphened(name: str) -> str:
    return name.strip().replace("_", "-")


def nearest(name: str, names: Iterable[str]) -> str:
    """`did you mean a, b?`, or all names where none is near."""
    known = list(names)
    near = difflib.get_close_matches(name, known, 3, 0.5)
    return f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"


def split(text: str) -> list[str]:
    """The pieces between top-level `+` signs."""
    pieces, depth, begin, quote = [], 0, 0, ""
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[i - 1] != "\\" else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "+" and depth == 0:
            pieces.append(text[begin:i])
            begin = i + 1
    if depth or quote:
        raise ExpressionError(f"{text!r} has a bracket or quote that is not closed")
    return [*pieces, text[begin:]]


def read(piece: str) -> tuple[str, dict[str, Any]]:
    """`"td3(lr=1e-3)"` -> `("td3", {"lr": 0.001})`."""
    match = re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*(\(.*\))?\s*", piece, re.DOTALL)
    if match is None:
        raise ExpressionError(f"{piece.strip()!r} is not of the form name or name(keyword=value, ...)")
    name, arguments = hyphened(match[1]), match[2] or "()"
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
    except SyntaxError as wrong:
        raise ExpressionError(f"{piece.strip()!r} cannot be read: {wrong.msg}") from wrong
    if not isinstance(call, ast.Call) or call.args:
        raise ExpressionError(f"{piece.strip()!r}: arguments are given by name, as in {name}(keyword=value)")
    keywords: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg in keywords:
            raise ExpressionError(f"{name}: {keyword.arg} is given twice")
        try:
            keywords[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError) as wrong:
            value = ast.unparse(keyword.value)
            raise ExpressionError(
                f"{name}: {keyword.arg}={value} is not a literal (a number, a string, a tuple)"
            ) from wrong
    return name, keywords


def parse(text: str) -> Any:
    """The `Algorithm` of an expression. ExpressionError, with the nearest right names, for one that cannot be read."""
    first, *rest = split(text)
    base, methods = catalogue("algorithms"), catalogue("methods")
    name, keywords = read(first)
    if name not in base:
        if name in methods:
            raise ExpressionError(f"{name!r} is a method: it changes a base, as in sac+{name}")
        raise ExpressionError(f"there is no algorithm {name!r}; {nearest(name, base)}")
    algorithm = _call(base[name], (), keywords)
    for piece in rest:
        name, keywords = read(piece)
        if name not in methods:
            if name in base:
                raise ExpressionError(f"{name!r} is a base algorithm: it comes first, and alone")
            raise ExpressionError(f"there is no method {name!r}; {nearest(name, methods)}")
        algorithm = _call(methods[name], (algorithm,), keywords)
    algorithm.check()
    return algorithm


def _call(entry: Entry, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    function = entry.load()
    parameters = dict(list(inspect.signature(function).parameters.items())[len(args) :])
    annotations = typing.get_type_hints(inspect.unwrap(function))
    for key, value in keywords.items():
        if key not in parameters:
            raise ExpressionError(f"{entry.slug} has no setting {key!r}; {nearest(key, parameters)}")
        if not _fits(value, annotations.get(key, Any)):
            wanted = parameters[key].annotation
            raise ExpressionError(f"{entry.slug}: {key}={value!r} does not fit; it is a {wanted}")
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in keywords and p.kind not in (2, 4)]
    if missing:
        raise ExpressionError(f"{entry.slug} needs {', '.join(missing)}, as in {entry.slug}({missing[0]}=...)")
    try:
        return function(*args, **keywords)
    except KeyError as wrong:  # a part by a name that this base does not have
        raise ExpressionError(f"{entry.slug} does not fit {args[0] if args else 'here'}: {wrong.args[0]}") from wrong


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a literal can be what an annotation says; what a literal can never be is not judged."""
    origin = typing.get_origin(wanted)
    if wanted is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(wanted))
    if wanted is None or wanted is type(None):
        return value is None
    if wanted is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted in (str, bool):
        return isinstance(value, wanted)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Iterable):
        inner = (typing.get_args(wanted) or (Any,))[0]
        return isinstance(value, list | tuple) and all(_fits(entry, inner) for entry in value)
    return callable(value)
