"""A run's folder: what was run, what was measured, and who is writing."""

from __future__ import annotations

import difflib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from palaestra.runs.errors import RunError
from palaestra.runs.files import from_json, sync_folder, to_json, write_file
from palaestra.runs.lock import lock
from palaestra.runs.provenance import provenance

FORMAT = 1

# How long `writing` waits for a lock, in seconds: `writer` takes it for an instant just to see whether it is free.
_PATIENCE = 0.5


@dataclass
class Run:
    """A folder with `run.json`, `metrics.jsonl` and `checkpoints/`; made by `Run.create` or `Run.open`.

    Attributes:
        folder: where it lies.
        about: the content of `run.json`: what the caller said, and `id`, `format`, `created`, `status`, `provenance`.
    """

    folder: Path
    about: dict[str, Any]

    @classmethod
    def create(cls, folder: Path, about: Mapping[str, Any]) -> Run:
        """Start a run in a new folder, or in one that holds no run yet.

        Args:
            folder: made with its parents.
            about: JSON data, such as expression, env, seeds and settings; NaN and infinities are allowed.

        Raises:
            RunError: the folder holds a run, or cannot be written.
            TypeError: `about` holds what is no JSON.
            ValueError: `about` holds a field that a run fills in itself.
        """
        folder = Path(folder)
        now = datetime.now(UTC)
        given: dict[str, Any] = {
            "id": f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
            "format": FORMAT,
            "created": now.isoformat(timespec="milliseconds"),
            "status": "running",
        }
        if taken := sorted({*given, "provenance"} & set(about)):
            raise ValueError(f"about: {taken[0]!r} is filled in by Run.create; use another name")
        if (folder / "run.json").exists():
            raise RunError(folder, "holds a run already", "go on with it by --resume, or choose another --out")
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run = cls(folder, {**given, **about, "provenance": provenance()})
            run._write()
        except OSError as error:
            if new:
                with suppress(OSError):
                    folder.rmdir()
            raise RunError(folder, f"cannot be written ({error.strerror})", "choose another --out") from error
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Return the run in a folder.

        Raises:
            RunError: there is no such run (the nearest names beside it are given), or its `run.json` is broken.
        """
        folder = Path(folder)
        path = folder / "run.json"
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            what = "holds no run.json, so it is no run" if folder.is_dir() else "there is no such run"
            raise RunError(folder, what, _nearest(folder)) from None
        except OSError as error:
            raise RunError(path, f"cannot be read ({error.strerror})", "check its permissions") from error
        return cls(folder, _checked(path, text))

    def update(self, **fields: Any) -> None:
        """Merge fields into `run.json`, atomically; one that is None is taken out.

        Raises:
            RunError: `run.json` is broken or cannot be written.
            TypeError: a field is no JSON.
        """
        about = {**self.about, **Run.open(self.folder).about, **fields}
        self.about = {key: value for key, value in about.items() if value is not None or key not in fields}
        try:
            self._write()
        except OSError as error:
            raise RunError(
                self.folder / "run.json", f"cannot be written ({error.strerror})", "free space or check permissions"
            ) from error

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to `metrics.jsonl` in one write: it is there whole even if the process is killed right after.

        Args:
            row: numbers, strings, and lists and dicts of them. The strings "NaN", "Infinity" and "-Infinity" are
                read back as floats.

        Raises:
            RunError: the disk is full or the file is not writable; the file then ends with the row before.
            TypeError: a value is no JSON, by its key.
        """
        line = to_json(row).encode() + b"\n"
        try:
            descriptor = os.open(
                self._metrics, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644
            )
            try:
                written = os.write(descriptor, line)
                if written < len(line):  # how a disk that is just filling up answers
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                    raise RunError(self._metrics, "the disk is full", "free space and go on with --resume")
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RunError(
                self._metrics, f"cannot be written ({error.strerror})", "free space or check permissions, then --resume"
            ) from error

    def parts(self) -> list[Path]:
        """Return the folders of the runs that this one is made of: one a seed, where each ran in its own process."""
        return sorted((path.parent for path in self.folder.glob("seeds/*/run.json")), key=lambda p: int(p.name))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows that were logged, oldest first, and after them those of each of its `parts`.

        A last line that a crash cut short is left out.

        Raises:
            RunError: a line that is no JSON object, by its number.
        """
        rows = [self._row(number, line) for number, line in enumerate(self._lines(), start=1)]
        return rows + [row for part in self.parts() for row in Run.open(part).metrics()]

    def broken_lines(self) -> list[RunError]:
        """Return what `metrics` would raise, for every line that is no JSON object."""
        found = []
        for number, line in enumerate(self._lines(), start=1):
            try:
                self._row(number, line)
            except RunError as error:
                found.append(error)
        return found

    def position(self) -> int:
        """Return the length of `metrics.jsonl` in bytes, after an fsync: a checkpoint may rely on what it records.

        Raises:
            RunError: the file cannot be written.
        """
        if not self._metrics.exists():
            return 0
        with self._writable() as file:
            os.fsync(file.fileno())
            return int(file.seek(0, os.SEEK_END))

    def expect(self, position: int) -> None:
        """Compare `metrics.jsonl` with the position of a checkpoint.

        Raises:
            RunError: the file is shorter, or `position` is inside a line: it is not the checkpoint's file.
        """
        content = self._content()
        if position > len(content):
            what = f"has {len(content)} bytes, and the checkpoint was made at {position}"
        elif position and content[position - 1 : position] != b"\n":
            what = f"position {position} of the checkpoint is inside a line"
        else:
            return
        raise RunError(self._metrics, what, "restore the file, or resume from an earlier checkpoint")

    def truncate(self, position: int) -> None:
        """Cut `metrics.jsonl` to `position` bytes, as it was when the checkpoint was made that is resumed from.

        Raises:
            RunError: as `expect`, or the file cannot be written.
        """
        self.expect(position)
        if position < len(self._content()):
            with self._writable() as file:
                file.truncate(position)
                os.fsync(file.fileno())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes from writing this run meanwhile, and drop a line that a crash cut short.

        Raises:
            RunError: another process writes it, by its pid; or the file system has no locks.
        """
        path = self.folder / ".lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(path, f"cannot be written ({error.strerror})", "check the folder's permissions") from error
        try:
            self._take(descriptor)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            self.truncate(self._content().rfind(b"\n") + 1)
            yield
        finally:
            os.close(descriptor)

    def writer(self) -> int | None:
        """Return the pid of the process that is writing this run (0 when it left none), or None."""
        path = self.folder / ".lock"
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return None if lock(descriptor) else _pid(path)
        finally:
            os.close(descriptor)

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def _content(self) -> bytes:
        try:
            return self._metrics.read_bytes() if self._metrics.exists() else b""
        except OSError as error:
            raise RunError(self._metrics, f"cannot be read ({error.strerror})", "check its permissions") from error

    def _lines(self) -> list[bytes]:
        # What follows the last newline is a line that a crash cut short, or nothing.
        return self._content().split(b"\n")[:-1]

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = from_json(line)
            if not isinstance(row, dict):
                raise ValueError
        except ValueError as error:
            what = f"is no JSON object: {line[:40].decode(errors='replace')!r}"
            raise RunError(self._metrics, what, "correct or delete this line", f"line {number}") from error
        return row

    @contextmanager
    def _writable(self) -> Iterator[Any]:
        try:
            with self._metrics.open("rb+") as file:
                yield file
        except OSError as error:
            remedy = "free space or check permissions, then --resume"
            raise RunError(self._metrics, f"cannot be written ({error.strerror})", remedy) from error

    def _write(self) -> None:
        text = to_json(self.about, indent=2)
        self.about = from_json(text)
        write_file(self.folder / "run.json", [text.encode() + b"\n"])
        sync_folder(self.folder)

    def _take(self, descriptor: int) -> None:
        path = self.folder / ".lock"
        deadline = time.monotonic() + _PATIENCE
        try:
            while not lock(descriptor):
                if time.monotonic() > deadline:
                    what = f"process {_pid(path) or 'unknown'} is writing this run"
                    raise RunError(self.folder, what, "wait for it or end it, or choose another --out")
                time.sleep(0.02)
        except OSError as error:
            what = f"cannot be locked ({error.strerror})"
            raise RunError(path, what, "choose an --out on a file system with locks") from error


