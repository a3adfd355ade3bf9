"""The picture of a comparison: learning curves with bands, and the score of every seed with its interval."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palaestra.comparison.summary import band, measured
from palaestra.runs import RunError
from palaestra.runs.plots import COLOURS, STYLES, thousands


def figure(summary: Mapping[str, Any], path: Path) -> Path:
    """Draw a summary into a .png or .svg file. RunError where it cannot be written."""
    try:
        path.write_bytes(drawn(summary, path.suffix.removeprefix(".")))
    except OSError as wrong:
        raise RunError(path, f"cannot be written ({wrong.strerror})", "free space or check permissions") from wrong
    return path


def drawn(summary: Mapping[str, Any], format: str = "png") -> bytes:
    """The picture of a summary: 1,600 pixels wide as "png", or "svg"."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = summary["arms"]
    has_curves = all(arm["curve"] for arm in arms.values())
    rows = max(3.4, 0.45 * len(arms) + 2.4)
    picture = Figure(figsize=(8, rows), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(picture)
    panels = picture.subplots(1, 2 if has_curves else 1, squeeze=False)[0]
    if has_curves:
        _curves(panels[0], summary)
    _scores(panels[-1], summary)
    for axes in panels:
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    picture.savefig(content, format=format, metadata={"Date": None} if format == "svg" else None)
    return content.getvalue()


def _curves(axes: Any, summary: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for number, (name, arm) in enumerate(summary["arms"].items()):
        colour, style = _dress(number)
        steps = arm["curve"]["steps"]
        for own in arm["curve"]["values"]:
            axes.plot(steps, own, color=colour, alpha=0.2, linewidth=0.7)
        middle = band(arm["curve"])
        axes.fill_between(steps, middle.low, middle.high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, middle.estimate, style, color=colour, linewidth=2, label=_label(name))
    axes.set_title(f"{summary['plan']['env']}", fontsize=10)
    axes.set_xlabel("environment steps")
    axes.set_ylabel(summary["plan"]["score"].replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _scores(axes: Any, summary: Mapping[str, Any]) -> None:
    names = list(summary["arms"])
    for number, name in enumerate(names):
        arm = summary["arms"][name]
        colour, _ = _dress(number)
        spread = [number + 0.12 * (place % 3 - 1) for place in range(len(arm["scores"]))]
        axes.scatter(arm["scores"], spread, s=18, color=colour, alpha=0.45, linewidths=0, zorder=3)
        axes.plot([arm["iqm"]] * 2, [number - 0.3, number + 0.3], color=colour, linewidth=2.5, zorder=4)
        if arm["interval"]:
            axes.plot(arm["interval"], [number] * 2, color=colour, linewidth=6, alpha=0.3, zorder=2)
    axes.set_yticks(range(len(names)), [_label(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"{measured(summary['plan'])}\none dot a seed", fontsize=9)
    axes.set_title("interquartile mean and 95 % interval", fontsize=10)


def _dress(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def _label(name: str) -> str:
    return "\n".join(textwrap.wrap(name.replace("+", "+ "), 26)).replace("+ ", "+")
