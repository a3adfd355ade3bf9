"""Learning curves."""

from __future__ import annotations

import textwrap
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palaestra.runs.errors import RunError
from palaestra.runs.queries import interquartile_mean, usual_score
from palaestra.runs.run import Run

# Okabe and Ito's colours, which the colour-blind tell apart, the light yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")

_SUFFIXES = (".png", ".svg", ".pdf")

# Rows that are no evaluations come one episode at a time; their curve is drawn through this many bins.
_BINS = 60

_COLUMNS = 3  # panels side by side


def learning_curve(runs: Iterable[Run], path: Path, key: str | None = None) -> Path:
    """Draw a measure over environment steps (over rounds, or updates where there are none), and save the figure.

    One panel an environment, one colour an expression. The line is the interquartile mean over all seeds' raw values,
    its band a bootstrap over seeds (see `interval`), every raw value a faint dot. Where seeds were evaluated at
    different steps, each is interpolated between its own evaluations and counts nowhere else: what a seed that ended
    early would have reached is not made up, and the line is dotted where not all seeds are in it. Evaluations are drawn
    if there are any with this key, else training episodes, else training metrics, in bins.

    Args:
        runs: those with the same expression and env are one curve; the same seed of two runs counts as two seeds.
        path: a .png, .svg or .pdf file; its folder is made when missing. A single panel has 1,400 x 840 pixels.
        key: a score such as "episode_return", or a training metric such as "loss/critic"; `usual_score` when None.

    Returns:
        The path.

    Raises:
        RunError: there is nothing to draw, the suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise RunError(path, f"{path.suffix or 'no suffix'!r} is no format of a figure", "use .png, .svg or .pdf")
    runs = list(runs)
    key = usual_score(runs) if key is None else key
    rows = [run.metrics() for run in runs]
    kind, clock = _source(runs, rows, key)
    panels: dict[str, dict[str, list[_Seed]]] = {}
    for run, some in zip(runs, rows, strict=True):
        seeds = _seeds(some, kind, clock, key)
        if seeds:
            env = str(run.about.get("env") or run.about.get("dataset") or run.about.get("prompts") or "")
            panel = panels.setdefault(env, {})
            panel.setdefault(str(run.about.get("expression", run.folder.name)), []).extend(seeds)

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(panels) == 4 else min(len(panels), _COLUMNS)
    lines = -(-len(panels) // columns)
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    size = (7, 4.2) if columns == 1 else (4.2 * columns, 3 * lines + 0.5 + 0.25 * len(names))
    figure = Figure(figsize=size, dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    drawn = {}
    for place, (axes, (env, panel)) in enumerate(zip(grid, panels.items(), strict=False)):
        for name, seeds in panel.items():
            number = names.index(name)
            style = STYLES[number // len(COLOURS) % len(STYLES)]
            drawn[name] = _draw(axes, seeds, kind != "evaluation", COLOURS[number % len(COLOURS)], style)
        axes.set_title(textwrap.fill(env, 40), fontsize=11)
        _dress(axes)
        if place + columns >= len(panels):  # nothing is below
            axes.set_xlabel({"env_steps": "environment steps"}.get(clock, clock))
        if place % columns == 0:
            axes.set_ylabel(f"{key.replace('_', ' ')} ({'evaluation' if kind == 'evaluation' else 'training'})")
    for axes in grid[len(panels) :]:
        axes.remove()
    labels = [_label(name, [panel[name] for panel in panels.values() if name in panel]) for name in names]
    figure.legend(
        [drawn[name] for name in names], labels, loc="outside lower center", ncols=1, frameon=False, fontsize=9
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise RunError(path, f"cannot be written ({error.strerror})", "choose another file") from error
    return path


@dataclass(frozen=True)
class _Seed:
    """What one seed of one run measured: steps [N], rising, and at each of them its raw values, ascending."""

    steps: list[float]
    values: list[list[float]]


def _seeds(rows: Iterable[dict[str, Any]], kind: str, clock: str, key: str) -> list[_Seed]:
    found: dict[Any, dict[float, list[float]]] = {}
    for one in rows:
        if clock in one and (values := _values(one, kind, key)):
            found.setdefault(one.get("seed"), {}).setdefault(float(one[clock]), []).extend(values)
    return [_Seed(sorted(points), [sorted(points[step]) for step in sorted(points)]) for points in found.values()]


def interval(
    values: np.ndarray, seed: np.ndarray, rng: np.random.Generator, level: float = 0.95, resamples: int = 1_000
) -> tuple[float, float]:
    """Return a percentile bootstrap interval of the interquartile mean of values, over the seeds they come from.

    Whole seeds are drawn with replacement, since a seed's values depend on each other. (NaN, NaN) for a single seed,
    and where a value is NaN. With few seeds it is too narrow: in 1,000 simulations with normal values (10 of each seed,
    as spread as the seeds) an interval of level 0.95 held the truth in 75% with 3 seeds, 83% with 5, 91% with 10.

    Args:
        values: [N] of all seeds.
        seed: [N], whose each is; any labels.
        rng: draws the seeds.
    """
    _, owner = np.unique(seed, return_inverse=True)
    number = owner.max(initial=-1) + 1
    if number < 2 or np.isnan(values).any():
        return np.nan, np.nan
    order = np.argsort(values)
    # How often each value stands in each resample; as many of the lowest and of the highest quarter are cut off.
    times = rng.multinomial(number, np.full(number, 1 / number), size=resamples)[:, owner[order]]
    place = times.cumsum(1)
    total = place[:, -1:]
    cut = total // 4
    kept = (np.minimum(place, total - cut) - np.maximum(place - times, cut)).clip(0)
    means = (kept * np.where(kept > 0, values[order], 0.0)).sum(1) / kept.sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _draw(axes: Any, seeds: Sequence[_Seed], binned: bool, colour: str, style: str) -> Any:
    """Draw one expression's curve and return its line."""
    steps, values, owner = _raw(seeds)
    axes.scatter(steps, values, s=9, color=colour, alpha=0.25, linewidths=0, rasterized=len(steps) > 5_000, zorder=2)
    points = list(_bins(steps, values, owner) if binned else _grid(seeds))
    at = [x for x, _, _ in points]
    middle = np.array([interquartile_mean(values) for _, values, _ in points])
    bands = [interval(values, owner, np.random.default_rng(0)) for _, values, owner in points]
    # Bins of training episodes may lack a seed by chance; that says nothing of a seed that ended.
    whole = np.array([binned or len(np.unique(owner)) == len(seeds) for _, _, owner in points])
    axes.fill_between(at, *zip(*bands, strict=True), color=colour, alpha=0.18, linewidth=0, zorder=1)
    if not whole.all():
        axes.plot(at, middle, ":", color=colour, linewidth=1.8, zorder=3)
    marker = "o" if len(points) == 1 else None
    (line,) = axes.plot(
        at, np.where(whole, middle, np.nan), style, color=colour, linewidth=1.8, marker=marker, zorder=3
    )
    return line


