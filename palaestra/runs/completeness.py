"""Whether a run says all that another needs to trust it and to repeat it.

What must be there follows from what archives of studies were found to lack when nobody checked them ("Enforcing public
data archiving policies in academic publishing: A study of ecology journals", 2018): settings, code, packages, seeds,
environment, data, raw measurements to the end, how it was evaluated, checkpoints, machine, and how it ended.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from palaestra.runs.errors import RunError
from palaestra.runs.queries import split
from palaestra.runs.run import Run

_AGAIN = "restore it from a copy, or train again with another --out"
_NONE = type(None)

_PROVENANCE: dict[str, tuple[type, ...]] = {
    "python": (str,), "palaestra": (str,), "torch": (str,), "numpy": (str,), "gymnasium": (str,), "packages": (list,),
    "platform": (str,), "cpu": (str, _NONE), "cores": (int,), "memory": (int, _NONE), "gpus": (list,),
    "git": (dict, _NONE), "source": (dict, _NONE), "command": (list,),
}  # fmt: skip
# What `missing` reads of run.json without asking whether it is of the right kind.
NEEDED = ("seeds", "steps", "evaluate_every", "log_every", "episodes", "together", "made_by_id")


def missing(run: Run, writer: int | None) -> list[RunError]:
    """Return what a run whose fields and metrics can be read does not say; its checkpoints are not looked at.

    Args:
        run: one whose fields `NEEDED` are valid.
        writer: the pid of the process that is writing it, or None.
    """
    about, path = run.about, run.folder / "run.json"
    found = [RunError(path, what, remedy, where) for where, what, remedy in _said(about)]
    if about["together"] == "processes":
        found += _unfinished(run, writer, "")
        present = {int(part.name) for part in run.parts()}
        lost = [run.folder / "seeds" / str(seed) for seed in about["seeds"] if seed not in present]
        return found + [RunError(folder, "the run of this seed is missing", _resume(run)) for folder in lost]
    rows = run.metrics()
    came = max((row[clock] for row in rows if isinstance(row.get(clock := _clock(about)), int)), default=0)
    found += _unfinished(run, writer, f" at {came:,} of {about['steps']:,} steps")
    metrics = run.folder / "metrics.jsonl"
    return found + [RunError(metrics, what, _AGAIN, where) for where, what in _measured(about, rows)]


def _clock(about: dict[str, Any]) -> str:
    """What the run's `steps` count."""
    return str(about.get("counts", "updates" if about.get("offline") else "env_steps"))


def _resume(run: Run) -> str:
    by_hand = "" if run.about["made_by_id"] else " (in Python: pal.resume(run, env=...))"
    return f"continue it with: palaestra train --resume {run.folder}{by_hand}"


def _unfinished(run: Run, writer: int | None, at: str) -> list[RunError]:
    match run.about["status"]:
        case "finished":
            return []
        case "failed":
            what, remedy = f"the run failed{at}: {run.about.get('problem', 'it does not say why')}", _resume(run)
        case "running" if writer is not None:
            what, remedy = f"the run is not finished{at}", f"wait until process {writer} has finished it"
        case "running" | "stopped":
            what, remedy = f"the run was stopped{at}", _resume(run)
        case other:
            what, remedy = f"{other!r} is none of finished, stopped, failed, running", _AGAIN
    return [RunError(run.folder / "run.json", what, remedy, "field 'status'")]


_Said = Iterator[tuple[str, str, str]]


def _said(about: dict[str, Any]) -> _Said:
    """Where, what and remedy, of everything that `run.json` should say and does not."""
    for field in ("dataset", "resume", "settings", "provenance"):
        if field not in about:
            yield f"field {field!r}", "is missing", _AGAIN
    if about.get("dataset") is not None and not re.fullmatch("[0-9a-f]{64}", str(about.get("dataset_sha256"))):
        yield "field 'dataset_sha256'", "is no SHA-256 of the dataset", "train again: it is taken when a run begins"
    yield from _settings(about)
    if "provenance" in about:
        known = about["provenance"] if isinstance(about["provenance"], dict) else {}
        yield from _provenance(known)
        if str(about.get("device")).startswith("cuda") and not known.get("gpus"):
            yield "field 'provenance.gpus'", f"names none, and the run computed on {about['device']}", _AGAIN


