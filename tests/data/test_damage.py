"""Damaged files: one line that says so, or, of a file that is merely different, a whole dataset. Nothing else.

Every file is read in a child process, which would show a crash of the HDF5 library or a hang.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from palaestra.data.files import write
from tests.data.logs import BOX, dataset, hdf5, logged, npz

h5py = pytest.importorskip("h5py")

LIMIT = 30.0  # seconds for one file; each takes milliseconds
MAZE = gym.spaces.Dict({"observation": BOX, "desired_goal": gym.spaces.Box(-1, 1, (2,), np.float64)})
LENGTHS = (7, 1, 12, 30, 4)


class Reader:
    """A child that reads files until it dies or hangs; then there is another."""

    def __init__(self) -> None:
        self.child: Any = None

    def __call__(self, path: Path) -> dict[str, Any]:
        if self.child is None:
            command = [sys.executable, "-m", "tests.data.reading"]
            self.child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            first = 120.0  # PyTorch is imported
        else:
            first = 0.0
        self.child.stdin.write(f"{path}\n")
        self.child.stdin.flush()
        if not select([self.child.stdout], [], [], LIMIT + first)[0]:
            self.stop()
            return {"died": "it hangs"}
        if line := self.child.stdout.readline():
            return dict(json.loads(line))
        code, said = self.child.wait(), self.child.stderr.read().strip().splitlines()
        self.child = None
        return {"died": f"exit code {code}: {said[-1] if said else ''}"}

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for stream in (self.child.stdin, self.child.stdout, self.child.stderr):
                with suppress(OSError):
                    stream.close()
            self.child = None


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    os.environ["PALAESTRA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    made = Reader()
    yield made
    made.stop()
    del os.environ["PALAESTRA_CACHE"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole files of every format, by name. "ours" are sealed."""
    folder = tmp_path_factory.mktemp("sound")
    data, maze = dataset(LENGTHS, env="Pendulum-v1"), dataset(LENGTHS, MAZE, gym.spaces.Discrete(4))
    image = dataset((4, 3), gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), gym.spaces.Discrete(4))
    files = {
        "ours.hdf5": write(data, folder / "ours.hdf5"),
        "ours-maze.hdf5": write(maze, folder / "ours-maze.hdf5"),
        "ours-image.hdf5": write(image, folder / "ours-image.hdf5"),
        "ours.npz": write(data, folder / "ours.npz"),
        "ours-folder": write(data, folder / "ours-folder"),
        "foreign-minari": write(maze, folder / "foreign-minari"),
        "d4rl.hdf5": hdf5(folder / "d4rl.hdf5", logged(data)),
        "d4rl-maze.hdf5": hdf5(folder / "d4rl-maze.hdf5", logged(maze, next_observations=False)),
        "d4rl-packed.hdf5": folder / "d4rl-packed.hdf5",
        "log.npz": npz(folder / "log.npz", logged(data)),
        "packed.npz": folder / "packed.npz",
        "slots.npz": npz(folder / "slots.npz", {**maze.columns, "lengths": maze.lengths}),
    }
    with h5py.File(folder / "foreign-minari" / "data" / "main_data.hdf5", "a") as file:
        del file.attrs["palaestra"], file["episode_0"].attrs["palaestra"]
    metadata = folder / "foreign-minari" / "data" / "metadata.json"
    said = json.loads(metadata.read_text())
    del said["palaestra"]
    metadata.write_text(json.dumps(said))
    with h5py.File(files["d4rl-packed.hdf5"], "w") as file:
        for name, array in logged(data).items():
            file.create_dataset(name, data=array, compression="gzip", shuffle=True, chunks=(16, *array.shape[1:]))
    np.savez_compressed(files["packed.npz"], **logged(data))  # type: ignore[arg-type]
    return files


# ------------------------------------------------------------------------------------------------- kinds of damage


def truncated(path: Path, rng: np.random.Generator) -> None:
    os.truncate(path, rng.integers(path.stat().st_size))


def flipped(path: Path, rng: np.random.Generator) -> None:
    """A few bits anywhere."""
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    at = rng.integers(len(content), size=rng.integers(1, 9))
    content[at] ^= (1 << rng.integers(8, size=len(at))).astype(np.uint8)
    path.write_bytes(content.tobytes())


def overwritten(path: Path, rng: np.random.Generator) -> None:
    """A block of zeros, or of noise."""
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    begin, size = rng.integers(len(content)), rng.integers(1, 512)
    block = content[begin : begin + size]
    block[:] = rng.integers(256, size=len(block)) if rng.integers(2) else 0
    path.write_bytes(content.tobytes())


