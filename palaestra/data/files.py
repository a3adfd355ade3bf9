"""Datasets from files and into files: Minari's HDF5 layout, D4RL's, and NumPy's .npz.

What a file holds goes straight into a dataset's arrays, a megabyte at a time. Those of a large file are made once, in
a folder of the cache, and mapped into memory; `PALAESTRA_CACHE` says where the cache is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gymnasium as gym
import numpy as np

from palaestra.data import arrays, hdf5, minari_layout
from palaestra.data.dataset import Arrays, Dataset, DatasetError
from palaestra.data.flat import flat
from palaestra.data.plan import RESTORE, Damaged, Findings, Plan, Problem, Sealed, Spaces, unseal
from palaestra.data.values import finite, inferred, inside
from palaestra.envs.border import describe, undescribe

LARGE = 2 << 30
LAYOUT = 1  # of the cache: another number makes old entries unknown
HDF5 = b"\x89HDF\r\n\x1a\n"
KINDS = "HDF5 in Minari's or D4RL's layout, or .npz"


def read(path: str | Path, *, env: str | gym.Env[Any, Any] | None = None, memory: int = LARGE) -> Dataset:
    """The dataset in a file, or in a folder of Minari's. `about` says where it is from and what was mended.

    `about` has "file", "format" ("minari", "flat" or "npz"), "env", "provenance", "spaces" ("file", "env" or
    "inferred"), and how many steps were "dropped" because nothing says what they led to, how many episodes were "cut"
    where rows do not continue, and how many had no end ("unended", truncated now).

    Args:
        path: a file, or a folder `.../data` of Minari's or the one above.
        env: whose spaces are the data's where the file does not say: a Gymnasium id, or an environment.
        memory: bytes; arrays that take more are kept in the cache and mapped.

    Raises:
        DatasetError: in one line, which file, where in it, what is wrong, and what would be right.
        UnknownEnvironment: there is no such `env`.
    """
    file = located(path)
    spaces = spaces_of(env)[0]
    place = cache() / _key(file, spaces)
    if (kept := _kept(place, file)) is not None:
        return kept
    found = Findings(file)
    with opened(file, spaces, found) as plan:
        if plan.nbytes <= memory:
            return finished(plan, filled(plan, found), found)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=place.parent) as folder:
            new = Path(folder) / "dataset"
            new.mkdir()
            _keep(finished(plan, filled(plan, found, new), found), new)
            with suppress(OSError):  # another process was faster, and has written the same
                new.rename(place)
            if _kept(place, file) is None:  # what is there is damaged
                with suppress(OSError):
                    place.rename(Path(folder) / "damaged")
                    new.rename(place)
            for written in (place, new):
                if (kept := _kept(written, file)) is not None:
                    return kept
            raise OSError(f"{place}: the arrays of {file} were removed while they were written")


def write(dataset: Dataset, path: str | Path) -> Path:
    """Write a dataset, whole or not at all.

    Args:
        dataset: with spaces that Minari knows.
        path: a new folder, in Minari's layout (`PATH/data/main_data.hdf5`; under `MINARI_DATASETS_PATH` and called
            NAME-v0, `minari.load_dataset` finds it); or a new file: .hdf5 (the same layout in one file) or .npz.

    Raises:
        DatasetError: there is something at `path`, or the `hdf5` extra is missing.
        OSError: the disk is full or not writable.
    """
    path = Path(path)
    if path.exists():
        raise DatasetError(f"{path}: there is something already; give another path, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=path.parent) as folder:
        new = Path(folder) / path.name
        if path.suffix == ".npz":
            with new.open("wb") as file:
                arrays.write(dataset, file)
        elif path.suffix in (".hdf5", ".h5"):
            minari_layout.write(dataset, new, path.stem)
        else:
            (new / "data").mkdir(parents=True)
            minari_layout.write(dataset, new / "data" / "main_data.hdf5", path.name)
        for written in [new, *new.rglob("*")]:
            if written.is_file():
                with written.open("rb+") as file:
                    os.fsync(file.fileno())
        new.rename(path)
    return path


# -------------------------------------------------------------------------------------------------------- reading


def located(path: str | Path) -> Path:
    """The file that a path means. DatasetError where there is none."""
    path = Path(path)
    if path.is_file():
        return path
    for candidate in (path / "data" / "main_data.hdf5", path / "main_data.hdf5"):
        if candidate.is_file():
            return candidate
    if not path.exists():
        raise DatasetError(f"{path}: there is no such file; a dataset is {KINDS}")
    if list(path.glob("**/data/metadata.json")) or (path / "metadata.json").exists():
        raise DatasetError(f"{path}: there is metadata and no main_data.hdf5; only Minari's HDF5 format is read")
    raise DatasetError(f"{path}: there is no main_data.hdf5 in this folder; a dataset is {KINDS}")


@contextmanager
def opened(file: Path, spaces: Spaces, found: Findings) -> Iterator[Plan]:
    """A file, and the plan of what is in it.

    Args:
        file: as `located` finds it.
        spaces: for what the file does not say.
        found: told what is wrong.
    """
    with ExitStack() as stack:
        with found.reading():
            with file.open("rb") as start:
                magic = start.read(8)
            if magic == HDF5:
                plan = _hdf5(stack.enter_context(hdf5.opened(file)), file, spaces, found)
            elif magic[:2] == b"PK":
                plan = _npz(stack.enter_context(zipfile.ZipFile(file)), file, spaces, found)
            else:
                raise Damaged(Problem(str(file), "", "it is neither HDF5 nor .npz", f"give {KINDS}"))
        yield plan


def filled(plan: Plan, found: Findings, folder: Path | None = None) -> Arrays:
    """The arrays of a plan: in memory, or mapped from files in a folder."""
    columns = {name: _array(name, (plan.slots, *one.shape), one.dtype, folder) for name, one in plan.columns.items()}
    with found.reading():
        plan.fill(columns)
    return columns


def finished(plan: Plan, columns: Arrays, found: Findings) -> Dataset:
    """The dataset of filled arrays, after a look at what is in them."""
    fields = {name: one.field for name, one in plan.columns.items()}
    finite(columns, plan.lengths, fields, found)
    spaces = inferred(columns, plan.lengths, plan.spaces, fields, found)
    about = plan.about if None not in plan.spaces else {**plan.about, "spaces": "inferred"}
    dataset = Dataset(columns, plan.lengths, *spaces, about)
    inside(dataset, fields, found)
    if plan.hash is not None and dataset.hash != plan.hash:
        what = f"its arrays were changed: their hash is {dataset.hash[:12]}, and {plan.hash[:12]} was written"
        found.wrong("", what, f"{RESTORE}, or if the change is meant, remove the attributes 'palaestra'")
    return dataset


def spaces_of(env: str | gym.Env[Any, Any] | None) -> tuple[Spaces, str | None]:
    """The spaces of an environment, and its id. `UnknownEnvironment` where it cannot be made."""
    from palaestra.envs.make import make_vector

    if env is None:
        return (None, None), None
    if isinstance(env, str):
        made = make_vector(env)
        made.close()
        return (made.single_observation_space, made.single_action_space), env
    single = (
        getattr(env, "single_observation_space", env.observation_space),
        getattr(env, "single_action_space", env.action_space),
    )
    return single, env.spec.id if env.spec else None


def _resolved(said: Spaces, given: Spaces, env: str | None) -> tuple[Spaces, dict[str, Any]]:
    """Spaces from whoever knows them, and what there is to say about them and the environment."""
    if env is not None and ":" in env:  # "MODULE:ID" imports a module: not because a file says so
        env = None
    source = "file"
    if None in said:
        source = "env"
        if None in given and env is not None:
            with suppress(Exception):  # an environment that cannot be made here tells nothing
                given = spaces_of(env)[0]
    return (said[0] or given[0], said[1] or given[1]), {"env": env, "spaces": source}


def _hdf5(content: Any, file: Path, given: Spaces, found: Findings) -> Plan:
    said = minari_layout.metadata(content, file, found)
    sealed = unseal(said["palaestra"], found) if "palaestra" in said else None
    is_minari = any(name.startswith("episode_") for name in content)
    if sealed is not None:
        if sealed.spaces != (given := minari_layout.spaces_of(said, found)) and None not in given:
            found.wrong("metadata.json", "it says something else of the spaces than the HDF5 file", RESTORE)
        plan = minari_layout.plan(content, file, said, found, sealed.spaces, _told(sealed, file), sealed.columns)
        return dataclasses.replace(plan, hash=sealed.hash)
    if is_minari:
        spaces, about = _resolved(minari_layout.spaces_of(said, found), given, minari_layout.env_of(said))
        about |= {"file": str(file), "format": "minari", "provenance": minari_layout.origin(said)}
        return minari_layout.plan(content, file, said, found, spaces, about)
    env = next((said[key] for key in ("env", "env_id", "env_name") if isinstance(said.get(key), str)), None)
    spaces, about = _resolved((None, None), given, env)
    return flat(hdf5.arrays(content, found), file, found, spaces, {**about, "file": str(file), "format": "flat"})


def _npz(content: zipfile.ZipFile, file: Path, given: Spaces, found: Findings) -> Plan:
    fields = arrays.members(content)
    words = {name: one.scalar() for name, one in fields.items() if one.dtype.kind == "U" and one.shape == ()}
    numbers = {name: one for name, one in fields.items() if name not in words}
    if "palaestra" in words:
        sealed = unseal(words["palaestra"], found)
        plan = flat(numbers, file, found, sealed.spaces, _told(sealed, file), sealed.columns)
        return dataclasses.replace(plan, hash=sealed.hash)
    spaces, about = _resolved((None, None), given, words.get("env"))
    return flat(numbers, file, found, spaces, {**about, "file": str(file), "format": "npz"})


def _told(sealed: Sealed, file: Path) -> dict[str, Any]:
    kind = "npz" if file.suffix == ".npz" else "minari"
    return {"spaces": "file", **sealed.about, "file": str(file), "format": kind}


def _array(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], folder: Path | None) -> np.ndarray:
    if folder is None:
        return np.zeros(shape, dtype)
    path = folder / f"{quote(name, safe='')}.npy"
    mapped: np.ndarray = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a signal that kills once it is mapped
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return mapped


# ---------------------------------------------------------------------------------------------------------- the cache


def cache() -> Path:
    """The folder of converted datasets: `PALAESTRA_CACHE`, or the platform's folder for caches."""
    if said := os.environ.get("PALAESTRA_CACHE"):
        return Path(said) / "datasets"
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "palaestra" / "datasets"


