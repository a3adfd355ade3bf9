"""A point mass on a plane: the smallest continuous-control task, solved by any working learner in seconds.

A double integrator, dv/dt = action - drag v, dx/dt = v, stepped by semi-implicit Euler. The reward is minus the
distance to the goal at the origin, minus a small price of acting.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from palaestra.envs.canvas import BLUE, GREEN, MUTED, RED, Canvas
from palaestra.envs.native import Floats, NativeVectorEnv
from palaestra.envs.single import Single

HALF_WIDTH = 2.0  # of the square that the point cannot leave
MAX_SPEED = 2.0  # per axis
TIME_STEP = 0.1
DRAG = 0.1
ACTION_PRICE = 0.05


class PointMassVectorEnv(NativeVectorEnv):
    """N point masses. obs: x, y, x speed, y speed; action: force in [-1, 1]^2; never terminates.

    An episode begins at rest, uniformly in [-1, 1]^2. Reward: -|position| - 0.05 |action|^2, after the step.
    """

    draws = 2
    physics_names = ("x", "y", "x_speed", "y_speed")

    def __init__(self, num_envs: int = 1, *, max_episode_steps: int | None = 100, **common: Any) -> None:
        high = np.array([HALF_WIDTH, HALF_WIDTH, MAX_SPEED, MAX_SPEED], dtype=np.float32)
        action_space = Box(-1.0, 1.0, (2,), np.float32)
        super().__init__(num_envs, Box(-high, high), action_space, max_episode_steps=max_episode_steps, **common)

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """At rest, uniformly in the inner square."""
        return np.concatenate([uniforms * 2 - 1, np.zeros_like(uniforms)], axis=1)

    def advance(self, physics: Floats, action: NDArray, tasks: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Push the points; the wall takes the speed that leads into it."""
        force = action.clip(-1.0, 1.0).astype(np.float64)
        position, speed = physics[:, :2], physics[:, 2:]
        speed = (speed + TIME_STEP * (force - DRAG * speed)).clip(-MAX_SPEED, MAX_SPEED)
        wanted = position + TIME_STEP * speed
        position = wanted.clip(-HALF_WIDTH, HALF_WIDTH)
        speed[position != wanted] = 0.0
        distance = np.sqrt(position[:, 0] ** 2 + position[:, 1] ** 2)
        reward = -distance - ACTION_PRICE * (force[:, 0] ** 2 + force[:, 1] ** 2)
        return np.concatenate([position, speed], axis=1), reward, np.zeros(len(physics), dtype=np.bool_)

    def observe(self, physics: Floats) -> NDArray[np.float32]:
        """The physical state."""
        return physics.astype(np.float32)

    def physics_problem(self, physics: Floats) -> str | None:
        """The point must lie in its square, within its top speed."""
        if (np.abs(physics) > self.single_observation_space.high).any():  # type: ignore[attr-defined]
            return f"positions lie in [-{HALF_WIDTH}, {HALF_WIDTH}], speeds in [-{MAX_SPEED}, {MAX_SPEED}]"
        return None

    def controller(self, obs: ArrayLike) -> NDArray[np.float32]:
        """A critically damped spring to the origin."""
        obs = np.asarray(obs, dtype=np.float32)
        return (-3.0 * obs[:, :2] - 3.2 * obs[:, 2:4]).clip(-1.0, 1.0)

    def draw_frame(self, index: int) -> NDArray[np.uint8]:
        """The square, the goal, the point and its speed."""
        x, y, x_speed, y_speed = self._physics[index]
        canvas = Canvas(-2.15, 2.15, -2.15, 2.15)
        for at in (-1.0, 0.0, 1.0):
            canvas.line([(at, -HALF_WIDTH), (at, HALF_WIDTH)], 0.008, MUTED)
            canvas.line([(-HALF_WIDTH, at), (HALF_WIDTH, at)], 0.008, MUTED)
        edge = [(-2.0, -2.0), (2.0, -2.0), (2.0, 2.0), (-2.0, 2.0), (-2.0, -2.0)]
        canvas.line(edge, 0.04, MUTED)
        canvas.ring((0.0, 0.0), 0.16, 0.045, GREEN)
        canvas.line([(x, y), (x + 0.4 * x_speed, y + 0.4 * y_speed)], 0.05, RED)
        canvas.disc((x, y), 0.1, BLUE)
        return canvas.frame()


class PointMassEnv(Single):
    """One point mass: see `PointMassVectorEnv`."""

    world_class = PointMassVectorEnv
