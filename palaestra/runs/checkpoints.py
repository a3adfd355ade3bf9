"""Checkpoints that a crash at any moment leaves loadable, and that cost only what is new.

    checkpoints/
      000012000/                        one checkpoint: whole from the moment it has this name
        state.safetensors  state.json   everything but the segments
        manifest.json                   what belongs to it: sizes and hashes of these files and of its segments
      segments/
        replay-000007.safetensors       rows of a replay buffer, shared by all the checkpoints whose manifests name it

Names that begin with a dot are unfinished or on their way out.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from palaestra.runs.errors import CheckpointError
from palaestra.runs.files import Fingerprint, damage, from_json, seal, sync_folder, to_json, write_file
from palaestra.runs.states import State, load_state, save_state, stores_natively, write_tensors

FORMAT = 1
_MANIFEST = "manifest.json"
_REMEDY = "restore it from a copy, or use another checkpoint"


def always(meta: dict[str, Any]) -> bool:
    """Keep every segment: nothing in the buffer is ever overwritten."""
    return True


@dataclass(frozen=True)
class Segment:
    """Rows that a replay buffer took in since the checkpoint before.

    Attributes:
        tensors: the rows' columns, [rows, ...] each; empty when there is nothing new.
        meta: JSON data of the caller's that says which rows these are.
        alive: given the `meta` of an earlier segment, whether the buffer still holds any of its rows.
    """

    tensors: Mapping[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    alive: Callable[[dict[str, Any]], bool] = always


@dataclass(frozen=True)
class Checkpoint:
    """What `Checkpoints.save` was given.

    Attributes:
        path: its folder.
        count: updates, steps or rounds, as its maker counts.
        position: the length of `metrics.jsonl` in bytes when it was made.
        state: see `states.save_state`.
        segments: by buffer, oldest first. Their tensors are mapped from the file and read when touched.
    """

    path: Path
    count: int
    position: int
    state: State
    segments: dict[str, list[Segment]]


@dataclass(frozen=True)
class _Stored:
    """A segment in a manifest: the buffer's name, the file's name, size and hash, and the caller's meta."""

    name: str
    file: str
    size: int
    sha256: str
    meta: dict[str, Any]


@dataclass(frozen=True)
class _Manifest:
    count: int
    position: int
    files: dict[str, Fingerprint]
    segments: tuple[_Stored, ...]


