"""How many seconds does a seed take, when sixteen are wanted? One after another, stacked in one learner, in processes.

    python benchmarks/seeds.py --out docs/benchmarks
    python benchmarks/seeds.py --quick                      # tiny sizes, to see that it works

What is timed is the whole training loop in our own worlds, for the same number of environment steps a seed, once the
updates are under way. The ways:

  * one after another: single learners in one process, PyTorch's threads on all cores;
  * stacked: one learner of all seeds, PyTorch's threads on all cores;
  * two processes stacked: half of the seeds each, one thread each;
  * two processes one after another: what a user without stacking would do, one thread each.

Seconds a seed are those of the slowest process over the number of seeds. All ways are timed in each round, each round
in another order; medians over rounds.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import contest

WARM_UP = 50  # updates
OFF_POLICY = "(batch_size=256, start=100, capacity=20_000, hidden=({units}, {units}))"
# expression, environment, copies of it a seed, environment steps a seed
RECIPES = {
    "td3": (f"td3{OFF_POLICY}", "palaestra/Pendulum-v0", 1, 500),
    "sac": (f"sac{OFF_POLICY}", "palaestra/Pendulum-v0", 1, 500),
    "ppo": (
        "ppo(lr=1e-3, gamma=0.98, lam=0.8, collect=32, epochs=20, minibatches=1, value_coefficient=1.0, "
        "hidden=({units}, {units}))",
        "palaestra/CartPole-v0",
        8,
        2_560,
    ),
}
# processes and whether the seeds of each are stacked
WAYS = {
    "one after another": (1, False),
    "stacked": (1, True),
    "two processes, stacked": (2, True),
    "two processes, one after another": (2, False),
}


def groups(way: str, seeds: int) -> list[list[tuple[int, ...]]]:
    """For each process, the learners that it runs in turn, each by the seeds that it stacks."""
    processes, stacked = WAYS[way]
    each = seeds // processes
    shares = [tuple(range(first, first + each)) for first in range(0, seeds, each)]
    return [[share] if stacked else [(seed,) for seed in share] for share in shares]


def work(expression, world, copies, steps, learners, threads, process, barrier, results) -> None:
    """Run learners in turn; put the seconds that their steps took, after each one's warm-up, into `results`."""
    contest.limit(threads, first=process)
    from palaestra.envs.make import make_vector
    from palaestra.expression import parse
    from palaestra.loops.online import Online

    seconds = 0.0
    for seeds in learners:
        run = Online(parse(expression), make_vector(world, copies * len(seeds)), seeds)
        while run.learner.updates < WARM_UP:
            run.advance()
        barrier.wait()  # so that all processes are at work while one is timed
        begin, end = time.perf_counter(), run.env_steps + steps
        while run.env_steps < end:
            run.advance()
        seconds += time.perf_counter() - begin
    results.put(seconds)


def measure(algorithm: str, units: int, way: str, seeds: int, steps: int) -> dict:
    """Seconds a seed of one algorithm, size and way."""
    expression, world, copies, _ = RECIPES[algorithm]
    of_each = groups(way, seeds)
    threads = (os.cpu_count() or 1) if len(of_each) == 1 else 1
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(len(of_each), timeout=600), spawn.SimpleQueue()
    processes = [
        spawn.Process(
            target=work,
            args=(expression.format(units=units), world, copies, steps, learners, threads, i, barrier, results),
        )
        for i, learners in enumerate(of_each)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"{algorithm}, {units} units, {way}: a process ended with code {process.exitcode}")
    slowest = max(results.get() for _ in processes)
    name = f"{algorithm} {units} {way}"
    return {"name": name, "seconds_a_seed": round(slowest / seeds, 4), "threads": threads, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--units", type=int, nargs="+", default=[64, 256], help="of each of the two hidden layers")
    parser.add_argument("--seeds", type=int, default=16, help="an even number")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--quick", action="store_true", help="a round of four seeds, 16 units and a few steps")
    parser.add_argument("--out", type=Path, help="a folder for the raw figures")
    parser.add_argument("--way", choices=WAYS, help="time this alone, once, of the first algorithm and units")
    options = parser.parse_args()
    if options.quick:
        options.units, options.seeds, options.repeats = [16], 4, 1
    steps = {name: recipe[-1] // (10 if options.quick else 1) for name, recipe in RECIPES.items()}
    if options.way:
        algorithm = options.algorithms[0]
        print(json.dumps(measure(algorithm, options.units[0], options.way, options.seeds, steps[algorithm])))
        return
    quick = ["--quick"] if options.quick else []
    commands = {
        f"{algorithm} {units} {way}": (
            *(sys.executable, __file__, "--algorithms", algorithm, "--units", str(units)),
            *("--seeds", str(options.seeds), "--way", way, *quick),
        )
        for algorithm in options.algorithms
        for units in options.units
        for way in WAYS
    }
    settings = {name: {"env": RECIPES[name][1], "expression": RECIPES[name][0]} for name in options.algorithms}
    result = {"seeds": options.seeds, "units": options.units, "steps": steps, "settings": settings}
    contest.save(options.out, "seeds", contest.about() | result | {"rounds": contest.rounds(commands, options.repeats)})


if __name__ == "__main__":
    main()
