"""What a run's folder gives back: its algorithm, its world, its policy, the scores that the policy earns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv

from palaestra.algorithm import Algorithm
from palaestra.data.dataset import DatasetError
from palaestra.data.files import read as read_dataset
from palaestra.deployed import ABOUT, Deployed, read, write
from palaestra.envs.border import Border, describe, undescribe
from palaestra.envs.make import UnknownEnvironment, World, make_vector
from palaestra.expression import nearest, parse
from palaestra.faults import EnvironmentFailed
from palaestra.learner import Learner
from palaestra.loops.fitted_q import fitted_q_value
from palaestra.machine import computing, resolved
from palaestra.rollout.source import Source
from palaestra.runs import CheckpointError, Run, RunError
from palaestra.runs.check import begun
from palaestra.runs.checkpoints import Checkpoint, Checkpoints
from palaestra.together import part, written

FORMATS = ("policy", "onnx")


def load(run: str | Path | Run, *, seed: int | None = None, device: str = "cpu") -> Deployed:
    """The policy of a run's last checkpoint, or of a folder that `export` made. RunError where there is none.

    Of a run of several seeds, that of the first when `seed` is None. ValueError for a seed that the run has not.
    """
    if not isinstance(run, Run) and (Path(run) / ABOUT).exists():
        return read(Path(run), resolved(device))
    run = begun(run if isinstance(run, Run) else Path(run))
    about = run.about
    seed = about["seeds"][0] if seed is None else seed
    if seed not in about["seeds"]:
        raise ValueError(f"{run.folder} has no seed {seed}; it has {written(about['seeds'])}")
    if about["together"] == "processes":
        return load(part(run, seed), device=device)
    value = algorithm_of(run)
    checkpoints = Checkpoints(run.folder / "checkpoints")
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        raise RunError(run.folder, "it has no checkpoint yet", "wait for one, or train with --checkpoint-every")
    same_run(run, checkpoint)
    device = resolved(device)
    try:
        border = Border(undescribe(about["spaces"]["obs"]), undescribe(about["spaces"]["action"]), device)
    except (AssertionError, LookupError, TypeError, ValueError) as wrong:
        what, remedy = f"it describes no spaces ({wrong})", "restore it from a copy, or train again with another --out"
        raise RunError(run.folder / "run.json", what, remedy, "field 'spaces'") from wrong
    learner = Learner(value, border.spec, (seed,), device=device, precision=about["precision"])
    state: Any = checkpoint.state
    try:
        nets = state["learner"]["nets"]
        if about["together"] == "stacked":
            nets = {name: tensor[about["seeds"].index(seed)] for name, tensor in nets.items()}
        learner.nets.load_state_dict(nets)
    except (LookupError, RuntimeError, TypeError) as wrong:
        raise unfitting(checkpoint, wrong) from wrong
    return Deployed(learner, border, checkpoint.count, list(map(str, checkpoints.problems)))


def evaluate(
    run: str | Path | Run,
    *,
    episodes: int = 10,
    seed: int = 0,
    env: World | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """The raw scores of the policy of each of a run's seeds: `{"run": folder, "scores": {name: {seed: [values]}}}`.

    And `env_steps`, after how many (or, on a dataset, after how many updates) the policies were saved, and `problems`:
    newer checkpoints that are damaged. All seeds play the same fresh episodes, begun with `seed`; where the run has no
    environment they are judged by fitted Q. It computes as the run did: on its device (or on `device`), with its
    precision and its number of threads.
    """
    run = begun(run if isinstance(run, Run) else Path(run))
    positive(episodes=episodes)
    with computing(run.about["threads"], run.about["deterministic"]):
        device = device_of(run, device, "use --device cpu")
        scores: dict[str, dict[str, list[float]]] = {}
        env_steps, problems = [], []
        for own in run.about["seeds"]:
            deployed = load(run, seed=own, device=device)
            for name, values in _scores(run, deployed, env, episodes, seed).items():
                scores.setdefault(name, {})[str(own)] = values
            env_steps.append(deployed.env_steps)
            problems += [problem for problem in deployed.problems if problem not in problems]
    return {"run": str(run.folder), "scores": scores, "env_steps": min(env_steps), "problems": problems}


def _scores(run: Run, deployed: Deployed, env: World | None, episodes: int, seed: int) -> dict[str, list[float]]:
    """In the environment; where the run has none, by fitted Q on its dataset."""
    learner = deployed.learner
    if env is None and run.about["env"] is None:
        try:
            dataset = read_dataset(run.about["dataset"])
        except DatasetError as wrong:
            what, remedy = f"its dataset cannot be read: {wrong}", "give an environment: pal.evaluate(run, env=...)"
            raise RunError(run.folder / "run.json", what, remedy, "field 'dataset'") from wrong
        return fitted_q_value(learner, learner.seeds[0], dataset, deployed.border, seed)
    source = Source(world_of(run, env, episodes), seed, device=deployed.border.device)
    scores: dict[str, list[float]] = {}
    for evaluation in learner.algorithm.evaluation:
        scores |= evaluation(learner.nets, learner.deployed(), source)
    return scores


def export(
    run: str | Path | Run, out: str | Path, *, format: str = "policy", seed: int | None = None
) -> dict[str, Any]:
    """Write the policy of a run's last checkpoint into a new folder, without the run.

    Args:
        run: its folder.
        out: the new folder.
        format: "policy", weights and a description that `load` reads; or "onnx", which needs the `onnx` extra.
        seed: whose policy, of a run of several seeds; the first's when None.

    Returns:
        `{"run", "folder", "format", "files", "env_steps", "nets", "inputs", "outputs", "difference"}`: the networks
        that are in it, the arrays that an ONNX model takes and gives, and how far its actions are from PyTorch's.

    Raises:
        ValueError: there is no such format, or its packages are not installed.
        RunError: there is no such run, the folder exists or cannot be written, or the policy cannot be exported.
    """
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r}; {nearest(format, FORMATS)}")
    run = begun(run if isinstance(run, Run) else Path(run))
    deployed = load(run, seed=seed)
    about = {
        "run": run.about["id"],
        "env": run.about["env"],
        "seeds": list(deployed.learner.seeds),
        "env_steps": deployed.env_steps,
        "versions": {key: run.about["provenance"].get(key) for key in ("palaestra", "torch", "numpy", "gymnasium")},
    }
    if format == "onnx":
        from palaestra import onnx

        body = onnx.write(deployed, Path(out), about)
    else:
        body = write(deployed, Path(out), about)
    return {
        "run": str(run.folder),
        "folder": str(out),
        "format": format,
        "files": [*body["files"], ABOUT],
        "env_steps": deployed.env_steps,
        **{key: body.get(key) for key in ("nets", "inputs", "outputs", "difference")},
        "problems": list(deployed.problems),
    }


def positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")


def made(env: World, number: int) -> VectorEnv:
    """So many copies. EnvironmentFailed where making one raises: an environment may raise anything."""
    if isinstance(env, VectorEnv):
        return make_vector(env, number)
    try:
        return make_vector(env, number)
    except UnknownEnvironment:
        raise
    except Exception as wrong:
        name = env if isinstance(env, str) else "the environment"
        raise EnvironmentFailed(f"{name} cannot be made: {type(wrong).__name__}: {wrong}") from wrong


def algorithm_of(run: Run) -> Algorithm:
    """What the run's expression says; RunError where it alone does not give the algorithm, or cannot be read."""
    json, field = run.folder / "run.json", "field 'expression'"
    if not run.about["rebuilds"]:
        remedy = "pass it again, pal.resume(run, algorithm=...), or load it where that code is"
        raise RunError(json, "its algorithm was made by hand", remedy, field)
    try:
        return parse(run.about["expression"])
    except ValueError as wrong:
        remedy = "install the package that it came from, or restore the file from a copy"
        raise RunError(json, str(wrong), remedy, field) from wrong