@dataclass
class Checkpoints:
    """The checkpoints of one run; one process at a time (`Run.writing`) may save.

    Attributes:
        folder: `checkpoints/` of the run; made by the first save.
        keep: how many checkpoints stay. Two, so that one damaged file does not end a run.
        problems: what `latest` found damaged on its way to an intact checkpoint.
        last: the checkpoint last saved or loaded.
    """

    folder: Path
    keep: int = 2
    problems: list[CheckpointError] = field(default_factory=list)
    last: Path | None = None
    # Those of the checkpoint last saved or loaded, which the next one goes on from. Not those of the newest on disk:
    # that may be one that `latest` had to pass over.
    _carried: tuple[_Stored, ...] = ()
    _swept: bool = False

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if self.keep < 1:
            raise ValueError(f"keep: {self.keep} checkpoints cannot be resumed from; use 1 or more")

    def paths(self) -> list[Path]:
        """Return the checkpoints' folders, oldest first, damaged ones too."""
        if not self.folder.is_dir():
            return []
        named = [(key, path) for path in self.folder.iterdir() if (key := _key(path.name))]
        return [path for _, path in sorted(named)]

    def save(self, count: int, state: State, segments: Mapping[str, Segment] | None = None, position: int = 0) -> Path:
        """Write a checkpoint; when this returns it is on disk, and older ones beyond `keep` are gone.

        It names the segments of the checkpoint that this object last saved or loaded, less those that are no longer
        alive, and the new ones; a buffer that `segments` does not mention is carried unchanged. Checkpoints with a
        higher count are removed: they belong to a future that was abandoned.

        Args:
            count: updates, steps or rounds; not negative. Saving one count again replaces it.
            state: see `states.save_state`.
            segments: by buffer.
            position: `Run.position()`.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: the disk is full, the folder is not writable, or a segment to carry is gone. Nothing
                half-written is left, and the checkpoints there were are untouched.
            TypeError: a part of the state or a segment cannot be stored, by its path.
            ValueError: a negative count, or a buffer's name that is no portable file name.
        """
        segments = segments or {}
        _check(count, segments)
        before = self.paths()
        target = self._free_name(count)
        temporary = self.folder / f".tmp-{target.name}"
        written: list[Path] = []
        done = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._swept:  # the leftovers of a killed process may be what fills the disk
                self._sweep(before)
                self._swept = True
            files = save_state(temporary, state)
            stored = [*self._still_alive(segments), *self._write_segments(segments, written)]
            write_file(temporary / _MANIFEST, [_manifest_text(_Manifest(count, position, files, tuple(stored)))])
            sync_folder(temporary)
            temporary.rename(target)
            sync_folder(self.folder)
            done = True
        except OSError as error:
            raise CheckpointError(
                Path(error.filename or target),
                f"cannot be written ({error.strerror})",
                f"{self.good}; free space or check permissions, then --resume",
            ) from error
        finally:
            if not done:
                _discard([target, temporary, *written])
        self._carried, self.last = tuple(stored), target
        self._prune(target)
        return target

    def latest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None when none was ever saved.

        Damaged ones that are newer are passed over and noted in `problems`.

        Raises:
            CheckpointError: there are checkpoints, and none is intact; it tells of the newest.
        """
        self.problems.clear()
        for path in reversed(self.paths()):
            try:
                return self.load(path)
            except CheckpointError as error:
                self.problems.append(error)
        if self.problems:
            newest = self.problems[0]
            raise CheckpointError(
                newest.file,
                f"{newest.what}, and no other checkpoint is intact",
                "restore it from a copy, or train again with another --out",
                newest.where,
            )
        return None

    def load(self, path: Path) -> Checkpoint:
        """Return the checkpoint in a folder, after comparing the sizes and hashes of all its files.

        The next `save` goes on from it.

        Raises:
            CheckpointError: a file is missing, truncated, changed or unreadable.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        for name, expected in manifest.files.items():
            _verify(path / name, expected)
        segments: dict[str, list[Segment]] = {}
        for stored in manifest.segments:
            file = self._segments / stored.file
            _verify(file, Fingerprint(stored.size, stored.sha256))
            segments.setdefault(stored.name, []).append(Segment(_mapped(file), stored.meta))
        checkpoint = Checkpoint(path, manifest.count, manifest.position, load_state(path), segments)
        self._carried, self.last = manifest.segments, path
        return checkpoint

    def check(self) -> list[CheckpointError]:
        """Return what is damaged, over all the checkpoints; what the next `save` goes on from stays as it is."""
        reader = replace(self, problems=[])
        found = []
        for path in self.paths():
            try:
                reader.load(path)
            except CheckpointError as error:
                found.append(error)
        return found

    @property
    def good(self) -> str:
        """Where the checkpoint is that was last saved or loaded, in words."""
        if self.last is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.last} ({int(self.last.name.partition('.')[0]):,} steps)"

    @property
    def _segments(self) -> Path:
        return self.folder / "segments"

    def _free_name(self, count: int) -> Path:
        # A count that is saved again gets a revision, because no portable call replaces a folder by another at once.
        names = {path.name for path in self.paths()}
        name, revision = f"{count:09d}", 0
        while name in names:
            revision += 1
            name = f"{count:09d}.{revision}"
        return self.folder / name

    def _still_alive(self, segments: Mapping[str, Segment]) -> list[_Stored]:
        kept = [s for s in self._carried if s.name not in segments or segments[s.name].alive(s.meta)]
        for stored in kept:
            if not (self._segments / stored.file).is_file():
                raise CheckpointError(self._segments / stored.file, "missing", "restore it from a copy, or train again")
        return kept

    def _write_segments(self, segments: Mapping[str, Segment], written: list[Path]) -> list[_Stored]:
        new = {name: segment for name, segment in segments.items() if any(t.numel() for t in segment.tensors.values())}
        if not new:
            return []
        self._segments.mkdir(exist_ok=True)
        # One count over all buffers: names that differ only by case are one file on some systems.
        taken = [int(path.stem.rpartition("-")[2]) for path in self._segments.glob("[!.]*-*.safetensors")]
        stored = []
        for number, (name, segment) in enumerate(new.items(), start=max(taken, default=0) + 1):
            file = self._segments / f"{name}-{number:06d}.safetensors"
            written.append(file)
            fingerprint = write_tensors(file, segment.tensors)
            # Through JSON, so that `alive` sees the same meta before and after a resume.
            stored.append(_Stored(name, file.name, *fingerprint, from_json(to_json(segment.meta))))
        sync_folder(self._segments)
        return stored

    def _prune(self, newest: Path) -> None:
        paths = self.paths()
        kept = paths[: paths.index(newest) + 1]
        # A dictionary by count: of a count that was saved again, only the last revision.
        kept = list({path.name.partition(".")[0]: path for path in kept}.values())[-self.keep :]
        _discard([path for path in paths if path not in kept])
        self._sweep(kept)

    def _sweep(self, kept: list[Path]) -> None:
        """Remove what a killed save left, and the segments that no kept checkpoint names."""
        _discard([*self.folder.glob(".tmp-*"), *self.folder.glob(".old-*")])
        if not self._segments.is_dir():
            return
        try:
            named = {stored.file for path in kept for stored in _read_manifest(path).segments}
        except CheckpointError:
            return  # nobody knows which segments the damaged one names
        _discard([path for path in self._segments.glob("*.safetensors") if path.name not in named])


