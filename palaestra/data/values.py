"""What is in a dataset's arrays, looked at a piece at a time: numbers that are none, and values outside their space.

An episode without actions, which is one that was watched, has NaN in all entries of the actions of all of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from palaestra.data.dataset import NEEDED, Arrays, Dataset, DatasetError
from palaestra.data.plan import PIECE, Findings

MENDED = "drop the episodes, or log them again"
LABELLED = "label them with ss-orl, or leave them out with labelled-alone"
ENV = "give the environment that it is of (env=), or correct its spaces or the data"
MOST_CHOICES = 1 << 16  # what the largest number that was logged may say of how many there are


def without_actions(action: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Which episodes have no actions, bool [E]; of choices, which cannot be NaN, none.

    Args:
        action: of a dataset, [R, ...].
        lengths: of its episodes, [E].
    """
    if action.dtype.kind != "f":
        return np.zeros(len(lengths), bool)
    missing = np.concatenate([np.isnan(piece).reshape(len(piece), -1).all(1) for _, piece in _pieces(action)])
    ends = np.cumsum(lengths + 1)
    missing[ends - 1] = True  # a final slot holds zeros, whatever was done before
    return np.logical_and.reduceat(missing, ends - lengths - 1)


def with_actions(dataset: Dataset) -> Dataset:
    """Its episodes that have actions; itself where all have. DatasetError where none has."""
    there = ~without_actions(dataset.columns["action"], dataset.lengths)
    if there.all():
        return dataset
    if not there.any():
        raise DatasetError("no episode has actions (NaN in all steps): log those of some, and ss-orl labels the others")
    rows = np.repeat(there, dataset.lengths + 1)
    columns = {name: column[rows] for name, column in dataset.columns.items()}
    return replace(dataset, columns=columns, lengths=dataset.lengths[there])


def finite(columns: Arrays, lengths: np.ndarray, fields: Mapping[str, str], found: Findings) -> None:
    """Find NaN and infinite values. No learner can bear them in what every dataset has.

    An episode without actions is no mistake, and worth knowing.

    Args:
        columns: of a dataset, by name.
        lengths: of its episodes.
        fields: what the columns are called in the file.
        found: told.
    """
    silent = without_actions(columns["action"], lengths)
    if silent.any():
        place, what = f"episode {silent.argmax()}", "no actions, NaN in all of its steps"
        found.note(fields["action"], what, LABELLED, place, int(silent.sum()))
    watched = np.repeat(silent, lengths + 1)
    for name, column in columns.items():
        needed = name in NEEDED or name.partition("/")[0] == "obs"
        tell = found.wrong if needed else found.odd
        if column.dtype.kind == "f":
            for at, piece in _pieces(column):
                if not np.isfinite(piece).all():
                    if name == "action":
                        piece = np.where(watched[at : at + len(piece)].reshape(-1, *[1] * (piece.ndim - 1)), 0, piece)
                    for what, bad in (("NaN", np.isnan(piece)), ("an infinite value", np.isinf(piece))):
                        _tell(tell, fields[name], what, MENDED, bad, at, lengths)


def inside(dataset: Dataset, fields: Mapping[str, str], found: Findings) -> None:
    """Find values outside their space: choices that there are not are wrong, actions beyond their bounds odd."""
    observed = dataset.observation_space
    spaces = {name: getattr(observed, "spaces", {"": observed})[name[4:]] for name in dataset.obs_names}
    for name, space in {**spaces, "action": dataset.action_space}.items():
        low, high = _bounds(space)
        if low is None:
            continue
        kind = dataset.columns[name].dtype
        if isinstance(space, gym.spaces.Box):
            low, high = low.astype(kind), high.astype(kind)
            tell: Callable[..., None] = found.odd if name == "action" else found.note
        else:
            tell = found.wrong
        for at, piece in _pieces(dataset.columns[name]):
            bad = (piece < low) | (piece > high)
            if bad.any():
                if name == "action":  # its final slots hold zeros
                    bad &= dataset.is_step[at : at + len(piece)].reshape(-1, *[1] * (piece.ndim - 1))
                _tell(tell, fields[name], f"outside the space {_short(space)}", ENV, bad, at, dataset.lengths)


