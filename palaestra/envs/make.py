"""From what a user names (an id, an environment, a function that makes one) to a vector environment."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from importlib import import_module
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from palaestra.envs.registration import register

World = str | gym.Env[Any, Any] | VectorEnv | Callable[[], gym.Env[Any, Any]]

EXTRAS = {  # what an id's failure to import asks for
    "mujoco": "mujoco",
    "Box2D": "box2d",
    "box2d": "box2d",
    "ale_py": "atari",
    "opencv": "atari",
    "pygame": "classic",
    "envpool": "envpool",
}


class UnknownEnvironment(ValueError):
    """No environment of this name can be made; says which could."""


def make_vector(world: World, n: int = 1) -> VectorEnv:
    """`n` copies that reset on demand (a given `VectorEnv` stays as it is).

    An id of the Arcade Learning Environment, "ALE/Pong-v5", is made with the usual preprocessing: see `atari`.

    Raises `UnknownEnvironment`, with the nearest ids or the missing extra, and ValueError for a vector environment of
    another size than `n`.
    """
    register()
    if isinstance(world, VectorEnv):
        if n != world.num_envs:
            raise ValueError(f"the vector environment has {world.num_envs} copies, and {n} were asked for")
        return world
    if isinstance(world, str):
        try:
            return _by_id(world, n)
        except gym.error.DependencyNotInstalled as missing:
            raise UnknownEnvironment(
                f"{world} needs a package that is not installed: {missing}{_remedy(missing)}"
            ) from missing
        except ModuleNotFoundError as missing:
            raise UnknownEnvironment(
                f"{world} needs a package that is not installed: {missing}{_remedy(missing)}"
            ) from missing
        except gym.error.Error as wrong:
            raise UnknownEnvironment(_unknown(world, wrong)) from wrong
    if isinstance(world, gym.Env):

        def another() -> gym.Env[Any, Any]:
            return copy.deepcopy(world)

        makers: list[Callable[[], gym.Env[Any, Any]]] = [another] * n
    else:
        makers = [world] * n
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)


NAMESPACES = {"ALE": "ale_py"}  # packages whose ids Gymnasium knows only once they are imported


def _by_id(name: str, n: int) -> VectorEnv:
    if (package := NAMESPACES.get(name.partition("/")[0])) is not None:
        gym.register_envs(import_module(package))
    spec = gym.spec(name)
    if spec.namespace == "palaestra" and spec.vector_entry_point is not None:
        return gym.make_vec(name, n, vectorization_mode="vector_entry_point", autoreset_mode=AutoresetMode.DISABLED)
    make = atari if spec.namespace == "ALE" else gym.make
    return SyncVectorEnv([lambda: make(name)] * n, autoreset_mode=AutoresetMode.DISABLED)


def atari(name: str) -> gym.Env[Any, Any]:
    """A game "ALE/...-v5" as it is usually learnt: obs uint8 [4, 84, 84], the last four frames in grey.

    Up to 30 no-ops at the beginning; an action is held for four frames (and sticks with probability 0.25, as the id
    says), of which the last two are pooled by their maximum (Mnih et al. 2015, Machado et al. 2018). A reward is the
    game's own score and an episode a whole game, so that returns are comparable. For rewards clipped to their sign,
    wrap it: `env=lambda: ClipReward(atari("ALE/Pong-v5"), -1, 1)`; returns are then of clipped rewards, too.
    """
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    gym.register_envs(import_module("ale_py"))
    game = gym.make(name, frameskip=1)  # the id skips four by itself, and AtariPreprocessing would skip four of those
    return FrameStackObservation(AtariPreprocessing(game), 4)


def _remedy(missing: Exception) -> str:
    for word, extra in EXTRAS.items():
        if word in str(missing):
            return f"; pip install 'palaestra[{extra}]'"
    return ""


def _unknown(name: str, wrong: Exception) -> str:
    near = difflib.get_close_matches(name, gym.registry, 3, 0.6)
    first = str(wrong).splitlines()[0].rstrip(".")
    return f"there is no environment {name!r} ({first})" + (f"; did you mean {', '.join(near)}?" if near else "")
