"""Which runs there are, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from palaestra.runs.errors import RunError
from palaestra.runs.run import Run


def find(folders: Iterable[Path]) -> list[Run]:
    """Return the runs in these folders and up to two levels below, in the order of their creation.

    What does not open is left out: see `broken`.

    Raises:
        RunError: one of the folders does not exist.
    """
    runs = [found for _, found in _opened(folders) if isinstance(found, Run)]
    return sorted(runs, key=lambda run: (run.about["created"], str(run.folder)))


def broken(folders: Iterable[Path]) -> list[tuple[Path, RunError]]:
    """Return the folders that `find` left out because they do not open, with what is wrong.

    Raises:
        RunError: one of the folders does not exist.
    """
    return [(folder, found) for folder, found in _opened(folders) if isinstance(found, RunError)]


def table(folders: Iterable[Path]) -> tuple[list[dict[str, Any]], list[tuple[Path, RunError]]]:
    """Return the `row` of every run that `find` gives, and the folders of those that are broken, with what is wrong.

    Raises:
        RunError: one of the folders does not exist.
    """
    rows, problems = [], broken(folders := list(folders))
    for run in find(folders):
        try:
            rows.append(row(run))
        except RunError as error:
            problems.append((run.folder, error))
    return rows, problems


def row(run: Run) -> dict[str, Any]:
    """Return a run as one row of a table.

    Keys: `id`, `folder`, `expression`, `env`, `dataset`, `seeds`, `created` (None when `run.json` lacks them);
    `status`, which is "stopped" for a run that says "running" while nobody writes it; `env_steps`, `updates` and
    `seconds`, the largest of any row of the metrics (None when no row has them); `iqm`, for every score the
    interquartile mean of the raw values of each seed's last evaluation, pooled over seeds.

    Raises:
        RunError: the metrics are broken.
    """
    about, rows = run.about, run.metrics()
    status = about["status"]
    if status == "running" and run.writer() is None:
        status = "stopped"
    seeds = about.get("seeds")
    if seeds is None and "seed" in about:
        seeds = [about["seed"]]
    last = {one.get("seed"): one["scores"] for one in rows if one.get("kind") == "evaluation"}
    pooled: dict[str, list[float]] = {}
    for scores in last.values():
        for name, values in scores.items():
            pooled.setdefault(name, []).extend(values)
    return {
        "id": about["id"],
        "folder": run.folder,
        **{key: about.get(key) for key in ("expression", "env", "dataset")},
        "seeds": seeds,
        "created": about["created"],
        "status": status,
        **{key: max((one[key] for one in rows if key in one), default=None) for key in _CLOCKS},
        "iqm": {name: interquartile_mean(values) for name, values in pooled.items()},
    }


def interquartile_mean(values: Iterable[float]) -> float:
    """Return the mean without the lowest and highest floor(n / 4) of n values, as rliable computes it.

    NaN when there is no value or one is NaN: a diverged episode must not be trimmed away as if it were the best.
    """
    ordered = sorted(values)
    if not ordered or any(value != value for value in ordered):
        return float("nan")
    cut = len(ordered) // 4
    middle = ordered[cut : len(ordered) - cut]
    return float(sum(middle) / len(middle))


_CLOCKS = ("env_steps", "updates", "seconds")


def _opened(folders: Iterable[Path]) -> Iterator[tuple[Path, Run | RunError]]:
    seen: set[Path] = set()
    for top in map(Path, folders):
        if not top.is_dir():
            raise RunError(top, "there is no such folder", "give one that holds runs")
        for folder in _candidates(top, levels=2):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                yield folder, Run.open(folder)
            except RunError as error:
                yield folder, error


def _candidates(folder: Path, levels: int) -> Iterator[Path]:
    if (folder / "run.json").exists() or (folder / "metrics.jsonl").exists():
        yield folder
    elif levels:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _candidates(child, levels - 1)
