"""The picture of a dataset: returns, how long episodes are and how they end, and where observations are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from palaestra.data.dataset import Dataset
from palaestra.data.statistics import last
from palaestra.runs import RunError
from palaestra.runs.plots import COLOURS, thousands

_BINS = 30
_CELLS = 80  # of the map, each way
_SUFFIXES = (".png", ".svg", ".pdf")


def figure(dataset: Dataset, path: Path) -> Path:
    """Draw a dataset into a .png, .svg or .pdf file; its folder is made when missing. RunError where that fails.

    The map shows how many steps have which first two numbers of the observation, where those are real numbers.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise RunError(path, f"{path.suffix or 'no suffix'!r} is no format of a figure", "use .png, .svg or .pdf")
    seen = _plane(dataset)
    number = 3 if seen else 2
    picture = Figure(figsize=(4.2 * number, 3.4), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(picture)
    panels = picture.subplots(1, number)
    _returns(panels[0], dataset)
    _lengths(panels[1], dataset)
    if seen:
        _map(picture, panels[2], *seen)
    size = f"{dataset.episodes:,} episodes, {dataset.steps:,} steps"
    picture.suptitle(f"{dataset.about.get('env') or 'dataset'}: {size}, hash {dataset.hash[:12]}", fontsize=10)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as wrong:
        raise RunError(path, f"cannot be written ({wrong.strerror})", "choose another file") from wrong
    return path


def _returns(axes: Any, dataset: Dataset) -> None:
    returns = dataset.returns()
    axes.hist(returns, _BINS, color=COLOURS[0])
    axes.axvline(returns.mean(), color="black", linestyle="--", linewidth=1, label=f"mean {returns.mean():.4g}")
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("return of an episode")
    axes.set_ylabel("episodes")
    _dress(axes)


def _lengths(axes: Any, dataset: Dataset) -> None:
    terminated, truncated = (np.asarray(dataset.columns[name][last(dataset)]) for name in ("terminated", "truncated"))
    kinds = {"terminated": terminated, "truncated": truncated & ~terminated, "cut off": ~truncated & ~terminated}
    kinds = {name: here for name, here in kinds.items() if here.any()}
    axes.hist(
        [dataset.lengths[here] for here in kinds.values()],
        np.linspace(0, dataset.lengths.max() + 0.5, _BINS + 1),
        stacked=True,
        color=COLOURS[: len(kinds)],
        label=[f"{name} ({here.sum():,})" for name, here in kinds.items()],
    )
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("steps of an episode")
    axes.set_ylabel("episodes")
    _dress(axes)


def _plane(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, str] | None:
    """The first two numbers of all steps' observations and what they are of; None for images and for choices."""
    for name in dataset.obs_names:
        column = dataset.columns[name]
        if column.dtype.kind == "f" and column.ndim == 2 and column.shape[1] > 1:
            both = np.asarray(column[:, :2])[dataset.is_step]
            return both[:, 0], both[:, 1], name
    return None


def _map(picture: Any, axes: Any, x: np.ndarray, y: np.ndarray, name: str) -> None:
    from matplotlib.colors import LogNorm

    *_, drawn = axes.hist2d(x, y, _CELLS, cmap="viridis", norm=LogNorm(vmin=1), cmin=1)
    picture.colorbar(drawn, ax=axes, label="steps")
    axes.set_xlabel(f"{name}[0]")
    axes.set_ylabel(f"{name}[1]")
    axes.spines[["top", "right"]].set_visible(False)


def _dress(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
