"""Begin an episode from a chosen state, in one environment of a vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from palaestra.envs.state import begin_in, get_state


def snapshot(env: VectorEnv, i: int) -> Any:
    """The state of environment `i` now, for `start_from`. ValueError where it cannot be had."""
    if isinstance(env, SyncVectorEnv):
        return get_state(env.envs[i])
    if hasattr(env, "get_physics"):
        return env.get_physics(i)
    raise ValueError(f"{type(env).__name__} gives no state of one of its copies: it needs get_physics(i)")


def start_from(env: VectorEnv, i: int, state: Any, obs: Any = None) -> Any:
    """Put environment `i` into `state` and return its observation, batched [1, ...].

    A `state` is what the environment itself gives: `get_physics(i)` of our worlds, `get_state(env)` of a single
    Gymnasium environment. Steps are then counted from zero, and random numbers go on as they would have.
    `obs` [1, ...] is what is seen there, for an environment that cannot tell (of those of Gymnasium's that can, classic
    control and MuJoCo, it is one with `_get_obs` and without wrappers that change it). TypeError for any other.
    """
    if hasattr(env, "set_physics"):
        return np.asarray(env.set_physics(i, state))[None]
    if isinstance(env, SyncVectorEnv):
        single = env.envs[i]
        base: Any = single.unwrapped
        if hasattr(base, "set_physics") and not isinstance(state, Mapping):
            return np.asarray(base.set_physics(state))[None]
        if obs is not None or hasattr(base, "_get_obs"):
            begin_in(single, state)
            return np.asarray(base._get_obs())[None] if obs is None else obs
    raise TypeError(
        f"{type(env).__name__} cannot start from a chosen state: it needs set_physics(i, state) -> observation"
    )
