"""Learning from a dataset: how long does an update take, and how well do the policies act? Ours and d3rlpy's.

    python benchmarks/offline.py speed --peers-python PEERS/bin/python --out docs/benchmarks/offline_speed.jsonl
    python benchmarks/offline.py ours iql                   # one measurement, one JSON line
    python benchmarks/offline.py ours iql --units 64 --seeds 16
    python benchmarks/offline.py d3rlpy iql
    python benchmarks/offline.py products cql               # the matrix products of one of our updates, and no more
    python benchmarks/offline.py learn ours iql mixed --out docs/benchmarks/offline_scores.jsonl
    PEERS/bin/python benchmarks/offline.py learn d3rlpy iql mixed --out docs/benchmarks/offline_scores.jsonl

`speed` times what is done for each update: 256 of 100,000 stored transitions (17 observations, 6 actions) are drawn and
learnt from. Of d3rlpy these are the two calls that its `fit` makes, `sample_transition_batch` and `update`, without its
progress bar, its means of losses and its log. Hidden layers have 256 units, two in `iql` and `td3-bc`, three in `cql`,
which values ten actions of each kind. Both sides learn the entropy coefficient of `cql` and leave its `conservatism`
as it is; d3rlpy's targets are of the policy's most likely action, ours of one that was drawn. For how all are timed see
`contest.py`; each round is a line of the file as soon as it is over.

The matrix products of our update are recorded while it runs, and then done alone, with operands of the same shapes and
strides: no implementation with these products takes less time.

`learn` trains on a dataset that our factory makes (and keeps in `--data`), with 64 units and for 10,000 updates, and
appends the returns of 20 episodes of each seed's policy, acting most likely. Both sides read the same file, and play in
environments of the same seeds through the same code. `rlpd`, which has no peer, learns in the environment beside the
dataset: 1,000 random steps, then 10,000, with an update of its actor after each. Settings are equal. d3rlpy's rows are
drawn as it draws them, but not one by one. d3rlpy does not use the last step of an episode that was cut off: it keeps
no observation after it.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import contest

OBS, ACTIONS, BATCH, STEPS, EPISODE = 17, 6, 256, 100_000, 1_000
UNITS, FEW_UNITS, SEEDS = 256, 64, 16
BLOCKS, SECONDS, WARM_UP = 9, 0.2, 10  # blocks of so many seconds each, after so many updates

ENV, QUALITIES, DATASET_STEPS = "palaestra/PointMazeUMaze-v0", ("medium", "mixed", "expert"), 20_000
UPDATES, EPISODES = 10_000, 20

Each = Callable[[], Any]
Scores = dict[str, list[float]]

# ------------------------------------------------------------------------------------------------------------- speed

# Hidden layers, and the rest of the expression.
TIMED = {"iql": (2, "decay_over=None"), "td3-bc": (2, ""), "cql": (3, "")}


def expression(algorithm: str, units: int) -> str:
    layers, more = TIMED[algorithm]
    return f"{algorithm}(batch_size={BATCH}, hidden={(units,) * layers}{more and f', {more}'})"


def synthetic() -> dict[str, Any]:
    """Columns [episodes, steps, ...] of episodes that are cut off, of random numbers; observations have one more."""
    import numpy as np

    rng, shape = np.random.default_rng(0), (STEPS // EPISODE, EPISODE)
    end = np.zeros(shape, bool)
    end[:, -1] = True
    return {
        "obs": rng.standard_normal((shape[0], EPISODE + 1, OBS), np.float32),
        "action": rng.uniform(-1, 1, (*shape, ACTIONS)).astype(np.float32),
        "reward": rng.standard_normal(shape, np.float32),
        "terminated": np.zeros(shape, bool),
        "truncated": end,
    }


def ours(algorithm: str, units: int, seeds: int, compile: bool = False) -> tuple[Each, Each]:
    """What makes an update of each seed, as `palaestra.loops.offline` does, and what only draws its rows."""
    import numpy as np
    from gymnasium.spaces import Box

    from palaestra.data import mixture
    from palaestra.data.dataset import from_episodes
    from palaestra.expression import parse
    from palaestra.loops.offline import Offline

    columns = synthetic()
    episodes = [{name: column[i] for name, column in columns.items()} for i in range(STEPS // EPISODE)]
    spaces = Box(-np.inf, np.inf, (OBS,), np.float32), Box(-1, 1, (ACTIONS,), np.float32)
    dataset = from_episodes(episodes, *spaces)
    run = Offline(parse(expression(algorithm, units)), dataset, range(seeds), compile=compile)

    def draw() -> None:
        for stream in run.streams:
            mixture.sample(run.replays, stream, BATCH, run.drawing, run.learner.clock)

    return run.advance, draw


def d3rlpy_learner(algorithm: str, hidden: list[int], dataset: Any) -> Any:
    """d3rlpy's, with our settings."""
    from d3rlpy import algos, models, preprocessing

    encoder = models.VectorEncoderFactory(hidden)
    body = {"actor_encoder_factory": encoder, "critic_encoder_factory": encoder}
    if algorithm == "bc":
        config = algos.BCConfig(learning_rate=3e-4, batch_size=BATCH, encoder_factory=encoder)
    elif algorithm == "iql":
        config = algos.IQLConfig(batch_size=BATCH, value_encoder_factory=encoder, **body)
    elif algorithm == "td3-bc":
        scaler = preprocessing.StandardObservationScaler()
        config = algos.TD3PlusBCConfig(batch_size=BATCH, observation_scaler=scaler, **body)
    else:  # a conservatism that is not learnt; it changes no time
        fixed = {"alpha_learning_rate": 0.0, "initial_alpha": 1.0, "conservative_weight": 1.0, "alpha_threshold": 0.0}
        config = algos.CQLConfig(actor_learning_rate=3e-5, temp_learning_rate=3e-5, batch_size=BATCH, **fixed, **body)
    if config.observation_scaler:  # as `fit` does
        config.observation_scaler.fit_with_transition_picker(dataset.episodes, dataset.transition_picker)
    learner = config.create(device="cpu:0")
    learner.build_with_dataset(dataset)
    return learner


