"""NumPy arrays by name, in memory or in an .npz file. Nothing is unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import gymnasium as gym
import numpy as np

from palaestra.data.dataset import Dataset, DatasetError
from palaestra.data.plan import Field, seal


class Member:
    """An array in an .npz file, read from its beginning to its end, a piece at a time.

    NumPy would load all of it. A piece before the last one starts over.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.archive, self.name = archive, name
        self._stream: Any = None
        with archive.open(name) as stream:
            self.shape, self._fortran, self.dtype = _header(stream)
            self._start = stream.tell()
        if self.dtype.hasobject:
            raise DatasetError(
                f"{name.removesuffix('.npy')!r} holds Python objects, which are not loaded: give numbers"
            )
        self._row = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=object))
        size = archive.getinfo(name).file_size - self._start
        if size != self._row * (self.shape[0] if self.shape else 1):
            raise DatasetError(
                f"{name.removesuffix('.npy')!r} says that its shape is {self.shape}, and has {size} bytes"
            )
        self._whole: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> np.ndarray:
        begin, end, _ = rows.indices(self.shape[0])
        if self._fortran and len(self.shape) > 1:  # stored by columns: no piece of it is in one place
            if self._whole is None:
                self._whole = self._array(0, self.shape[0]).reshape(self.shape[::-1]).T
            return self._whole[begin:end]
        return self._array(begin, end).reshape(end - begin, *self.shape[1:])

    def _array(self, begin: int, end: int) -> np.ndarray:
        at = self._start + begin * self._row
        if self._stream is None or self._stream.tell() > at:
            self._stream = self.archive.open(self.name)
        while (left := at - self._stream.tell()) > 0:
            if not self._stream.read(min(left, 1 << 20)):
                break
        size = (end - begin) * self._row
        content = self._stream.read(size)
        if len(content) != size:
            raise DatasetError(f"{self.name.removesuffix('.npy')!r} ends before its last row")
        return np.frombuffer(content, self.dtype)

    def scalar(self) -> Any:
        """What an array without dimensions holds."""
        with self.archive.open(self.name) as stream:
            stream.read(self._start)
            return np.frombuffer(stream.read(), self.dtype)[0].item()


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise DatasetError(f"version {version} of NumPy's format holds records: give plain arrays")


def members(archive: zipfile.ZipFile) -> dict[str, Member]:
    """The arrays of an .npz file, by name."""
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if len(set(names)) < len(names):
        raise DatasetError("two of its arrays have the same name")
    return {name.removesuffix(".npy"): Member(archive, name) for name in names}


def flattened(data: Mapping[str, Any], prefix: str = "") -> dict[str, Field]:
    """Arrays by name; those of dictionaries within as "KEY/KEY"."""
    found: dict[str, Field] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{key}/")
        else:
            found[prefix + key] = np.asarray(value)
    return found


def from_arrays(
    data: Mapping[str, Any],
    *,
    env: str | gym.Env[Any, Any] | None = None,
    observation_space: gym.Space[Any] | None = None,
    action_space: gym.Space[Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Dataset:
    """A dataset of a dictionary of arrays: see `flat` for its names and what they mean.

    Args:
        data: observations (or obs), actions, rewards, terminals (or terminated), timeouts (or truncated), and where
            they were logged next_observations (or next_obs), each with a row a step; Dict observations as
            a dictionary. With "lengths", the columns of a `Dataset`.
        env: its spaces are the data's: a Gymnasium id, or an environment.
        observation_space, action_space: come before the environment's. Spaces that nobody gives are inferred.
        about: what is known besides.

    Raises:
        DatasetError: in one line, what is wrong.
    """
    from palaestra.data.files import finished, spaces_of
    from palaestra.data.flat import flat
    from palaestra.data.plan import Findings

    found = Findings(Path("the arrays"))
    spaces, source = spaces_of(env)
    spaces = observation_space or spaces[0], action_space or spaces[1]
    said = {**(about or {}), "env": (about or {}).get("env") or source, "format": "arrays"}
    with found.reading():
        plan = flat(flattened(data), None, found, spaces, said)
        columns = {name: np.zeros((plan.slots, *one.shape), one.dtype) for name, one in plan.columns.items()}
        plan.fill(columns)
    return finished(plan, columns, found)


def write(dataset: Dataset, file: BinaryIO) -> None:
    """A dataset's own columns, its lengths, and what it says of itself."""
    columns: dict[str, Any] = {**dataset.columns, "lengths": dataset.lengths, "palaestra": seal(dataset)}
    np.savez(file, **columns)
