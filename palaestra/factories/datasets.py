"""Datasets made to order: an environment, how well its behaviour plays, how many steps, a seed.

    random      uniform actions                         expert      the behaviour's best policy
    medium      30 to 45 % of the way to the best       replay      what training saw until the medium policy
    mixed       random, and a share of expert           stitching   ways to the middle of a maze, and from there

Returns are compared with the behaviour's own: `about["reference"]` holds the mean returns of its random and of its best
policy, which are measured whatever the quality. Kinds of data: Fu et al., "D4RL: Datasets for Deep Data-Driven
Reinforcement Learning" (2020).

Differs from the paper: mixtures there are halves of medium and expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from palaestra.data.dataset import Dataset, from_episodes
from palaestra.envs.make import World, make_vector
from palaestra.envs.point_maze import PointMazeVectorEnv, shortest_paths
from palaestra.envs.registration import WORLDS
from palaestra.expression import nearest
from palaestra.factories.behaviours import (
    COPIES,
    TRAINED,
    Behaviour,
    Episode,
    Qualities,
    clumsy,
    controlled,
    has_controller,
    number,
    played,
    scripted,
    trained,
    usual,
)
from palaestra.machine import computing
from palaestra.processes import Listen
from palaestra.runs.provenance import provenance
from palaestra.stored import made, positive
from palaestra.training import silent

QUALITIES = ("random", "medium", "expert", "replay", "mixed", "stitching")
STITCHING_NOISE = 0.2  # of the controller: without any, all ways are the same


def make_dataset(
    env: World,
    quality: str,
    steps: int,
    seed: int = 0,
    *,
    behaviour: Behaviour | None = None,
    expert_share: float = 0.2,
    threads: int | None = None,
    listen: Listen = silent,
) -> Dataset:
    """Play whole episodes until they have so many steps; the same arguments give the same data.

    The behaviour is the environment's own controller where it has one, and otherwise a policy that is trained first
    (always for "replay"), once: it is kept in $PALAESTRA_CACHE or ~/.cache/palaestra. Policies draw their actions as
    they do while learning, but do not explore besides. A constructed environment has no name, so that nothing is kept.

    Args:
        env: a Gymnasium id, an environment, or a function that makes one.
        quality: "random", "medium", "expert", "replay", "mixed" or, in a point maze, "stitching".
        steps: at least so many, as the last episode is kept whole. A "replay" ends with the medium policy, which may
            be earlier.
        seed: of the behaviour's training and of the episodes.
        behaviour: what is trained, also where there is a controller; one that suits the environment when None.
        expert_share: of the steps of a "mixed" dataset, in (0, 1).
        threads: of PyTorch. One when None, so that the data do not depend on how many cores there are.
        listen: called with the rows of the behaviour's training.

    Returns:
        The dataset. Its `about` says "env", "quality", "seed", "steps" and "episodes" that it has, "behaviour" and its
        checkpoints, "reference" and "provenance".

    Raises ValueError for arguments that do not fit, and where the behaviour is no better than random actions, or keeps
    nothing to replay.
    """
    if quality not in QUALITIES:
        raise ValueError(f"there is no quality {quality!r}; {nearest(quality, QUALITIES)}")
    if not 0 < expert_share < 1:
        raise ValueError(f"expert_share={expert_share}: it must lie between 0 and 1; use quality random or expert")
    if isinstance(env, VectorEnv):
        raise ValueError(f"{type(env).__name__} is a vector environment: give a function that makes one copy")
    positive(steps=steps)
    with computing(threads or 1):
        world = made(env, COPIES)
        if behaviour is None and quality != "replay" and has_controller(world):
            of = scripted(world, seed)
        else:
            of = trained(world, env, behaviour, seed, listen)
        more: dict[str, Any] = {}
        if quality == "replay":
            episodes = until(steps, of.replay())
        elif quality == "mixed":
            episodes, more = mixed(world, of, steps, seed, expert_share)
        elif quality == "stitching":
            episodes, more = stitched(env, steps, seed)
        else:
            player = {"random": of.random, "medium": of.medium, "expert": of.best}[quality]
            episodes = until(steps, played(world, player, seed, quality))
    about = {
        "env": env if isinstance(env, str) else None,
        "quality": quality,
        "seed": seed,
        "steps": sum(map(_length, episodes)),
        "episodes": len(episodes),
        **more,
        "behaviour": of.about,
        "reference": of.reference,
        "provenance": provenance(),
    }
    if about["steps"] < steps:
        text = (
            f"the medium policy was there after {about['steps']:,} steps in whole episodes: there is no more to replay"
        )
        listen({"kind": "warning", "text": text})
    return from_episodes([*episodes], world.single_observation_space, world.single_action_space, about)


def worlds() -> list[dict[str, Any]]:
    """The environments that datasets are made of without a word about how, with `slug`, `title`, `qualities` and the
    `behaviour`: "controller", or an expression and its training's steps. Any other is played by what suits its actions.
    """
    rows = []
    for name in dict.fromkeys((*WORLDS, *TRAINED)):
        world = make_vector(name, 1) if name in WORLDS else None  # the others may need an extra
        with_goals = world is not None and isinstance(world.unwrapped, PointMazeVectorEnv)
        one_maze = with_goals and len(world.unwrapped.layouts) == 1  # type: ignore[union-attr]
        if world is not None and has_controller(world):
            behaviour = "controller"
        else:
            learnt = TRAINED[name] if world is None else usual(name, world)
            behaviour = f"{learnt.expression}, {learnt.steps:,} steps"
        qualities = [quality for quality in QUALITIES if one_maze or quality != "stitching"]
        rows.append(
            {
                "slug": name,
                "title": f"{', '.join(qualities)}; by {behaviour}",
                "qualities": qualities,
                "behaviour": behaviour,
            }
        )
    return rows


def until(steps: int, episodes: Iterable[Episode]) -> list[Episode]:
    """The first episodes that have so many steps together, or all."""
    taken: list[Episode] = []
    for episode in episodes:
        taken.append(episode)
        if (steps := steps - _length(episode)) <= 0:
            break
    return taken


def _length(episode: Episode) -> int:
    return len(episode["reward"])


def mixed(
    world: VectorEnv, of: Qualities, steps: int, seed: int, expert_share: float
) -> tuple[list[Episode], dict[str, Any]]:
    """Whole episodes in random order, of which the expert's have `expert_share` of the steps."""
    expert = until(round(steps * expert_share), played(world, of.best, seed, "expert"))
    experts = sum(map(_length, expert))
    episodes = expert + until(steps - experts, played(world, of.random, seed, "random"))
    order = np.random.default_rng(number(seed, "mixed")).permutation(len(episodes))
    share = experts / sum(map(_length, episodes))
    return [episodes[i] for i in order], {"expert_share": share}


