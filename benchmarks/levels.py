"""How often do the comparator and the published `adastop` package err, and how often do they find a difference?

    python benchmarks/levels.py --out docs/benchmarks/levels.json     # half an hour on one core; then the tables
    python benchmarks/levels.py --tables                              # only the tables of docs/statistics.md

Both judge the same draws: each repetition has a generator of its own. The package is slower, so it sees only the first
so many as fit into `--seconds`; what ours decides on just those is given, too. Run it where `bench` is installed.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import contest
import numpy as np
from tables import DOCS, head, made, row

from palaestra.evaluation.sequential import SequentialComparator

GROUP, MAX_GROUPS, ALPHA, PERMUTATIONS = 5, 5, 0.05, 10_000
KEEP = 100  # repetitions that share one draw of random dealings
Judge = Callable[[np.ndarray, int], tuple[Mapping[tuple[int, int], int], int]]


@dataclass(frozen=True)
class World:
    """Scores are `draw(rng, shape)` plus the arm's mean."""

    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    means: tuple[float, ...]

    def scores(self, seed: int) -> np.ndarray:
        """[looks, arms, group]"""
        rng = np.random.default_rng(seed)
        return self.draw(rng, (MAX_GROUPS, len(self.means), GROUP)) + np.array(self.means)[:, None]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def log_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.lognormal(size=shape)


def bimodal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A third of the runs fails."""
    return np.where(rng.random(shape) < 1 / 3, 0.0, 1.0) + 0.05 * rng.standard_normal(shape)


WORLDS = {
    **{
        f"{len(means)} equal arms, {draw.__name__.replace('_', '-')}": World(draw, means)
        for means in ((0.0,) * 2, (0.0,) * 4)
        for draw in (normal, log_normal, bimodal)
    },
    "a difference of 1 sd": World(normal, (0.0, 1.0)),
    "a difference of 1.5 sd": World(normal, (0.0, 1.5)),
    "means 0, 0, 1, 1, 3": World(normal, (0.0, 0.0, 1.0, 1.0, 3.0)),
}


def ours(scores: np.ndarray, seed: int) -> tuple[Mapping[tuple[int, int], int], int]:
    """The sign that each decided pair got, and the number of looks."""
    arms = [str(arm) for arm in range(scores.shape[1])]
    comparator = SequentialComparator(
        arms, group=GROUP, max_groups=MAX_GROUPS, alpha=ALPHA, permutations=PERMUTATIONS, seed=seed // KEEP
    )
    while comparator.needs:
        comparator.update({arm: scores[comparator.groups, int(arm)] for arm in comparator.needs})
    signs = {
        (int(left), int(right)): 1 if one.decision == "larger" else -1
        for (left, right), one in comparator.decisions.items()
        if one.groups
    }
    return signs, comparator.groups


def package(scores: np.ndarray, seed: int) -> tuple[Mapping[tuple[int, int], int], int]:
    """As `ours`. The package wants the scores from the start on, of all arms, at each look."""
    from adastop import MultipleAgentsComparator

    comparator = MultipleAgentsComparator(n=GROUP, K=MAX_GROUPS, B=PERMUTATIONS, alpha=ALPHA, seed=seed)
    for look in range(1, MAX_GROUPS + 1):
        flat = scores[:look].transpose(1, 0, 2).reshape(scores.shape[1], -1)
        comparator.partial_compare(dict(zip(map(str, range(len(flat))), flat, strict=True)), verbose=False)
        if comparator.is_finished:
            break
    signs = {
        tuple(map(int, re.findall(r"\d+", pair))): 1 if decision == "larger" else -1
        for pair, decision in comparator.decisions.items()
        if decision in ("larger", "smaller")
    }
    return signs, look


def judged(world: World, judge: Judge, repetitions: int, seconds: float = float("inf")) -> np.ndarray:
    """Of each repetition [R, 3]: was an equal pair decided or a sign wrong, share of differences found, looks."""
    pairs = [(i, j) for j in range(len(world.means)) for i in range(j)]
    truth = {(i, j): np.sign(world.means[i] - world.means[j]) for i, j in pairs}
    different = [pair for pair in pairs if truth[pair]]
    rows, start = [], time.process_time()
    while len(rows) < repetitions and time.process_time() - start < seconds:
        signs, looks = judge(world.scores(len(rows)), len(rows))
        found = [signs.get(pair) == truth[pair] for pair in different]
        erred = any(sign != truth[pair] for pair, sign in signs.items())
        rows.append((erred, np.mean(found) if found else np.nan, looks))
    return np.array(rows, dtype=float)


def summary(rows: np.ndarray) -> dict:
    """Means and their standard errors."""
    result: dict = {"repetitions": len(rows)}
    for name, values in zip(("error", "power", "looks"), rows.T, strict=True):
        if not np.isnan(values).any():
            spread = float(values.std(ddof=1) / len(values) ** 0.5)
            result[name] = {"mean": round(float(values.mean()), 5), "standard_error": round(spread, 5)}
    return result


def measured(repetitions: int, seconds: float) -> dict:
    result = {}
    for name, world in WORLDS.items():
        own = judged(world, ours, repetitions)
        theirs = judged(world, package, repetitions, seconds)
        result[name] = {
            "ours": summary(own), "adastop": summary(theirs), "ours, the same draws": summary(own[: len(theirs)])
        }  # fmt: skip
        print(name, json.dumps(result[name]), flush=True)
    return result


def tables(result: dict) -> str:
    """The errors and powers of a result as two tables."""

    def cell(one: dict, name: str, digits: int = 4) -> str:
        return f"{one[name]['mean']:.{digits}f} ± {one[name]['standard_error']:.{digits}f}" if name in one else "-"

    lines = head("scores", "who", "repetitions", "error", "power", "looks")
    for world, contestants in result["worlds"].items():
        for who, one in contestants.items():
            cells = (cell(one, "error"), cell(one, "power"), cell(one, "looks", 2))
            lines.append(row(world, who, f"{one['repetitions']:,}", *cells))
    return "\n".join(["", *lines, *made(result), "", ""])


def write(result: dict) -> None:
    """Put the tables where docs/statistics.md has its markers."""
    page = DOCS / "statistics.md"
    pattern = re.compile(r"(<!-- table: levels -->\n)(.*?)(<!-- end -->)", re.DOTALL)
    page.write_text(pattern.sub(lambda found: found[1] + tables(result) + found[3], page.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=contest.FOLDER / "levels.json")
    parser.add_argument("--repetitions", type=int, default=12_000)
    parser.add_argument("--seconds", type=float, default=65, help="of the package, for each world")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.tables:
        about = contest.about()
        about["versions"] = {name: about["versions"][name] for name in ("python", "numpy")}
        about["versions"]["adastop"] = version("adastop")
        result = {**about, "worlds": measured(options.repetitions, options.seconds)}
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    write(json.loads(options.out.read_text()))


if __name__ == "__main__":
    main()
