"""One copy of a native world as an ordinary `gymnasium.Env`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray

from palaestra.envs.native import Floats, NativeVectorEnv


class Single(gymnasium.Env):
    """One copy of `world_class`: copy i of the vector environment seeded s is this one seeded s + i, bit for bit.

    Has no time limit unless `max_episode_steps` is given, as Gymnasium's own worlds (`gymnasium.make` adds the
    `TimeLimit` of the registered id). Further arguments are the world's. `world` is the one-copy vector environment.
    """

    world_class: ClassVar[type[NativeVectorEnv]]
    metadata: dict[str, Any] = NativeVectorEnv.metadata

    def __init__(self, *, render_mode: str | None = None, max_episode_steps: int | None = None, **options: Any) -> None:
        self.world = self.world_class(
            1,
            autoreset_mode=AutoresetMode.DISABLED,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            **options,
        )
        self.metadata = {**self.world_class.metadata}
        self.render_mode = render_mode
        self.observation_space = self.world.single_observation_space
        self.action_space = self.world.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray, dict[str, Any]]:
        """Begin an episode: obs [o], info. `options` may hold "task" [d]."""
        super().reset(seed=seed)
        self.world.generators = [self.np_random]  # one stream, known to Gymnasium and to the world
        self.world._seeds = [self.np_random_seed]
        obs, infos = self.world.reset(options=options)
        return obs[0], _first(infos)

    def step(self, action: Any) -> tuple[NDArray, float, bool, bool, dict[str, Any]]:
        """Act: obs [o], reward, terminated, truncated, info."""
        obs, reward, terminated, truncated, infos = self.world.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(infos)

    def render(self) -> NDArray[np.uint8]:
        """The frame, uint8 [H, W, 3]."""
        return self.world.render()[0]

    def controller(self, obs: ArrayLike) -> Any:
        """The action of the world's scripted controller for an observation [o]."""
        return self.world.controller(np.asarray(obs)[None])[0]

    def get_physics(self) -> Floats:
        """The physical state [p]; the columns are `world.physics_names`."""
        return self.world.get_physics(0)

    def set_physics(self, physics: ArrayLike, elapsed: int = 0) -> NDArray:
        """Begin an episode in a physical state [p], `elapsed` steps into the time limit; returns the obs [o]."""
        return self.world.set_physics(0, physics, elapsed)

    def get_state(self) -> dict[str, Any]:
        """Everything that the future depends on (`NativeVectorEnv.get_state`)."""
        return self.world.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `get_state` gave."""
        self.world.set_state(state)
        if self.world.generators:
            self._np_random = self.world.generators[0]
            self._np_random_seed = self.world.np_random_seed[0]


def _first(infos: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[0].item() for name, values in infos.items() if not name.startswith("_")}
