"""What happens in like places: how far actions disagree there, and where like actions lead.

    action divergence     mean over steps of  Var(a  | the nearest neighbours of s)
    transition diversity  mean over steps of  Var(s' | the nearest neighbours of (s, a))

Belkhale, Cui, Sadigh, "Data Quality in Imitation Learning", 2023. Card: data-quality-il. High divergence is
demonstrators who disagree, or several good ways: it does not tell which. Some diversity helps, since the policy has
then seen what errors lead to.

Differs from the paper: nearest neighbours stand for its densities. The fewer the rows, the farther apart neighbours
are, and the more of both numbers is their distance (given too): compare equal numbers of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from palaestra.data.dataset import Dataset, DatasetError

ROWS = 4_000  # steps looked at, a tree over whole datasets being slow in many dimensions
NEAREST = 10
WIDE = 512  # numbers of an observation from which on distances between them say nothing


def neighbours(
    dataset: Dataset, rng: np.random.Generator, rows: int = ROWS, nearest: int = NEAREST
) -> dict[str, Any] | None:
    """Action divergence and transition diversity, on `rows` steps drawn by `rng` without replacement.

    Observations are in units of their standard deviation; so is diversity, a mean over what varies in them. Divergence
    is a mean over action dimensions, each from -1 to 1 where it is bounded (uniform noise has 1/3); of choices it is
    the chance that two neighbours choose differently.

    Returns:
        `action_divergence`, `action_divergence_share` (of what it is over all rows: 1 where actions do not depend on
        the state; None where all actions are the same), `transition_diversity` (None where observations do not vary),
        `distance` (mean, to the farthest of the neighbours), `rows`, `nearest` (each row among its own). None for a
        single step, and for wide observations.

    Raises:
        DatasetError: the `datasets` extra is missing.
    """
    states = _observations(dataset, np.array([0]))
    if dataset.steps < 2 or states.shape[1] > WIDE:
        return None
    try:
        from scipy.spatial import KDTree
    except ImportError as missing:
        raise DatasetError("nearest neighbours need scipy: pip install 'palaestra[datasets]'") from missing

    rows = min(rows, dataset.steps)
    nearest = min(nearest, rows)
    slots = np.flatnonzero(dataset.is_step)[np.sort(rng.choice(dataset.steps, rows, replace=False, shuffle=False))]
    states, after = _observations(dataset, slots), _observations(dataset, slots + 1)
    actions = _from_bounds(dataset.action_space, np.asarray(dataset.columns["action"][slots]))
    discrete = isinstance(dataset.action_space, gym.spaces.Discrete)
    dimensions = 1 if discrete else actions.shape[1]  # choices are one dimension, however many numbers they are
    middle, spread = states.mean(0), states.std(0)
    varies = spread > 1e-8
    seen, next_seen = ((x - middle) / np.where(varies, spread, 1.0) for x in (states, after))
    distance, near = KDTree(seen).query(seen, nearest)
    divergence = actions[near].var(1, ddof=1).sum(-1).mean() / dimensions
    overall = actions.var(0, ddof=1).sum() / dimensions
    scale = np.where(actions.std(0) > 1e-8, actions.std(0), 1.0)
    joint = np.concatenate([seen, (actions - actions.mean(0)) / scale], 1)
    _, alike = KDTree(joint).query(joint, nearest)
    diversity = float(next_seen[:, varies][alike].var(1, ddof=1).mean()) if varies.any() else None
    return {
        "action_divergence": float(divergence),
        "action_divergence_share": float(divergence / overall) if overall > 0 else None,
        "transition_diversity": diversity,
        "distance": float(distance[:, -1].mean()),
        "rows": rows,
        "nearest": nearest,
    }


def _observations(dataset: Dataset, slots: np.ndarray) -> np.ndarray:
    space = dataset.observation_space
    spaces: Mapping[str, Any] = space.spaces if isinstance(space, gym.spaces.Dict) else {"": space}
    columns = zip(dataset.obs_names, spaces.values(), strict=True)
    return np.concatenate([_numbers(own, np.asarray(dataset.columns[name][slots])) for name, own in columns], 1)


def _numbers(space: gym.Space[Any], values: np.ndarray) -> np.ndarray:
    """What is measured of values [n, ...]: float64 [n, d], of a Discrete space a number for each choice."""
    if isinstance(space, gym.spaces.Discrete):
        return np.eye(int(space.n))[values.reshape(-1) - int(space.start)]
    return values.reshape(len(values), -1).astype(np.float64)


def _from_bounds(space: gym.Space[Any], values: np.ndarray) -> np.ndarray:
    """The same with -1 and 1 at the bounds of a bounded Box."""
    numbers = _numbers(space, values)
    if not (isinstance(space, gym.spaces.Box) and space.is_bounded()):
        return numbers
    low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
    return 2 * (numbers - low) / np.where(high > low, high - low, 1.0) - 1
