"""Which runs there are, and what became of them."""

from __future__ import annotations

import difflib
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from palaestra.runs.errors import RunError
from palaestra.runs.files import from_json
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


def table(
    folders: Iterable[Path], conditions: Iterable[str] = ()
) -> tuple[list[dict[str, Any]], list[tuple[Path, RunError]]]:
    """Return the `row` of every run that `find` gives and that is `matching`, and the folders of those that are broken.

    Raises:
        RunError: one of the folders does not exist.
        ValueError: see `matching`.
    """
    rows, problems, whole = {}, broken(folders := list(folders)), []
    for run in find(folders):
        try:
            rows[run.folder] = row(run)
            whole.append(run)
        except RunError as error:
            problems.append((run.folder, error))
    return [rows[run.folder] for run in matching(whole, conditions)], problems


def row(run: Run) -> dict[str, Any]:
    """Return a run as one row of a table. Of its metrics only the end is read: as much as holds every last evaluation.

    Keys: `id`, `folder`, `expression`, `env`, `dataset`, `seeds`, `created` (None when `run.json` lacks them);
    `status`, which is "stopped" for a run that says "running" while nobody writes it; `rounds`, `env_steps`, `updates`
    and `seconds`, the largest of the rows read, which only grow (None when no row has them); `iqm`, for every score the
    interquartile mean of the raw values of each seed's last evaluation, pooled over seeds.

    Raises:
        RunError: the end of the metrics is broken.
    """
    about, (clocks, last) = run.about, _end(run)
    status = about["status"]
    if status == "running" and run.writer() is None:
        status = "stopped"
    seeds = about.get("seeds")
    if seeds is None and "seed" in about:
        seeds = [about["seed"]]
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
        **clocks,
        "iqm": {name: interquartile_mean(values) for name, values in pooled.items()},
    }


def last_scores(run: Run) -> dict[Any, dict[str, list[float]]]:
    """Return the raw scores of each seed's last evaluation: `{seed: {name: values}}`."""
    return _end(run)[1]


def matching(runs: Iterable[Run], conditions: Iterable[str]) -> list[Run]:
    """Return the runs that meet all the conditions, such as "env=Pendulum-v1", "algorithm~snapshot", "steps>=1000".

    A condition is KEY=VALUE, KEY!=VALUE, KEY~PART (contains), or KEY<NUMBER, <=, >, >=. KEY is a field of `row` or of
    run.json, dotted for what is inside ("provenance.torch"); "algorithm" is the expression. Of a list any entry may
    meet it, and a run without the field meets none but !=. Spaces outside brackets separate conditions of one string.

    Raises:
        ValueError: what is no condition, no number where one must be, or a key that none of the runs has.
        RunError: the end of a run's metrics is broken.
    """
    asked = [_condition(one) for text in conditions for one in split(text, " ")]
    runs = list(runs)
    if not asked or not runs:
        return runs
    fields = {id(run): _fields({**run.about, **row(run), "algorithm": run.about.get("expression")}) for run in runs}
    known = sorted({key for some in fields.values() for key in some})
    for key, _, _ in asked:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or [name for name in known if "." not in name]
            raise ValueError(f"--where: no run has the field {key!r}; did you mean {', '.join(near)}?")
    return [run for run in runs if all(_meets(fields[id(run)].get(key), sign, to) for key, sign, to in asked)]


