"""Learning curves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from palaestra.runs.errors import RunError
from palaestra.runs.queries import interquartile_mean
from palaestra.runs.run import Run

# Okabe and Ito's colours, which the colour-blind tell apart, the light yellow left out.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")

_SUFFIXES = (".png", ".svg", ".pdf")

# Rows that are no evaluations come one episode at a time; their curve is drawn through this many bins.
_BINS = 60

_Points = list[tuple[float, float]]


def learning_curve(runs: Iterable[Run], path: Path, key: str = "episode_return") -> Path:
    """Draw a measure over environment steps (over updates where there are none), and save the figure.

    The line is the interquartile mean over all seeds and runs of one expression and env, every raw value a faint dot.
    Evaluations are drawn if there are any with this key, else training episodes, else training metrics.

    Args:
        runs: those with the same expression and env share a colour.
        path: a .png (1,400 x 840 pixels), .svg or .pdf file; its folder is made when missing.
        key: a score such as "episode_return", or a training metric such as "loss/critic".

    Returns:
        The path.

    Raises:
        RunError: there is nothing to draw, the suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise RunError(path, f"{path.suffix or 'no suffix'!r} is no format of a figure", "use .png, .svg or .pdf")
    runs = list(runs)
    rows = {index: run.metrics() for index, run in enumerate(runs)}
    kind, clock = _source(runs, rows, key)
    groups: dict[tuple[str, str], _Points] = {}
    for index, run in enumerate(runs):
        name = (
            str(run.about.get("expression", run.folder.name)),
            str(run.about.get("env") or run.about.get("dataset") or ""),
        )
        points = [
            (float(one[clock]), value) for one in rows[index] for value in _values(one, kind, key) if clock in one
        ]
        if points:
            groups.setdefault(name, []).extend(points)

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(7, 4.2), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(groups.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
        xs, ys = zip(*points, strict=True)
        axes.scatter(xs, ys, s=9, color=colour, alpha=0.25, linewidths=0, rasterized=len(xs) > 5_000, zorder=2)
        line = _line(points, binned=kind != "evaluation")
        marker = "o" if len(line) == 1 else None
        label = _label(name, groups)
        xs, ys = zip(*line, strict=True)
        axes.plot(xs, ys, style, color=colour, linewidth=1.8, marker=marker, label=label, zorder=3)

    axes.set_title(_title(list(groups)), fontsize=11)
    axes.set_xlabel({"env_steps": "environment steps", "updates": "updates"}[clock])
    what = "evaluation" if kind == "evaluation" else "training"
    axes.set_ylabel(f"{key.replace('_', ' ')} ({what})")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(groups) > 1:
        figure.legend(loc="outside lower center", ncols=1 if len(groups) < 4 else 2, frameon=False, fontsize=9)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise RunError(path, f"cannot be written ({error.strerror})", "choose another file") from error
    return path


def thousands(value: float) -> str:
    """Return a number as an axis shows it: 10k, 1.5M, −1.2k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}".replace("-", "−")  # noqa: RUF001 (the minus that axes have)
    return f"{value:.6g}".replace("-", "−")  # noqa: RUF001


def _source(runs: Sequence[Run], rows: dict[int, list[dict[str, Any]]], key: str) -> tuple[str, str]:
    """Return the kind of rows to draw and the clock to draw them over."""
    if not runs:
        raise RunError(Path(), "there are no runs to draw", "give the folders of some")
    every = [one for some in rows.values() for one in some]
    for kind in ("evaluation", "episode", "train"):
        drawn = [one for one in every if any(value == value for value in _values(one, kind, key))]
        # Offline runs count no environment steps, or count none of them.
        for clock in ("env_steps", "updates"):
            if any(one.get(clock) for one in drawn):
                return kind, clock
        if any("env_steps" in one for one in drawn):  # the one evaluation before the first step
            return kind, "env_steps"
    known = sorted({name for one in every for name in (*one.get("scores", {}), *one) if "/" in name or "_" in name})
    others = [name for name in known if name not in ("env_steps", key)]
    remedy = f"the metrics have {', '.join(others)}" if others else "let it train until its first evaluation"
    where = ", ".join(str(run.folder) for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
    raise RunError(Path(where), f"there is no {key!r} to draw", remedy)


def _values(one: dict[str, Any], kind: str, key: str) -> list[float]:
    if one.get("kind") != kind:
        return []
    found = one.get("scores", {}).get(key, []) if kind == "evaluation" else one.get(key, [])
    values = found if isinstance(found, list) else [found]
    return [float(value) for value in values if isinstance(value, int | float)]


def _line(points: _Points, binned: bool) -> _Points:
    points = sorted(points)
    low, high = points[0][0], points[-1][0]
    width = (high - low) / _BINS if binned else 0.0

    def place(point: tuple[float, float]) -> float:
        return min(int((point[0] - low) / width), _BINS - 1) if width else point[0]

    groups = [list(some) for _, some in groupby(points, key=place)]
    return [(sum(x for x, _ in some) / len(some), interquartile_mean(y for _, y in some)) for some in groups]


def _title(names: list[tuple[str, str]]) -> str:
    expressions, envs = (list(dict.fromkeys(part)) for part in zip(*names, strict=True))
    parts = [some[0] for some in (expressions, envs) if len(some) == 1 and some[0]]
    return textwrap.fill(" on ".join(parts), 80)


def _label(name: tuple[str, str], groups: Iterable[tuple[str, str]]) -> str:
    varying = [part for index, part in enumerate(name) if len({other[index] for other in groups}) > 1]
    return textwrap.shorten(" on ".join(varying), 90, placeholder="...")
