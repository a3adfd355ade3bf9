"""A teacher acts on an environment's own observations: a world's scripted controller, or a policy that was loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import iterate


class Teacher(Protocol):
    """What `palaestra.load` gives is one."""

    def act(self, obs: Any) -> np.ndarray:
        """The environment's actions [N, ...] for its observations [N, ...]."""

    def reset(self) -> None:
        """Forget: new episodes begin."""


Policies = Callable[[str], Teacher]  # from a run's folder to its policy

CONTROLLER = "controller"


class Controller:
    """The scripted controller of the copies of a vector environment. ValueError where there is none."""

    def __init__(self, env: VectorEnv) -> None:
        base: Any = env.unwrapped
        self.space = env.observation_space
        self.alone: list[Any] = [copy.unwrapped for copy in base.envs] if isinstance(base, SyncVectorEnv) else []
        self.together = base if not self.alone else None
        for each in self.alone or [base]:
            if not hasattr(each, "controller"):
                what = f"{type(each).__name__} has no controller(obs)"
                raise ValueError(f"{what}: name a run's folder as the teacher, teacher='runs/best'")

    def act(self, obs: Any) -> np.ndarray:
        """What the world does to solve itself; of copies that are stepped one by one, what each does."""
        if self.together is not None:
            return np.asarray(self.together.controller(obs))
        return np.stack([copy.controller(own) for copy, own in zip(self.alone, iterate(self.space, obs), strict=True)])

    def reset(self) -> None:
        """It remembers nothing."""


def teacher_of(name: str, env: VectorEnv, policies: Policies | None) -> Teacher:
    """The teacher of a name: "controller", the world's own, or a run's folder, opened by `policies`."""
    if name == CONTROLLER:
        return Controller(env)
    if policies is None:
        raise ValueError(f"teacher={name!r}: nothing here opens a run's folder; give Online policies=pal.load")
    return policies(name)
