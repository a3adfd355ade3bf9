"""What users call: `train`, `resume`, `evaluate`, `load`, `show`, `listed`. The command line calls the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palaestra.algorithm import CHANGED_BY_HAND, Algorithm
from palaestra.batch import each
from palaestra.envs.border import Border, describe, undescribe
from palaestra.envs.make import World, make_vector
from palaestra.expression import parse
from palaestra.inspection import listed, settings, show
from palaestra.learner import Learner
from palaestra.loops.online import Online, online
from palaestra.runs import Run, RunError
from palaestra.runs.checkpoints import Checkpoint, Checkpoints, Segment

__all__ = ["Deployed", "evaluate", "listed", "load", "resume", "show", "train"]

Listen = Callable[[dict[str, Any]], None]


def silent(row: dict[str, Any]) -> None:
    """The listener of a run that nobody watches."""


# --------------------------------------------------------------------------------------------------------- training


def train(
    algorithm: str | Algorithm,
    env: World,
    steps: int,
    *,
    seed: int = 0,
    environments: int = 1,
    out: str | Path | None = None,
    evaluate_every: int | None = None,
    episodes: int = 10,
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    device: str = "cpu",
    compile: bool = False,
    listen: Listen = silent,
) -> Run:
    """Train an algorithm in an environment and return its run, whose folder holds all there is to know of it.

    Args:
        algorithm: an expression such as "td3(lr=1e-3)", or an `Algorithm`.
        env: a Gymnasium id, an environment, a function that makes one, or a vector environment.
        steps: environment steps in all.
        seed: of every random stream of the run.
        environments: copies stepped side by side.
        out: the run's folder; "runs/ALGORITHM-ENV-SEED", numbered where that is taken, when None.
        evaluate_every: environment steps between evaluations; a twentieth of `steps` when None.
        episodes: of each evaluation, one in each of as many separately seeded copies.
        log_every: environment steps between rows of the metrics; a hundredth of `steps` when None.
        checkpoint_every: environment steps between checkpoints; a tenth of `steps` when None.
        device: "cpu", "cuda", "cuda:1", ...
        compile: fuse each loss with `torch.compile` (a minute at the start).
        listen: called with a row after every collection, and with every row of the metrics.

    Raises ValueError (ExpressionError, Unfit, UnknownEnvironment) for arguments that do not fit, RunError where the
    folder holds a run or cannot be written.
    """
    value = parse(algorithm) if isinstance(algorithm, str) else algorithm
    _positive(
        steps=steps, environments=environments, episodes=episodes, evaluate_every=evaluate_every, log_every=log_every,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    _usable(device)
    world = make_vector(env, environments)
    border = Border(world.single_observation_space, world.single_action_space)
    periods = {
        "evaluate_every": evaluate_every or max(1, steps // 20),
        "log_every": log_every or max(1, steps // 100),
        "checkpoint_every": checkpoint_every or max(1, steps // 10),
    }
    live = Online(value, world, seed, device=device, compile=compile)
    about = {
        "expression": str(value),
        "settings": [{"slug": call.slug, **settings(call.slug, dict(call.keywords))} for call in value.calls],
        "rebuilds": _rebuilds(value),
        "env": env if isinstance(env, str) else _name(world),
        "made_by_id": isinstance(env, str),
        "dataset": None,
        "spaces": {"obs": describe(border.observation), "action": describe(border.action_space)},
        "seeds": [seed],
        "steps": steps,
        "environments": environments,
        "episodes": episodes,
        **periods,
        "device": device,
        "compile": compile,
        "threads": torch.get_num_threads(),
        "resume": live.source.problem or "exact",
    }
    names = "-".join(call.slug for call in value.calls if call != CHANGED_BY_HAND) or "algorithm"
    folder = Path(out) if out is not None else _folder(names, about)
    run = Run.create(folder, about)
    listen({"kind": "begin", **about, "run": str(run.folder)})
    if (start := value.schedule.start) >= steps:
        text = f"updates begin after {start:,} steps, and the run has {steps:,}: nothing will be learnt; set start"
        listen({"kind": "warning", "text": text})
    with run.writing():
        _go(run, live, _evaluation(env, world, episodes), steps, Checkpoints(run.folder / "checkpoints"), 0.0, listen)
    return run


def resume(
    run: str | Path | Run,
    steps: int | None = None,
    *,
    env: World | None = None,
    algorithm: Algorithm | None = None,
    listen: Listen = silent,
) -> Run:
    """Continue a run from its last checkpoint, to `steps` in all (those it was begun with when None).

    On environments that can give and take their state the result equals the uninterrupted run bit for bit. `env` and
    `algorithm` must be given again where they were not an id and an expression. RunError where there is nothing left to
    do, or where a checkpoint is damaged.
    """
    run = _opened(run)
    about = run.about
    json = run.folder / "run.json"
    if algorithm is None and not about["rebuilds"]:
        raise RunError(
            json, "its algorithm was made by hand", "pass it again: pal.resume(run, algorithm=...)", "expression"
        )
    if env is None and not about["made_by_id"]:
        raise RunError(
            json, f"its environment, {about['env']}, was constructed", "pass it again: pal.resume(run, env=...)"
        )
    _positive(steps=steps)
    _usable(about["device"])
    value = algorithm or parse(about["expression"])
    world_of = env if env is not None else about["env"]
    world = make_vector(world_of, about["environments"])
    _same_spaces(run, world)
    steps = steps if steps is not None else about["steps"]
    checkpoints = Checkpoints(run.folder / "checkpoints")
    with _quiet_threads(about["threads"]), run.writing():  # the lock first: what another process writes must not change
        checkpoint = checkpoints.latest()
        if checkpoint is not None and checkpoint.count >= steps:
            if run.about["status"] != "finished" and steps == about["steps"]:  # killed just after its last checkpoint
                run.truncate(checkpoint.position)
                run.update(status="finished")
                return run
            raise RunError(
                json, f"it is at {checkpoint.count} of {steps} steps already", "ask for more with --steps", "steps"
            )
        live = Online(value, world, about["seeds"][0], device=about["device"], compile=about["compile"])
        seconds = 0.0
        if checkpoint is not None:
            seconds = _restore(live, checkpoint)
        run.truncate(checkpoint.position if checkpoint is not None else 0)
        run.update(status="running", steps=steps)
        listen({"kind": "begin", **run.about, "run": str(run.folder), "env_steps": live.env_steps})
        for problem in checkpoints.problems:
            listen({"kind": "warning", "text": f"passed over a damaged checkpoint: {problem}"})
        _go(run, live, _evaluation(world_of, world, about["episodes"]), steps, checkpoints, seconds, listen)
    return run


# What run.json must say for a run to be continued or evaluated: all that `train` writes into it.
NEEDED = (
    "expression", "rebuilds", "env", "made_by_id", "spaces", "seeds", "steps", "environments", "episodes",
    "evaluate_every", "log_every", "checkpoint_every", "device", "compile", "threads",
)  # fmt: skip


def _opened(run: str | Path | Run) -> Run:
    """The run; RunError where there is none, or where `run.json` lacks what `train` writes into it."""
    run = run if isinstance(run, Run) else Run.open(Path(run))
    for field in NEEDED:
        if field not in run.about:
            remedy = "restore it from a copy, or train again with another --out"
            raise RunError(run.folder / "run.json", "is missing", remedy, f"field {field!r}")
    return run


def _positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")


def _usable(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as wrong:  # PyTorch asserts that it was compiled for the device
        reason = str(wrong).partition("\n")[0].rstrip(".")
        raise ValueError(f"device={device!r} cannot be used here ({reason}); use cpu") from wrong


def _same_spaces(run: Run, world: Any) -> None:
    """RunError where a constructed environment is not the one that the run was begun in."""
    for name, space in {"obs": world.single_observation_space, "action": world.single_action_space}.items():
        if (begun := run.about["spaces"][name]) != (now := describe(space)):
            raise RunError(
                run.folder / "run.json",
                f"the environment's {name} space is now {now}, and was {begun}",
                "give the environment that the run was begun in",
                f"spaces.{name}",
            )


def _go(
    run: Run, live: Online, evaluation: Any, steps: int, checkpoints: Checkpoints, seconds: float, listen: Listen
) -> None:
    about = run.about
    spent = seconds

    def record(row: dict[str, Any]) -> None:
        run.log(row)
        listen(row)

    def tick(row: dict[str, Any]) -> None:
        nonlocal spent
        spent = row["seconds"]
        listen({"kind": "tick", **row})

    def save(live: Online) -> None:
        state = {**live.state_dict(), "seconds": spent}
        segments = {name: Segment(*replay.segment(), replay.alive) for name, replay in live.replays.items()}
        checkpoints.save(live.env_steps, state, segments, run.position())
        listen({"kind": "checkpoint", "env_steps": live.env_steps})

    try:
        online(
            live, steps, evaluation, record=record, save=save, tick=tick, seconds=seconds,
            **{key: about[key] for key in ("evaluate_every", "log_every", "checkpoint_every")},
        )  # fmt: skip
    except KeyboardInterrupt:
        run.update(status="stopped")
        raise
    except Exception as problem:
        run.update(status="failed", problem=f"{type(problem).__name__}: {problem}")
        raise
    run.update(status="finished")


def _restore(live: Online, checkpoint: Checkpoint) -> float:
    state: Any = checkpoint.state
    rows = {
        name: [(dict(segment.tensors), segment.meta) for segment in checkpoint.segments.get(name, [])]
        for name in live.replays
    }
    try:
        live.load_state_dict(state, rows)
    except KeyError as missing:
        remedy = "it was written by another version of palaestra: resume it with that one"
        raise RunError(checkpoint.path, f"it has no {missing}", remedy) from missing
    return float(state["seconds"])


@contextmanager
def _quiet_threads(threads: int) -> Iterator[None]:
    """The run's own number of threads: sums in another order would not be bit for bit the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _evaluation(env: World, world: Any, episodes: int) -> Any:
    """Separate copies to evaluate in. A constructed vector environment cannot be made again: it is not evaluated in."""
    return None if env is world else make_vector(env, episodes)