def renamed(path: Path, rng: np.random.Generator) -> None:
    def change(fields: dict[str, np.ndarray], name: str) -> None:
        fields[str(rng.choice([f"{name}s", "x", name.upper(), "infos/x"]))] = fields.pop(name)

    _edited(path, rng, change)


def reshaped(path: Path, rng: np.random.Generator) -> None:
    def change(fields: dict[str, np.ndarray], name: str) -> None:
        array, which = fields[name], rng.integers(5)
        if which == 0:
            fields[name] = array[: rng.integers(len(array))]
        elif which == 1:
            fields[name] = np.concatenate([array, array])
        elif which == 2:
            fields[name] = np.stack([array, array], -1)
        elif which == 3:
            fields[name] = array.ravel()[0]
        else:
            fields[name] = array.T if array.ndim > 1 else array[None]

    _edited(path, rng, change)


def other_numbers(path: Path, rng: np.random.Generator) -> None:
    """NaN, infinities, other kinds of numbers, and what is none."""

    def change(fields: dict[str, np.ndarray], name: str) -> None:
        array, which = fields[name], rng.integers(5)
        if which < 2:
            array = array.astype(np.float64)
            array.flat[rng.integers(array.size)] = rng.choice([np.nan, np.inf, -np.inf, 0.5, 1e300])
        fields[name] = array if which < 2 else array.astype([np.int8, "S4", np.complex64][which - 2])

    _edited(path, rng, change)


def _edited(path: Path, rng: np.random.Generator, change: Callable[[dict[str, np.ndarray], str], None]) -> None:
    if path.suffix == ".npz":
        with np.load(path) as archive:
            fields = dict(archive)
        change(fields, str(rng.choice([name for name in fields if fields[name].ndim])))
        np.savez(path, **fields)  # type: ignore[arg-type]
        return
    if path.suffix == ".json":
        said = json.loads(path.read_text())
        name = str(rng.choice(list(said)))
        said[f"{name}s" if rng.integers(2) else name] = rng.choice([None, "x", 3])
        path.write_text(json.dumps(said, default=int))
        return
    with h5py.File(path, "a") as file:
        fields = {}
        file.visititems(lambda name, one: fields.update({name: one[()]}) if isinstance(one, h5py.Dataset) else None)
        before = dict(fields)
        change(fields, str(rng.choice([name for name in fields if fields[name].ndim])))
        for name in [name for name in before if fields.get(name) is not before[name]]:
            del file[name]
        for name in [name for name in fields if fields[name] is not before.get(name)]:
            file[name] = fields[name]


DAMAGE = (truncated, flipped, flipped, overwritten, renamed, reshaped, other_numbers)
# Kinds after which a foreign file may have another number of steps and be whole: it says so everywhere.
BYTES = (truncated, flipped, overwritten)


def read_damaged(number: int, sound: dict[str, Path], reader: Reader, folder: Path) -> Counter[str]:
    rng, counts = np.random.default_rng(number), Counter[str]()
    original = {name: reader(path) for name, path in sound.items()}
    assert all("hash" in answer and not answer["problems"] for answer in original.values()), original
    for index in range(number):
        name, damage = list(sound)[index % len(sound)], DAMAGE[index // len(sound) % len(DAMAGE)]
        path = folder / f"{index}-{name}"
        (shutil.copytree if sound[name].is_dir() else shutil.copy)(sound[name], path)
        parts = [part for part in path.rglob("*") if part.is_file()] or [path]
        part = parts[rng.integers(len(parts))]
        damage(part, rng)
        changed = (
            part.read_bytes() != (sound[name] / part.relative_to(path) if path.is_dir() else sound[name]).read_bytes()
        )
        answer = reader(path)
        what = f"file {index}: {damage.__name__} {part.name} of {name}: {answer}"
        assert "died" not in answer, what
        if "error" in answer:
            assert "\n" not in answer["error"], what
            assert str(path) in answer["error"], what
            assert answer["problems"], what
        elif name.startswith("ours"):
            assert answer["hash"] == original[name]["hash"], what
        elif damage in BYTES:
            assert answer["steps"] == original[name]["steps"], what
        counts["refused" if "error" in answer else "accepted" if changed else "unchanged"] += 1
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    return counts


def test_sixty_damaged_files(sound: dict[str, Path], reader: Reader, tmp_path: Path) -> None:
    counts = read_damaged(84, sound, reader, tmp_path)  # each format with each kind of damage
    assert counts["refused"] > 40, counts


@pytest.mark.slow
def test_two_thousand_damaged_files(sound: dict[str, Path], reader: Reader, tmp_path: Path) -> None:
    counts = read_damaged(2000, sound, reader, tmp_path)
    assert counts["refused"] > 1000, counts
