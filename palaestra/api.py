"""What users call: `train`, `compare`, `claim`, `load`, `select`, and more. The command line calls the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palaestra.asking import evaluate, export, load
from palaestra.claims.running import claim
from palaestra.claims.running import table as claims
from palaestra.comparison import Comparison, compare
from palaestra.data.files import read as read_dataset
from palaestra.data.files import write as write_dataset
from palaestra.deployed import Deployed
from palaestra.factories.datasets import make_dataset, worlds
from palaestra.inspection import listed as what_there_is
from palaestra.inspection import show
from palaestra.runs import folders_of_runs
from palaestra.runs.check import check as broken_parts
from palaestra.selection import select
from palaestra.staged import stages
from palaestra.training import go_online, resume, train

__all__ = [
    "Comparison",
    "Deployed",
    "check",
    "claim",
    "compare",
    "evaluate",
    "export",
    "go_online",
    "listed",
    "load",
    "make_dataset",
    "read_dataset",
    "resume",
    "select",
    "show",
    "stages",
    "train",
    "write_dataset",
]


def check(*folders: str | Path) -> dict[str, Any]:
    """Whether runs are whole and complete: `{"ok", "runs", "problems": [{"file", "where", "what", "remedy"}]}`.

    Reads every file of each run in these folders and up to two levels below. RunError where there is none.
    """
    found = [(folder, folders_of_runs([folder]) if folder.is_dir() else []) for folder in map(Path, folders)]
    runs = [run for folder, inside in found for run in inside or [folder]]
    problems = [problem for run in runs for problem in broken_parts(run)]
    told = [{"file": str(p.file), "where": p.where, "what": p.what, "remedy": p.remedy} for p in problems]
    return {"ok": not problems, "runs": len(runs), "problems": told}


def listed(what: str) -> list[dict[str, Any]]:
    """What there is: "algorithms", "methods", "envs", "datasets" or "claims", a row each with `slug` and `title`.

    A method's row says which `parts` it changes, its `family`, and what came of its `claim`: `{"verdict", "scale",
    "date", "stale"}`, or None.
    """
    if what == "claims":
        return claims()
    if what == "datasets":
        return worlds()
    rows = what_there_is(what)
    if what == "methods":
        told = ("verdict", "scale", "date", "stale")
        results = {row["slug"]: {key: row[key] for key in told} for row in claims() if row["verdict"]}
        rows = [{**row, "claim": results.get(row["slug"])} for row in rows]
    return rows