def _settings(about: dict[str, Any]) -> _Said:
    if "settings" not in about or not about.get("rebuilds") or not isinstance(about.get("expression"), str):
        return  # what was changed by hand has settings that no expression can say
    settings = about["settings"]
    calls = _calls(about["expression"])
    have = (
        [one.get("slug") if isinstance(one, dict) else None for one in settings] if isinstance(settings, list) else []
    )
    if have != [slug for slug, _ in calls]:
        asked = ", ".join(slug for slug, _ in calls)
        yield "field 'settings'", f"are of {', '.join(map(str, have)) or 'nothing'}, and the run is of {asked}", _AGAIN
        return
    for one, (slug, keywords) in zip(settings, calls, strict=True):
        for name in keywords:
            if name not in one:
                yield f"field 'settings', {slug}", f"{name!r} is missing, which the expression sets", _AGAIN


def _calls(expression: str) -> list[tuple[str, list[str]]]:
    """The slugs of an expression, with the names of the settings that each is given."""
    calls = [call.removesuffix(")").partition("(") for call in split(expression, "+")]
    return [
        (slug, [name.strip() for one in split(given, ",") if (name := one.partition("=")[0]).strip()])
        for slug, _, given in calls
    ]


def _provenance(known: dict[str, Any]) -> _Said:
    for name, kinds in _PROVENANCE.items():
        where = f"field 'provenance.{name}'"
        if name not in known:
            yield where, "is missing", _AGAIN
        elif not isinstance(known[name], kinds):
            yield where, f"{known[name]!r} is no {kinds[0].__name__}", _AGAIN
        elif name in ("git", "source") and known[name] is not None:
            if not re.fullmatch("[0-9a-f]{40}([0-9a-f]{24})?", str(known[name].get("commit"))):
                yield where, f"{known[name].get('commit')!r} is no commit", _AGAIN
            if not isinstance(known[name].get("dirty"), bool):
                yield where, "does not say whether files were changed since the commit ('dirty')", _AGAIN
    packages = known.get("packages")
    if isinstance(packages, list):
        names = {str(one).partition("==")[0] for one in packages if re.fullmatch(r"\S+==\S+", str(one))}
        for needed in sorted({"torch", "numpy", "gymnasium"} - names):
            yield "field 'provenance.packages'", f"does not say which {needed} was installed", _AGAIN


def _measured(about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Where and what, of everything that the metrics lack."""
    broken = False
    for number, row in enumerate(rows, start=1):
        for what in _row(about, row):
            broken = True
            yield f"line {number}", what
    if broken:  # what follows reads these columns
        return
    periods = {"train": about["log_every"], "evaluation": about["evaluate_every"]}
    if not about["made_by_id"] and not any(row["kind"] == "evaluation" for row in rows):
        del periods["evaluation"]  # there is no second copy of a constructed vector environment to evaluate in
    clock = _clock(about)
    passed = sorted({row[clock] for row in rows})
    for seed in about["seeds"]:
        for kind, period in periods.items():
            steps = sorted({row[clock] for row in rows if row["kind"] == kind and row["seed"] == seed})
            if about["status"] == "finished" and (not steps or steps[-1] < max(about["steps"], passed[-1])):
                yield f"seed {seed}", f"rows of kind {kind!r} end at {max(steps, default=0)} of {about['steps']} steps"
            elif (gap := _gap(steps, passed, period)) is not None:
                yield f"seed {seed}", f"a row of kind {kind!r} is missing, at {gap} steps"


def _gap(steps: Sequence[int], passed: Sequence[int], period: int) -> int | None:
    """The first multiple of `period` without a row of its own: a run writes one when it passes a multiple."""
    for at in passed:
        before = bisect_right(steps, at)
        if (steps[before - 1] if before else 0) // period < at // period:
            return at // period * period
    return None


def _row(about: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    if row.get("kind") not in ("train", "evaluation"):
        yield f"its kind is {row.get('kind')!r} instead of 'train' or 'evaluation'"
    if row.get("seed") not in about["seeds"]:
        yield f"its seed is {row.get('seed')!r}, and the run has {about['seeds']}"
    for name, kinds in {_clock(about): int, "updates": int, "seconds": int | float}.items():
        if not isinstance(row.get(name), kinds):
            yield f"{name!r} is {row[name]!r}" if name in row else f"{name!r} is missing"
    if row.get("kind") == "evaluation":
        scores = row.get("scores")
        if not isinstance(scores, dict) or not scores:
            yield "it has no scores"
            return
        for name, values in scores.items():
            if not isinstance(values, list) or not values or not all(isinstance(v, int | float) for v in values):
                yield f"the scores {name!r} are no list of numbers"
            elif name == "episode_return" and len(values) != about["episodes"]:
                yield f"it has {len(values)} of {about['episodes']} raw values of {name!r}"
