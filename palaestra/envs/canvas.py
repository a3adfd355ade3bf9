"""Frames drawn with Pillow: shapes in the world's own coordinates, antialiased by drawing larger."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PAPER = (250, 249, 246)
INK = (43, 45, 51)
MUTED = (187, 187, 183)
RED = (201, 68, 84)
BLUE = (47, 102, 144)
GREEN = (58, 125, 92)

Colour = tuple[int, int, int]
Point = tuple[float, float] | NDArray[np.float64]


class Canvas:
    """A picture of the world's rectangle [left, right] x [bottom, top], scaled to fit and centred.

    `top < bottom` turns the second axis downwards, as rows of a grid run. Lengths (`radius`, `width`) are in the
    world's units too.
    """

    oversampling = 3

    def __init__(self, left: float, right: float, bottom: float, top: float, size: int = 400) -> None:
        try:
            from PIL import Image, ImageDraw
        except ImportError as error:
            raise ImportError("drawing frames needs Pillow: pip install pillow") from error
        self.size = size
        pixels = size * self.oversampling
        self._image = Image.new("RGB", (pixels, pixels), PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._scale = pixels / max(abs(right - left), abs(top - bottom))
        self._centre = ((left + right) / 2, (bottom + top) / 2)
        self._up = -1.0 if top > bottom else 1.0

    def _pixels(self, point: Point) -> tuple[float, float]:
        middle = self.size * self.oversampling / 2
        return (
            middle + (float(point[0]) - self._centre[0]) * self._scale,
            middle + (float(point[1]) - self._centre[1]) * self._scale * self._up,
        )

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """A filled disc."""
        x, y = self._pixels(centre)
        r = radius * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def ring(self, centre: Point, radius: float, width: float, colour: Colour) -> None:
        """A circle's outline, `width` thick, inside `radius`."""
        x, y = self._pixels(centre)
        r = radius * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(1, round(width * self._scale)))

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A line through the points, with round ends."""
        corners = [self._pixels(point) for point in points]
        self._draw.line(corners, fill=colour, width=max(1, round(width * self._scale)), joint="curve")
        r = width * self._scale / 2
        for x, y in (corners[0], corners[-1]):
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([self._pixels(point) for point in points], fill=colour)

    def rectangle(self, low: Point, high: Point, colour: Colour, corner: float = 0.0) -> None:
        """A filled rectangle between two opposite corners, its own corners rounded by `corner`."""
        (x0, y0), (x1, y1) = self._pixels(low), self._pixels(high)
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        self._draw.rounded_rectangle(box, radius=corner * self._scale, fill=colour)

    def frame(self) -> NDArray[np.uint8]:
        """The picture, uint8 [size, size, 3]."""
        from PIL import Image

        return np.asarray(self._image.resize((self.size, self.size), Image.Resampling.BOX), dtype=np.uint8).copy()
