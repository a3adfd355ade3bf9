"""Train in a process of its own, kill it, resume it, and compare the end with that of a run that nobody killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palaestra.data.replay import EMPTY, STEP
from palaestra.runs.checkpoints import Checkpoint, Checkpoints

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "egl"}

# The command line, in a process that kills itself at the n-th thing it does to a file or folder of the checkpoints.
DOOMED = """
import os, signal, sys

left = int(sys.argv.pop(1))
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir"}

def hook(event, arguments):
    global left
    if event in STEPS and "checkpoints" in str(arguments[0]):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
from palaestra.cli import main
main()
"""


@dataclass(frozen=True)
class Job:
    """A training: no period is a multiple of another, so that a checkpoint never falls on a quiet moment."""

    expression: str
    env: str
    steps: int
    environments: int = 1
    log_every: int = 30
    evaluate_every: int = 70
    checkpoint_every: int = 50
    episodes: int = 2
    seed: int = 3
    seeds: str | None = None  # several, stacked, in the place of the one

    def verb(self, folder: Path) -> list[str]:
        """Arguments that begin the run, or continue it where it has begun."""
        if (folder / "run.json").exists():
            return ["train", "--resume", str(folder)]
        names = ("steps", "environments", "log_every", "evaluate_every", "checkpoint_every", "episodes", "seed")
        if self.seeds is not None:
            names = names[:-1]
        numbers = [text for n in names for text in (f"--{n.replace('_', '-')}", str(getattr(self, n)))]
        several = [] if self.seeds is None else ["--seeds", self.seeds, "--together", "stacked"]
        which = ["train", self.expression, "--env", self.env, *several]
        return [*which, *numbers, "--threads", "1", "--out", str(folder)]


class Wrong(AssertionError):
    """A process ended as it should not have; holds what it said."""


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)


def _ended(process: subprocess.Popen[str], killed: bool) -> bool:
    """Whether it was killed; `Wrong` where it ended otherwise than by the kill or by itself in peace."""
    with process:
        _, said = process.communicate()
    if process.returncode not in ((0, -signal.SIGKILL) if killed else (0,)):
        raise Wrong(f"exit code {process.returncode}: {said}")
    return process.returncode != 0


def finished(folder: Path) -> bool:
    about = folder / "run.json"
    return about.exists() and json.loads(about.read_text())["status"] == "finished"


def finish(job: Job, folder: Path) -> float:
    """Run it, or the rest of it, to the end; the seconds that the process took."""
    began = time.perf_counter()
    _ended(_start(["-m", "palaestra", *job.verb(folder)]), killed=False)
    return time.perf_counter() - began


def kill_after(job: Job, folder: Path, seconds: float, training: bool = False) -> bool:
    """Whether a process that (re)starts the run was killed so many seconds after its start, or done before.

    With `training` the seconds count from the moment that it says that training begins.
    """
    process = _start(["-m", "palaestra", *job.verb(folder)])
    if training:
        assert process.stderr is not None
        process.stderr.readline()
    time.sleep(seconds)
    process.kill()
    return _ended(process, killed=True)


def kill_in_a_save(job: Job, folder: Path, step: int) -> bool:
    """Whether a process that (re)starts the run was killed at that step of all its saves, or done before."""
    return _ended(_start(["-c", DOOMED, str(step), *job.verb(folder)]), killed=True)


def training_seconds(folder: Path) -> float:
    return max(row["seconds"] for row in rows(folder))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def final(folder: Path) -> Checkpoint:
    """The last checkpoint, which no damaged one may follow."""
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    assert not checkpoints.problems, checkpoints.problems
    return checkpoint


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, object]]:
    """Every tensor, array and number by its path, in a form that is equal only if it is equal bit for bit."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        yield f"{path}/length", len(tree)
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{path}/{index}")
    elif isinstance(tree, Tensor | np.ndarray):
        array = tree.numpy() if isinstance(tree, Tensor) else tree
        yield path, (str(tree.dtype), tuple(tree.shape), array.tobytes())
    else:
        yield path, (type(tree).__name__, repr(tree))


def _kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of a replay, with zeros where it keeps none: a slot that is no step holds at most an observation, and the
    other columns lie in memory that nobody has written."""
    kind = tensors["kind"]
    kept = {}
    for key, value in tensors.items():
        rows = kind != EMPTY if key.split("/")[0] in ("obs", "kind") else kind == STEP
        kept[key] = value.where(rows.view(-1, *[1] * (value.dim() - 1)), torch.zeros_like(value))
    return kept


def contents(folder: Path) -> dict[str, object]:
    """All that a finished run holds, but for what depends on the clock on the wall."""
    checkpoint = final(folder)
    state = {key: value for key, value in checkpoint.state.items() if key != "seconds"}
    segments = {n: [[_kept(s.tensors), s.meta] for s in some] for n, some in checkpoint.segments.items()}
    status = json.loads((folder / "run.json").read_text())["status"]
    metrics = [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder)]
    everything = {"status": status, "state": state, "segments": segments, "metrics": metrics, "at": checkpoint.count}
    return dict(_leaves(everything))


def differences(left: Path, right: Path) -> list[str]:
    """Where two finished runs differ."""
    one, other = contents(left), contents(right)
    return [path for path in {**one, **other} if one.get(path, "missing") != other.get(path, "missing")]
