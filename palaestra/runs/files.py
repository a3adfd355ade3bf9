"""Files that are whole or absent, and strict JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple


class Fingerprint(NamedTuple):
    """What a file must be: its size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> Fingerprint:
    """Write a file under a temporary name beside `path`, fsync it, and rename it to `path`.

    The new name itself is on disk only after `sync_folder(path.parent)`. When this raises, `path` is as it was.

    Args:
        path: replaced when it exists.
        chunks: the content, in order; memoryviews of bytes.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    digest, size = hashlib.sha256(), 0
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        # After the rename nothing is left under this name. The first error is the one worth reporting.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return Fingerprint(size, digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Put the names in `folder` on disk: a rename survives a power cut only after this."""
    if os.name == "nt":  # Windows opens no folders, and its file systems journal names
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(path: Path, expected: Fingerprint) -> str | None:
    """Return what is wrong with a file (missing, truncated, changed), or None; reads all of it.

    Raises:
        OSError: the file is there and cannot be read.
    """
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != expected.size:
        return f"{'truncated' if size < expected.size else 'grown'}: {size} bytes instead of {expected.size}"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
            return f"changed: its SHA-256 is not {expected.sha256[:12]}... as recorded"
    return None


def seal(body: Mapping[str, object]) -> str:
    """Return the SHA-256 of JSON data, in hexadecimal: what a file says of its own content."""
    return hashlib.sha256(to_json(body).encode()).hexdigest()


_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(value: object, indent: int | None = None) -> str:
    """Return strict JSON: NaN and the infinities become the strings "NaN", "Infinity" and "-Infinity".

    NumPy's scalars become numbers and tuples lists.

    Raises:
        TypeError: a value that is no JSON, by its path.
    """
    return json.dumps(_plain(value, ""), indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """Return what `to_json` wrote, "NaN" and its like as floats again.

    Raises:
        json.JSONDecodeError: the text is no JSON; it knows the line and the column.
        UnicodeDecodeError: the bytes are no UTF-8.
    """
    return _measured(json.loads(text))


def _plain(value: object, path: str) -> object:
    if value is None or isinstance(value, bool | str | int):  # before the abstract classes, which are slow to ask
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, dict | Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path or 'the row'}: the key {key!r} is no string; use str(key)")
        return {key: _plain(item, f"{path}/{key}" if path else key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    raise TypeError(
        f"{path or 'the row'}: a {type(value).__name__} is no JSON; use a number (.item()), string, list or dict"
    )


def _measured(value: Any) -> Any:
    match value:
        case str():
            return _NOT_FINITE.get(value, value)
        case dict():
            return {key: _measured(item) for key, item in value.items()}
        case list():
            return [_measured(item) for item in value]
        case _:
            return value
