"""Train an algorithm, or continue a run: one seed, several stacked in this process, or each in one of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from palaestra.algorithm import CHANGED_BY_HAND, Algorithm
from palaestra.algorithms.experience import prior_data
from palaestra.beginning import begin_with, places_of
from palaestra.data.dataset import Dataset
from palaestra.data.replay import Replay
from palaestra.envs.make import World
from palaestra.envs.state import state_problem
from palaestra.expression import parse
from palaestra.faults import EnvironmentFailed, NotFinite, RewardFailed
from palaestra.ground import Ground
from palaestra.grounding import counted, ground_again, grounded
from palaestra.inspection import settings
from palaestra.loops.filled import DATASET
from palaestra.loops.offline import Offline, offline
from palaestra.loops.online import Online, online
from palaestra.loops.rounds import Rounds
from palaestra.loops.rounds import rounds as rounds_loop
from palaestra.machine import computing, resolved
from palaestra.processes import Job, Listen, in_processes
from palaestra.rewards.named import Reward
from palaestra.runs import CheckpointError, Run, RunError
from palaestra.runs.check import begun
from palaestra.runs.checkpoints import Checkpoint, Checkpoints, Segment
from palaestra.runs.events import events, summary_writer
from palaestra.stored import algorithm_of, belonging, device_of, positive, same_run, unfitting, world_of
from palaestra.text_ground import Rows, TextGround
from palaestra.together import Choice, Live, choose, part, part_of, written

LOOPS = {Online: online, Offline: offline, Rounds: rounds_loop}
# Fields of run.json, as `train` takes them.
TEXTS = ("model", "prompts", "reward", "columns", "micro_batch")
PERIODS = ("evaluate_every", "log_every", "checkpoint_every")
SETTINGS = ("environments", "episodes", *PERIODS, "device", "precision")
SWITCHES = ("deterministic", "compile", "tensorboard")


def silent(row: dict[str, Any]) -> None:
    """The listener of a run that nobody watches."""


def train(
    algorithm: str | Algorithm,
    env: World | None = None,
    steps: int | None = None,
    *,
    rounds: int | None = None,
    dataset: str | Path | Dataset | Rows | None = None,
    model: Any = None,
    tokenizer: Any = None,
    prompts: Rows | None = None,
    reward: str | Sequence[str] | Mapping[str, Reward] | None = None,
    columns: Mapping[str, str] | None = None,
    micro_batch: int | None = None,
    begin_from: str | Path | Run | Mapping[str, str] | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    together: str = "auto",
    environments: int = 1,
    out: str | Path | None = None,
    evaluate_every: int | None = None,
    episodes: int | None = None,
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    threads: int | None = None,
    deterministic: bool = False,
    compile: bool = False,
    tensorboard: bool = False,
    listen: Listen = silent,
) -> Run:
    """Train an algorithm in an environment or on a dataset and return its run, whose folder holds all that there is.

    Args:
        algorithm: an expression such as "td3(lr=1e-3)", or an `Algorithm`.
        env: a Gymnasium id, an environment, a function that makes one, or a vector environment. With a dataset: where
            policies are evaluated, the dataset's own where it names one when None.
        steps: environment steps in all, of each seed; on a dataset, updates.
        rounds: in place of `steps`, for what collects answers of a language model in rounds.
        dataset: a file or a `Dataset` to learn from; for a language model a file of texts, or its rows. An algorithm
            with a buffer called "dataset" (`rlpd`, or anything with `prior-data`)
            learns in `env` and fills that buffer from it.
        model: a language model to begin with: a folder, a name, "palaestra/add" for a tiny one that is made here, a
            run's folder, or a model of `transformers`, with its `tokenizer`.
        prompts: a file, or its rows, of what a language model is to answer.
        reward: what answers earn: names such as "exact_match", "module:function", "file.py:function", the folder of a
            run of `reward-model`; or functions by name. Several are added up.
        columns: names of columns to those of the files: {"prompt": "question"}.
        micro_batch: rows of a language model's forward pass with gradient, at most; the gradient is the same.
        begin_from: a run whose networks and optimisers it begins with, of an algorithm with the same networks; or, of
            one seed, by the names of networks a run and its network that they begin as: {"critic": "FOLDER:reward"}.
        seed: of every random stream of the run.
        seeds: several of them, each learning on its own: then `seed` does not count.
        together: how several seeds run: "stacked" in one process, in "processes" of their own, or "auto", whichever
            is faster when both are tried for a moment.
        environments: copies stepped side by side, of each seed; of no account on a dataset.
        out: the run's folder; "runs/ALGORITHM-ENV-SEED", numbered where that is taken, when None.
        evaluate_every: environment steps between evaluations; a twentieth of `steps` when None.
        episodes: of each evaluation, one in each of as many separately seeded copies; 10 when None, or 100 prompts.
        log_every: environment steps between rows of the metrics; a hundredth of `steps` when None.
        checkpoint_every: environment steps between checkpoints; a tenth of `steps` when None.
        device: "cpu", "cuda", "cuda:1", ..., or "auto": a GPU where one can be used.
        precision: "float32"; or "bf16" for forward passes, while losses, parameters and optimisers stay float32.
        threads: of PyTorch; as many as it has when None.
        deterministic: refuse operations whose result depends on the order in which a GPU computes.
        compile: fuse each loss with `torch.compile` (a minute at the start).
        tensorboard: write the metrics as TensorBoard's events too, into `tensorboard/` of the run's folder.
        listen: called with a row after every collection, and with every row of the metrics.

    Every number of steps below is one of updates on a dataset. Without an environment a policy's evaluation is
    `fitted_q_value`: what a Q-function fitted to the dataset says of it.

    Raises ValueError (ExpressionError, Unfit, UnknownEnvironment, DatasetError) for arguments that do not fit,
    EnvironmentFailed where the environment raises before the run has begun, RunError where the folder holds a run or
    cannot be written, and where training fails: the error names the last good checkpoint.
    """
    value = parse(algorithm) if isinstance(algorithm, str) else algorithm
    numbers = [seed] if seeds is None else list(seeds)
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise ValueError(f"seeds are {numbers}: give at least one, from 0 on, and each once")
    positive(
        steps=steps, rounds=rounds, environments=environments, episodes=episodes, evaluate_every=evaluate_every,
        log_every=log_every, checkpoint_every=checkpoint_every, threads=threads, micro_batch=micro_batch,
    )  # fmt: skip
    steps = counted(value, steps, rounds)
    if isinstance(begin_from, Mapping) and len(numbers) > 1:
        raise ValueError(f"begin_from names single networks, and seeds are {numbers}: give one seed")
    if tensorboard:
        summary_writer()
    with computing(threads, deterministic):
        device = resolved(device)
        ground = grounded(
            value, env, dataset, model=model, tokenizer=tokenizer, prompts=prompts, reward=reward, columns=columns,
            micro_batch=micro_batch, device=device, listen=listen,
        )  # fmt: skip
        episodes = ground.episodes if episodes is None else episodes
        way, why, workers = "alone", "", 1
        if len(numbers) > 1:
            if together == "auto":
                listen({"kind": "choosing", "seeds": numbers})
            choice = _chosen(value, ground, numbers, environments, together, device, precision)
            way, why, workers = choice.way, choice.why, choice.workers
        stacked = len(numbers) if way == "stacked" else 1
        world = ground.world(environments * stacked)
        spaces = ground.spaces(world)
        judge = ground.judge(world, episodes * stacked)
        live = None
        if way != "processes":
            live = ground.begin(value, numbers, world, episodes, device=device, precision=precision, compile=compile)
            if begin_from is not None:
                begin_with(live, begin_from)
        about = {
            "expression": str(value),
            "settings": [{"slug": call.slug, **settings(call.slug, dict(call.keywords))} for call in value.calls],
            "rebuilds": rebuilds(value),
            "env": ground.env if isinstance(ground.env, str | None) else _name(world if world is not None else judge),
            "made_by_id": isinstance(ground.env, str | None),
            **ground.about(),
            "begun_from": places_of(begin_from),
            "spaces": spaces,
            "seeds": numbers,
            "together": way,
            "why_together": why,
            "workers": workers,
            "steps": steps,
            "environments": environments,
            "episodes": episodes,
            "evaluate_every": evaluate_every or max(1, steps // 20),
            "log_every": log_every or max(1, steps // 100),
            "checkpoint_every": checkpoint_every or max(1, steps // 10),
            "device": device,
            "precision": precision,
            "threads": torch.get_num_threads(),
            "deterministic": deterministic,
            "compile": compile,
            "tensorboard": tensorboard,
            "resume": (None if world is None else state_problem(world)) or "exact",
        }
        names = "-".join(call.slug for call in value.calls if call != CHANGED_BY_HAND) or "algorithm"
        folder = Path(out) if out is not None else _folder(names, about)
        run = Run.create(folder, about)
        ground.keep(run.folder)
        listen({"kind": "begin", **about, "run": str(run.folder)})
        if (start := value.schedule.start) >= steps:
            text = f"updates begin after {start:,} steps, and the run has {steps:,}: nothing will be learnt; set start"
            listen({"kind": "warning", "text": text})
        with run.writing():
            if live is None:
                _each_alone(run, value, ground, listen)
            else:
                _go(run, live, judge, steps, Checkpoints(run.folder / "checkpoints"), 0.0, listen)
    return run


def go_online(
    run: str | Path | Run,
    env: World,
    steps: int,
    *,
    share: float = 0.5,
    dataset: str | Path | Dataset | None = None,
    out: str | Path | None = None,
    listen: Listen = silent,
    **training: Any,
) -> Run:
    """Go on in an environment from where a run on a dataset ended; a new run, which begins with its networks.

    Args:
        run: what was trained on a dataset.
        env: where to go on, as for `train`.
        steps: environment steps of each seed.
        share: of every batch that still comes from the dataset, in (0, 1).
        dataset: the run's own, where it was made in memory.
        out: the new run's folder; beside the old one's, with "-then", when None.
        training: further keywords of `train`: environments, episodes, evaluate_every, ...

    Raises as `train`.
    """
    run = begun(run if isinstance(run, Run) else Path(run))
    about, value = run.about, algorithm_of(run)
    if about.get("dataset") is None:
        raise RunError(
            run.folder / "run.json", "it was not trained on a dataset", "name one that was", "field 'dataset'"
        )
    mixed = value if DATASET in value.buffers else prior_data(value, share=share)
    kept = {name: about[name] for name in ("device", "precision", "deterministic", "seeds", "threads")}
    together = "auto" if about["together"] == "alone" else about["together"]
    return train(
        mixed, env, steps, dataset=about["dataset"] if dataset is None else dataset, begin_from=run,
        out=run.folder.with_name(f"{run.folder.name}-then") if out is None else out, listen=listen,
        **{**kept, "together": together, **training},
    )  # fmt: skip


def resume(
    run: str | Path | Run,
    steps: int | None = None,
    *,
    env: World | None = None,
    algorithm: Algorithm | None = None,
    dataset: str | Path | Dataset | Rows | None = None,
    model: Any = None,
    tokenizer: Any = None,
    prompts: Rows | None = None,
    reward: Mapping[str, Reward] | None = None,
    listen: Listen = silent,
) -> Run:
    """Continue a run from its last checkpoint, to `steps` in all (those it was begun with when None).

    On environments that can give and take their state the result equals the uninterrupted run bit for bit. What
    was not an id, an expression, a name, or a file that is still there must be given again: `env`, `algorithm`,
    `dataset`, `model`, `prompts`, `reward`. RunError where there is nothing left to do, where a checkpoint is damaged
    or not this run's, or where training fails.
    """
    run = begun(run if isinstance(run, Run) else Path(run))
    about = run.about
    json = run.folder / "run.json"
    positive(steps=steps)
    value = algorithm or algorithm_of(run)
    with computing(about["threads"], about["deterministic"]):
        device = device_of(run, None, "continue it where that can be used")
        ground = ground_again(run, value, env, dataset, model, tokenizer, prompts, reward)
        steps = steps if steps is not None else about["steps"]
        if about["together"] == "processes":
            _resume_each(run, value, ground, steps, listen)
            return run
        stacked = len(about["seeds"])
        world = world_of(run, env, about["environments"] * stacked) if ground.steps_worlds else None
        judge = ground.judge(world, about["episodes"] * stacked)
        checkpoints = Checkpoints(run.folder / "checkpoints")
        with run.writing():  # the lock first: what another process writes must not change
            checkpoint = checkpoints.latest()
            if checkpoint is not None and checkpoint.count >= steps:
                if run.about["status"] != "finished" and steps == about["steps"]:  # killed just after its last one
                    run.truncate(checkpoint.position)
                    run.update(status="finished")
                    return run
                raise RunError(
                    json, f"it is at {checkpoint.count} of {steps} steps already", "ask for more with --steps", "steps"
                )
            live = ground.begin(
                value, about["seeds"], world, about["episodes"], device=device, precision=about["precision"],
                compile=about["compile"],
            )  # fmt: skip
            seconds = 0.0
            if checkpoint is not None:
                seconds = _restore(run, live, checkpoint)
            elif about.get("begun_from") is not None:
                begin_with(live, about["begun_from"])
            run.truncate(checkpoint.position if checkpoint is not None else 0)
            run.update(status="running", steps=steps, problem=None)
            listen({"kind": "begin", **run.about, "run": str(run.folder), live.clock: live.count})
            for problem in checkpoints.problems:
                listen({"kind": "warning", "text": f"passed over a damaged checkpoint: {problem}"})
            _go(run, live, judge, steps, checkpoints, seconds, listen)
    return run


def _chosen(
    value: Algorithm,
    ground: Ground | TextGround,
    seeds: list[int],
    environments: int,
    together: str,
    device: str,
    precision: str,
) -> Choice:
    """How several seeds run. What no other process can have leaves one process, in turn."""
    if isinstance(ground.env, VectorEnv) and ground.steps_worlds:  # it has copies for all of them, or `made` says so
        return Choice("stacked", 1, "the vector environment has copies for all", {})
    workers = torch.get_num_threads() if device == "cpu" and ground.by_name and rebuilds(value) else 1

    def begin(algorithm: Algorithm, seeds: Sequence[int]) -> Live:
        world = ground.world(environments * len(seeds))
        return ground.begin(algorithm, seeds, world, device=device, precision=precision)

    return choose(value, begin, seeds, together, workers=workers)


def _resume_each(run: Run, value: Algorithm, ground: Ground | TextGround, steps: int, listen: Listen) -> None:
    if all(_is_finished(part(run, seed), steps) for seed in run.about["seeds"]):
        what = f"its seeds are at {run.about['steps']} of {steps} steps already"
        raise RunError(run.folder / "run.json", what, "ask for more with --steps", "steps")
    with run.writing():
        run.update(status="running", steps=steps)
        listen({"kind": "begin", **run.about, "run": str(run.folder)})
        _each_alone(run, value, ground, listen)


def _each_alone(run: Run, value: Algorithm, ground: Ground | TextGround, listen: Listen) -> None:
    """Train, or continue, each seed in a run of its own within the run's folder."""
    about = run.about
    unfinished = [seed for seed in about["seeds"] if not _is_finished(part(run, seed), about["steps"])]
    try:
        if ground.by_name and about["rebuilds"]:
            _in_processes(run, unfinished, listen)
        else:
            for seed in unfinished:
                _in_turn(run, seed, value, ground, listen)
    except KeyboardInterrupt:
        run.update(status="stopped")
        raise
    except RunError as problem:
        run.update(status="failed", problem=str(problem))
        raise
    run.update(status="finished")


