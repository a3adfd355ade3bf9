"""A run's metrics as TensorBoard reads them: `tensorboard/seed-0/`, one such run for each seed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from palaestra.runs.errors import RunError
from palaestra.runs.queries import interquartile_mean
from palaestra.runs.run import Run

FOLDER = "tensorboard"
_CLOCKS = ("env_steps", "updates", "seconds")


def summary_writer() -> Any:
    """Return PyTorch's SummaryWriter.

    Raises:
        ValueError: the `tensorboard` extra is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as missing:
        raise ValueError("TensorBoard is not installed; pip install 'palaestra[tensorboard]'") from missing
    return SummaryWriter


@contextmanager
def events(run: Run) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that writes a row of the metrics as scalars over environment steps.

    Losses have their own names, the interquartile means of training episodes are under `train/` and those of scores
    under `evaluation/`. What was there is written anew from `metrics.jsonl` first: rows that a resumed run dropped are
    gone, and none that a crash kept in memory are missing.

    Raises:
        ValueError: the `tensorboard` extra is not installed.
        RunError: the disk is full, or the folder is not writable.
    """
    new, writers = summary_writer(), {}
    begun = datetime.fromisoformat(run.about["created"]).timestamp()

    def write(row: dict[str, Any]) -> None:
        seed = row.get("seed", 0)
        try:
            if seed not in writers:
                writers[seed] = new(str(run.folder / FOLDER / f"seed-{seed}"))
            for name, value in _scalars(row):
                writers[seed].add_scalar(name, value, _step(row), begun + row.get("seconds", 0.0))
            writers[seed].flush()
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            raise RunError(run.folder / FOLDER, what, "free space or check permissions, then --resume") from error

    shutil.rmtree(run.folder / FOLDER, ignore_errors=True)
    try:
        for row in run.metrics():
            write(row)
        yield write
    finally:
        for writer in writers.values():
            writer.close()


def _step(row: dict[str, Any]) -> int:
    return int(next((row[clock] for clock in ("rounds", "env_steps", "updates") if clock in row), 0))


def _scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    if row["kind"] == "evaluation":
        values = {f"evaluation/{name}": scores for name, scores in row["scores"].items()}
    else:
        values = {key: value for key, value in row.items() if key not in ("kind", "seed", *_CLOCKS)}
    for name, value in values.items():
        if isinstance(value, list):
            name = name if "/" in name else f"{row['kind']}/{name}"
            if value:
                yield name, interquartile_mean(value)
        elif isinstance(value, int | float):
            yield name, float(value)
