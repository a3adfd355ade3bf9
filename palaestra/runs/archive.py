"""Runs as one file, to share or to analyse, and back: a bundle of whole folders (.tar.gz) or a table (.parquet, .csv).

A bundle's first file is `manifest.json`: size and SHA-256 of every file, and the SHA-256 of all that, which is the
bundle's hash. It is of what the runs hold, whoever packed them. Two bundles of the same runs have the same bytes too
(files in order, no times, no owners), where the compressor is the same.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from palaestra.runs import tables
from palaestra.runs.errors import RunError
from palaestra.runs.files import Fingerprint, from_json, seal, sync_folder, to_json, write_file
from palaestra.runs.run import Run

FORMAT = 1
_MANIFEST = "manifest.json"
_TABLES: dict[str, tuple[Callable[[Iterable[tables.Row], Path], int], Callable[[Path], Iterator[tables.Row]]]] = {
    ".parquet": (tables.write_parquet, tables.read_parquet),
    ".csv": (tables.write_csv, tables.read_csv),
}
_BUNDLES = (".tar.gz", ".tgz")
_DAMAGED = "fetch it again, or ask for another export"
_CHUNK = 1 << 20


def export(runs: Iterable[Run], path: Path) -> dict[str, Any]:
    """Write runs into one file, whose suffix says which kind; one that is there is replaced.

    Args:
        runs: a table holds their run.json and metrics, a bundle all their files.
        path: .parquet, .csv, .tar.gz or .tgz; its folder is made when missing.

    Returns:
        `{"file", "format": "parquet" | "csv" | "bundle", "runs": [folders in the file], "rows": of a table, "hash": of
        a bundle}`.

    Raises:
        RunError: there are no runs, one is being written or broken, or the file cannot be written.
        ValueError: another suffix, or the `parquet` extra is not installed.
    """
    path = Path(path)
    kind = _kind(path)
    named = _named(runs)
    if not named:
        raise RunError(path, "there are no runs to export", "give the folders of some")
    for name in named:
        _inside(f"{name}/run.json", path)
    result: dict[str, Any] = {
        "file": str(path),
        "format": kind.removeprefix("."),
        "runs": list(named),
        "rows": None,
        "hash": None,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as temporary:
            if kind == "bundle":
                result["hash"] = _write_bundle(named, temporary)
            else:
                found = (row for name, run in named.items() for row in tables.rows(run, name))
                result["rows"] = _TABLES[kind][0](found, temporary)
    except OSError as error:
        raise RunError(
            Path(error.filename or path), f"cannot be written ({error.strerror})", "free space or check permissions"
        ) from error
    return result


def import_(path: Path, out: Path, expected: str | None = None) -> dict[str, Any]:
    """Make run folders of what `export` wrote: all of them, or none.

    Args:
        path: the file; nothing in it is executed.
        out: the folder that they are made in; it may hold other runs.
        expected: the hash that a bundle must have.

    Returns:
        `{"folder", "runs": [folders], "hash": of a bundle}`.

    Raises:
        RunError: the file is damaged, no export, or has another hash; or a run of one of these names is there.
        ValueError: another suffix, or a hash for a table.
    """
    path, out = Path(path), Path(out)
    kind = _kind(path)
    if kind != "bundle" and expected is not None:
        raise ValueError(f"--hash: {path.name} is a table, and only bundles have one; leave it out")
    if kind == ".parquet":
        tables.arrow()
    if not path.is_file():
        raise RunError(path, "there is no such file", "give one that `palaestra runs export` wrote")
    try:
        if kind == "bundle":
            with tarfile.open(path, "r|gz") as archive:
                manifest = _manifest(archive, path, expected)
                made = _make(out, path, _unpacked(archive, path, manifest["files"]))
            return {"folder": str(out), "runs": made, "hash": manifest["sha256"]}
        made = _make(out, path, ((name, text, None) for name, text in tables.files(_TABLES[kind][1](path), path)))
        return {"folder": str(out), "runs": made, "hash": None}
    except (
        tarfile.TarError,
        gzip.BadGzipFile,
        zlib.error,
        EOFError,
        csv.Error,
        LookupError,
        TypeError,
        ValueError,
    ) as bad:
        raise RunError(path, f"is damaged, or no export of runs ({bad})", _DAMAGED) from bad
    except OSError as error:
        raise RunError(
            Path(error.filename or path), f"cannot be read or written ({error.strerror or error})", "check permissions"
        ) from error


def _kind(path: Path) -> str:
    if path.name.lower().endswith(_BUNDLES):
        return "bundle"
    if (suffix := path.suffix.lower()) in _TABLES:
        return suffix
    raise ValueError(f"{path.name} has no suffix of an export; use .parquet, .csv or .tar.gz")


def _named(runs: Iterable[Run]) -> dict[str, Run]:
    """Runs by the names of their folders, numbered where one is taken."""
    named: dict[str, Run] = {}
    for run in runs:
        name, number = run.folder.resolve().name, 1
        while name in named:
            number += 1
            name = f"{run.folder.resolve().name}-{number}"
        named[name] = run
    return named


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------- bundles


def _write_bundle(named: Mapping[str, Run], path: Path) -> str:
    found = {name: file for folder, run in named.items() for name, file in _files(folder, run)}
    entries = {_inside(name, path): _fingerprint(file) for name, file in sorted(found.items())}
    body = {"format": FORMAT, "files": {name: entry._asdict() for name, entry in entries.items()}}
    sealed = seal(body)
    manifest = to_json({**body, "sha256": sealed}, indent=1).encode()
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        _add(archive, _MANIFEST, len(manifest), io.BytesIO(manifest))
        for name, entry in entries.items():
            with found[name].open("rb") as file:
                _add(archive, name, entry.size, file)
    return sealed


def _files(folder: str, run: Run) -> Iterator[tuple[str, Path]]:
    if pid := run.writer():
        raise RunError(run.folder, f"process {pid} is writing this run", "wait until it has finished")
    for file in sorted(run.folder.rglob("*")):
        inside = file.relative_to(run.folder)
        if any(part.startswith(".") for part in inside.parts):  # locks, and what a killed process left
            continue
        if file.is_symlink():
            raise RunError(file, "is a link, and a bundle holds files", "put the file itself in its place")
        if file.is_file():
            yield f"{folder}/{inside.as_posix()}", file


def _fingerprint(file: Path) -> Fingerprint:
    with file.open("rb") as opened:
        return Fingerprint(file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest())


def _add(archive: tarfile.TarFile, name: str, size: int, file: IO[bytes]) -> None:
    entry = tarfile.TarInfo(name)  # whose owner is nobody and whose time is 0
    entry.size = size
    archive.addfile(entry, file)


def _manifest(archive: tarfile.TarFile, path: Path, expected: str | None) -> dict[str, Any]:
    first = archive.next()
    file = archive.extractfile(first) if first is not None and first.name == _MANIFEST and first.isfile() else None
    if file is None:
        raise RunError(path, f"does not begin with {_MANIFEST}, so it is no bundle of runs", _DAMAGED)
    body: dict[str, Any] = from_json(file.read())
    sealed = body.pop("sha256")
    if seal(body) != sealed:
        raise RunError(path, "changed: its content is not what it was sealed with", _DAMAGED, _MANIFEST)
    if body["format"] > FORMAT:
        raise RunError(
            path, f"{body['format']} is newer than the {FORMAT} that this palaestra reads", "update palaestra"
        )
    if expected is not None and expected.lower() != sealed:
        raise RunError(path, f"its hash is {sealed}, not {expected}", "it is another bundle: " + _DAMAGED)
    return {**body, "sha256": sealed}


_File = tuple[str, Iterable[bytes], Fingerprint | None]


def _unpacked(archive: tarfile.TarFile, path: Path, entries: Mapping[str, Any]) -> Iterator[_File]:
    """Give the files of the manifest. Nothing is extracted by tarfile: what the manifest does not name is refused."""
    waiting = {name: Fingerprint(**entry) for name, entry in entries.items()}
    for member in iter(archive.next, None):  # a for loop over the archive begins with the manifest again
        expected = waiting.pop(member.name, None)
        if expected is None or not member.isfile():
            raise RunError(path, "is not in the manifest, or no plain file", _DAMAGED, member.name)
        if member.size != expected.size:
            raise RunError(path, f"has {member.size} bytes instead of {expected.size}", _DAMAGED, member.name)
        file = archive.extractfile(member)
        assert file is not None
        yield member.name, iter(lambda: file.read(_CHUNK), b""), expected  # noqa: B023 (read before the next is given)
    for name in waiting:
        raise RunError(path, "is missing", _DAMAGED, name)


# ----------------------------------------------------------------------------------------------------------- making


def _make(out: Path, source: Path, files: Iterable[_File]) -> list[str]:
    """Write files into a hidden folder beside the runs to be; they get their names when all are whole."""
    hidden = out / f".tmp-{source.name}"
    new = not out.exists()
    made = False
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        for name, chunks, expected in files:
            folder = out / PurePosixPath(_inside(name, source)).parts[0]
            if folder.exists():
                raise RunError(folder, "is there already", "import into another --out")
            target = hidden / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if write_file(target, chunks) != expected and expected is not None:
                raise RunError(
                    source, f"changed: its SHA-256 is not {expected.sha256[:12]}... as recorded", _DAMAGED, name
                )
        found = sorted(hidden.iterdir())
        for folder in found:
            Run.open(folder)
        for folder in found:
            folder.rename(out / folder.name)
        sync_folder(out)
        made = True
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if new and not made:
            with suppress(OSError):
                out.rmdir()
    return [str(out / folder.name) for folder in found]


def _inside(name: str, source: Path) -> str:
    """The name, if it lies within a run's folder on every system."""
    parts = name.split("/")
    if len(parts) < 2 or any(part in ("", "..") or part.startswith(".") or set(part) & set("\\:\0") for part in parts):
        raise RunError(source, f"{name!r} does not lie in a run's folder", "rename it, or do not trust this file")
    return name
