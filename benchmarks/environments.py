"""Steps a second of our own worlds: 1,024 copies, one core, random actions, NEXT_STEP autoreset, median of 5.

python -m benchmarks.environments [--copies 1024] [--steps 500]
"""

from __future__ import annotations

import os

# Before NumPy is imported: one core is what is measured.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import argparse
import statistics
import time

import gymnasium

import palaestra.envs  # noqa: F401 (registers the ids)
from palaestra.envs.registration import WORLDS


def steps_a_second(name: str, copies: int, steps: int, repeats: int = 5) -> list[float]:
    """Single-copy steps a second of `repeats` runs of `steps` vector steps, after a warm-up of a fifth of them."""
    env = gymnasium.make_vec(name, copies)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(64)]
    rates = []
    for run in range(repeats + 1):
        count = steps if run else steps // 5
        began = time.perf_counter()
        for step in range(count):
            env.step(actions[step % len(actions)])
        rates.append(count * copies / (time.perf_counter() - began))
    env.close()
    return rates[1:]


def main() -> None:
    """Print a line for each world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=500, help="vector steps a repeat")
    arguments = parser.parse_args()
    print(f"{'world':40} {'median':>12} {'lowest':>12}  steps a second, {arguments.copies} copies")
    for name in WORLDS:
        rates = steps_a_second(name, arguments.copies, arguments.steps)
        print(f"{name:40} {statistics.median(rates):12,.0f} {min(rates):12,.0f}")


if __name__ == "__main__":
    main()