def split(text: str, at: str) -> list[str]:
    """Return the parts of a text between the characters `at` that stand outside brackets; empty ones are left out."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == at and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part]


CONDITION = re.compile(r"([\w.-]+)(!=|<=|>=|=|~|<|>)(.*)", re.DOTALL)
_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def _condition(text: str) -> tuple[str, str, str]:
    if not (found := CONDITION.fullmatch(text)):
        raise ValueError(f"--where: {text!r} is no condition; write KEY=VALUE, KEY~PART, KEY!=VALUE or KEY>=NUMBER")
    key, sign, to = found.groups()
    if sign in _ORDER and _number(to) is None:
        raise ValueError(f"--where: {to!r} in {text!r} is no number; compare text with = or ~")
    return key, sign, to


def _meets(value: Any, sign: str, to: str) -> bool:
    if sign == "!=":
        return not _meets(value, "=", to)
    if isinstance(value, list) and value:
        return any(_meets(entry, sign, to) for entry in value) or (sign != "~" and str(value) == to)
    if sign in _ORDER:
        return type(value) in (int, float) and bool(_ORDER[sign](value, float(to)))
    if sign == "~":
        return value is not None and to in str(value)
    return str(value).lower() == to.lower() or (type(value) in (int, float) and value == _number(to))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _fields(data: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """All values by their dotted path, those of objects too."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found[before + key] = value
        if isinstance(value, Mapping):
            found |= _fields(value, f"{before}{key}.")
    return found


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


_CLOCKS = ("rounds", "env_steps", "updates", "seconds")
_REMEDY = "see: palaestra runs check"
_BLOCK = 1 << 16  # bytes that are read at a time, from the end


def usual_score(runs: Iterable[Run]) -> str:
    """Return "episode_return", or the first score of the last evaluations where no run has that."""
    names = [name for run in runs for scores in last_scores(run).values() for name in scores]
    return "episode_return" if "episode_return" in names or not names else names[0]


def last_texts(run: Run) -> list[dict[str, Any]]:
    """Return some answers of each seed's last evaluation: `seed`, `prompt`, `answer`, `rewards`. Of language models."""
    last = {one["seed"]: one for one in run.metrics() if one.get("kind") == "evaluation" and one.get("texts")}
    return [{"seed": seed, **text} for seed, one in sorted(last.items()) for text in one["texts"]]


def _end(run: Run) -> tuple[dict[str, Any], dict[Any, dict[str, list[float]]]]:
    """How far a run and its parts came, and the scores of each seed's last evaluation."""
    clocks: dict[str, Any] = dict.fromkeys(_CLOCKS)
    last: dict[Any, dict[str, list[float]]] = {}
    for one in (run, *map(Run.open, run.parts())):
        wanted = set(one.about.get("seeds") or [None])  # without its seeds, all of the file
        for line in _newest_first(one.folder / "metrics.jsonl"):
            try:
                entry = from_json(line)
                for key in clocks.keys() & entry.keys():
                    clocks[key] = entry[key] if clocks[key] is None else max(clocks[key], entry[key])
                if entry.get("kind") == "evaluation":
                    last.setdefault(entry.get("seed"), entry["scores"])
                    wanted.discard(entry.get("seed"))
            except (AttributeError, LookupError, TypeError, ValueError):
                one.metrics()  # which says what is wrong with which line
                raise RunError(one.folder / "metrics.jsonl", "its last rows are no rows of metrics", _REMEDY) from None
            if not wanted:
                break
    return clocks, dict(sorted(last.items(), key=lambda item: str(item[0]).zfill(20)))


def _newest_first(path: Path) -> Iterator[bytes]:
    """The lines of a file, the last first, reading no more than is asked for. What a crash cut short is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end, rest, whole = file.seek(0, os.SEEK_END), b"", False
        while end:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            rest, *lines = (file.read(end - begin) + rest).split(b"\n")
            if lines and not whole:
                lines.pop()  # behind the last line break there is nothing, or half a line
                whole = True
            yield from reversed(lines)
            end = begin
        if whole:
            yield rest


def folders_of_runs(folders: Iterable[Path]) -> list[Path]:
    """Return the folders, among these and up to two levels below, that hold a run, whether it opens or not.

    Raises:
        RunError: one of the folders does not exist.
    """
    seen: dict[Path, Path] = {}
    for top in map(Path, folders):
        if not top.is_dir():
            raise RunError(top, "there is no such folder", "give one that holds runs")
        for folder in _candidates(top, levels=2):
            seen.setdefault(folder.resolve(), folder)
    return list(seen.values())


def _opened(folders: Iterable[Path]) -> Iterator[tuple[Path, Run | RunError]]:
    for folder in folders_of_runs(folders):
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
