"""How long does a gradient step take, and how fast is the whole training loop? Ours and the peers', side by side.

    python benchmarks/throughput.py all --peers-python PEERS/bin/python --out docs/benchmarks   # everything
    python benchmarks/throughput.py all --only steps --repeats 3
    python benchmarks/throughput.py ours sac --compile      # one gradient step's measurement, one JSON line
    python benchmarks/throughput.py sbx td3
    python benchmarks/throughput.py peak                    # what this machine's matrix products reach

A gradient step is everything between two environment steps: sampling 256 of 100,000 stored rows (17 observations,
6 actions), the losses, their gradients, the optimisers and the target networks, with two hidden layers of 256 units.
Environment steps, warm-up and compilation are left out. For the whole loop see `loops.py`, and for how all are timed
`contest.py`; results are medians over rounds.

SBX appears twice. One update a call is what an online loop with one gradient step an environment step does; 60 a call
run inside one compiled loop, which is what SBX does best and what learning from a fixed data set could use.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import contest
import loops

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


def filled(value, environments: int, rows: int, device: str = "cpu", seeds: int = 1):
    """The replay of an algorithm with so many random rows of each seed."""
    import torch

    from palaestra.data.replay import Replay
    from palaestra.learner import generator

    rng = generator(0, "benchmark")
    replay = Replay(value.buffers["replay"], environments * seeds, device, seeds)
    shape = (rows // environments, environments * seeds)
    ends = torch.rand(shape, generator=rng) < 0.01
    never = torch.zeros(shape, dtype=torch.bool)
    steps = {
        "obs": torch.randn(*shape, OBS, generator=rng),
        "next_obs": torch.randn(*shape, OBS, generator=rng),
        "action": torch.rand(*shape, ACTIONS, generator=rng) * 2 - 1,
        "reward": torch.randn(shape, generator=rng),
        "terminated": ends,
        "truncated": never,
        "first": torch.cat([~never[:1], ends[:-1]]),
        "valid": ~never,
    }
    replay.insert({key: column.to(device) for key, column in steps.items()})
    return replay


def ours(algorithm: str, compile: bool) -> Steps:
    """Ours, as `palaestra.loops.online` calls it."""
    from palaestra.algorithms.sac import sac
    from palaestra.algorithms.td3 import td3
    from palaestra.batch import Space, Spec
    from palaestra.learner import Learner, generator

    value = {"sac": sac, "td3": td3}[algorithm](hidden=(UNITS, UNITS), batch_size=BATCH)
    learner = Learner(value, Spec(Space((OBS,)), Space((ACTIONS,))), compile=compile)
    rng = generator(0, "drawing")
    replay = filled(value, 100, ROWS)  # a hundred environments, only to fill it quickly

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


# -------------------------------------------------------------------------------------------------- side by side

CONTESTANTS = {
    "ours": ("ours", "--no-compile"),
    "ours, compiled": ("ours", "--compile"),
    "SB3": ("sb3",),
    "SBX": ("sbx",),
    "SBX, 60 a call": ("sbx", "--updates-per-call", "60"),
}


def side_by_side(repeats: int, peers_python: str, threads: int, out: Path | None) -> None:
    """The gradient step of every contestant, for SAC and TD3, and the peak of matrix products in each round."""
    limits = ("--threads", str(threads))
    commands = {"peak": (sys.executable, __file__, "peak", *limits)}
    for algorithm in ("sac", "td3"):
        for name, (who, *options) in CONTESTANTS.items():
            python = sys.executable if who == "ours" else peers_python
            commands[f"{algorithm} {name}"] = (python, __file__, who, algorithm, *options, *limits)
    rounds = contest.rounds(commands, repeats)
    contest.save(
        out, "throughput", contest.about(sys.executable, peers_python) | {"threads": threads, "rounds": rounds}
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
    command.add_argument("--only", choices=["steps", "loops"], help="both when left out")
    command.add_argument(
        "--algorithms",
        nargs="+",
        choices=loops.BLOCK,
        default=list(loops.BLOCK),
        help="of the loops; all when left out",
    )
    command.add_argument("--repeats", type=int, default=5, help="rounds")
    command.add_argument("--scale", type=float, default=1.0, help="of the loops' length")
    command.add_argument("--peers-python", default=sys.executable, help="the Python that has SB3 and SBX")
    command.add_argument("--out", type=Path, help="a folder for the raw figures")
    options = parser.parse_args()

    if options.who == "all":
        if options.only != "loops":
            side_by_side(options.repeats, options.peers_python, options.threads, options.out)
        if options.only != "steps":
            loops.side_by_side(
                options.algorithms, options.repeats, options.peers_python, options.threads, options.scale, options.out
            )
        return
    contest.limit(options.threads)
    if options.who == "peak":
        rates = {f"gflops_{size}": contest.product_rate(size) for size in (256, 2048)}  # a layer's shape, a large one
        result = {"name": "peak", **rates}
    elif options.who == "ours":
        compiled = ", compiled" if options.compile else ""
        result = {"name": f"ours {options.algorithm}{compiled}", **measure(ours(options.algorithm, options.compile))}
    else:
        steps = {"sb3": sb3, "sbx": sbx}[options.who](options.algorithm, options.updates_per_call)
        result = {"name": f"{options.who} {options.algorithm}", **measure(steps)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
