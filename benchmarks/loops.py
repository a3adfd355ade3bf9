"""How many environment steps a second does the whole training loop make? Collecting, inserting, drawing, updating.

    python benchmarks/throughput.py all --only loops --threads 1 --peers-python PEERS/bin/python --out docs/benchmarks
    python benchmarks/loops.py ours ppo                     # one measurement, one JSON line
    python benchmarks/loops.py ours ppo --world palaestra/CartPole-v0
    python benchmarks/loops.py sb3 ppo

Settings are the recipes of `learning.py` and `peers_learning.py`: equal, and those that the learning curves are of.
Time is counted from when the updates are under way, so that warm-up, compilation and the first, random steps are left
out. Nobody evaluates, logs or saves; every contestant sums up its episodes' returns, as its loop always does.

Ours runs in the same Gymnasium environments as the peers, `SyncVectorEnv` beside their `DummyVecEnv`, and in our
own worlds, where there is one; and in the first again with losses that `torch.compile` has fused. The first two compare
loops; the other is what our own worlds make of them.
SBX takes the same settings but for what it does not have: its DQN does not clip gradients.
"""

import argparse
import inspect
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import contest
from learning import RECIPES

NATIVE = {"Pendulum-v1": "palaestra/Pendulum-v0", "CartPole-v1": "palaestra/CartPole-v0"}
# Environment steps of a block (a multiple of what is collected at once), which takes a second or two.
BLOCK = {"sac": 512, "td3": 512, "sac-halfcheetah": 256, "td3-halfcheetah": 256, "dqn": 2_560, "ppo": 5_120}
BLOCKS = 5


def warm_up(algorithm: str) -> int:
    """Environment steps before the first block: the random ones, and a block."""
    random = {"sac-halfcheetah": 10_000, "td3-halfcheetah": 10_000, "ppo": 0}.get(algorithm, 1_000)
    return random + BLOCK[algorithm]


class Blocks:
    """Told of every environment step count at which nothing is in progress, it times blocks of so many steps."""

    def __init__(self, first: int, length: int) -> None:
        self.next, self.length = first, length
        self.marks: list[tuple[int, float]] = []

    def at(self, env_steps: int) -> bool:
        """Whether there is more to time."""
        if env_steps >= self.next:
            self.marks.append((env_steps, time.perf_counter()))
            self.next = env_steps + self.length
        return len(self.marks) <= BLOCKS

    def result(self) -> dict[str, float]:
        pairs = zip(self.marks, self.marks[1:], strict=False)
        rates = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairs]
        return {"steps_per_s": round(statistics.median(rates), 1), "best": round(max(rates), 1)}


def ours(algorithm: str, world: str | None, compile: bool, blocks: Blocks) -> None:
    from palaestra.envs.make import make_vector
    from palaestra.expression import parse
    from palaestra.loops.online import Online

    recipe = RECIPES[algorithm]
    run = Online(parse(recipe.expression), make_vector(world or recipe.env, recipe.environments), compile=compile)
    while blocks.at(run.env_steps):
        run.advance()


def theirs(library: str, algorithm: str, blocks: Blocks) -> None:
    from peers_learning import RECIPES, arguments, made
    from stable_baselines3.common.callbacks import BaseCallback

    class Clock(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.more = blocks.at(self.num_timesteps)

        def _on_step(self) -> bool:
            return self.more

    model = made(algorithm, seed=0)
    recipe = RECIPES[algorithm]
    if library == "sbx":
        import sbx

        kind = getattr(sbx, recipe.kind.__name__)
        settings = arguments(recipe, model.get_env())
        settings = {key: value for key, value in settings.items() if key in inspect.signature(kind).parameters}
        # Its activations are as the recipe's by default.
        model = kind("MlpPolicy", model.get_env(), policy_kwargs={"net_arch": list(recipe.net)}, seed=0, **settings)
    model.learn(recipe.steps, callback=Clock(), log_interval=None)  # schedules are of its length; the clock ends it


# -------------------------------------------------------------------------------------------------- side by side


def contestants(algorithms: Sequence[str], threads: int, scale: float, peers_python: str) -> dict[str, tuple[str, ...]]:
    commands = {}
    for algorithm in algorithms:
        options = (algorithm, "--threads", str(threads), "--scale", str(scale))
        env = RECIPES[algorithm].env
        commands[f"{algorithm} ours"] = (sys.executable, __file__, "ours", *options)
        commands[f"{algorithm} ours, compiled"] = (sys.executable, __file__, "ours", *options, "--compile")
        if env in NATIVE:
            own = ("--world", NATIVE[env])
            commands[f"{algorithm} ours, own world"] = (sys.executable, __file__, "ours", *options, *own)
        commands[f"{algorithm} SB3"] = (peers_python, __file__, "sb3", *options)
        commands[f"{algorithm} SBX"] = (peers_python, __file__, "sbx", *options)
    return commands


def side_by_side(
    algorithms: Sequence[str], repeats: int, peers_python: str, threads: int, scale: float, out: Path | None
) -> None:
    rounds = contest.rounds(contestants(algorithms, threads, scale, peers_python), repeats)
    settings = {name: {"env": r.env, "expression": r.expression} for name in algorithms for r in [RECIPES[name]]}
    result = {"threads": threads, "settings": settings, "rounds": rounds}
    contest.save(out, "loops", contest.about(sys.executable, peers_python) | result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=["ours", "sb3", "sbx"])
    parser.add_argument("algorithm", choices=BLOCK)
    parser.add_argument("--world", help="another environment than the recipe's (ours alone)")
    parser.add_argument("--compile", action="store_true", help="fuse losses (ours alone)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of the blocks' length")
    options = parser.parse_args()
    contest.limit(options.threads)
    blocks = Blocks(warm_up(options.algorithm), max(1, int(options.scale * BLOCK[options.algorithm])))
    if options.who == "ours":
        ours(options.algorithm, options.world, options.compile, blocks)
    else:
        theirs(options.who, options.algorithm, blocks)
    world = options.world or RECIPES[options.algorithm].env
    print(json.dumps({"name": f"{options.who} {options.algorithm} {world}", **blocks.result()}))


if __name__ == "__main__":
    main()
