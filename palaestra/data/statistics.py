"""What a dataset is like, in numbers: what `palaestra dataset info` prints. All of them are JSON data.

    TQ  = (mean return - random return) / (best return - random return)      card dataset-perspective
    PSV = mean over episodes of max(G - mean G, 0)^2                         card trajectory-weighting

"A Dataset Perspective on Offline Reinforcement Learning" (Schweighofer et al., 2022) and "Harnessing Mixed Offline
Reinforcement Learning Datasets via Trajectory Weighting" (Hong et al., 2023). An episode that is cut off, neither
terminated nor truncated, has no whole return and counts for neither. Coverage, neighbours, actions and duplicates are
those of the episodes that have actions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import gymnasium as gym
import numpy as np

from palaestra.data.advice import recommended, unusual
from palaestra.data.coverage import blocks, coverage, duplicates
from palaestra.data.dataset import Dataset, DatasetError
from palaestra.data.neighbours import neighbours
from palaestra.data.values import with_actions
from palaestra.envs import border

BINS = 20  # of a histogram
AT_BOUND = 1e-3  # of its range: so near to a bound, an action is at it

_FEATURES = 64  # numbers of a column that are described one by one
_SAMPLE = 1_000  # rows of a wider column that are looked at


def describe(
    dataset: Dataset,
    reference: Dataset | None = None,
    random_return: float | None = None,
    best_return: float | None = None,
    listed: Collection[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All statistics of a dataset, what is unusual about it, and which methods are recommended for such data.

    Args:
        reference: a dataset that coverage is compared with: the replay of an online run, as many steps.
        random_return, best_return: the mean returns that trajectory quality counts from and to; what is left out comes
            from `about["reference"]`, `{"random": r, "best": r}`, or from the scores in Minari's metadata.
        listed: the slugs that may be recommended; None: all that the rules know.
        seed: draws the steps that nearest neighbours are looked for among.

    Raises:
        DatasetError: a number is not finite, no episode has actions, the reference has other spaces, or the `datasets`
            extra is missing.
    """
    acted = with_actions(dataset)
    reference = reference and with_actions(reference)
    _finite(dataset, (*dataset.obs_names, "reward"))
    _finite(acted, ("action",))
    told = dataset.about.get("provenance") or {}
    known = dataset.about.get("reference") or {"random": told.get("ref_min_score"), "best": told.get("ref_max_score")}
    random_return = known.get("random") if random_return is None else random_return
    best_return = known.get("best") if best_return is None else best_return
    found: dict[str, Any] = {
        "hash": dataset.hash,
        "env": dataset.about.get("env"),
        "spaces": {"obs": border.describe(dataset.observation_space), "action": border.describe(dataset.action_space)},
        "episodes": dataset.episodes,
        "without_actions": dataset.episodes - acted.episodes,
        "steps": dataset.steps,
        "lengths": spread(dataset.lengths),
        "ends": ends(dataset),
        "mended": {name: dataset.about.get(name, 0) for name in ("dropped", "cut", "unended")},
        "returns": spread(dataset.returns()) | {"histogram": histogram(dataset.returns())},
        "positive_sided_variance": positive_sided_variance(whole_returns(dataset)),
        "quality": quality(whole_returns(dataset), random_return, best_return),
        "coverage": coverage(acted, reference),
        "neighbours": neighbours(acted, np.random.default_rng(seed)),
        "reward": reward(dataset),
        "actions": actions(acted),
        "observations": [one for name in dataset.obs_names for one in features(dataset, name)],
        "duplicates": duplicates(acted),
    }
    return found | {"unusual": unusual(found), "recommended": recommended(found, listed)}


def _finite(dataset: Dataset, names: Iterable[str]) -> None:
    for name in names:
        if dataset.columns[name].dtype.kind == "f" and not all(np.isfinite(x).all() for (x,) in blocks(dataset, name)):
            raise DatasetError(
                f"{name!r} holds numbers that are not finite, see `palaestra dataset check`: remove them"
            )


def spread(values: np.ndarray) -> dict[str, float]:
    """Minimum, mean, median, maximum and standard deviation of values [N]."""
    x = np.asarray(values, np.float64)
    named = {"min": x.min(), "mean": x.mean(), "median": np.median(x), "max": x.max(), "std": x.std()}
    return {name: float(value) for name, value in named.items()}


def histogram(values: np.ndarray, bins: int = BINS) -> dict[str, list[float]]:
    """Counts [bins] between edges [bins + 1] of equal distance."""
    counts, edges = np.histogram(values, bins)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def last(dataset: Dataset) -> np.ndarray:
    """The slot of each episode's last step, [E]."""
    return dataset.first + dataset.lengths - 1


