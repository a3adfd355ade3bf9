"""What users call: `train`, `resume`, `evaluate`, `load`, `show`, `listed`. The command line calls the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palaestra.deployed import Deployed
from palaestra.inspection import listed, show
from palaestra.runs.check import check as broken_parts
from palaestra.stored import evaluate, export, load
from palaestra.training import resume, train

__all__ = ["Deployed", "check", "evaluate", "export", "listed", "load", "resume", "show", "train"]


def check(run: str | Path) -> dict[str, Any]:
    """Whether a run's folder is whole: `{"ok", "problems": [{"file", "where", "what", "remedy"}]}`. Reads all files.

    RunError where there is no such run.
    """
    problems = broken_parts(Path(run))
    told = [{"file": str(p.file), "where": p.where, "what": p.what, "remedy": p.remedy} for p in problems]
    return {"ok": not problems, "problems": told}
