"""Gymnasium's CartPole-v1, vectorised, and a contextual version with a task (length, masses, force).

The numbers are those of Gymnasium 1.4 (`classic_control/cartpole.py`), after Barto, Sutton and Anderson (1983).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import ArrayLike, NDArray

from palaestra.envs.canvas import BLUE, INK, MUTED, RED, Canvas
from palaestra.envs.native import Floats, NativeVectorEnv
from palaestra.envs.single import Single

GRAVITY = 9.8
CART_MASS, POLE_MASS, HALF_LENGTH, FORCE = 1.0, 0.1, 0.5, 10.0
TIME_STEP = 0.02
MAX_ANGLE = 12 * 2 * np.pi / 360
MAX_POSITION = 2.4


class CartPoleVectorEnv(NativeVectorEnv):
    """N poles to balance on carts. obs: position, speed, angle, angular speed; actions: 0 pushes left, 1 right.

    An episode begins with all four in [-0.05, 0.05] and terminates beyond 2.4 m or 12 degrees; each step is worth 1.
    """

    draws = 4
    physics_names = ("position", "speed", "angle", "angular_speed")

    def __init__(self, num_envs: int = 1, *, max_episode_steps: int | None = 500, **common: Any) -> None:
        high = np.array([MAX_POSITION * 2, np.inf, MAX_ANGLE * 2, np.inf], dtype=np.float32)
        super().__init__(num_envs, Box(-high, high), Discrete(2), max_episode_steps=max_episode_steps, **common)

    def parameters(self, tasks: Floats) -> tuple[Any, Any, Any, Any]:
        """Half the pole's length, the cart's and the pole's mass, and the force: numbers, or arrays [N]."""
        return HALF_LENGTH, CART_MASS, POLE_MASS, FORCE

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """Nearly upright, nearly at rest."""
        return -0.05 + (0.05 - -0.05) * uniforms

    def advance(self, physics: Floats, action: NDArray, tasks: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """One explicit Euler step."""
        position, speed, angle, angular_speed = physics.T
        length, cart_mass, pole_mass, force = self.parameters(tasks)
        total = pole_mass + cart_mass
        moment = pole_mass * length
        cos, sin = np.cos(angle), np.sin(angle)
        push = (np.where(action == 1, force, -force) + moment * np.square(angular_speed) * sin) / total
        angular_acceleration = (GRAVITY * sin - cos * push) / (
            length * (4.0 / 3.0 - pole_mass * np.square(cos) / total)
        )
        acceleration = push - moment * angular_acceleration * cos / total
        after = np.empty_like(physics)
        after[:, 0] = position + TIME_STEP * speed
        after[:, 1] = speed + TIME_STEP * acceleration
        after[:, 2] = angle + TIME_STEP * angular_speed
        after[:, 3] = angular_speed + TIME_STEP * angular_acceleration
        fallen = (np.abs(after[:, 0]) > MAX_POSITION) | (np.abs(after[:, 2]) > MAX_ANGLE)
        return after, np.ones(len(physics)), fallen

    def observe(self, physics: Floats) -> NDArray[np.float32]:
        """The physical state."""
        return physics.astype(np.float32)

    def physics_problem(self, physics: Floats) -> str | None:
        """An episode does not begin where it ends."""
        if ((np.abs(physics[:, 0]) > MAX_POSITION) | (np.abs(physics[:, 2]) > MAX_ANGLE)).any():
            return f"positions lie in [-{MAX_POSITION}, {MAX_POSITION}], angles in [-{MAX_ANGLE:.4f}, {MAX_ANGLE:.4f}]"
        return None

    def controller(self, obs: ArrayLike) -> NDArray[np.int64]:
        """A linear law, pushed right where it is positive."""
        obs = np.asarray(obs, dtype=np.float64)[:, :4]
        return (obs @ np.array([0.06, 0.14, 1.0, 0.28]) > 0).astype(np.int64)

    def draw_frame(self, index: int) -> NDArray[np.uint8]:
        """The track, the cart, and the pole, as long as it is."""
        position, _, angle, _ = self._physics[index]
        half_length = np.broadcast_to(self.parameters(self._tasks)[0], self.num_envs)[index]
        canvas = Canvas(-2.6, 2.6, -1.9, 3.3)
        canvas.line([(-MAX_POSITION, 0.0), (MAX_POSITION, 0.0)], 0.03, MUTED)
        for end in (-MAX_POSITION, MAX_POSITION):
            canvas.line([(end, -0.12), (end, 0.12)], 0.03, MUTED)
        canvas.rectangle((position - 0.3, -0.18), (position + 0.3, 0.18), BLUE, corner=0.06)
        tip = (position + 2 * half_length * np.sin(angle), 2 * half_length * np.cos(angle))
        canvas.line([(position, 0.0), tip], 0.1, RED)
        canvas.disc((position, 0.0), 0.045, INK)
        return canvas.frame()


class ContextualCartPoleVectorEnv(CartPoleVectorEnv):
    """N cart-poles, each with its own task: half length, cart mass, pole mass, force; standard: 0.5, 1, 0.1, 10."""

    task_names = ("half_length", "cart_mass", "pole_mass", "force")

    def __init__(self, num_envs: int = 1, *, visible: bool = False, **common: Any) -> None:
        space = Box(np.array([0.25, 0.5, 0.05, 5.0]), np.array([1.0, 2.0, 0.5, 20.0]), dtype=np.float64)
        task = (HALF_LENGTH, CART_MASS, POLE_MASS, FORCE)
        super().__init__(num_envs, task_space=space, default_task=task, visible=visible, **common)

    def parameters(self, tasks: Floats) -> tuple[Any, Any, Any, Any]:
        """The task's columns."""
        return tasks[:, 0], tasks[:, 1], tasks[:, 2], tasks[:, 3]


class CartPoleEnv(Single):
    """One cart-pole: see `CartPoleVectorEnv`."""

    world_class = CartPoleVectorEnv


class ContextualCartPoleEnv(Single):
    """One contextual cart-pole: see `ContextualCartPoleVectorEnv`."""

    world_class = ContextualCartPoleVectorEnv
