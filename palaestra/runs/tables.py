"""Runs as one long table, a row a number, and back without loss.

    folder, line                     where it stands: a run's folder, and the line of its metrics.jsonl
    run, expression, env             of run.json
    seed, kind, env_steps, updates, seconds    of the line; kind "run" is run.json itself
    name, index, value               the number: "episode_return" or "loss/critic", its place in a list, and itself
    text                             the whole line as it stands in the file, in its first row; for going back

A float64 cannot hold every number of JSON, and columns say nothing of order, nesting, strings and null. So numbers are
in columns for reading, and files come back from their text, byte for byte. Checkpoints are in no table.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from palaestra.runs.errors import RunError
from palaestra.runs.files import from_json
from palaestra.runs.run import Run

_TEXTS = ("folder", "run", "expression", "env", "kind", "name", "text")
_INTEGERS = ("line", "seed", "env_steps", "updates", "index")
COLUMNS = (
    "folder", "line", "run", "expression", "env", "seed", "kind", "env_steps", "updates", "seconds", "name", "index",
    "value", "text",
)  # fmt: skip
_CLOCKS = ("seed", "kind", "env_steps", "updates", "seconds")
_ROWS = 50_000  # that are in memory at a time

Row = dict[str, Any]


def rows(run: Run, folder: str) -> Iterator[Row]:
    """Give the table's rows of a run and of its parts.

    Raises:
        RunError: a line of the metrics is broken.
    """
    for problem in run.broken_lines():
        raise problem
    path, about = run.folder / "metrics.jsonl", run.about
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    own = dict.fromkeys(COLUMNS) | {"folder": folder, "run": about["id"]}
    own |= {key: value for key in ("expression", "env") if isinstance(value := about.get(key), str)}
    said = (run.folder / "run.json").read_bytes().decode()
    # How many lines follow, so that half a table is not taken for a whole one.
    yield own | {"line": 0, "kind": "run", "name": "lines", "value": float(len(lines)), "text": said}
    for number, line in enumerate(lines, start=1):
        entry = from_json(line)
        clocks = {key: value for key in _CLOCKS if _fits(key, value := entry.pop(key, None))}
        numbers: list[Any] = list(_numbers("", entry)) or [(None, None, None)]
        for (name, index, value), text in zip(numbers, chain([line.decode()], repeat(None)), strict=False):
            yield own | clocks | {"line": number, "name": name, "index": index, "value": value, "text": text}
    for part in run.parts():
        yield from rows(Run.open(part), f"{folder}/seeds/{part.name}")


def _fits(key: str, value: Any) -> bool:
    if key in _INTEGERS:
        return isinstance(value, int) and abs(value) < 2**63
    return isinstance(value, str if key == "kind" else int | float)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, int | None, float]]:
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _numbers(key if name in ("", "scores") else f"{name}/{key}", inside)
    elif isinstance(value, list):
        for index, inside in enumerate(value):
            if isinstance(inside, list | Mapping):
                yield from _numbers(f"{name}[{index}]", inside)
            else:
                yield from ((name, index, number) for _, _, number in _numbers(name, inside))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            yield name, None, float(value)
        except OverflowError:  # an integer beyond all floats
            yield name, None, math.inf if value > 0 else -math.inf


def files(found: Iterable[Row], path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Give the names and contents of the files that a table's rows hold; `path` is told in errors.

    Raises:
        RunError: rows are missing, or are there twice.
    """
    said: dict[str, str] = {}
    number: dict[str, int] = {}
    lines: dict[str, list[tuple[int, str]]] = {}
    for row in found:
        if row["kind"] == "run" and row["line"] == 0:
            said[row["folder"]], number[row["folder"]] = row["text"], int(float(row["value"]))
        elif row["text"]:
            lines.setdefault(row["folder"], []).append((row["line"], row["text"]))
    if not said:
        raise RunError(path, "holds no run", _REMEDY)
    for folder in said | lines:
        own = sorted(lines.get(folder, []))
        if [line for line, _ in own] != [*range(1, number.get(folder, 0) + 1)]:
            what = f"holds {len(own)} of {number.get(folder, 'unknown many')} lines of its metrics"
            raise RunError(path, what, _REMEDY, folder)
        yield f"{folder}/run.json", [said[folder].encode()]
        if own:
            yield f"{folder}/metrics.jsonl", [f"{text}\n".encode() for _, text in own]


_REMEDY = "export it again, with all its rows"


def write_csv(found: Iterable[Row], path: Path) -> int:
    """Write rows as CSV and return their number; floats come back bit for bit."""
    number = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in found:
            writer.writerow(row)
            number += 1
    return number


def read_csv(path: Path) -> Iterator[Row]:
    """Give the rows of a CSV file.

    Raises:
        ValueError: it is no such table.
    """
    with path.open(encoding="utf-8", newline="") as file, _long_fields():
        reader = csv.DictReader(file, strict=True)
        if missing := set(COLUMNS) - set(reader.fieldnames or ()):
            raise ValueError(f"the column {min(missing)!r} is missing")
        for row in reader:
            yield row | {"line": int(row["line"])}


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(sys.maxsize if sys.platform != "win32" else 2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def write_parquet(found: Iterable[Row], path: Path) -> int:
    """Write rows as Parquet and return their number.

    Raises:
        ValueError: the `parquet` extra is not installed.
    """
    pyarrow, parquet = arrow()
    kinds = {**dict.fromkeys(_TEXTS, pyarrow.string()), **dict.fromkeys(_INTEGERS, pyarrow.int64())}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in COLUMNS])
    number, found = 0, iter(found)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while some := list(islice(found, _ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(some, schema))
            number += len(some)
    return number


def read_parquet(path: Path) -> Iterator[Row]:
    """Give the rows of a Parquet file.

    Raises:
        ValueError: it is no such table, or the `parquet` extra is not installed.
    """
    _, parquet = arrow()
    with parquet.ParquetFile(path) as file:
        if missing := set(COLUMNS) - set(file.schema_arrow.names):
            raise ValueError(f"the column {min(missing)!r} is missing")
        for batch in file.iter_batches(columns=["folder", "line", "kind", "value", "text"]):
            yield from batch.to_pylist()


def arrow() -> Any:
    """Return `pyarrow` and `pyarrow.parquet`.

    Raises:
        ValueError: the `parquet` extra is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as missing:
        raise ValueError("pyarrow is not installed; pip install 'palaestra[parquet]', or use .csv") from missing
    return pyarrow, pyarrow.parquet
