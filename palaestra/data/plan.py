"""What a file holds, known before its rows are read, so that they go straight into the arrays of a dataset.

A layout (`minari_layout`, `flat`) looks through a file and gives a `Plan`: how long episodes are, which columns there
are, and how to fill them. Whoever has the plan allocates, in memory or on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from palaestra.data.dataset import NEEDED, Arrays, Dataset, DatasetError, canonical
from palaestra.envs.border import describe, undescribe

PIECE = 1 << 20  # bytes that are read at a time: what a conversion needs besides the arrays
RESTORE = "restore it from a copy"
Spaces = tuple[gym.Space[Any] | None, gym.Space[Any] | None]


@dataclass(frozen=True)
class Problem:
    """Something wrong with a dataset's file.

    Args:
        file: the file at fault.
        where: the field, episode and step; empty for the whole.
        what: what is wrong.
        remedy: what to do about it.
    """

    file: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        """One line: file, place, what, remedy."""
        place = f"{self.file}, {self.where}" if self.where else self.file
        return " ".join(f"{place}: {self.what}; {self.remedy}".split())


class Damaged(DatasetError):
    """A file cannot be read as a dataset; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)  # the argument itself: exceptions are pickled, between processes, by their arguments
        self.problem = problem

    def __str__(self) -> str:
        return str(self.problem)


class Findings:
    """What is found in a file. Reading stops at the first thing that is wrong; checking goes on and counts.

    Args:
        file: where it is found.
        collect: go on. `problems` then has one for each field and kind, with its count and its first place; `notes`
            what is worth knowing and not wrong.
    """

    def __init__(self, file: Path, collect: bool = False) -> None:
        self.file, self.collect = file, collect
        self.wrongs = 0
        self._found: dict[tuple[str, str, str], list[Any]] = {}

    def wrong(self, field: str, what: str, remedy: str, place: str = "", count: int = 1) -> None:
        """What no dataset may have: DatasetError when reading."""
        if not self.collect:
            raise Damaged(self._problem(field, what, remedy, place, count))
        self.wrongs += 1
        self._add("wrong", field, what, remedy, place, count)

    def odd(self, field: str, what: str, remedy: str, place: str = "", count: int = 1) -> None:
        """What reading mends or bears, and checking tells."""
        self._add("odd", field, what, remedy, place, count)

    def note(self, field: str, what: str, remedy: str, place: str = "", count: int = 1) -> None:
        """What is worth knowing."""
        self._add("note", field, what, remedy, place, count)

    def stop(self, since: int = 0) -> None:
        """Go no further where something wrong was collected, after the first `since`: the rest would be about that."""
        if self.wrongs > since:
            raise Damaged(self._told("wrong")[-1])

    @property
    def problems(self) -> list[Problem]:
        return self._told("wrong", "odd")

    @property
    def notes(self) -> list[Problem]:
        return self._told("note")

    def _add(self, kind: str, field: str, what: str, remedy: str, place: str, count: int) -> None:
        self._found.setdefault((kind, field, what), [remedy, place, 0])[2] += count

    def _told(self, *kinds: str) -> list[Problem]:
        return [
            self._problem(field, what, remedy, place, count)
            for (own, field, what), (remedy, place, count) in self._found.items()
            if own in kinds
        ]

    def _problem(self, field: str, what: str, remedy: str, place: str, count: int) -> Problem:
        where = ", ".join(part for part in (f"field {field!r}" if field else "", place) if part)
        often = f" ({count} times, here first)" if count > 1 else ""
        return Problem(str(self.file), where, what + often, remedy)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Make one line of whatever a library says of a damaged file: HDF5 and zip raise nearly everything."""
        try:
            yield
        except Damaged:
            raise
        except DatasetError as wrong:  # which does not know the file
            raise Damaged(Problem(str(self.file), "", str(wrong), RESTORE)) from wrong
        except Exception as wrong:
            lines = str(wrong).strip().splitlines() or [""]
            what = f"it cannot be read ({type(wrong).__name__}{': ' * bool(lines[0])}{lines[0][:200]})"
            raise Damaged(Problem(str(self.file), "", what, RESTORE)) from wrong


class Field(Protocol):
    """An array in a file: an `h5py.Dataset`, a NumPy array, a member of an .npz file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: slice) -> np.ndarray: ...


