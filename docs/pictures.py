"""Draw docs/images/worlds.png, one frame of each of our worlds: `python docs/pictures.py`."""

from pathlib import Path

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import palaestra.envs  # noqa: F401 (registers the ids)
from palaestra.envs.canvas import INK, PAPER
from palaestra.envs.registration import WORLDS

FRAME, GAP, LABEL, COLUMNS = 240, 14, 26, 5
STEPS = 8  # of the scripted controller, so that something has happened
OTHER_TASKS = {
    "ContextualPendulum": [10.0, 1.5, 0.6],
    "ContextualCartPole": [1.0, 1.0, 0.1, 10.0],
    "ContextualMountainCar": [0.0015, 0.002],
}


def frame(name: str) -> Image.Image:
    """A world some steps into an episode of its controller."""
    env = gymnasium.make(name, render_mode="rgb_array").unwrapped
    short = name.removeprefix("palaestra/").removesuffix("-v0")
    obs, _ = env.reset(seed=3, options={"task": OTHER_TASKS[short]} if short in OTHER_TASKS else None)
    for _ in range(25 if "Car" in short and "Pole" not in short else STEPS):
        obs, _, terminated, _, _ = env.step(env.controller(obs))
        if terminated:
            break
    return Image.fromarray(np.asarray(env.render())).resize((FRAME, FRAME), Image.Resampling.LANCZOS)


def main() -> None:
    names = [name for name in WORLDS if name != "palaestra/PointMaze-v0"]  # the same as PointMazeUMaze
    rows = -(-len(names) // COLUMNS)
    size = (COLUMNS * (FRAME + GAP) + GAP, rows * (FRAME + LABEL + GAP) + GAP)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for place, name in enumerate(names):
        x = GAP + place % COLUMNS * (FRAME + GAP)
        y = GAP + place // COLUMNS * (FRAME + LABEL + GAP)
        picture.paste(frame(name), (x, y))
        draw.rectangle((x, y, x + FRAME - 1, y + FRAME - 1), outline=PAPER)
        text = name.removeprefix("palaestra/").removesuffix("-v0")
        draw.text((x + FRAME / 2, y + FRAME + LABEL / 2 + 2), text, INK, font, anchor="mm")
    out = Path(__file__).parent / "images" / "worlds.png"
    out.parent.mkdir(exist_ok=True)
    picture.save(out, optimize=True)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