def _rebuilds(value: Algorithm) -> bool:
    try:
        return bool(parse(str(value)) == value)
    except ValueError:
        return False


def _name(world: Any) -> str:
    single = world.envs[0] if hasattr(world, "envs") else world
    return single.spec.id if single.spec is not None else type(single.unwrapped).__name__


def _folder(slug: str, about: Mapping[str, Any]) -> Path:
    stem = f"{slug}-{about['env'].replace('/', '-')}-{about['seeds'][0]}"
    taken = (Path("runs") / (stem if n == 1 else f"{stem}-{n}") for n in range(1, 1_000_000))
    return next(folder for folder in taken if not folder.exists())


# -------------------------------------------------------------------------------------------------- what was trained


class Deployed:
    """A trained policy at work: `act(obs)` gives the environment's own actions.

    A policy with memory remembers from call to call; `reset()` begins an episode. `env_steps` it was trained for;
    `problems` are newer checkpoints that were passed over because they are damaged.
    """

    def __init__(self, learner: Learner, border: Border, env_steps: int = 0, problems: Sequence[str] = ()) -> None:
        self.learner, self.border = learner, border
        self.env_steps, self.problems = env_steps, tuple(problems)
        self._policy = learner.deployed()
        self._memory: Any = None

    def reset(self) -> None:
        """Forget: a new episode begins."""
        self._memory = None

    def act(self, obs: Any) -> np.ndarray:
        """The most likely action for one observation, or for a batch of them (one more axis in front)."""
        single = self._is_single(obs)
        rows = self.border.obs(each_array(lambda x: np.asarray(x)[None], obs) if single else obs)
        with torch.no_grad():
            action, _, self._memory = self._policy(self.learner.nets, rows, self._memory, None)
        batch = self.border.action(action)
        return batch[0] if single else batch

    def _is_single(self, obs: Any) -> bool:
        space = self.border.observation
        if isinstance(obs, dict):
            key = next(iter(space.spaces))  # type: ignore[attr-defined]
            return np.shape(obs[key]) == space.spaces[key].shape  # type: ignore[attr-defined]
        if np.shape(obs) == space.shape:
            return True
        if np.shape(obs)[1:] == space.shape:
            return False
        raise ValueError(f"an observation of shape {np.shape(obs)} does not fit {space}, nor a batch of such")