def _checked(path: Path, text: bytes) -> dict[str, Any]:
    remedy = "restore it from a copy, or train again with another --out"
    if not text.strip():
        raise RunError(path, "is empty", remedy)
    try:
        about = from_json(text)
    except json.JSONDecodeError as error:
        raise RunError(
            path, f"is no JSON: {error.msg}", remedy, f"line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise RunError(path, "is no UTF-8 text", remedy, f"byte {error.start}") from error
    if not isinstance(about, dict):
        raise RunError(path, f"is a {type(about).__name__} instead of an object", remedy)
    for field, kind in {"id": str, "format": int, "created": str, "status": str}.items():
        if not isinstance(about.get(field), kind):
            what = f"{about[field]!r} is no {kind.__name__}" if field in about else "is missing"
            raise RunError(path, what, remedy, f"field {field!r}")
    if about["format"] > FORMAT:
        what = f"{about['format']} is newer than the {FORMAT} that this palaestra reads"
        raise RunError(path, what, "update palaestra", "field 'format'")
    return about


def _nearest(folder: Path) -> str:
    parent = folder.absolute().parent
    names = [path.parent.name for path in parent.glob("*/run.json")] if parent.is_dir() else []
    if near := difflib.get_close_matches(folder.name, names, n=3, cutoff=0.5):
        return f"did you mean {', '.join(str(folder.parent / name) for name in near)}?"
    return "see `palaestra runs list` for those there are"


def _pid(path: Path) -> int:
    text = path.read_text(encoding="utf-8").strip()
    return int(text) if text.isdigit() else 0
