"""What is wrong with a dataset's file: all of it, not the first thing that reading stumbles over."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym

from palaestra.data.dataset import DatasetError
from palaestra.data.files import LARGE, cache, filled, finished, located, opened, spaces_of
from palaestra.data.plan import RESTORE, Findings, Problem

__all__ = ["Problem", "check", "examine"]


def check(path: str | Path, *, env: str | gym.Env[Any, Any] | None = None) -> list[Problem]:
    """What is wrong with a dataset's file, one for each field and kind, with its count; nothing when the list is empty.

    NaN and infinite values, wrong shapes and kinds of numbers, actions outside their space, episodes without an end,
    rows that do not continue, structural damage, and any change in a file that was written here.

    Raises:
        DatasetError: there is no such file.
    """
    return examine(path, env=env)[0]


def examine(
    path: str | Path, *, env: str | gym.Env[Any, Any] | None = None, memory: int = LARGE
) -> tuple[list[Problem], list[Problem]]:
    """What `check` finds, and what is worth knowing besides: observations beyond the bounds of their space.

    Args:
        path: as `read` takes it.
        env: whose spaces are the data's where the file does not say.
        memory: bytes; arrays that take more are laid out on disk, and removed.
    """
    file = located(path)
    found = Findings(file, collect=True)
    fatal = []
    try:
        with opened(file, spaces_of(env)[0], found) as plan:
            if plan.nbytes <= memory:
                finished(plan, filled(plan, found), found)
            else:
                cache().mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=".tmp-", dir=cache()) as folder:
                    finished(plan, filled(plan, found, Path(folder)), found)
    except DatasetError as wrong:
        problem = getattr(wrong, "problem", None) or Problem(str(file), "", str(wrong), RESTORE)
        fatal = [] if problem in found.problems else [problem]
    return fatal + found.problems, found.notes
