"""Kill runs at moments spread over all of their time, resume them, and compare with the run that nobody killed.

    python benchmarks/kills.py --base sac --kills 20

For each base: one uninterrupted run; then runs that get SIGKILL once each, the i-th somewhere in the i-th of equal
parts of the uninterrupted process's wall time (imports and the writing of checkpoints included), and are resumed to
the end. "identical" counts those whose last checkpoint (parameters, optimisers, replay, random streams, counters, the
environment's state) and rows of metrics (but for `seconds`) equal the uninterrupted run's bit for bit.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.runs.resuming import Job, differences, finish, finished, kill_after

SMALL = "hidden=(32, 32), batch_size=32, capacity=500, start=300"
JOBS = {
    "td3": Job(f"td3({SMALL})", "palaestra/PointMaze-v0", 1_600, 4, log_every=90, evaluate_every=310),
    "ddpg": Job(f"ddpg({SMALL})", "MountainCarContinuous-v0", 1_100, evaluate_every=730, episodes=1),
    "sac": Job(f"sac({SMALL})", "HalfCheetah-v5", 800, evaluate_every=610, episodes=1),
    "sac-discrete": Job(f"sac-discrete({SMALL})", "Acrobot-v1", 1_000, evaluate_every=430, episodes=1),
    "dqn": Job(f"dqn({SMALL}, target_every=70, exploration_steps=900)+n-step+prioritised", "CartPole-v1", 1_800, 3),
}


def place(folder: Path) -> str:
    """Where a kill struck, by what it left."""
    if not (folder / "run.json").exists():
        return "imports"
    checkpoints = folder / "checkpoints"
    if any(checkpoints.glob(".tmp-*")) or any(checkpoints.glob("segments/.*")):
        return "save"
    return "training" if any(checkpoints.glob("0*")) else "no checkpoint"


def judged(base: str, kills: int, seed: int, work: Path) -> tuple[float, dict[str, int], list[str]]:
    """The uninterrupted run's seconds, how many kills struck where, and what differed in which."""
    job, rng = JOBS[base], np.random.default_rng(seed)
    wall = finish(job, work / "uninterrupted")
    struck: dict[str, int] = {}
    wrong = []
    for i in range(kills):
        folder = work / str(i)
        moment = (i + rng.random()) / kills * wall
        kill_after(job, folder, moment)
        where = "done before" if finished(folder) else place(folder)
        struck[where] = struck.get(where, 0) + 1
        if where != "done before":
            finish(job, folder)
        if different := differences(work / "uninterrupted", folder):
            wrong.append(f"killed after {moment:.2f} s ({where}): {len(different)} differ, first {different[:3]}")
        shutil.rmtree(folder)
    return wall, struck, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=[*JOBS, "all"], default="all")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    places = ("imports", "no checkpoint", "training", "save", "done before")
    print(
        f"{'base':14}{'env':26}{'wall s':>8}{'kills':>7}", *(f"{p:>14}" for p in places), f"{'identical':>11}", sep=""
    )
    failed = False
    for base in JOBS if given.base == "all" else [given.base]:
        with tempfile.TemporaryDirectory() as work:
            wall, struck, wrong = judged(base, given.kills, given.seed, Path(work))
        counts = "".join(f"{struck.get(p, 0):14}" for p in places)
        identical = f"{given.kills - len(wrong)}/{given.kills}"
        print(f"{base:14}{JOBS[base].env:26}{wall:8.2f}{given.kills:7}{counts}{identical:>11}", flush=True)
        print(*(f"  {line}" for line in wrong), sep="\n", end="\n" if wrong else "")
        failed = failed or bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
