"""Kill a process at every step of a save, and then at random times, and look at what is left.

A script of its own, so that torch is imported once and the processes to kill are forked from a small, single one.
Usage: killing.py FOLDER
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from palaestra.runs.checkpoints import Checkpoints, Segment

STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir"}


def resume(folder: Path) -> tuple[Checkpoints, int]:
    checkpoints = Checkpoints(folder)
    newest = checkpoints.latest()
    damaged = checkpoints.problems + checkpoints.check()
    assert not damaged, damaged
    if newest is None:
        return checkpoints, 0
    count = newest.count
    assert torch.equal(newest.state["x"], torch.full((1000,), float(count)))
    rows = [int(segment.tensors["obs"][0]) for segment in newest.segments["replay"]]
    assert rows == [segment.meta["count"] for segment in newest.segments["replay"]]
    assert rows == list(range(max(1, count - 3), count + 1)), (count, rows)
    return checkpoints, count


def save(checkpoints: Checkpoints, count: int) -> None:
    segment = Segment({"obs": torch.full((50,), count)}, {"count": count}, lambda meta: meta["count"] >= count - 3)
    checkpoints.save(count, {"x": torch.full((1000,), float(count))}, {"replay": segment})


def killed_at(step: int, folder: Path) -> bool:
    """Whether a child that resumes and saves once was killed at that step, rather than done before it."""
    child = os.fork()
    if child == 0:
        checkpoints, count = resume(folder)
        left = step

        def hook(event: str, _: object) -> None:
            nonlocal left
            if event in STEPS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        save(checkpoints, count + 1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
    return status != 0


def killed_after(seconds: float, folder: Path) -> None:
    child = os.fork()
    if child == 0:
        checkpoints, count = resume(folder)
        while True:
            count += 1
            save(checkpoints, count)
    time.sleep(seconds)
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "died by itself"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


torch.set_num_threads(1)
folder = Path(sys.argv[1])
for _ in range(6):
    checkpoints, count = resume(folder)
    save(checkpoints, count + 1)
step = 0
while killed_at(step, folder):
    resume(folder)
    step += 1
random = np.random.default_rng()
for _ in range(15):
    killed_after(random.uniform(0.01, 0.1), folder)
    resume(folder)
checkpoints, count = resume(folder)
save(checkpoints, count + 1)
resume(folder)
assert [path.name for path in checkpoints.paths()] == [f"{count:09d}", f"{count + 1:09d}"]
assert len(list(folder.iterdir())) == 3, "leftovers of killed saves"
assert len(list((folder / "segments").iterdir())) == 5, "segments that nobody names"
print(f"{step} steps, {count + 1} saves")