class Column(NamedTuple):
    """A column of a dataset: the field of the file that it comes from, and its rows."""

    field: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Of a row."""
        size = self.dtype.itemsize
        for dimension in self.shape:
            size *= dimension
        return size

    def cast(self, rows: np.ndarray, found: Findings, place: Callable[[int], str]) -> np.ndarray:
        """Rows as the column keeps them; `place(i)` says where row i of these is."""
        with np.errstate(invalid="ignore", over="ignore"):
            cast = rows.reshape(len(rows), *self.shape).astype(self.dtype, copy=False)
            if self.dtype.kind != "f" and rows.dtype != self.dtype:
                bad = cast != rows.reshape(cast.shape)
                if bad.any():
                    what = "no flag: neither 0 nor 1" if self.dtype.kind == "b" else f"no whole number in {self.dtype}"
                    first = int(bad.reshape(len(bad), -1).any(1).argmax())
                    found.wrong(self.field, what, RESTORE, place(first), int(bad.sum()))
        return cast


@dataclass(frozen=True)
class Plan:
    """How to make a dataset of a file.

    Args:
        lengths: steps of each episode, int64 [E].
        columns: by the dataset's name.
        fill: writes every row into zeroed arrays [R, ...]; DatasetError where the file turns out to be damaged.
        spaces: of observations and actions; None where the file does not say.
        about: what the file says besides.
        hash: that the file says it has; None of a file that is not ours.
    """

    lengths: np.ndarray
    columns: Mapping[str, Column]
    fill: Callable[[Arrays], None]
    spaces: Spaces
    about: dict[str, Any]
    hash: str | None = None

    @property
    def slots(self) -> int:
        return int(self.lengths.sum()) + len(self.lengths)

    @property
    def nbytes(self) -> int:
        return self.slots * sum(column.nbytes for column in self.columns.values())


def column(
    name: str, field: str, source: Field, space: gym.Space[Any] | None, shape: tuple[int, ...] | None = None
) -> Column:
    """The column that a field becomes: rows of the space where it is known, otherwise as they are.

    DatasetError, without the file's name, where they cannot be.
    """
    if source.dtype.kind not in "biuf":
        raise DatasetError(f"it has dtype {source.dtype}: numbers are needed")
    dtype = canonical(np.empty(0, source.dtype if space is None else space.dtype)).dtype
    if name in ("terminated", "truncated"):
        dtype = np.dtype(bool)
    elif name == "reward":
        dtype = np.dtype(np.float32)
    elif dtype.kind == "b" and name.partition("/")[0] == "obs":
        dtype = np.dtype(np.uint8)
    elif name == "action" and dtype.kind in "bu" and space is None:
        dtype = np.dtype(np.int64)  # choices, however few bits they were logged in
    rows = source.shape[1:]
    if name in NEEDED and name != "action":
        shape = ()
    elif space is not None:
        shape = space.shape
    elif shape is None:
        shape = rows if rows or dtype.kind != "f" else (1,)  # networks take vectors
    assert shape is not None
    if [d for d in rows if d != 1] != [d for d in shape if d != 1]:
        raise DatasetError(f"its rows have shape {rows}, and {shape} is right")
    return Column(field, tuple(map(int, shape)), dtype)


def copy(source: Field, begin: int, target: np.ndarray, column: Column, found: Findings, episode: int) -> None:
    """Rows from `begin` on into `target`, a piece at a time."""
    rows = max(1, PIECE // max(1, column.nbytes))
    for at in range(0, len(target), rows):
        piece = source[begin + at : begin + min(at + rows, len(target))]

        def place(row: int, at: int = at) -> str:
            return f"episode {episode}, step {begin + at + row}"

        target[at : at + rows] = column.cast(piece, found, place)


def end(arrays: Arrays, lengths: np.ndarray) -> None:
    """Truncate, in place, every episode that does not say how it ends."""
    last = np.cumsum(lengths + 1) - 2
    arrays["truncated"][last] |= ~arrays["terminated"][last]


def believable(nbytes: int, file: Path, found: Findings) -> None:
    """DatasetError where a file says that it holds far more than its size allows: compression gains 1000 at most."""
    size = file.stat().st_size
    if nbytes > (64 << 20) + 2000 * size:
        found.wrong("", f"its arrays would take {nbytes:,} bytes, and the file has {size:,}", RESTORE)
        found.stop()


# ----------------------------------------------------------------------------------------- what we say of our own files


def seal(dataset: Dataset) -> str:
    """What a file written here says of itself: spaces, columns, hash and `about`, after their own SHA-256."""
    about = {key: value for key, value in dataset.about.items() if key not in ("file", "format")}
    body = json.dumps(
        {
            "hash": dataset.hash,
            "observation_space": describe(dataset.observation_space),
            "action_space": describe(dataset.action_space),
            "columns": [name for name in dataset.columns if name not in (*dataset.obs_names, *NEEDED)],
            "about": about,
        },
        default=str,
    )
    return f"{hashlib.sha256(body.encode()).hexdigest()} {body}"


class Sealed(NamedTuple):
    """What `seal` wrote."""

    hash: str
    spaces: Spaces
    columns: tuple[str, ...]
    about: dict[str, Any]


def unseal(text: str, found: Findings) -> Sealed:
    """The inverse of `seal`; DatasetError where it was changed."""
    digest, _, body = text.partition(" ")
    if hashlib.sha256(body.encode()).hexdigest() != digest:
        found.wrong("palaestra", "what it says of the dataset is not what was written", RESTORE)
        found.stop()
    said = json.loads(body)
    spaces = undescribe(said["observation_space"]), undescribe(said["action_space"])
    return Sealed(said["hash"], spaces, tuple(said["columns"]), said["about"])
