"""How long does one gradient step take, ours and the peers', side by side on this machine?

    python benchmarks/throughput.py ours sac --compile      # one measurement, one JSON line
    python benchmarks/throughput.py sb3 sac
    python benchmarks/throughput.py sbx td3
    python benchmarks/throughput.py peak                    # what this machine's matrix products reach
    python benchmarks/throughput.py all --repeats 5 --peers-python peers/bin/python

What is timed is everything between two environment steps: sampling 256 of 100,000 stored rows (17 observations,
6 actions), the losses, their gradients, the optimisers and the target networks, with two hidden layers of 256 units.
Environment steps, warm-up and compilation are left out.

Absolute times drift from machine to machine and from minute to minute. So `all` runs every contestant in a process of
its own, in turn and each time in another order, with the same threads and the same cores, and prints medians, ratios
to a peer timed in the same round, and the share of the matrix-product peak. Run it on an idle machine: one busy
neighbour slows a contestant with as many threads as there are cores several times over.

SBX appears twice. One update a call is what an online loop with one gradient step an environment step does; 60 a call
run inside one compiled loop, which is what SBX does best and what learning from a fixed data set could use.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

OBS, ACTIONS, UNITS, BATCH, ROWS = 17, 6, 256, 256, 100_000
BLOCKS, UPDATES, WARM_UP = 15, 60, 120

Steps = Callable[[int], None]  # takes that many gradient steps


def flops(algorithm: str) -> float:
    """What the matrix products of one update cost: 590 million operations for SAC, 422 for TD3.

    A forward pass of a network counts 1, its weights' gradient 1, its inputs' gradient 1, bias and activation nothing.
    SAC: the actor proposes (1) two target critics judge (2 critics x 1); two critics learn (2 x 3); the actor
    learns (3) through two critics whose weights need no gradient (2 x 2). TD3: a target actor (1), two target critics
    (2 x 1), two critics (2 x 3), and every other update the actor (3) through one critic (2).
    """

    def products(inputs: int, outputs: int) -> int:
        return inputs * UNITS + UNITS * UNITS + UNITS * outputs

    critic = products(OBS + ACTIONS, 1)
    if algorithm == "sac":
        actor = products(OBS, 2 * ACTIONS)  # means and standard deviations
        total = 4 * actor + 12 * critic
    else:
        actor = products(OBS, ACTIONS)
        total = (1 + 3 / 2) * actor + (8 + 2 / 2) * critic
    return 2.0 * BATCH * total  # a multiplication and an addition


def ours(algorithm: str, compile: bool) -> Steps:
    """Ours, as `palaestra.loops.online` calls it."""
    import torch

    from palaestra.algorithms.sac import sac
    from palaestra.algorithms.td3 import td3
    from palaestra.batch import Space, Spec
    from palaestra.data.replay import Replay
    from palaestra.learner import Learner, generator

    value = {"sac": sac, "td3": td3}[algorithm](hidden=(UNITS, UNITS), batch_size=BATCH)
    learner = Learner(value, Spec(Space((OBS,)), Space((ACTIONS,))), compile=compile)
    rng = generator(0, "benchmark")
    environments = 100  # only to fill it quickly
    replay = Replay(value.buffers["replay"], environments)
    shape = (ROWS // environments, environments)
    ends = torch.rand(shape, generator=rng) < 0.01
    never = torch.zeros(shape, dtype=torch.bool)
    replay.insert(
        {
            "obs": torch.randn(*shape, OBS, generator=rng),
            "next_obs": torch.randn(*shape, OBS, generator=rng),
            "action": torch.rand(*shape, ACTIONS, generator=rng) * 2 - 1,
            "reward": torch.randn(shape, generator=rng),
            "terminated": ends,
            "truncated": never,
            "first": torch.cat([~never[:1], ends[:-1]]),
            "valid": ~never,
        }
    )

    def steps(count: int) -> None:
        for _ in range(count):
            learner.update({"replay": replay.sample(BATCH, rng, learner.nets.clock)})

    return steps


def dummy_env():
    """Never stepped: it only tells a peer the shapes."""
    import gymnasium as gym
    import numpy as np

    class Dummy(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (ACTIONS,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(OBS, np.float32), {}

    return Dummy()


def peer(model, per_call: int) -> Steps:
    """`model.train`, which is what both peers' `learn` calls after an environment step, on a full replay buffer."""
    import numpy as np
    from stable_baselines3.common.logger import Logger

    rng = np.random.default_rng(0)
    for _ in range(ROWS):
        model.replay_buffer.add(
            rng.standard_normal((1, OBS), np.float32),
            rng.standard_normal((1, OBS), np.float32),
            rng.uniform(-1, 1, (1, ACTIONS)).astype(np.float32),
            rng.standard_normal(1, np.float32),
            rng.random(1) < 0.01,
            [{}],
        )
    model.set_logger(Logger(folder=None, output_formats=[]))

    def steps(count: int) -> None:
        for _ in range(count // per_call):
            model.train(gradient_steps=per_call, batch_size=BATCH)  # ends by reading its losses, so JAX has finished

    return steps


def sb3(algorithm: str, per_call: int) -> Steps:
    import stable_baselines3
    from torch import nn

    kind = getattr(stable_baselines3, algorithm.upper())
    policy = {"net_arch": [UNITS, UNITS], "activation_fn": nn.ReLU}
    return peer(kind("MlpPolicy", dummy_env(), policy_kwargs=policy, buffer_size=ROWS, device="cpu"), per_call)


def sbx(algorithm: str, per_call: int) -> Steps:
    import sbx

    kind = getattr(sbx, algorithm.upper())
    return peer(kind("MlpPolicy", dummy_env(), policy_kwargs={"net_arch": [UNITS, UNITS]}, buffer_size=ROWS), per_call)


def measure(steps: Steps) -> dict[str, float]:
    """Median milliseconds an update, over blocks. UPDATES and WARM_UP are multiples of a peer's updates a call."""
    steps(WARM_UP)
    blocks = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        steps(UPDATES)
        blocks.append((time.perf_counter() - start) / UPDATES * 1e3)
    middle = statistics.median(blocks)
    return {
        "ms_per_update": round(middle, 3),
        "updates_per_s": round(1e3 / middle, 1),
        "ms_best": round(min(blocks), 3),
    }


def peak() -> dict[str, float]:
    """The best rate of single-precision matrix products, in GFLOP/s: at a layer's shape, and at a large one."""
    import torch

    def rate(size: int, seconds: float = 2.0) -> float:
        left, right, out = (torch.ones(size, size) for _ in range(3))
        count = max(1, int(2e8 / size**3))
        best, end = 0.0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(count):
                torch.mm(left, right, out=out)
            best = max(best, count * 2 * size**3 / (time.perf_counter() - start))
        return round(best / 1e9, 1)

    return {"gflops_256": rate(256), "gflops_2048": rate(2048)}


def limit(threads: int) -> None:
    """Same threads and same cores for everybody. Before torch and jax are imported: they read it then."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):  # JAX has no setting for its threads: it counts the cores that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


# -------------------------------------------------------------------------------------------------- side by side

CONTESTANTS = {
    "ours": ("ours", "--no-compile"),
    "ours, compiled": ("ours", "--compile"),
    "SB3": ("sb3",),
    "SBX": ("sbx",),
    "SBX, 60 a call": ("sbx", "--updates-per-call", "60"),
}
PEERS = {"x SB3": "SB3", "x SBX": "SBX", "x SBX 60": "SBX, 60 a call"}


def child(python: str, *arguments: str) -> dict | None:
    """One measurement in a process of its own; None, with the reason on standard error, if it fails."""
    done = subprocess.run([python, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        print(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    line = done.stdout.splitlines()[-1]
    print(line, file=sys.stderr)  # as it comes, since a round takes minutes
    return json.loads(line)


def side_by_side(repeats: int, peers_python: str, threads: int, out: Path | None) -> None:
    limits = ("--threads", str(threads))
    rounds = []
    for repeat in range(repeats):
        result = {"peak": child(sys.executable, "peak", *limits)}
        names = list(CONTESTANTS)
        for algorithm in ("sac", "td3"):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                who, *options = CONTESTANTS[name]
                python = sys.executable if who == "ours" else peers_python
                result[f"{algorithm} {name}"] = child(python, who, algorithm, *options, *limits)
        rounds.append(result)
    if out:
        out.write_text(json.dumps({"threads": threads, "rounds": rounds}, indent=1) + "\n")
    print_table(rounds)


def print_table(rounds: list[dict]) -> None:
    """Medians over rounds; ratios and shares are taken within a round first. A ratio above 1 is faster than a peer."""

    def median(values: list[float], digits: int) -> str:
        return f"{statistics.median(values):.{digits}f}" if values else "-"

    rates = [r["peak"]["gflops_256"] for r in rounds if r["peak"]]
    peak_rate = max(rates, default=float("nan"))  # a property of the machine: what disturbs a round only lowers it
    print(f"matrix products at 256 x 256 x 256: {peak_rate:.0f} GFLOP/s")
    print(f"{'':22}{'ms':>8}{'range':>16}{''.join(f'{head:>10}' for head in PEERS)}{'of peak':>9}")
    for algorithm in ("sac", "td3"):
        times = {
            name: {i: r[key]["ms_per_update"] for i, r in enumerate(rounds) if r[key]}
            for name in CONTESTANTS
            for key in [f"{algorithm} {name}"]
        }
        for name, mine in times.items():
            spread = f"{min(mine.values()):.2f}-{max(mine.values()):.2f}" if mine else "-"
            ratios = (
                median([theirs / mine[i] for i, theirs in times[peer].items() if i in mine], 2)
                for peer in PEERS.values()
            )
            share = median([100 * flops(algorithm) / (ms * 1e6) / peak_rate for ms in mine.values()], 0)
            print(
                f"{algorithm + ', ' + name:22}{median(list(mine.values()), 2):>8}{spread:>16}"
                f"{''.join(f'{ratio:>10}' for ratio in ratios)}{share + ' %':>9}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    limits = argparse.ArgumentParser(add_help=False)
    limits.add_argument("--threads", type=int, default=2)
    commands = parser.add_subparsers(dest="who", required=True)
    for who in ("ours", "sb3", "sbx"):
        command = commands.add_parser(who, parents=[limits])
        command.add_argument("algorithm", choices=["sac", "td3"])
        if who == "ours":
            command.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
        else:
            command.add_argument("--updates-per-call", type=int, default=1, help="a divisor of 60")
    commands.add_parser("peak", parents=[limits])
    command = commands.add_parser("all", parents=[limits])
    command.add_argument("--repeats", type=int, default=5)
    command.add_argument("--peers-python", default=sys.executable, help="the Python that has SB3 and SBX")
    command.add_argument("--out", type=Path, help="a JSON file for the raw figures")
    options = parser.parse_args()

    if options.who == "all":
        return side_by_side(options.repeats, options.peers_python, options.threads, options.out)
    limit(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    if options.who == "peak":
        result = {"name": "peak", **peak()}
    elif options.who == "ours":
        compiled = ", compiled" if options.compile else ""
        result = {"name": f"ours {options.algorithm}{compiled}", **measure(ours(options.algorithm, options.compile))}
    else:
        steps = {"sb3": sb3, "sbx": sbx}[options.who](options.algorithm, options.updates_per_call)
        result = {"name": f"{options.who} {options.algorithm}", **measure(steps)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