def each_array(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of an array, or of every array of a dictionary."""
    return {key: function(entry) for key, entry in value.items()} if isinstance(value, dict) else function(value)


def load(run: str | Path | Run) -> Deployed:
    """The policy of a run's last checkpoint. RunError where there is none."""
    run = _opened(run)
    about = run.about
    if not about["rebuilds"]:
        raise RunError(
            run.folder / "run.json", "its algorithm was made by hand", "load it where that code is", "expression"
        )
    checkpoints = Checkpoints(run.folder / "checkpoints")
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        raise RunError(run.folder, "it has no checkpoint yet", "wait for one, or train with --checkpoint-every")
    border = Border(undescribe(about["spaces"]["obs"]), undescribe(about["spaces"]["action"]))
    learner = Learner(parse(about["expression"]), border.spec, about["seeds"][0])
    state: Any = checkpoint.state
    learner.nets.load_state_dict(each(lambda tensor: tensor, state["learner"]["nets"]))
    return Deployed(learner, border, checkpoint.count, list(map(str, checkpoints.problems)))


def evaluate(run: str | Path | Run, *, episodes: int = 10, seed: int = 0, env: World | None = None) -> dict[str, Any]:
    """The raw scores of a run's policy in fresh episodes: `{"run": folder, "scores": {name: [values]}}`.

    And `env_steps`, after how many the policy was saved, and `problems`: newer checkpoints that are damaged.
    """
    from palaestra.rollout.source import Source

    run = _opened(run)
    if env is None and not run.about["made_by_id"]:
        raise RunError(
            run.folder / "run.json", "its environment was constructed", "pass it: pal.evaluate(run, env=...)"
        )
    _positive(episodes=episodes)
    deployed = load(run)
    world = make_vector(env if env is not None else run.about["env"], episodes)
    _same_spaces(run, world)
    source = Source(world, seed)
    learner = deployed.learner
    scores: dict[str, list[float]] = {}
    for part in learner.algorithm.evaluation:
        scores |= part(learner.nets, learner.deployed(), source)
    about = {"env_steps": deployed.env_steps, "problems": list(deployed.problems)}
    return {"run": str(run.folder), "scores": scores, **about}
