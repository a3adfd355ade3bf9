"""Gymnasium's Pendulum-v1, vectorised, and a contextual version with a task (gravity, mass, length).

The numbers are those of Gymnasium 1.4 (`classic_control/pendulum.py`), down to the precision of each operation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from palaestra.envs.canvas import INK, MUTED, RED, Canvas
from palaestra.envs.native import Floats, NativeVectorEnv
from palaestra.envs.single import Single

MAX_SPEED = 8.0
MAX_TORQUE = 2.0
TIME_STEP = 0.05
GRAVITY, MASS, LENGTH = 10.0, 1.0, 1.0


class PendulumVectorEnv(NativeVectorEnv):
    """N pendulums to swing up and hold. obs: cos, sin of the angle (0 is upright), angular speed; action: torque [1].

    An episode begins with angle in [-pi, pi], speed in [-1, 1]; reward: -(angle^2 + 0.1 speed^2 + 0.001 torque^2);
    never terminates.
    """

    draws = 2
    physics_names = ("angle", "speed")

    def __init__(self, num_envs: int = 1, *, max_episode_steps: int | None = 200, **common: Any) -> None:
        high = np.array([1.0, 1.0, MAX_SPEED], dtype=np.float32)
        action_space = Box(-MAX_TORQUE, MAX_TORQUE, (1,), np.float32)
        super().__init__(num_envs, Box(-high, high), action_space, max_episode_steps=max_episode_steps, **common)

    def parameters(self, tasks: Floats) -> tuple[Any, Any, Any]:
        """Gravity, mass and length: numbers, or arrays [N]."""
        return GRAVITY, MASS, LENGTH

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """Any angle, a small speed."""
        high = np.array([np.pi, 1.0])
        return -high + (high - -high) * uniforms

    def advance(self, physics: Floats, action: NDArray, tasks: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """One Euler step; the reward is of the state before it."""
        angle, speed = physics.T
        gravity, mass, length = self.parameters(tasks)
        torque = action[:, 0].clip(-MAX_TORQUE, MAX_TORQUE)
        # Gymnasium's torque is float32, and so are its products with Python numbers.
        torque_gain = np.float32(3.0 / (mass * length**2))
        cost = _wrapped(angle) ** 2 + 0.1 * speed**2 + np.float32(0.001) * torque**2
        speed = speed + (3 * gravity / (2 * length) * np.sin(angle) + torque_gain * torque) * TIME_STEP
        speed = speed.clip(-MAX_SPEED, MAX_SPEED)
        return np.stack([angle + speed * TIME_STEP, speed], axis=1), -cost, np.zeros(len(physics), dtype=np.bool_)

    def observe(self, physics: Floats) -> NDArray[np.float32]:
        """Cosine, sine, speed."""
        obs = np.empty((len(physics), 3), dtype=np.float32)
        obs[:, 0] = np.cos(physics[:, 0])
        obs[:, 1] = np.sin(physics[:, 0])
        obs[:, 2] = physics[:, 1]
        return obs

    def physics_problem(self, physics: Floats) -> str | None:
        """Speeds are bounded."""
        return f"speeds lie in [-{MAX_SPEED}, {MAX_SPEED}]" if (np.abs(physics[:, 1]) > MAX_SPEED).any() else None

    def controller(self, obs: ArrayLike) -> NDArray[np.float32]:
        """Pump energy until the pendulum is nearly up, then hold it with a linear law."""
        obs = np.asarray(obs, dtype=np.float64)
        cos, sin, speed = obs[:, :3].T
        gravity, mass, length = self.parameters(self._tasks)
        inertia, weight = mass * length**2 / 3, mass * gravity * length / 2
        missing = weight * (1.0 - cos) - inertia * speed**2 / 2
        pump = np.where(speed == 0.0, 1.0, np.sign(speed)) * missing.clip(-1.0, 1.0) * MAX_TORQUE
        frequency = np.sqrt(weight / inertia)
        hold = -2.0 * weight * sin - 2.0 * inertia * frequency * speed
        torque = np.where((cos > 0.9) & (np.abs(sin + 0.25 * speed) < 0.35), hold, pump)
        return torque.clip(-MAX_TORQUE, MAX_TORQUE)[:, None].astype(np.float32)

    def draw_frame(self, index: int) -> NDArray[np.uint8]:
        """The rod, as long as it is."""
        angle = self._physics[index, 0]
        _, mass, length = (np.broadcast_to(value, self.num_envs)[index] for value in self.parameters(self._tasks))
        canvas = Canvas(-1.75, 1.75, -1.75, 1.75)
        canvas.ring((0.0, 0.0), length, 0.012, MUTED)
        tip = (-length * np.sin(angle), length * np.cos(angle))
        canvas.line([(0.0, 0.0), tip], 0.16 * np.sqrt(mass), RED)
        canvas.disc((0.0, 0.0), 0.045, INK)
        return canvas.frame()


class ContextualPendulumVectorEnv(PendulumVectorEnv):
    """N pendulums, each with its own task: gravity, mass and length; the standard one is 10, 1, 1."""

    task_names = ("gravity", "mass", "length")

    def __init__(self, num_envs: int = 1, *, visible: bool = False, **common: Any) -> None:
        space = Box(np.array([5.0, 0.5, 0.5]), np.array([15.0, 1.5, 1.5]), dtype=np.float64)
        task = (GRAVITY, MASS, LENGTH)
        super().__init__(num_envs, task_space=space, default_task=task, visible=visible, **common)

    def parameters(self, tasks: Floats) -> tuple[Any, Any, Any]:
        """The task's columns."""
        return tasks[:, 0], tasks[:, 1], tasks[:, 2]


class PendulumEnv(Single):
    """One pendulum: see `PendulumVectorEnv`."""

    world_class = PendulumVectorEnv


class ContextualPendulumEnv(Single):
    """One contextual pendulum: see `ContextualPendulumVectorEnv`."""

    world_class = ContextualPendulumVectorEnv


def _wrapped(angle: Floats) -> Floats:
    return ((angle + np.pi) % (2 * np.pi)) - np.pi
