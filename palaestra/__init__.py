"""Palaestra: reinforcement-learning methods as small parts that compose, each with its claim and a verdict.

`import palaestra as pal; run = pal.train("sac", env="Pendulum-v1", steps=6_000); pal.load(run).act(obs)`.
Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palaestra.api import (
        check,
        claim,
        compare,
        evaluate,
        export,
        go_online,
        listed,
        load,
        make_dataset,
        read_dataset,
        resume,
        select,
        show,
        stages,
        train,
        write_dataset,
    )  # fmt: skip
    from palaestra.expression import parse

__version__ = "0.1.0"
__all__ = [
    "check", "claim", "compare", "evaluate", "export", "go_online", "listed", "load", "make_dataset", "parse",
    "read_dataset", "resume", "select", "show", "stages", "train", "write_dataset",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("palaestra.expression" if name == "parse" else "palaestra.api"), name)
    raise AttributeError(f"module 'palaestra' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