def stitched(env: World, steps: int, seed: int) -> tuple[list[Episode], dict[str, Any]]:
    """Every other episode goes from the start's side to the middle and stays there, the others from there to the goal.

    Start and goal are the two cells that lie farthest apart, or those of the layout's `S` and `G` that do; the middle
    is half way. All episodes see the same goal, which is paid when it is reached. ValueError where the environment is
    no id of a point maze with one layout.
    """
    maze = made(env, 1).unwrapped
    if not isinstance(maze, PointMazeVectorEnv) or len(maze.layouts) > 1:
        raise ValueError("stitching needs a point maze with one layout, such as palaestra/PointMazeUMaze-v0, by its id")
    starts, middle, goal = _ways(maze.layouts[0])
    cells = [cell for start in starts for cell in (start, middle)]  # in which the copies begin
    world, guide = made(env, len(cells)), made(env, len(cells))
    assert isinstance(world, PointMazeVectorEnv)
    world.set_task([(0, *cell, *goal) for cell in cells])
    # The guide is never stepped: its controller leads to the middle those who see the goal.
    aims = [(0, *cell, *(goal if cell == middle else middle)) for cell in cells]
    guide.reset(seed=0, options={"task": aims})
    episodes = until(steps, played(world, clumsy(controlled(guide), STITCHING_NOISE), seed, "stitching"))
    return episodes, {"stitching": {"starts": starts, "middle": middle, "goal": goal, "noise": STITCHING_NOISE}}


def _ways(layout: tuple[str, ...]) -> tuple[list[tuple[int, int]], tuple[int, int], tuple[int, int]]:
    """Cells (row, column): where episodes start, the middle, the goal.

    The starts are the free cells whose shortest way to the goal leads through the middle, and which are nearer to the
    farthest of them than to the middle.
    """
    text = np.array([list(row) for row in layout])
    distance, _ = shortest_paths(text == "#")
    free = text.ravel() != "#"
    marked = {mark: (text.ravel() == mark) if mark in text else free for mark in "SG"}
    far = np.where(marked["G"][:, None] & marked["S"], distance, -1)  # [goal, start]
    goal, start = np.unravel_index(far.argmax(), far.shape)
    half = free & (distance[goal] == distance[goal, start] // 2) & (distance[start] + distance[goal] == far.max())
    middle = int(half.argmax())
    through = free & (distance[goal] == distance[middle] + distance[goal, middle])
    side = through & (distance[start] <= distance[middle])
    return [_cell(i, text) for i in np.flatnonzero(side).tolist()], _cell(middle, text), _cell(int(goal), text)


def _cell(index: int, text: np.ndarray) -> tuple[int, int]:
    return index // text.shape[1], index % text.shape[1]


def action_free(dataset: Dataset, episodes: Sequence[int]) -> Dataset:
    """The dataset as if these of its episodes had only been watched: NaN in place of their actions.

    ValueError where actions are choices, which cannot be NaN.
    """
    action = np.array(dataset.columns["action"])
    if action.dtype.kind != "f":
        raise ValueError(f"actions in {dataset.action_space} cannot be NaN: choose an environment with continuous ones")
    watched = np.isin(np.arange(dataset.episodes), episodes)
    action[np.repeat(watched, dataset.lengths + 1) & dataset.is_step] = np.nan
    return replace(dataset, columns={**dataset.columns, "action": action})
