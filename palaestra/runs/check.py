"""Whether a run's folder is whole: its fields, its metrics, its checkpoints, and all that it should say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from palaestra.runs.completeness import NEEDED, missing
from palaestra.runs.errors import RunError
from palaestra.runs.run import Run

if TYPE_CHECKING:
    from palaestra.runs.checkpoints import Checkpoints

# What a run must say to be continued or evaluated. Numbers count something: they are at least 1.
_FIELDS: dict[str, type] = {
    "expression": str, "rebuilds": bool, "env": str, "made_by_id": bool, "spaces": dict, "seeds": list, "steps": int,
    "environments": int, "episodes": int, "evaluate_every": int, "log_every": int, "checkpoint_every": int,
    "together": str, "workers": int,
    "device": str, "precision": str, "threads": int, "deterministic": bool, "compile": bool, "tensorboard": bool,
}  # fmt: skip
# Fields that runs of earlier versions do not have, and what they were.
_BEFORE = {
    "precision": "float32", "deterministic": False, "tensorboard": False, "together": "alone", "workers": 1,
    "dataset": None, "offline": False, "begun_from": None,
}  # fmt: skip
_REMEDY = "restore it from a copy, or train again with another --out"


def begun(run: Path | Run) -> Run:
    """The run, whose fields are all there.

    Raises:
        RunError: there is no such run, or the first of its fields that is missing or no value for it.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    run.about = {**_BEFORE, **run.about}
    for problem in _fields(run):
        raise problem
    return run


def check(folder: Path) -> list[RunError]:
    """What is wrong with a run's folder, and what it lacks; nothing when the list is empty. Every file is read.

    Raises:
        RunError: there is no such run.
    """
    from palaestra.runs.checkpoints import Checkpoints  # it imports torch

    folder = Path(folder)
    if not folder.is_dir():
        Run.open(folder)
    try:
        run = Run.open(folder)
    except RunError as problem:
        run, found = Run(folder, {}), [problem]
        needed = False
    else:
        found = list(_fields(run))
        needed = not {problem.where for problem in found} & {f"field {name!r}" for name in NEEDED}
    whole_lines = not (broken := run.broken_lines())
    if needed and whole_lines:
        found += missing(run, run.writer())
    found += [problem for part in run.parts() for problem in check(part)]
    found += broken
    checkpoints = Checkpoints(folder / "checkpoints")
    for path in checkpoints.paths():
        try:
            run.expect(checkpoints.load(path).position)
        except RunError as problem:
            found.append(problem)
    if needed and run.about["together"] != "processes" and run.about["status"] == "finished":
        found += _last_checkpoint(run, checkpoints)
    return found


def _last_checkpoint(run: Run, checkpoints: Checkpoints) -> list[RunError]:
    steps, again = run.about["steps"], "restore it from a copy, or train again: tables hold no checkpoints"
    if not (paths := checkpoints.paths()):
        return [RunError(checkpoints.folder, "there is no checkpoint", again)]
    if (count := int(paths[-1].name.partition(".")[0])) < steps:
        return [RunError(checkpoints.folder, f"the last checkpoint is of {count} of {steps} steps", again)]
    return []


def _fields(run: Run) -> list[RunError]:
    path = run.folder / "run.json"
    found = []
    for field, kind in _FIELDS.items():
        value = run.about.get(field)
        what = ""
        if field not in run.about:
            what = "is missing"
        elif field == "env" and value is None and run.about.get("dataset") is not None:
            continue  # policies are judged without one
        elif type(value) is not kind:
            what = f"{value!r} is no {kind.__name__}"
        elif type(value) is int and value < 1:
            what = f"is {value}; it must be at least 1"
        elif field == "seeds" and not _are_seeds(value):
            what = f"{value!r} is no list of whole numbers from 0"
        if what:
            found.append(RunError(path, what, _REMEDY, f"field {field!r}"))
    return found


def _are_seeds(value: Any) -> bool:
    return bool(value) and all(type(seed) is int and seed >= 0 for seed in value)