def _raw(seeds: Sequence[_Seed]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All values on one axis, [N] each: the steps, the values, and the number of the seed they are of."""
    points = [
        (step, value, number)
        for number, one in enumerate(seeds)
        for step, some in zip(one.steps, one.values, strict=True)
        for value in some
    ]
    steps, values, owner = zip(*points, strict=True)
    return np.array(steps), np.array(values), np.array(owner)


_Points = Iterator[tuple[float, np.ndarray, np.ndarray]]


def _grid(seeds: Sequence[_Seed]) -> _Points:
    """At every step that any seed was evaluated at: the values of those that have some there, and whose they are."""
    for at in sorted({step for one in seeds for step in one.steps}):
        found = [(number, _between(one, at)) for number, one in enumerate(seeds) if one.steps[0] <= at <= one.steps[-1]]
        yield at, np.concatenate([v for _, v in found]), np.concatenate([np.full(len(v), n) for n, v in found])


def _between(one: _Seed, at: float) -> np.ndarray:
    """A seed's values at a step, its lowest episode interpolated with the lowest of the next evaluation and so on."""
    after = bisect_left(one.steps, at)
    if one.steps[after] == at:
        return np.array(one.values[after])
    share = (at - one.steps[after - 1]) / (one.steps[after] - one.steps[after - 1])
    left, right = one.values[after - 1 : after + 1]
    if len(left) != len(right):
        left, right = [interquartile_mean(left)], [interquartile_mean(right)]
    return (1 - share) * np.array(left) + share * np.array(right)


def _bins(steps: np.ndarray, values: np.ndarray, owner: np.ndarray) -> _Points:
    """All values in `_BINS` parts of equal width: their mean step, the values, and whose they are."""
    low, width = steps.min(), (steps.max() - steps.min()) / _BINS
    place = np.minimum((steps - low) / (width or 1.0), _BINS - 1).astype(int)
    for number in np.unique(place):
        here = place == number
        yield float(steps[here].mean()), values[here], owner[here]


def _dress(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def thousands(value: float) -> str:
    """Return a number as an axis shows it: 10k, 1.5M, −1.2k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}".replace("-", "−")  # noqa: RUF001 (the minus that axes have)
    return f"{value:.6g}".replace("-", "−")  # noqa: RUF001


def _source(runs: Sequence[Run], rows: Sequence[list[dict[str, Any]]], key: str) -> tuple[str, str]:
    """Return the kind of rows to draw and the clock to draw them over."""
    if not runs:
        raise RunError(Path(), "there are no runs to draw", "give the folders of some")
    every = [one for some in rows for one in some]
    for kind in ("evaluation", "episode", "train"):
        drawn = [one for one in every if any(value == value for value in _values(one, kind, key))]
        # Offline runs count no environment steps, or count none of them.
        for clock in ("rounds", "env_steps", "updates"):
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


def _label(name: str, panels: Sequence[Sequence[_Seed]]) -> str:
    """The expression, and how many seeds its curves are of."""
    few, most = min(map(len, panels)), max(map(len, panels))
    seeds = f"{most} seed{'s' * (most > 1)}" if few == most else f"{few} to {most} seeds"
    return f"{textwrap.shorten(name, 90, placeholder='...')} ({seeds})"
