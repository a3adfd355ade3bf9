"""Gymnasium's MountainCar-v0 and MountainCarContinuous-v0, vectorised, and a contextual version (gravity, power).

The numbers are those of Gymnasium 1.4 (`classic_control/mountain_car.py`, `continuous_mountain_car.py`), after
Moore (1990). `shaping` adds `shaping` times the gain in mechanical energy, a potential-based reward (Ng, Harada and
Russell, 1999, with discount 1): 0, the default, is the plain task.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import ArrayLike, NDArray

from palaestra.envs.canvas import BLUE, GREEN, INK, MUTED, Canvas
from palaestra.envs.native import Floats, NativeVectorEnv
from palaestra.envs.single import Single

MIN_POSITION, MAX_POSITION = -1.2, 0.6
MAX_SPEED = 0.07
GRAVITY = 0.0025
FORCE = 0.001  # of the discrete car
POWER = 0.0015  # of the continuous car


class MountainCarVectorEnv(NativeVectorEnv):
    """N underpowered cars in a valley. obs: position, speed; actions: 0 pushes left, 1 not at all, 2 right.

    An episode begins at rest with position in [-0.6, -0.4]; each step costs 1 until position 0.5, where it terminates.
    """

    draws = 1
    physics_names = ("position", "speed")
    goal_position = 0.5

    def __init__(
        self, num_envs: int = 1, *, max_episode_steps: int | None = 200, shaping: float = 0.0, **common: Any
    ) -> None:
        self.shaping = shaping
        low = np.array([MIN_POSITION, -MAX_SPEED], dtype=np.float32)
        high = np.array([MAX_POSITION, MAX_SPEED], dtype=np.float32)
        super().__init__(num_envs, Box(low, high), self.actions(), max_episode_steps=max_episode_steps, **common)

    def actions(self) -> Box | Discrete:
        """One copy's action space."""
        return Discrete(3)

    def parameters(self, tasks: Floats) -> tuple[Any, Any]:
        """Gravity and force: numbers, or arrays [N]."""
        return GRAVITY, FORCE

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """At rest near the bottom."""
        return np.concatenate([-0.6 + (-0.4 - -0.6) * uniforms, np.zeros_like(uniforms)], axis=1)

    def advance(self, physics: Floats, action: NDArray, tasks: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """One step; the left wall stops the car."""
        position, speed = physics.T
        gravity, force = self.parameters(tasks)
        speed = speed + ((action - 1) * force + np.cos(3 * position) * (-gravity))
        after, arrived = self._moved(position, speed)
        return after, self._shaped(np.full(len(physics), -1.0), physics, after, gravity), arrived

    def _moved(self, position: NDArray, speed: NDArray) -> tuple[Floats, NDArray[np.bool_]]:
        # Keeps the precision it is given, since the continuous car of Gymnasium moves in float32.
        speed = speed.clip(-MAX_SPEED, MAX_SPEED)
        position = (position + speed).clip(MIN_POSITION, MAX_POSITION)
        speed = np.where((position <= MIN_POSITION) & (speed < 0), position.dtype.type(0), speed)
        return np.stack([position, speed], axis=1).astype(np.float64), (position >= self.goal_position) & (speed >= 0)

    def _shaped(self, reward: Floats, before: Floats, after: Floats, gravity: Any) -> Floats:
        if self.shaping == 0.0:
            return reward
        return reward + self.shaping * (_energy(after, gravity) - _energy(before, gravity))

    def observe(self, physics: Floats) -> NDArray[np.float32]:
        """The physical state."""
        return physics.astype(np.float32)

    def outcome(self, terminated: NDArray[np.bool_]) -> dict[str, NDArray]:
        """`success`: the car is over the hill."""
        return {"success": terminated.copy()}

    def physics_problem(self, physics: Floats) -> str | None:
        """Positions and speeds are bounded."""
        space = self.single_observation_space
        assert isinstance(space, Box)
        if ((physics < space.low[:2]) | (physics > space.high[:2])).any():
            return f"positions lie in [{MIN_POSITION}, {MAX_POSITION}], speeds in [-{MAX_SPEED}, {MAX_SPEED}]"
        return None

    def controller(self, obs: ArrayLike) -> NDArray:
        """Push the way it already goes, which adds the most energy."""
        return np.where(np.asarray(obs)[:, 1] < 0, 0, 2)

    def draw_frame(self, index: int) -> NDArray[np.uint8]:
        """The hill, the flag and the car."""
        position = self._physics[index, 0]
        canvas = Canvas(-1.25, 0.65, -0.35, 1.55)
        ground = [(x, _height(x)) for x in np.linspace(-1.25, 0.65, 120)]
        canvas.polygon([*ground, (0.65, -0.35), (-1.25, -0.35)], MUTED)
        canvas.line(ground, 0.015, INK)
        goal = self.goal_position
        canvas.line([(goal, _height(goal)), (goal, _height(goal) + 0.22)], 0.012, INK)
        top = _height(goal) + 0.22
        canvas.polygon([(goal, top), (goal + 0.11, top - 0.035), (goal, top - 0.08)], GREEN)
        slope = 1.35 * np.cos(3 * position)
        along = np.array([1.0, slope]) / np.hypot(1.0, slope)
        up = np.array([-along[1], along[0]])
        middle = np.array([position, _height(position)]) + 0.045 * up
        body = [(-0.09, 0.0), (0.09, 0.0), (0.08, 0.05), (0.045, 0.05), (0.025, 0.085), (-0.05, 0.085), (-0.085, 0.045)]
        canvas.polygon([middle + x * along + y * up for x, y in body], BLUE)
        for wheel in (-0.05, 0.05):
            canvas.disc(middle + wheel * along - 0.012 * up, 0.027, INK)
        return canvas.frame()


class MountainCarContinuousVectorEnv(MountainCarVectorEnv):
    """N cars with a throttle in [-1, 1] [1]: reward 100 at position 0.45, where it terminates, -0.1 action^2 a step."""

    goal_position = 0.45

    def __init__(self, num_envs: int = 1, *, max_episode_steps: int | None = 999, **common: Any) -> None:
        super().__init__(num_envs, max_episode_steps=max_episode_steps, **common)

    def actions(self) -> Box | Discrete:
        """One copy's action space."""
        return Box(-1.0, 1.0, (1,), np.float32)

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """At rest near the bottom; float32, as the later states (Gymnasium rounds from the first step on)."""
        return super().begin(uniforms, tasks).astype(np.float32).astype(np.float64)

    def advance(self, physics: Floats, action: NDArray, tasks: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """One step in float32, as Gymnasium's: its state is float32, and only the cosine is taken in float64."""
        position, speed = physics.astype(np.float32).T
        throttle = action[:, 0]
        slope = (GRAVITY * np.cos((3 * position).astype(np.float64))).astype(np.float32)
        speed = speed + (throttle.clip(-1.0, 1.0) * np.float32(POWER) - slope)
        after, arrived = self._moved(position, speed)
        reward = np.where(arrived, 100.0, 0.0) - np.square(throttle, dtype=np.float64) * 0.1
        return after, self._shaped(reward, physics, after, GRAVITY), arrived

    def controller(self, obs: ArrayLike) -> NDArray:
        """Push the way it already goes, at seven tenths, which spends less than full throttle does."""
        return np.where(np.asarray(obs)[:, 1:2] < 0, -0.7, 0.7).astype(np.float32)


class ContextualMountainCarVectorEnv(MountainCarVectorEnv):
    """N cars of `MountainCarVectorEnv`, each with its own task: gravity and force; the standard is 0.0025, 0.001."""

    task_names = ("gravity", "force")

    def __init__(self, num_envs: int = 1, *, visible: bool = False, **common: Any) -> None:
        space = Box(np.array([0.0015, 0.0008]), np.array([0.0035, 0.002]), dtype=np.float64)
        super().__init__(num_envs, task_space=space, default_task=(GRAVITY, FORCE), visible=visible, **common)

    def parameters(self, tasks: Floats) -> tuple[Any, Any]:
        """The task's columns."""
        return tasks[:, 0], tasks[:, 1]


class MountainCarEnv(Single):
    """One car: see `MountainCarVectorEnv`."""

    world_class = MountainCarVectorEnv


class MountainCarContinuousEnv(Single):
    """One car with a throttle: see `MountainCarContinuousVectorEnv`."""

    world_class = MountainCarContinuousVectorEnv


class ContextualMountainCarEnv(Single):
    """One contextual car: see `ContextualMountainCarVectorEnv`."""

    world_class = ContextualMountainCarVectorEnv


def _height(position: float) -> float:
    return float(np.sin(3 * position) * 0.45 + 0.55)


def _energy(physics: Floats, gravity: Any) -> Floats:
    # A unit of height in the potential sin(3 x) / 3, so that the way up is worth about 2 / 3.
    return np.sin(3 * physics[:, 0]) / 3 + physics[:, 1] ** 2 / (2 * gravity)
