"""A comparison as a page for people: the verdict first, then what it stands on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palaestra.comparison.figure import drawn, figure
from palaestra.comparison.summary import measured
from palaestra.runs.page import environment, picture, write_page

RELATION = {"larger": ">", "smaller": "<", "undecided": "?"}


def report(summary: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.html`, which needs no other file, and `figure.png` into a folder. RunError where that fails."""
    figure(summary, folder / "figure.png")
    shown = picture(drawn(summary, "svg"), ".svg", " ".join(summary["verdict"]))
    template = environment("palaestra.comparison").get_template("report.html")
    body = template.render(
        summary=summary, plan=summary["plan"], figure=shown, measured=measured(summary["plan"]), relation=RELATION,
        number=number,
    )  # fmt: skip
    return write_page(folder / "report.html", title(summary), body)


def title(summary: Mapping[str, Any]) -> str:
    return f"{' or '.join(summary['arms'])} in {summary['plan']['env']}?"


def number(value: float | None) -> str:
    """As people read it, with four digits that count."""
    if value is None:
        return "–"  # noqa: RUF001 (a dash)
    return f"{value:.4g}".replace("-", "−")  # noqa: RUF001 (the minus that numbers have)
