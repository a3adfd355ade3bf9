"""HDF5 files, opened with caution: nothing outside the file is followed.

A file may point at other files (external links, external storage, virtual datasets); one that somebody sends us has no
business with ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from palaestra.data.dataset import DatasetError
from palaestra.data.plan import PIECE, RESTORE, Damaged, Field, Findings, Problem

COLLECTION = b"GCOL\1\0\0\0"  # how a collection of entries of variable length begins: its name, version 1, zeros


def h5py(path: Path) -> Any:
    """The package. `Damaged`, with the extra to install, where it is missing."""
    try:
        import h5py
    except ImportError as missing:
        remedy = "pip install 'palaestra[datasets]', or use .npz"
        raise Damaged(Problem(str(path), "", "HDF5 files need h5py, which is not installed", remedy)) from missing
    return h5py


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, for reading. Its caches are small: everything is read once, in order."""
    with h5py(path).File(path, "r", rdcc_nbytes=PIECE) as file:
        cache = file.id.get_mdc_config()  # of groups and headers: 32 MB, where there are many episodes
        cache.set_initial_size, cache.flash_incr_mode = True, 0
        cache.min_size, cache.initial_size, cache.max_size = PIECE, PIECE, PIECE
        file.id.set_mdc_config(cache)
        yield file


def member(group: Any, name: str) -> Any:
    """What is in a group under a name, "KEY" or "KEY/KEY/..."; DatasetError where it is not, or not in this file."""
    kinds = h5py(group.file.filename).h5l
    for key in name.split("/"):
        links = getattr(group.id, "links", None)
        if links is None or not links.exists(key.encode()):
            raise DatasetError("it is missing")
        if links.get_info(key.encode()).type != kinds.TYPE_HARD:
            raise DatasetError("it is a link to something else: copy what it points at into the file")
        group = group[key]
    return group


def array(group: Any, name: str) -> Field:
    """An array in a group; DatasetError where there is none."""
    found = member(group, name)
    if not hasattr(found, "is_virtual"):
        raise DatasetError("it is no array")
    if found.is_virtual or found.external:
        raise DatasetError("it points at another file: copy what is there into this one")
    if found.shape is None:
        raise DatasetError("it is empty")
    return found


def arrays(group: Any, found: Findings, prefix: str = "", depth: int = 3) -> dict[str, Field]:
    """Every array in a group, by its path; those of groups within groups to a depth."""
    there: dict[str, Field] = {}
    for key in group:
        try:
            inner = member(group, key)
            if hasattr(inner, "is_virtual"):
                there[prefix + key] = array(group, key)
            elif depth and hasattr(inner, "keys"):
                there |= arrays(inner, found, f"{prefix}{key}/", depth - 1)
        except Damaged:
            raise
        except DatasetError as wrong:
            found.wrong(prefix + key, str(wrong), RESTORE)
    return there


def attributes(group: Any, names: Iterable[str]) -> dict[str, Any]:
    """Strings, numbers and flags that are attached to a group or file, as Python's own; only those that are asked."""
    told: dict[str, Any] = {}
    for name in names:
        if name not in group.attrs:
            continue
        if is_variable(group.attrs.get_id(name).dtype):
            believe_strings(group.file)
        value = group.attrs[name]
        value = value.decode() if isinstance(value, bytes) else getattr(value, "item", lambda value=value: value)()
        if isinstance(value, str | int | float | bool):
            told[name] = value
    return told


def is_variable(dtype: np.dtype[Any]) -> bool:
    """Whether an array's entries have lengths of their own: they are kept apart from it."""
    return dtype.hasobject


def believe_strings(file: Any) -> None:
    """DatasetError where entries of variable length are damaged in the one way that the HDF5 library cannot bear.

    They are in collections of (index, size, bytes); the library goes from one to the next by their sizes, and for
    ever where the free space says that it has none (seen in HDF5 2.0.0).
    """
    with Path(file.filename).open("rb") as content:
        before, at = b"", 0
        while piece := content.read(PIECE):
            both = before + piece
            found = both.find(COLLECTION)
            while found >= 0:
                _follow(content, at - len(before) + found)
                found = both.find(COLLECTION, found + 1)
            before, at = both[-len(COLLECTION) + 1 :], at + len(piece)
            content.seek(at)


def _follow(content: BinaryIO, begin: int) -> None:
    content.seek(begin + len(COLLECTION))
    end = begin + int.from_bytes(content.read(8), "little")
    at = begin + len(COLLECTION) + 8
    while at + 16 <= end:
        content.seek(at)
        header = content.read(16)
        index, size = int.from_bytes(header[:2], "little"), int.from_bytes(header[8:], "little")
        if (index == 0 and size == 0) or len(header) < 16:
            raise DatasetError("its strings of variable length are damaged")
        at += 16 + (size + 7) // 8 * 8 if index else size