def _in_processes(run: Run, seeds: Sequence[int], listen: Listen) -> None:
    """RunError at the end names the seeds that failed."""
    jobs = {seed: Job(part(run, seed), _command(run, seed)) for seed in seeds}
    others = len(run.about["seeds"]) - len(jobs)  # they are at their last step

    def told(row: dict[str, Any]) -> None:
        if row["kind"] == "tick":
            row["env_steps"] = (sum(row["count"].values()) + others * run.about["steps"]) // (len(jobs) + others)
        listen(row)

    if failed := in_processes(jobs, run.about["workers"], told):
        seed, problem = next(iter(failed.items()))
        rest = f"; so did seeds {written(list(failed)[1:])}" if len(failed) > 1 else ""
        remedy = f"when that is mended, continue with: palaestra train --resume {run.folder}"
        raise RunError(part(run, seed), f"seed {seed} failed: {problem}{rest}", remedy)


def _is_finished(folder: Path, steps: int) -> bool:
    if not (folder / "run.json").exists():
        return False
    about = Run.open(folder).about
    return about["status"] == "finished" and about["steps"] >= steps


def _threads(about: Mapping[str, Any]) -> int:
    """Of each of several processes: the run's, divided."""
    return max(1, about["threads"] // about["workers"])


def _command(run: Run, seed: int) -> list[str]:
    """What `palaestra` is called with for one seed of a run."""
    about, folder = run.about, part(run, seed)
    if (folder / "run.json").exists():
        return ["train", "--resume", str(folder), "--steps", str(about["steps"]), "--quiet"]
    clock = "rounds" if about["counts"] == "rounds" else "steps"
    options = {clock: about["steps"], "seed": seed, "out": folder, "threads": _threads(about)}
    options |= {name: about[name] for name in SETTINGS}
    options |= {name: about[name] for name in ("env", "dataset", *TEXTS) if about.get(name) is not None}
    options |= {"begin_from": part_of(Path(about["begun_from"]), seed)} if about["begun_from"] is not None else {}
    switches = {name: about[name] for name in SWITCHES}
    return ["train", about["expression"], *as_options({**options, **switches}), "--quiet"]


def as_options(options: Mapping[str, Any]) -> list[str]:
    """As the command line takes them: what is switched on has no value, what is a list comes several times."""
    found = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            found.append(option)
        elif isinstance(value, Mapping):
            found += [text for key, column in value.items() for text in (option, f"{key}={column}")]
        elif isinstance(value, list | tuple):
            found += [text for one in value for text in (option, str(one))]
        elif value is not None and value is not False:
            found += [option, str(value)]
    return found


def _in_turn(run: Run, seed: int, value: Algorithm, ground: Ground | TextGround, listen: Listen) -> None:
    """As `_command`, in this process: for what no other process can make again."""
    about, folder = run.about, part(run, seed)
    told = partial(_but_the_beginning, listen=listen)
    if (folder / "run.json").exists():
        again = ground.given if isinstance(ground, TextGround) else {"env": ground.env, "dataset": ground.dataset}
        again = {name: what for name, what in again.items() if name not in ("columns", "micro_batch")}
        resume(folder, about["steps"], algorithm=value, listen=told, **again)
        return
    clock = "rounds" if about["counts"] == "rounds" else "steps"
    given = {name: about[name] for name in (*SETTINGS, *SWITCHES, "threads")} | {clock: about["steps"]}
    if isinstance(ground, TextGround):
        given |= ground.given
        train(value, seed=seed, out=folder, listen=told, **given)
        return
    given |= {"begin_from": part_of(Path(about["begun_from"]), seed)} if about["begun_from"] is not None else {}
    train(value, ground.env, dataset=ground.dataset, seed=seed, out=folder, listen=told, **given)


def _but_the_beginning(row: dict[str, Any], listen: Listen) -> None:
    if row["kind"] not in ("begin", "warning"):  # the whole run has said it
        listen(row)


def _go(run: Run, live: Live, judge: Any, steps: int, checkpoints: Checkpoints, seconds: float, listen: Listen) -> None:
    about = run.about
    spent = seconds

    def record(row: dict[str, Any]) -> None:
        run.log(row)
        show_in_tensorboard(row)
        listen(row)

    def tick(row: dict[str, Any]) -> None:
        nonlocal spent
        spent = row["seconds"]
        listen({"kind": "tick", **row})

    def save(live: Live) -> None:
        state = {**live.state_dict(), "seconds": spent, "of": belonging(run)}
        collected = {name: replay for name, replay in live.replays.items() if isinstance(replay, Replay)}
        segments = {name: Segment(*replay.segment(), replay.alive) for name, replay in collected.items()}
        checkpoints.save(live.count, state, segments, run.position())
        listen({"kind": "checkpoint", live.clock: live.count})

    try:
        with events(run) if about["tensorboard"] else nullcontext(silent) as show_in_tensorboard:
            loop: Any = LOOPS[type(live)]
            loop(
                live, steps, judge, record=record, save=save, tick=tick, seconds=seconds,
                **{key: about[key] for key in PERIODS},
            )  # fmt: skip
    except KeyboardInterrupt:
        with suppress(RunError):  # what stopped it is what matters
            run.update(status="stopped")
        raise
    except Exception as problem:
        with suppress(RunError):  # a disk that is full is full for run.json too
            run.update(status="failed", problem=f"{type(problem).__name__}: {problem}")
        if isinstance(problem, CheckpointError):
            raise
        if isinstance(problem, RunError):
            raise RunError(
                problem.file, problem.what, f"{checkpoints.good}; {problem.remedy}", problem.where
            ) from problem
        if isinstance(problem, EnvironmentFailed | NotFinite | RewardFailed) or type(problem) is ValueError:
            again = f"palaestra train --resume {run.folder}" if about["made_by_id"] else "pal.resume(run, env=...)"
            remedy = f"{checkpoints.good}; when that is mended, continue with: {again}"
            raise RunError(run.folder, str(problem), remedy) from problem
        raise
    run.update(status="finished")


def _restore(run: Run, live: Live, checkpoint: Checkpoint) -> float:
    same_run(run, checkpoint)
    state: Any = checkpoint.state
    rows = {
        name: [(dict(segment.tensors), segment.meta) for segment in checkpoint.segments.get(name, [])]
        for name in live.replays
    }
    try:
        live.load_state_dict(state, rows)
        return float(state["seconds"])
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as wrong:
        raise unfitting(checkpoint, wrong) from wrong


def rebuilds(value: Algorithm) -> bool:
    """Whether an algorithm's expression alone gives it again."""
    try:
        return bool(parse(str(value)) == value)
    except ValueError:
        return False


def _name(world: Any) -> str:
    single = world.envs[0] if hasattr(world, "envs") else world
    return single.spec.id if single.spec is not None else type(single.unwrapped).__name__


def _folder(slug: str, about: Mapping[str, Any]) -> Path:
    world = about["env"] or Path(about["dataset"]).stem
    stem = f"{slug}-{world.replace('/', '-')}-{written(about['seeds'])}"
    taken = (Path("runs") / (stem if n == 1 else f"{stem}-{n}") for n in range(1, 1_000_000))
    return next(folder for folder in taken if not folder.exists())
