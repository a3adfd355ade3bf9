"""What every verb says and takes alike: lines for people, objects for programs, and the options for either."""

from __future__ import annotations

import json
import math
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no messages.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error as well.")]


def say(text: str) -> None:
    """One line for people, on standard error."""
    print(text, file=sys.stderr)


def say_scores(scores: dict[str, dict[str, list[float]]]) -> None:
    """A line for each score: its raw values, by seed, in short."""
    from palaestra.runs.queries import interquartile_mean

    for name, by_seed in scores.items():
        values = [value for seed in by_seed.values() for value in seed]
        say(
            f"{name}: interquartile mean {interquartile_mean(values):.5g} of {len(values)} episodes "
            f"(from {min(values):.5g} to {max(values):.5g})"
        )


def give(data: Any) -> None:
    """One JSON object (or list) for programs, on standard output."""
    print(json.dumps(_finite(data), indent=2, default=str, allow_nan=False))


def _finite(data: Any) -> Any:
    """The data with null for NaN and infinities, which JSON does not have."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def outline(value: Any, indent: int = 15) -> str:
    """A part on as few lines as it needs: one a key where they are many."""
    if value in (None, [], {}):
        return "none"
    if isinstance(value, list) and all(not isinstance(entry, dict | list) for entry in value):
        return ", ".join(map(str, value))
    if isinstance(value, list):
        return ("\n" + " " * indent).join(outline(entry, indent) for entry in value)
    if not isinstance(value, dict):
        return str(value)
    if all(not isinstance(entry, dict | list) for entry in value.values()):
        short = "  ".join(f"{key}={entry}" for key, entry in value.items())
        if len(short) < 100 - indent:
            return short
    wide = max(map(len, value)) + 2
    return ("\n" + " " * indent).join(f"{key:{wide}}{outline(entry, indent + wide)}" for key, entry in value.items())


@dataclass
class Telling:
    """Show the traceback of an error that `main` makes one line of, if `verbose`; the error goes on."""

    verbose: bool

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, wrong: BaseException | None, trace: object) -> None:
        if self.verbose and isinstance(wrong, Exception):
            traceback.print_exception(wrong)