def inferred(
    columns: Arrays,
    lengths: np.ndarray,
    spaces: tuple[gym.Space[Any] | None, gym.Space[Any] | None],
    fields: Mapping[str, str],
    found: Findings,
) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Spaces that fit the values, where they are not known.

    Actions are a Box of [-1, 1] where all are within, otherwise of the smallest and largest of each dimension; choices
    are Discrete (or MultiDiscrete) up to the largest. Observations have no bounds.
    """
    obs, action = spaces
    if obs is None:
        observed = {n[4:]: _observed(column) for n, column in columns.items() if n.partition("/")[0] == "obs"}
        obs = observed[""] if "" in observed else gym.spaces.Dict(observed)
    if action is None:
        is_step = np.ones(len(columns["action"]), bool)
        is_step[np.cumsum(lengths + 1) - 1] = False
        low, high = _extremes(columns["action"], is_step)
        if columns["action"].dtype.kind == "f":
            return obs, _bounded(low, high)
        if any(int(one) > MOST_CHOICES for one in np.append(high, -np.minimum(low, 0)).flat):
            found.wrong(fields["action"], f"choices go from {low} to {high}: too far for a set of them", ENV)
            found.stop()
        start = low.clip(max=0)
        if columns["action"].ndim > 1:
            return obs, gym.spaces.MultiDiscrete(high - start + 1, start=start)
        action = gym.spaces.Discrete(int(high - start) + 1, start=int(start))
    return obs, action


def _observed(column: np.ndarray) -> gym.Space[Any]:
    shape = column.shape[1:]
    if column.dtype.kind == "f":
        return gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    if column.dtype == np.uint8:
        return gym.spaces.Box(0, 255, shape, np.uint8)
    if not shape and column.min() >= 0 and column.max() <= MOST_CHOICES:
        return gym.spaces.Discrete(int(column.max()) + 1)
    whole = np.iinfo(np.int64)
    return gym.spaces.Box(whole.min, whole.max, shape, np.int64)


def _bounded(low: np.ndarray, high: np.ndarray) -> gym.Space[Any]:
    if not np.isfinite([low, high]).all() or ((low >= -1).all() and (high <= 1).all()):
        return gym.spaces.Box(-1, 1, low.shape, np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)


def _extremes(column: np.ndarray, is_step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pieces = (piece[is_step[at : at + len(piece)]] for at, piece in _pieces(column))
    # fmin and fmax pass over NaN: episodes without actions
    bounds = [(np.fmin.reduce(piece), np.fmax.reduce(piece)) for piece in pieces if len(piece)]
    return np.fmin.reduce([low for low, _ in bounds]), np.fmax.reduce([high for _, high in bounds])


def _bounds(space: gym.Space[Any]) -> tuple[Any, Any]:
    if isinstance(space, gym.spaces.Box):
        return (space.low, space.high) if space.is_bounded("below") or space.is_bounded("above") else (None, None)
    if isinstance(space, gym.spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return (np.zeros(space.shape), np.ones(space.shape)) if isinstance(space, gym.spaces.MultiBinary) else (None, None)


def _short(space: gym.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) < 100 else f"{text[:97]}..."


def _pieces(column: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    rows = max(1, PIECE * len(column) // max(1, column.nbytes))
    for at in range(0, len(column), rows):
        yield at, column[at : at + rows]


def _tell(
    tell: Callable[..., None], field: str, what: str, remedy: str, bad: np.ndarray, at: int, lengths: np.ndarray
) -> None:
    if count := int(bad.sum()):
        slot = at + int(bad.reshape(len(bad), -1).any(1).argmax())
        first = np.cumsum(lengths + 1) - lengths - 1
        episode = int(np.searchsorted(first, slot, side="right")) - 1
        tell(field, what, remedy, f"episode {episode}, step {slot - first[episode]}", count)