def _key(file: Path, spaces: Spaces) -> str:
    """Another for another file, and for the same one after a change."""
    stats = [one.stat() for one in (file, file.with_name("metadata.json")) if one.exists()]
    known = [describe(space) if space is not None else None for space in spaces]
    parts = [LAYOUT, str(file.resolve()), [(one.st_size, one.st_mtime_ns) for one in stats], known]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _keep(dataset: Dataset, folder: Path) -> None:
    """Say beside the arrays, which are in the folder, what they are."""
    for column in dataset.columns.values():
        column.flush()  # type: ignore[attr-defined]
    np.save(folder / "lengths.npy", dataset.lengths)
    said = {
        "hash": dataset.hash,
        "observation_space": describe(dataset.observation_space),
        "action_space": describe(dataset.action_space),
        "columns": list(dataset.columns),
        "about": dataset.about,
    }
    (folder / "dataset.json").write_text(json.dumps(said, default=str))


def _kept(folder: Path, file: Path) -> Dataset | None:
    """The dataset in a folder of the cache, or None where there is none that can be read."""
    with suppress(OSError, ValueError, KeyError, EOFError):
        said = json.loads((folder / "dataset.json").read_text())
        columns = {name: np.load(folder / f"{quote(name, safe='')}.npy", mmap_mode="r") for name in said["columns"]}
        spaces = undescribe(said["observation_space"]), undescribe(said["action_space"])
        dataset = Dataset(columns, np.load(folder / "lengths.npy"), *spaces, {**said["about"], "file": str(file)})
        vars(dataset)["hash"] = said["hash"]  # known since the conversion: reading all of a large file takes long
        return dataset
    return None
