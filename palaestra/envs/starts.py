"""Begin an episode from a chosen state, in one environment of a vector."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from palaestra.envs.state import set_state


def start_from(env: VectorEnv, i: int, state: Any) -> Any:
    """Put environment `i` into `state` and return its observation, batched [1, ...].

    A `state` is what the environment itself gives: `get_physics(i)` of our worlds, `get_state(env)` of a single
    Gymnasium environment with `_get_obs` (classic control, MuJoCo). TypeError for any other environment.
    """
    if hasattr(env, "set_physics"):
        return np.asarray(env.set_physics(i, state))[None]
    if isinstance(env, SyncVectorEnv):
        single = env.envs[i]
        if hasattr(single.unwrapped, "set_physics"):
            return np.asarray(single.unwrapped.set_physics(state))[None]
        if hasattr(single.unwrapped, "_get_obs"):
            set_state(single, state)
            return np.asarray(single.unwrapped._get_obs())[None]
    raise TypeError(
        f"{type(env).__name__} cannot start from a chosen state: it needs set_physics(i, state) -> observation"
    )
