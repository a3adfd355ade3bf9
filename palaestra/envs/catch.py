"""Catch: move a paddle under a falling ball. The smallest world of images, for convolutional learners.

After Mnih et al., "Recurrent Models of Visual Attention" (2014), with a paddle of one pixel as in bsuite (2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import ArrayLike, NDArray

from palaestra.envs.canvas import BLUE, MUTED, RED, Canvas
from palaestra.envs.native import Floats, NativeVectorEnv
from palaestra.envs.single import Single

SIZE = 10  # rows and columns


class CatchVectorEnv(NativeVectorEnv):
    """N falling balls. obs: uint8 image [10, 10, 1], 255 at the ball and the paddle; actions: left, stay, right.

    The ball begins in any column of the top row, the paddle in the middle of the bottom row. The ball falls one row a
    step; after nine steps it is down and the episode terminates: the reward is then 1 if it was caught and -1 if not.
    """

    draws = 1
    physics_names = ("row", "column", "paddle")

    def __init__(self, num_envs: int = 1, **common: Any) -> None:
        super().__init__(num_envs, Box(0, 255, (SIZE, SIZE, 1), np.uint8), Discrete(3), **common)

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """The ball in a column of the top row, each as likely."""
        column = np.floor(uniforms * SIZE)
        return np.concatenate([np.zeros_like(column), column, np.full_like(column, SIZE // 2)], axis=1)

    def advance(self, physics: Floats, action: NDArray, tasks: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """The ball falls, the paddle moves."""
        row, column, paddle = physics.T
        after = np.stack([np.minimum(row + 1, SIZE - 1), column, (paddle + action - 1).clip(0, SIZE - 1)], axis=1)
        down = after[:, 0] == SIZE - 1
        return after, np.where(down, np.where(after[:, 2] == column, 1.0, -1.0), 0.0), down

    def observe(self, physics: Floats) -> NDArray[np.uint8]:
        """The image."""
        row, column, paddle = physics.astype(np.int64).T
        copies = np.arange(len(physics))
        image = np.zeros((len(physics), SIZE, SIZE, 1), dtype=np.uint8)
        image[copies, row, column] = image[copies, SIZE - 1, paddle] = 255
        return image

    def physics_problem(self, physics: Floats) -> str | None:
        """Pixels are whole numbers, and an episode does not begin where it ends."""
        if (physics != np.floor(physics)).any() or (physics < 0).any() or (physics >= [SIZE - 1, SIZE, SIZE]).any():
            return f"the ball's row is in 0..{SIZE - 2}, its column and the paddle's in 0..{SIZE - 1}"
        return None

    def controller(self, obs: ArrayLike) -> NDArray[np.int64]:
        """Towards the ball's column."""
        lit = np.asarray(obs)[..., 0] > 0
        ball, paddle = lit[:, :-1].any(1).argmax(1), lit[:, -1].argmax(1)
        return np.sign(ball - paddle) + 1

    def draw_frame(self, index: int) -> NDArray[np.uint8]:
        """The pixels, the ball and the paddle."""
        row, column, paddle = self._physics[index]
        canvas = Canvas(-1.0, SIZE, SIZE, -1.0)  # rows run downwards
        for at in range(SIZE + 1):
            canvas.line([(at - 0.5, -0.5), (at - 0.5, SIZE - 0.5)], 0.03, MUTED)
            canvas.line([(-0.5, at - 0.5), (SIZE - 0.5, at - 0.5)], 0.03, MUTED)
        canvas.rectangle((paddle - 0.5, SIZE - 1.5), (paddle + 0.5, SIZE - 0.5), BLUE, corner=0.15)
        canvas.disc((column, row), 0.42, RED)
        return canvas.frame()


class CatchEnv(Single):
    """One falling ball: see `CatchVectorEnv`."""

    world_class = CatchVectorEnv
