"""Choose among many runs by the same held-out episodes, again and again, without being fooled by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palaestra.evaluation.holdout import ReusableHoldout, Selection
from palaestra.evaluation.holdout import select as selected
from palaestra.runs import Run, RunError
from palaestra.runs.files import from_json, to_json, write_file
from palaestra.stored import evaluate

FAR = 1_000_003  # between the seeds of both kinds of episodes: copy i of an environment has the seed plus i


def select(
    runs: Sequence[str | Path | Run],
    *,
    low: float,
    high: float,
    ledger: str | Path,
    score: str = "episode_return",
    development: int = 200,
    held_out: int = 400,
    seed: int = 0,
    **evaluation: Any,
) -> Selection:
    """The run whose policy is best, and an honest estimate of how good it is.

    Every policy plays the same episodes of two kinds. What is told of the held-out ones goes through a
    `ReusableHoldout`, whose `ledger` is kept in a file: selections that share it share one budget.
    Where fresh episodes cost nothing, compare on fresh seeds instead: `compare`.

    Args:
        runs: the candidates; of a run of several seeds, each is one.
        low, high: the range of a score. An episode outside of it is an error.
        ledger: a JSON file, made when there is none.
        score: which one of an evaluation.
        development, held_out: episodes of each kind.
        seed: of the episodes; another one means other held-out episodes, and needs another ledger.
        evaluation: `env` and `device`, as `evaluate` takes them.

    Raises ValueError where scores do not fit or the budget is spent, RunError where a run or the ledger cannot be read.
    """
    path = Path(ledger)
    given = {"low": low, "high": high, "held_out": held_out, "seed": seed, "score": score}
    holdout = ReusableHoldout(held_out, low=low, high=high, rng=np.random.default_rng(seed))
    if path.exists():
        holdout.load_state_dict(_read(path, given))
    candidates: dict[str, tuple[list[float], list[float]]] = {}
    for run in runs:
        seen, hidden = (
            evaluate(run, episodes=n, seed=first, **evaluation)["scores"]
            for n, first in ((development, seed), (held_out, seed + FAR))
        )
        if score not in seen:
            raise ValueError(f"{run} has no score {score!r}; it has {', '.join(seen)}")
        for own, values in seen[score].items():
            name = f"{run.folder if isinstance(run, Run) else run}"
            candidates[name if len(seen[score]) == 1 else f"{name}, seed {own}"] = (values, hidden[score][own])
    try:
        return selected(candidates, holdout)
    finally:  # what was answered was answered
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, [to_json({**given, "holdout": holdout.state_dict()}, indent=1).encode() + b"\n"])
        except OSError as wrong:
            raise RunError(path, f"cannot be written ({wrong.strerror})", "choose another ledger") from wrong


def _read(path: Path, given: Mapping[str, Any]) -> Any:
    remedy = "restore it from a copy; a new ledger needs another seed, for other held-out episodes"
    try:
        kept = from_json(path.read_bytes())
        differing = next((name for name, now in given.items() if kept[name] != now), None)
        state = kept["holdout"]
    except (OSError, ValueError, LookupError, TypeError) as wrong:
        raise RunError(path, f"is no ledger ({wrong})", remedy) from wrong
    if differing is not None:
        what = f"{differing} is {kept[differing]!r} there and {given[differing]!r} here"
        raise RunError(path, what, "use the ledger's, or another ledger", differing)
    return state
