"""Who plays the episodes of a dataset: policies of several qualities, scripted or trained, kept once they are there.

A behaviour has a worst policy (uniformly random), a best one, and a medium one that earns between 30 and 45 % of the
way from the worst to the best: a controller that acts at random some of the time, or the first checkpoint of a
training that earned so much (or, where learning jumped past that, the first that earned more, and as clumsy as needed).
Their mean returns are measured with the stochastic policies that play.

    CACHE/behaviour/HASH/          a run's folder; the hash is of what it was made with
      policies/000001200/          of the medium checkpoint and of the best, as `palaestra export` writes them
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from palaestra.algorithm import Memory, Nets, Policy
from palaestra.batch import Columns, Obs, flatten
from palaestra.data.files import cache
from palaestra.data.replay import END, STEP, Replay
from palaestra.deployed import WEIGHTS, read_about
from palaestra.envs.border import Border, undescribe
from palaestra.envs.make import World
from palaestra.evaluation.returns import MOST_STEPS
from palaestra.expression import parse
from palaestra.learner import generator
from palaestra.processes import Listen
from palaestra.rollout.collect import step
from palaestra.rollout.exploration import uniform_action
from palaestra.rollout.source import Source
from palaestra.runs import Run
from palaestra.runs.checkpoints import Checkpoints
from palaestra.runs.files import seal
from palaestra.runs.provenance import provenance
from palaestra.stored import algorithm_of, export, load
from palaestra.teachers.teacher import Controller
from palaestra.training import train

Episode = dict[str, np.ndarray]  # observations [T + 1, ...], everything else [T, ...], in the environment's units

COPIES = 20  # of the environment that play side by side
EPISODES = 20  # whose mean is a checkpoint's return
EPISODES_OF_CONTROLLER = 100  # it plays them in no time, and rewards of 0 and 1 need them
CHECKPOINTS = 50  # of a training: learning is often sudden, and the medium one should be met
MEDIUM = (0.30, 0.45)  # of the way from the random policy's mean return to the best's
HALVINGS = 20


@dataclass(frozen=True)
class Behaviour:
    """What is trained to play: an expression, and for how many environment steps."""

    expression: str
    steps: int


# Found to come near what longer training gives, on one core: seconds for the first three, then minutes. Hopper takes a
# quarter of an hour and is far from its end: with seed 0 the best policy earns 774 an episode.
TRAINED = {
    "palaestra/PointMass-v0": Behaviour("sac(lr=1e-3,start=500,hidden=(64,64))", 4_000),
    "palaestra/Pendulum-v0": Behaviour("sac(lr=1e-3,start=500,hidden=(64,64))", 6_000),
    "Pendulum-v1": Behaviour("sac(lr=1e-3,start=500,hidden=(64,64))", 6_000),
    "InvertedPendulum-v5": Behaviour("sac(lr=1e-3,start=500,hidden=(64,64))", 15_000),
    "Hopper-v5": Behaviour("sac", 100_000),
}
CONTINUOUS, DISCRETE = Behaviour("sac(hidden=(64,64),start=1000)", 20_000), Behaviour("dqn+double", 20_000)


@dataclass(frozen=True)
class Player:
    """A policy and the networks that it reads."""

    nets: Nets
    policy: Policy


@dataclass(frozen=True)
class Qualities:
    """A behaviour's policies. `reference`: mean returns of "random" and "best"; `about`: how they came to be.

    `replay` gives what was seen until the medium policy was there: whole episodes, in their order.
    """

    random: Player
    medium: Player
    best: Player
    reference: dict[str, float]
    about: dict[str, Any]
    replay: Callable[[], Iterator[Episode]] = lambda: iter(())


def number(seed: int, stream: str) -> int:
    """A seed for an environment, of one seed and one named stream."""
    return generator(seed, stream).initial_seed() % 2**31


# ----------------------------------------------------------------------------------------------------------- playing


def played(world: VectorEnv, player: Player, seed: int, stream: str) -> Iterator[Episode]:
    """Whole episodes without end: the first of each copy of the environment, then the second of each, ...

    In this order short episodes are no more frequent than they are. A stream of a seed gives the same ones each time.
    ValueError where an episode does not end within `MOST_STEPS` steps.
    """
    source = Source(world, number(seed, f"{stream}: environment"))
    rng = generator(seed, f"{stream}: actions")
    running: list[list[Episode]] = [[] for _ in range(source.n)]
    over: list[deque[Episode]] = [deque() for _ in range(source.n)]
    for copy in cycle(range(source.n)):
        while not over[copy]:
            now = in_own_units(step(player.nets, player.policy, source, 1, rng), source.border)
            for i, rows in enumerate(running):
                rows.append({name: column[0, i] for name, column in now.items()})
            for ended in source.finished():
                i = int(ended["environment"])
                over[i].append(_whole(running[i]))
                running[i] = []
            if len(running[copy]) > MOST_STEPS:
                raise ValueError(f"an episode has not ended after {MOST_STEPS:,} steps: give the environment a limit")
        yield over[copy].popleft()


def _whole(rows: list[Episode]) -> Episode:
    """An episode of its steps, whose `next_obs` is kept of the last alone."""
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0] if not name.startswith("next_")}
    final = {name.removeprefix("next_"): value[None] for name, value in rows[-1].items() if name.startswith("next_")}
    return {
        name: np.concatenate([column, final[name]]) if name in final else column for name, column in columns.items()
    }


def in_own_units(columns: Columns, border: Border) -> Episode:
    """Columns as the environment says and takes them, as arrays: the inverse of its border."""
    seen = {str(name): raw(columns[name], border.observation) for name in ("obs", "next_obs") if name in columns}
    said = {name: columns[name].numpy() for name in ("reward", "terminated", "truncated")}
    return {**flatten(seen), "action": border.action(columns["action"]), **said}


def raw(obs: Obs, space: gym.Space[Any]) -> Any:
    """Observations as the environment gives them: an array, or a dictionary of arrays."""
    if isinstance(obs, dict):
        return {key: raw(entry, space[key]) for key, entry in obs.items()}  # type: ignore[index]
    return (obs.numpy() + getattr(space, "start", 0)).astype(space.dtype)


def mean_return(world: VectorEnv, player: Player, seed: int, episodes: int = EPISODES) -> float:
    """Of so many episodes, undiscounted; of one seed always the same ones, whoever plays."""
    return float(np.mean([episode["reward"].sum(dtype=float) for episode in first(episodes, world, player, seed)]))


def first(episodes: int, world: VectorEnv, player: Player, seed: int) -> Iterator[Episode]:
    return islice(played(world, player, seed, "measured"), episodes)


def at_random(world: VectorEnv) -> Player:
    """Uniform over the actions."""

    def act(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
        assert rng is not None
        return uniform_action(nets, obs, world.num_envs, rng), {}, memory

    return Player(Nets(Border(world.single_observation_space, world.single_action_space).spec), act)


def clumsy(player: Player, noise: float) -> Player:
    """One who with probability `noise` acts uniformly at random instead, in each step anew."""

    def act(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
        assert rng is not None
        action, columns, memory = player.policy(nets, obs, memory, rng)
        lucky = torch.rand(len(action), generator=rng).view(-1, *[1] * (action.dim() - 1)) < noise
        return torch.where(lucky, uniform_action(nets, obs, len(action), rng), action), columns, memory

    return Player(player.nets, act)


def made_medium(
    world: VectorEnv, player: Player, random: float, best: float, seed: int, episodes: int = EPISODES
) -> list[dict[str, float]]:
    """What a player earns with the noises of a bisection, `{"noise", "return", "share"}`: the last makes it medium."""
    tried: list[dict[str, float]] = []
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        noise = (low + high) / 2
        earned = mean_return(world, clumsy(player, noise), seed, episodes)
        share = (earned - random) / (best - random)
        tried.append({"noise": noise, "return": earned, "share": share})
        if MEDIUM[0] <= share <= MEDIUM[1]:
            return tried
        low, high = (noise, high) if share > MEDIUM[1] else (low, noise)
    raise ValueError(f"no noise makes this behaviour a medium one: with {noise:.3g} it earns {share:.0%} of its best")


def _better(best: float, random: float, who: str) -> None:
    if not best > random:
        remedy = "give behaviour=, an expression that learns here and steps enough for it"
        raise ValueError(f"{who} earns {best:.5g}, no more than random actions, {random:.5g}: {remedy}")


# ---------------------------------------------------------------------------------------------------------- scripted


def controlled(world: VectorEnv) -> Player:
    """The world's controller. ValueError where there is none."""
    controller = Controller(world)
    border = Border(world.single_observation_space, world.single_action_space)

    def act(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
        return border.inner_action(controller.act(raw(obs, border.observation))), {}, memory

    return Player(Nets(border.spec), act)


def has_controller(world: VectorEnv) -> bool:
    """Whether the world can solve itself."""
    try:
        Controller(world)
    except ValueError:
        return False
    return True


def scripted(world: VectorEnv, seed: int) -> Qualities:
    """The qualities of a controller. ValueError where it is no better than acting at random."""
    n = EPISODES_OF_CONTROLLER
    random, best = (mean_return(world, player(world), seed, n) for player in (at_random, controlled))
    _better(best, random, "the controller")
    tried = made_medium(world, controlled(world), random, best, seed, n)
    return Qualities(
        at_random(world),
        clumsy(controlled(world), tried[-1]["noise"]),
        controlled(world),
        {"random": random, "best": best},
        {"kind": "controller", "seed": seed, "measured": n, "tried": tried, "medium": tried[-1]},
    )


# ----------------------------------------------------------------------------------------------------------- trained


def trained(world: VectorEnv, env: World, behaviour: Behaviour | None, seed: int, listen: Listen) -> Qualities:
    """The qualities of a training, taken from the cache where it was made before of the same things.

    An environment that was constructed has no name to be found by: its behaviour is trained anew. ValueError where
    what was learnt is no better than acting at random.
    """
    behaviour = behaviour or usual(env, world)
    versions = provenance()
    of = {
        "expression": str(parse(behaviour.expression)),
        "env": env if isinstance(env, str) else None,
        "steps": behaviour.steps,
        "seed": seed,
        "threads": torch.get_num_threads(),  # they decide the last bits of sums, and so what is learnt
        "checkpoints": CHECKPOINTS,
        "episodes": EPISODES,
        "versions": {name: versions[name] for name in ("palaestra", "torch", "numpy", "gymnasium", "mujoco")},
    }
    folder = kept() / seal(of)[:32]
    if isinstance(env, str) and folder.exists():
        return _qualities(world, Run.open(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent) as temporary:
        run = _trained(world, env, behaviour, seed, Path(temporary) / folder.name, folder, listen)
        run.update(behaviour={**run.about["behaviour"], "of": of, "hash": folder.name})
        if not isinstance(env, str):
            return _qualities(world, run)
        with suppress(OSError):  # another process was faster
            run.folder.rename(folder)
    return _qualities(world, Run.open(folder))


def kept() -> Path:
    """The folder of all behaviours, beside that of converted datasets."""
    return cache().parent / "behaviour"


def usual(env: World, world: VectorEnv) -> Behaviour:
    """What is trained where nothing is said."""
    discrete = isinstance(world.single_action_space, gym.spaces.Discrete)
    return TRAINED.get(env if isinstance(env, str) else "", DISCRETE if discrete else CONTINUOUS)


def _trained(
    world: VectorEnv, env: World, behaviour: Behaviour, seed: int, folder: Path, name: Path, listen: Listen
) -> Run:
    """A run in `folder`, soon to be called `name`, that says of its checkpoints what they earn and which are kept."""
    found: list[dict[str, float]] = []
    start = parse(behaviour.expression).schedule.start  # nothing is learnt before

    def keep(row: dict[str, Any]) -> None:
        if row["kind"] == "checkpoint" and (row["env_steps"] > start or row["env_steps"] >= behaviour.steps):
            export(folder, at := folder / "policies" / _step(row["env_steps"]))
            earned = mean_return(world, _deployed(at), seed)
            found.append({"env_steps": row["env_steps"], "return": earned})
            row = {
                "kind": "evaluation",
                "env_steps": row["env_steps"],
                "seed": seed,
                "scores": {"mean_return": [earned]},
            }
        elif row["kind"] == "evaluation":
            return
        listen({**row, "run": str(name)} if row["kind"] == "begin" else row)

    every = max(1, behaviour.steps // CHECKPOINTS)
    run = train(
        behaviour.expression, env, behaviour.steps, seed=seed, out=folder, checkpoint_every=every,
        evaluate_every=behaviour.steps, episodes=1, threads=torch.get_num_threads(), listen=keep,
    )  # fmt: skip
    random, best = mean_return(world, at_random(world), seed), max(found, key=lambda one: one["return"])
    _better(best["return"], random, f"{behaviour.expression}, trained for {behaviour.steps:,} steps,")
    for one in found:
        one["share"] = (one["return"] - random) / (best["return"] - random)
    met = [one for one in found if one["share"] >= MEDIUM[0]]  # the best is among them
    medium = next((one for one in met if one["share"] <= MEDIUM[1]), met[0])
    for one in found:
        if one not in (medium, best):
            shutil.rmtree(folder / "policies" / _step(one["env_steps"]))
    about: dict[str, Any] = {"random": random, "checkpoints": found, "medium": medium, "best": best}
    if medium["share"] > MEDIUM[1]:
        player = _deployed(folder / "policies" / _step(medium["env_steps"]))
        about["tried"] = made_medium(world, player, random, best["return"], seed)
        about["medium"] = medium | about["tried"][-1]
    run.update(behaviour=about)
    return run


def _step(env_steps: float) -> str:
    return f"{int(env_steps):09d}"


def _deployed(folder: Path) -> Player:
    """How an exported policy acts without exploration, drawing where it is stochastic."""
    deployed = load(folder)
    return Player(deployed.learner.nets, deployed.policy)


def _qualities(world: VectorEnv, run: Run) -> Qualities:
    found = run.about["behaviour"]
    policies = {name: run.folder / "policies" / _step(found[name]["env_steps"]) for name in ("medium", "best")}
    about = {
        "kind": "trained",
        "expression": run.about["expression"],
        "settings": run.about["settings"],
        **{name: run.about[name] for name in ("env", "steps", "seeds", "threads")},
        **found,
        "weights": {name: read_about(folder)["files"][WEIGHTS]["sha256"] for name, folder in policies.items()},
        "versions": found["of"]["versions"],
    }
    return Qualities(
        at_random(world),
        clumsy(_deployed(policies["medium"]), found["medium"].get("noise", 0.0)),
        _deployed(policies["best"]),
        {"random": found["random"], "best": found["best"]["return"]},
        about,
        partial(_seen, run, found["medium"]["env_steps"]),
    )


def _seen(run: Run, env_steps: int) -> Iterator[Episode]:
    """The episodes that ended within so many steps of a training, in their order: what its replay has kept of them.

    ValueError where it keeps none, or not all.
    """
    buffer = algorithm_of(run).buffers.get("replay")
    if buffer is None or buffer.capacity <= 2 * run.about["steps"]:  # a step takes a slot, an end another
        what = f"{run.about['expression']} does not keep the {run.about['steps']:,} steps that it sees"
        raise ValueError(f"{what}: replay needs a behaviour with a replay, and a capacity of more than twice as many")
    checkpoint = Checkpoints(run.folder / "checkpoints").latest()
    assert checkpoint is not None
    replay = Replay(buffer)
    replay.load(
        checkpoint.state["replays"]["replay"], [(dict(s.tensors), s.meta) for s in checkpoint.segments["replay"]]
    )
    border = Border(undescribe(run.about["spaces"]["obs"]), undescribe(run.about["spaces"]["action"]))
    written = replay.kind[: int(replay.heads[0])]
    taken = (written == STEP).cumsum(0)
    ends = ((written == END) & (taken <= env_steps)).nonzero()[:, 0].tolist()
    if not ends:
        raise ValueError(f"no episode had ended when the policy was medium, after {env_steps:,} steps: use medium")
    begin = 0
    for end in ends:
        index = torch.arange(begin, end + 1)
        columns = in_own_units({name: replay.get(name, index) for name in replay.names()}, border)
        yield {name: rows if name.startswith("obs") else rows[:-1] for name, rows in columns.items()}
        begin = end + 1
