"""Recall: a cue at the beginning, a blank corridor, and a question at its end. Only whoever remembers the cue answers.

The T-maze of Bakker, "Reinforcement Learning with Long Short-Term Memory" (2002), without the walking.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import ArrayLike, NDArray

from palaestra.envs.canvas import BLUE, INK, MUTED, RED, Canvas
from palaestra.envs.native import Floats, NativeVectorEnv
from palaestra.envs.single import Single


class RecallVectorEnv(NativeVectorEnv):
    """N corridors. obs: the cue (-1 or 1, and 0 after the first step), share of the way, 1 at the end; two actions.

    An episode is `length` + 1 steps, in which actions change nothing. In the last one the action answers: 0 for the cue
    -1, 1 for the cue 1. The reward is then 1 if it is right and -1 if not, so whoever sees the present alone gets 0 in
    the mean.
    """

    draws = 1
    physics_names = ("cue", "place")

    def __init__(self, num_envs: int = 1, *, length: int = 10, **common: Any) -> None:
        if length < 1:
            raise ValueError(f"length={length}: the corridor must be at least 1 long")
        self.length = length
        low, high = np.array([-1, 0, 0], dtype=np.float32), np.ones(3, dtype=np.float32)
        super().__init__(num_envs, Box(low, high), Discrete(2), **common)
        self._remembered = np.zeros(num_envs, dtype=np.int64)  # by the controller

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """One of two cues, each as likely."""
        return np.concatenate([np.floor(uniforms * 2), np.zeros_like(uniforms)], axis=1)

    def advance(self, physics: Floats, action: NDArray, tasks: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """One place further; at the last one the action is judged."""
        cue, place = physics.T
        asked = place == self.length
        after = np.stack([cue, place + 1], axis=1)
        return after, np.where(asked, np.where(action == cue, 1.0, -1.0), 0.0), asked

    def observe(self, physics: Floats) -> NDArray[np.float32]:
        """The cue where it is shown, how far, and whether now is the question."""
        cue, place = physics.T
        shown = np.where(place == 0, 2 * cue - 1, 0.0)
        return np.stack([shown, np.minimum(place / self.length, 1.0), place == self.length], axis=1).astype(np.float32)

    def physics_problem(self, physics: Floats) -> str | None:
        """Places are whole numbers, and an episode does not begin where it ends."""
        if (physics != np.floor(physics)).any() or (physics < 0).any() or (physics > [1, self.length]).any():
            return f"the cue is 0 or 1, the place in 0..{self.length}"
        return None

    def controller(self, obs: ArrayLike) -> NDArray[np.int64]:
        """The last cue that it saw: it has to be asked at every step, of all copies."""
        shown = np.asarray(obs)[:, 0]
        self._remembered = np.where(shown != 0, shown > 0, self._remembered).astype(np.int64)
        return self._remembered

    def draw_frame(self, index: int) -> NDArray[np.uint8]:
        """The corridor, who walks there, the cue while it is shown, and the two answers."""
        cue, place = self._physics[index]
        canvas = Canvas(-0.15, 1.25, -0.7, 0.7)
        for side in (-0.12, 0.12):
            canvas.line([(-0.1, side), (1.0, side)], 0.015, MUTED)
        for answer, colour in ((0, RED), (1, BLUE)):
            canvas.rectangle((1.02, -0.28 + 0.3 * answer), (1.2, -0.02 + 0.3 * answer), colour, corner=0.04)
        if place == 0:
            canvas.ring((0.0, 0.0), 0.1, 0.035, BLUE if cue else RED)
        canvas.disc((min(place / self.length, 1.0), 0.0), 0.05, INK)
        return canvas.frame()


class RecallEnv(Single):
    """One corridor: see `RecallVectorEnv`."""

    world_class = RecallVectorEnv
