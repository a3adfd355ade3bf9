"""Many seeds in one run: stacked in one process, or in a process each. Whichever is faster here, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from palaestra.algorithm import Algorithm
from palaestra.loops.offline import Offline
from palaestra.loops.online import Online, stacking_problem
from palaestra.loops.rounds import Rounds
from palaestra.runs import Run

Live = Online | Offline | Rounds
WAYS = ("auto", "stacked", "processes")
PATIENCE = 1.0  # seconds that each way is tried for


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds from "0-15", "3,5" or "0-3,8". ValueError for anything else, and for a seed that stands there twice."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = (number.strip() for number in part.partition("-"))
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ValueError(f"--seeds {text!r} is not understood at {part!r}: write 0-15, or 3,5,8")
        seeds += range(int(first), int(last or first) + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {text!r} names a seed twice")
    return tuple(seeds)


def written(seeds: Sequence[int]) -> str:
    """The shortest text that `seeds_of` reads back."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and spans[-1][-1] == seed - 1:
            spans[-1][1:] = [seed]
        else:
            spans.append([seed])
    return ",".join("-".join(map(str, span)) for span in spans)


@dataclass(frozen=True)
class Choice:
    """How seeds run: "stacked", or "processes", so many at a time; and why, in words for people.

    `seconds` are those that each way needs for an environment step of one seed, where it was tried.
    """

    way: str
    workers: int
    why: str
    seconds: Mapping[str, float]


def choose(
    algorithm: Algorithm,
    begin: Callable[[Algorithm, Sequence[int]], Live],
    seeds: Sequence[int],
    way: str,
    *,
    workers: int,
) -> Choice:
    """Try both ways for a moment each, unless one was asked for or the seeds cannot be stacked.

    Args:
        algorithm: what is learnt. It is tried from the first update on, whatever its schedule begins with.
        begin: a run of an algorithm with these seeds.
        seeds: all of them.
        way: "auto", "stacked" or "processes".
        workers: processes at a time.

    Raises ValueError for another way, and `Unfit` where seeds that cannot be stacked are to be.
    """
    if way not in WAYS:
        raise ValueError(f"together={way!r} is unknown; it must be one of {', '.join(WAYS)}")
    workers = min(workers, len(seeds))
    if way == "stacked":
        return Choice("stacked", 1, "as asked", {})
    if way == "processes":
        return Choice("processes", workers, "as asked", {})
    if problem := stacking_problem(algorithm):
        return Choice("processes", workers, f"they cannot be stacked: {problem}", {})
    try:
        stacked = seconds_a_step(algorithm, begin, seeds)
    except RuntimeError as wrong:  # a part of somebody else's that PyTorch cannot map over seeds
        reason = str(wrong).partition("\n")[0]
        return Choice("processes", workers, f"they cannot be stacked: {reason}", {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if workers > 1 else threads)
    try:
        alone = seconds_a_step(algorithm, begin, seeds[:1]) / workers
    finally:
        torch.set_num_threads(threads)
    seconds = {"stacked": stacked, "processes": alone}
    why = f"{stacked * 1e3:.3g} ms for a step of a seed stacked, {alone * 1e3:.3g} ms in {_processes(workers)}"
    return Choice("stacked" if stacked <= alone else "processes", workers, why, seconds)


def _processes(workers: int) -> str:
    return "one process" if workers == 1 else f"{workers} processes"


def seconds_a_step(
    algorithm: Algorithm, begin: Callable[[Algorithm, Sequence[int]], Live], seeds: Sequence[int]
) -> float:
    """How long a step of one seed takes, with its share of the updates, when `seeds` learn together.

    A step is one of the environment, or an update where a run learns from a dataset alone.
    """
    early = replace(algorithm, schedule=replace(algorithm.schedule, start=0))
    run = begin(early, seeds)
    for _ in range(2):  # the first passes pay for allocation
        run.advance()
    before, began = run.count, time.perf_counter()
    while (spent := time.perf_counter() - began) < PATIENCE:
        run.advance()
    run.close()
    return spent / (run.count - before) / len(seeds)


def part(run: Run, seed: int) -> Path:
    """The folder of one seed's own run, within that of a run in processes."""
    return part_of(run.folder, seed)


def part_of(folder: Path, seed: int) -> Path:
    """As `part`, of a run's folder."""
    return folder / "seeds" / str(seed)
