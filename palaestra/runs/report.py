"""A page that tells of some runs: their curves, every seed's last raw scores, what differs, and what they ran on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from palaestra.runs.errors import RunError
from palaestra.runs.page import environment, picture, write_page
from palaestra.runs.plots import learning_curve
from palaestra.runs.queries import last_scores, last_texts, row, usual_score
from palaestra.runs.run import Run

# What tells runs apart but is no setting of theirs; the rest of run.json may differ only by intention.
_NO_SETTINGS = (
    "id",
    "format",
    "created",
    "status",
    "problem",
    "provenance",
    "spaces",
    "why_together",
    "seeds",
    "resume",
)
_MACHINE = ("palaestra", "torch", "numpy", "gymnasium", "python", "platform", "cpu", "cores", "gpus", "git", "source")
_UNLIKE_PACKAGES = 30  # of a long list of packages, no more differences than this are told


def report(runs: Iterable[Run], path: Path, key: str | None = None) -> Path:
    """Write a self-contained HTML page about runs and return its path.

    Args:
        runs: any number, of any algorithms and environments.
        path: an .html file; replaced when it exists.
        key: the score, or training metric, of the curves; `usual_score` when None.

    Raises:
        RunError: there are no runs, their metrics are broken, or the file cannot be written.
    """
    runs = list(runs)
    if not runs:
        raise RunError(Path(path), "there are no runs to report", "give the folders of some")
    key = usual_score(runs) if key is None else key
    names = _names(runs)
    told = [_told(name, run) for name, run in zip(names, runs, strict=True)]
    days = sorted({run.about["created"][:10] for run in runs})
    drawn, nothing = _curves(runs, key)
    body = (
        environment("palaestra.runs")
        .get_template("report.html")
        .render(
            runs=told,
            days=" to ".join(dict.fromkeys((days[0], days[-1]))),
            problems=[
                f"{name} failed: {run.about['problem']}"
                for name, run in zip(names, runs, strict=True)
                if "problem" in run.about
            ],
            picture=drawn,
            nothing=nothing,
            scores=[
                {"run": name, "seed": seed, "name": score, "values": "  ".join(f"{value:.6g}" for value in values)}
                for name, run in zip(names, runs, strict=True)
                for seed, scores in last_scores(run).items()
                for score, values in scores.items()
            ],
            texts=[
                {"run": name, **text, "rewards": ", ".join(f"{k} {v:.5g}" for k, v in text["rewards"].items())}
                for name, run in zip(names, runs, strict=True)
                for text in last_texts(run)
            ],
            settings=_differing(names, [_settings(run.about) for run in runs]),
            machine=_machine(names, [run.about["provenance"] for run in runs]),
        )
    )
    return write_page(path, _title(told), body)


def _names(runs: list[Run]) -> list[str]:
    short = [run.folder.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.folder) for run in runs]


def _title(told: list[dict[str, Any]]) -> str:
    expressions = list(dict.fromkeys(one["expression"] for one in told))
    envs = list(dict.fromkeys(one["env"] for one in told))
    named = [
        ", ".join(some) if len(some) < 4 else f"{len(some)} {what}"
        for some, what in ((expressions, "algorithms"), (envs, "environments"))
    ]
    return " on ".join(named)


def _told(name: str, run: Run) -> dict[str, Any]:
    found = row(run)
    return {
        "name": name,
        "expression": found["expression"] or "none",
        "env": found["env"] or found["dataset"] or run.about.get("prompts") or "none",
        "seeds": ", ".join(map(str, found["seeds"] or [])),
        "status": found["status"],
        "steps": _count(found["env_steps"] if found["rounds"] is None else found["rounds"]),
        "updates": _count(found["updates"]),
        "seconds": "" if found["seconds"] is None else _duration(found["seconds"]),
        "iqm": {score: f"{value:.5g}" for score, value in found["iqm"].items()},
    }


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _duration(seconds: float) -> str:
    """1.5 s, 2 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _curves(runs: list[Run], key: str) -> tuple[Markup | None, str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = learning_curve(runs, Path(folder) / "curves.svg", key)
        except RunError as problem:
            return None, f"{problem.what}; {problem.remedy}."
        return picture(path.read_bytes(), ".svg", f"Learning curves of {key} over steps"), ""


def _settings(about: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run: of its base by their names, so that two bases compare, of its methods after their slug."""
    own = {key: value for key, value in about.items() if key not in (*_NO_SETTINGS, "settings")}
    for number, call in enumerate(about.get("settings", [])):
        own |= {f"{call['slug']}.{name}" if number else name: call[name] for name in call if name != "slug"}
    return own


def _machine(names: list[str], provenances: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """The machine and the main versions, and the other packages where they are not the same."""
    main = [{key: some.get(key) for key in _MACHINE} for some in provenances]
    packages = [dict(one.partition("==")[::2] for one in some.get("packages", [])) for some in provenances]
    others = [row for row in _differing(names, packages) if row[0] not in _MACHINE]
    return _grouped(names, main) + others[:_UNLIKE_PACKAGES]


def _differing(names: list[str], tables: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    return [row for row in _grouped(names, tables) if len(row[2]) < len(names)]


def _grouped(names: list[str], tables: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Key, value and the runs that have it, for every key and every value of it."""
    found: list[tuple[str, str, list[str]]] = []
    for key in dict.fromkeys(key for table in tables for key in table):
        by_value: dict[str, list[str]] = {}
        for name, table in zip(names, tables, strict=True):
            if key in table:
                by_value.setdefault(_written(table[key]), []).append(name)
        found += [(key, value, some) for value, some in by_value.items()]
    return found


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_written(inside)}" for key, inside in value.items())
    if isinstance(value, list):
        return ", ".join(map(_written, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