def d3rlpy_dataset(columns: dict[str, Any]) -> Any:
    """Columns [N, ...] of steps, one episode after the other."""
    import numpy as np
    from d3rlpy.constants import ActionSpace
    from d3rlpy.dataset import MDPDataset

    return MDPDataset(
        columns["obs"],
        columns["action"],
        columns["reward"],
        columns["terminated"].astype(np.float32),
        columns["truncated"].astype(np.float32),
        action_space=ActionSpace.CONTINUOUS,
        action_size=columns["action"].shape[-1],
    )


def theirs(algorithm: str, units: int) -> tuple[Each, Each]:
    """d3rlpy's update of a new batch, and what only draws one."""
    columns = synthetic()
    columns["obs"] = columns["obs"][:, :-1]
    dataset = d3rlpy_dataset({name: column.reshape(STEPS, *column.shape[2:]) for name, column in columns.items()})
    learner = d3rlpy_learner(algorithm, [units] * TIMED[algorithm][0], dataset)
    draw = partial(dataset.sample_transition_batch, BATCH)
    return lambda: learner.update(draw()), draw


def recorded(update: Each, updates: int) -> list[tuple[Any, Any]]:
    """The operands of all matrix products of so many updates, each as (shape, strides) of left and right."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[tuple[Any, Any]] = []
    begin = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # the place of the left operand

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            at = begin.get(func.overloadpacket.__name__)
            if at is not None:
                found.append(tuple((tuple(x.shape), x.stride()) for x in args[at : at + 2]))
            return func(*args, **(kwargs or {}))

    with Recording():
        for _ in range(updates):
            update()
    return found


def operand(shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """Random numbers; a stride may be 0."""
    import torch

    held = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.randn(held).as_strided(shape, strides)


def products(algorithm: str, units: int) -> tuple[Each, dict[str, float]]:
    """What does the matrix products of two of our updates alone, and how many operations one update's are.

    Two, since `td3-bc` trains its actor every other time.
    """
    import torch

    update, _ = ours(algorithm, units, 1)
    for _ in range(WARM_UP):
        update()
    shapes = recorded(update, 2)
    pairs = [(operand(*left), operand(*right)) for left, right in shapes]
    flops = sum(2 * left.numel() * right.shape[-1] for left, right in pairs) / 2

    def multiply() -> None:
        for left, right in pairs:
            torch.matmul(left, right)

    return multiply, {"mflops": round(flops / 1e6, 1), "products": len(pairs) / 2}


def measure(each: Each, per_call: int = 1, blocks: int = BLOCKS) -> tuple[float, float]:
    """Median milliseconds, and of the processor's time, of what is done `per_call` times a call, over blocks of an even
    number of calls."""
    for _ in range(WARM_UP):
        each()
    start = time.perf_counter()
    for _ in range(4):
        each()
    count = 2 * max(1, round(SECONDS / (time.perf_counter() - start) * 2))
    times = []
    for _ in range(blocks):
        start, busy = time.perf_counter(), time.process_time()
        for _ in range(count):
            each()
        times.append((time.perf_counter() - start, time.process_time() - busy))
    clock, processor = (round(statistics.median(t) / count / per_call * 1e3, 4) for t in zip(*times, strict=True))
    return clock, processor


def measured(who: str, algorithm: str, units: int, seeds: int, compile: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"name": f"{who} {algorithm}, {units} units" + (f", {seeds} seeds" if seeds > 1 else "")}
    result["name"] += ", compiled" if compile else ""
    if who == "products":
        each, about = products(algorithm, units)
        result |= about
        seeds = 2  # what it does counts for two updates
    else:
        each, draw = ours(algorithm, units, seeds, compile) if who == "ours" else theirs(algorithm, units)
        result["ms_drawing"], _ = measure(draw, seeds, 3)
    result["ms_per_update"], result["ms_of_processor"] = measure(each, seeds)
    return result | ({"version": version(who)} if who == "d3rlpy" else {})


def speed(only: list[str], repeats: int, peers_python: str, threads: int, out: Path | None) -> None:
    """Rounds of all contestants, or of those whose names end so; a line each, in a new file."""
    if out is not None:
        out.write_text("")
    limits = ("--threads", str(threads))
    commands = {"peak": (sys.executable, __file__, "peak", *limits)}
    few = ("--units", str(FEW_UNITS))
    for algorithm in TIMED:
        commands |= {
            f"{algorithm} ours": (sys.executable, __file__, "ours", algorithm, *limits),
            f"{algorithm} ours, compiled": (sys.executable, __file__, "ours", algorithm, "--compile", *limits),
            f"{algorithm} d3rlpy": (peers_python, __file__, "d3rlpy", algorithm, *limits),
            f"{algorithm} products": (sys.executable, __file__, "products", algorithm, *limits),
            f"{algorithm} one": (sys.executable, __file__, "ours", algorithm, *few, *limits),
            f"{algorithm} stacked": (sys.executable, __file__, "ours", algorithm, *few, "--seeds", str(SEEDS), *limits),
        }
    names = [name for name in commands if name.endswith(tuple(only))]
    for repeat in range(repeats):
        began = time.strftime("%H:%M"), round(os.getloadavg()[0], 2)
        shift = repeat % len(names)
        order = {name: commands[name] for name in (*names[shift:], *names[:shift])}
        (found,) = contest.rounds(order, 1)
        about = {"threads": threads, "at": began[0], "load": began[1]}
        line = contest.about(sys.executable, peers_python) | about | {"round": {name: found[name] for name in names}}
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")


# ------------------------------------------------------------------------------------------------------------ scores

LEARNT = {
    "bc": "bc(hidden=(64, 64))",
    "gaussian-bc": "gaussian-bc(hidden=(64, 64))",
    "td3-bc": "td3-bc(hidden=(64, 64))",
    "iql": "iql(decay_over=None, hidden=(64, 64))",
    "xql": "xql(decay_over=None, hidden=(64, 64))",
    # One and not five: returns are 0 or 1.
    "cql": "cql(conservatism=1.0, hidden=(64, 64))",
    "cal-ql": "cal-ql(conservatism=1.0, hidden=(64, 64))",
    "percentile-bc": "percentile-bc(hidden=(64, 64))",
    "return-conditioned": "return-conditioned(batch_size=256, hidden=(64, 64))",
    "decision-transformer": "decision-transformer(size=64, longest=100, warm_up=1000)",
    # As its paper sets it where a reward is paid at a goal alone; 4 and not 20: a fifth of the time.
    "rlpd": "rlpd(entropy_backup=False, subset=1, critic_updates=4, start=1000, hidden=(64, 64))+shifted-reward",
}


def file_of(quality: str, folder: Path) -> Path:
    """Our factory's dataset, made where it is not there yet."""
    from palaestra.data.files import write
    from palaestra.factories.datasets import make_dataset

    path = folder / f"{ENV.split('/')[-1]}-{quality}-0.hdf5"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(make_dataset(ENV, quality, DATASET_STEPS, seed=0), path)
    return path