def ends(dataset: Dataset) -> dict[str, int]:
    """How many episodes were terminated, only truncated, or cut off with neither; `same_step` of the terminated ones
    ended after just as many steps as the longest episode."""
    terminated, truncated = (np.asarray(dataset.columns[name][last(dataset)]) for name in ("terminated", "truncated"))
    return {
        "terminated": int(terminated.sum()),
        "truncated": int((truncated & ~terminated).sum()),
        "cut": int((~truncated & ~terminated).sum()),
        "same_step": int((terminated & (dataset.lengths == dataset.lengths.max())).sum()),
    }


def whole_returns(dataset: Dataset) -> np.ndarray:
    """The undiscounted returns of the episodes that were not cut off."""
    here = last(dataset)
    whole = np.asarray(dataset.columns["terminated"][here]) | np.asarray(dataset.columns["truncated"][here])
    return dataset.returns()[whole]


def quality(returns: np.ndarray, random: float | None, best: float | None) -> dict[str, Any]:
    """Trajectory quality of whole episodes: 0 is a random policy, 1 the best one. None where a number lacks."""
    known = random is not None and best is not None and best != random and len(returns) > 0
    tq = float((returns.mean() - random) / (best - random)) if known else None  # type: ignore[operator]
    return {"tq": tq, "random": random, "best": best, "episodes": len(returns)}


def positive_sided_variance(returns: np.ndarray) -> dict[str, float | None]:
    """PSV in squared units of return, and what says how large that is: with returns from 0 to 1 (`scaled`, as
    trajectory weighting scales them), and as a `share` of the whole variance (half of it where they are symmetric)."""
    if not len(returns):
        return {"psv": None, "scaled": None, "share": None}
    above = float((np.maximum(returns - returns.mean(), 0) ** 2).mean())
    if not (width := float(np.ptp(returns))):
        return {"psv": 0.0, "scaled": 0.0, "share": None}
    return {"psv": above, "scaled": above / width**2, "share": above / float(returns.var())}


def reward(dataset: Dataset) -> dict[str, Any]:
    """How rewards are spread, the share of zeros (the paper's sparsity), the commonest value and its share."""
    paid = np.asarray(dataset.columns["reward"])[dataset.is_step]
    values, counts = np.unique(paid, return_counts=True)
    most = int(counts.argmax())
    commonest = {"value": float(values[most]), "share": float(counts[most] / len(paid))}
    return spread(paid) | {"zeros": float((paid == 0).mean()), "values": len(values), "commonest": commonest}


def actions(dataset: Dataset) -> dict[str, Any]:
    """Of continuous actions, each dimension, and the share of steps with one at a bound; of choices, their shares."""
    space = dataset.action_space
    taken = np.asarray(dataset.columns["action"])[dataset.is_step]
    if isinstance(space, gym.spaces.Discrete):
        counts = np.bincount(taken.reshape(-1) - int(space.start), minlength=int(space.n))
        return {"kind": "discrete", "shares": (counts / dataset.steps).tolist(), "at_bounds": None, "features": []}
    at_bounds = None
    if isinstance(space, gym.spaces.Box) and space.is_bounded():
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        near = AT_BOUND * (high - low)
        at = (taken <= low + near) | (taken >= high - near)
        at_bounds = float(at.reshape(len(at), -1).any(1).mean())
    kind = "continuous" if isinstance(space, gym.spaces.Box) else "other"
    return {"kind": kind, "shares": None, "at_bounds": at_bounds, "features": features(dataset, "action")}


def features(dataset: Dataset, name: str) -> list[dict[str, Any]]:
    """Minimum, mean, median, maximum and standard deviation of each number of a column, by name: "obs[3]".

    A column with more than 64 of them (an image) is described as one, by a thousand of its steps at even distances.
    """
    column, slots = dataset.columns[name], np.flatnonzero(dataset.is_step)
    width = int(np.prod(column.shape[1:]))
    if width > _FEATURES:
        slots = slots[np.linspace(0, len(slots) - 1, min(_SAMPLE, len(slots))).astype(int)]
        return [{"name": name, **spread(column[slots].reshape(-1))}]
    flat = np.asarray(column[slots]).reshape(len(slots), width)
    names = [name] if not column.shape[1:] else [f"{name}[{number}]" for number in range(width)]
    return [{"name": one, **spread(values)} for one, values in zip(names, flat.T, strict=True)]