def _key(name: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d{9,})(?:\.(\d+))?", name)
    return (int(found[1]), int(found[2] or 0)) if found else None


def _check(count: int, segments: Mapping[str, Segment]) -> None:
    if count < 0:
        raise ValueError(f"count: {count} is negative")
    for name, segment in segments.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise ValueError(f"segment {name!r} is no portable file name; use letters, digits, '_', '-' and '.'")
        to_json(segment.meta)
        for column, tensor in segment.tensors.items():
            if not stores_natively(tensor):
                raise TypeError(f"segment {name!r}, column {column!r}: {tensor.dtype} has no safetensors name")


def _discard(paths: Any) -> None:
    # What cannot be removed now (Windows keeps files that are mapped) the next save tries again; a folder is renamed
    # first, so that a kill while it is being removed never leaves half a checkpoint under a checkpoint's name.
    for path in paths:
        with suppress(OSError):
            if not path.is_dir():
                path.unlink(missing_ok=True)
                continue
            if not path.name.startswith("."):
                path = path.rename(path.with_name(f".old-{path.name}"))
            shutil.rmtree(path)


def _mapped(file: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)


def _verify(path: Path, expected: Fingerprint) -> None:
    try:
        what = damage(path, expected)
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    if what:
        raise CheckpointError(path, what, _REMEDY)


def _manifest_text(manifest: _Manifest) -> bytes:
    body = {
        "format": FORMAT,
        "count": manifest.count,
        "position": manifest.position,
        "files": {name: entry._asdict() for name, entry in manifest.files.items()},
        "segments": [vars(stored) for stored in manifest.segments],
    }
    return to_json({**body, "sha256": seal(body)}).encode()


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / _MANIFEST
    try:
        body = from_json(path.read_bytes())
        sealed = body.pop("sha256")
    except FileNotFoundError:
        raise CheckpointError(path, "missing", _REMEDY) from None
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})", _REMEDY) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise CheckpointError(path, f"truncated or changed: no JSON ({error.msg})", _REMEDY, where) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(path, "changed: no manifest", _REMEDY) from error
    if seal(body) != sealed:
        raise CheckpointError(path, "changed: its content is not what it was sealed with", _REMEDY)
    if body["format"] > FORMAT:
        what = f"{body['format']} is newer than the {FORMAT} that this palaestra reads"
        raise CheckpointError(path, what, "update palaestra", "field 'format'")
    return _Manifest(
        body["count"],
        body["position"],
        {name: Fingerprint(**entry) for name, entry in body["files"].items()},
        tuple(_Stored(**entry) for entry in body["segments"]),
    )
