"""What every verb says and takes alike: lines for people, objects for programs, and the options for either."""

from __future__ import annotations

import json
import math
import sys
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no messages.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error as well.")]


def say(text: str) -> None:
    """One line for people, on standard error."""
    print(text, file=sys.stderr)


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