def device_of(run: Run, device: str | None, remedy: str) -> str:
    """The run's own device unless another is given; RunError where it cannot be used."""
    if device is not None:
        return resolved(device)
    try:
        return resolved(run.about["device"])
    except ValueError as wrong:
        what = str(wrong).removesuffix("; use cpu")
        raise RunError(run.folder / "run.json", what, remedy, "field 'device'") from wrong


def world_of(run: Run, env: World | None, number: int) -> VectorEnv:
    """The run's environment; RunError where it was constructed and is not given, or is not the one of the run."""
    json, about = run.folder / "run.json", run.about
    if env is None and not about["made_by_id"]:
        remedy = "pass it again: pal.resume(run, env=...), pal.evaluate(run, env=...)"
        raise RunError(json, f"its environment, {about['env']}, was constructed", remedy, "field 'env'")
    try:
        world = made(about["env"] if env is None else env, number)
    except UnknownEnvironment as wrong:
        remedy = "install the package that has it, or restore the file from a copy"
        raise RunError(json, str(wrong), remedy, "field 'env'") from wrong
    for name, space in {"obs": world.single_observation_space, "action": world.single_action_space}.items():
        if about["spaces"].get(name) != describe(space):
            what = f"the environment's {name} space is now {space}, and was another: {about['spaces'].get(name)}"
            raise RunError(json, what, "give the environment that the run was begun in", f"field 'spaces.{name}'")
    return world


def same_run(run: Run, checkpoint: Checkpoint) -> None:
    """CheckpointError where a checkpoint is of another algorithm or environment than its run."""
    of, now = checkpoint.state.get("of"), belonging(run)
    if of is not None and of != now:
        what = f"is of {of['expression']} in {of['env']}, and run.json says {now['expression']} in {now['env']}"
        if (of["expression"], of["env"]) == (now["expression"], now["env"]):
            what = "is of an environment with other spaces than run.json says"
        raise CheckpointError(checkpoint.path, what, "restore the one that was changed from a copy")


def belonging(run: Run) -> dict[str, Any]:
    """What a checkpoint says of the run that it belongs to."""
    return {key: run.about[key] for key in ("expression", "env", "spaces")}


def unfitting(checkpoint: Checkpoint, wrong: Exception) -> CheckpointError:
    """What to say of a state that is whole and does not fit: of another version, or of other code than now."""
    reason = f"it has no {wrong}" if isinstance(wrong, KeyError) else " ".join(str(wrong).split())[:200]
    remedy = "it was written by another version of palaestra, or with other code: resume it with that one"
    return CheckpointError(checkpoint.path, reason, remedy)