def learn_ours(algorithm: str, dataset: Any, seeds: list[int], updates: int) -> Iterator[tuple[int, Scores]]:
    """Of each seed; all are stacked, as they then give what each gives alone."""
    from palaestra.envs.make import make_vector
    from palaestra.expression import parse
    from palaestra.loops.offline import Offline
    from palaestra.loops.online import Online

    value = parse(LEARNT[algorithm])
    if "dataset" in value.buffers:  # it learns in the environment too, after so many random steps
        run: Offline | Online = Online(value, make_vector(ENV, len(seeds)), seeds, dataset=dataset)
        last = value.schedule.start + updates
    else:
        run, last = Offline(value, dataset, seeds), updates
    while run.count < last:
        run.advance()
    run.learner.check_finite()
    yield from run.evaluate(make_vector(ENV, EPISODES * len(seeds)), updates).items()


def drawer(dataset: Any, rng: Any) -> Each:
    """A batch of a d3rlpy dataset, uniformly with replacement, as `sample_transition_batch` draws it one by one."""
    from dataclasses import fields

    from d3rlpy.dataset import TransitionMiniBatch

    episodes = dataset.episodes
    whole = [dataset.transition_picker(e, i) for e in episodes for i in range(e.transition_count)]
    columns = TransitionMiniBatch.from_transitions(whole)
    names = [field.name for field in fields(columns) if field.name != "transitions"]

    def draw() -> Any:
        rows = rng.integers(len(whole), size=BATCH)
        return TransitionMiniBatch(**{name: getattr(columns, name)[rows] for name in names}, transitions=[])

    return draw


def learn_theirs(algorithm: str, dataset: Any, seeds: list[int], updates: int) -> Iterator[tuple[int, Scores]]:
    """Of each seed, one after the other, in environments that are seeded as `palaestra.loops.online` seeds ours."""
    import d3rlpy
    import numpy as np

    from palaestra.envs.make import make_vector
    from palaestra.evaluation.returns import episode_return
    from palaestra.learner import generator
    from palaestra.rollout.source import Source

    data = d3rlpy_dataset({name: column[dataset.is_step] for name, column in dataset.columns.items()})
    for seed in seeds:
        d3rlpy.seed(seed)
        learner, draw = d3rlpy_learner(algorithm, [64, 64], data), drawer(data, np.random.default_rng(seed))
        for _ in range(updates):
            learner.update(draw())
        number = generator(seed, f"evaluation {updates}").initial_seed() % 2**31
        source = Source(make_vector(ENV, EPISODES), number)

        def policy(nets: Any, obs: Any, memory: Any, rng: Any, learner: Any = learner, source: Any = source) -> Any:
            return source.border.inner_action(learner.predict(obs.numpy())), {}, memory

        yield seed, episode_return(None, policy, source)  # type: ignore[arg-type]


def learn(who: str, algorithm: str, quality: str, seeds: list[int], updates: int, folder: Path, out: Path) -> None:
    """Append a line a seed as soon as it is there."""
    from palaestra.data.files import read

    dataset = read(file_of(quality, folder))
    start = time.perf_counter()
    for seed, scores in (learn_ours if who == "ours" else learn_theirs)(algorithm, dataset, seeds, updates):
        line = {
            "library": "palaestra" if who == "ours" else "d3rlpy",
            "algorithm": algorithm,
            "settings": LEARNT[algorithm],
            "env": ENV,
            "quality": quality,
            "dataset": dataset.hash,
            "reference": dataset.about.get("reference"),
            "updates": updates,
            "seed": seed,
            "scores": scores,
        }
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        mean, seconds = statistics.fmean(scores["episode_return"]), time.perf_counter() - start
        print(f"{who} {algorithm} {quality} seed {seed}: {mean:.3f}, {seconds:.0f} s since the beginning", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    limits = argparse.ArgumentParser(add_help=False)
    limits.add_argument("--threads", type=int, default=2)
    commands = parser.add_subparsers(dest="what", required=True)
    for who in ("ours", "d3rlpy", "products"):
        command = commands.add_parser(who, parents=[limits])
        command.add_argument("algorithm", choices=TIMED)
        command.add_argument("--units", type=int, default=UNITS)
        if who == "ours":
            command.add_argument("--seeds", type=int, default=1, help="stacked; times are then of each")
            command.add_argument("--compile", action="store_true", help="fuse losses")
    commands.add_parser("peak", parents=[limits])
    command = commands.add_parser("speed", parents=[limits])
    command.add_argument("--repeats", type=int, default=5, help="rounds")
    command.add_argument(
        "--only", nargs="+", default=[""], help="ends of contestants' names, such as 'ours' 'cql d3rlpy'"
    )
    command.add_argument("--peers-python", default=sys.executable, help="the Python that has d3rlpy")
    command.add_argument("--out", type=Path, help="the file of rounds, written anew")
    command = commands.add_parser("learn")
    command.add_argument("who", choices=["ours", "d3rlpy"])
    command.add_argument("algorithm", choices=LEARNT)
    command.add_argument("quality", choices=QUALITIES)
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    command.add_argument("--updates", type=int, default=UPDATES, help="fewer, to try it")
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--data", type=Path, default=Path("offline-data"), help="the folder of the datasets")
    command.add_argument("--out", type=Path, default=Path("offline.jsonl"), help="the file to append to")
    options = parser.parse_args()

    if options.what == "speed":
        speed(options.only, options.repeats, options.peers_python, options.threads, options.out)
        return
    contest.limit(options.threads)
    if options.what == "learn":
        learn(
            options.who, options.algorithm, options.quality, options.seeds, options.updates, options.data, options.out
        )
    elif options.what == "peak":
        print(json.dumps({"name": "peak", "gflops_256": contest.product_rate(256)}))
    else:
        own = {"seeds": getattr(options, "seeds", 1), "compile": getattr(options, "compile", False)}
        print(json.dumps(measured(options.what, options.algorithm, options.units, **own)))


if __name__ == "__main__":
    main()
