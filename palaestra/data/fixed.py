"""What a buffer draws from when nothing more comes in: the rows of a dataset, shared by all seeds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from torch import Generator, Tensor

from palaestra.algorithm import Buffer, Clock
from palaestra.batch import Columns, each, unflatten
from palaestra.data.dataset import Dataset
from palaestra.data.priorities import Prioritised
from palaestra.envs.border import Border


class Fixed:
    """A `Buffer` filled with a dataset: `sample(n, rng) -> batch`, `update(index, error)`; a `Store` too.

    Args:
        buffer: its layout and its priorities, which are copied. Its capacity does not count.
        dataset: what is in it. Observations and actions are given as `border` gives them to networks.
        border: of the dataset's spaces.
        columns: further columns [R, ...], by name, as networks get them; one that the dataset has too is replaced.
        seeds: how many draw from it, each by its own generator and with its own priorities.
    """

    def __init__(
        self,
        buffer: Buffer,
        dataset: Dataset,
        border: Border,
        columns: Columns | None = None,
        seeds: int = 1,
    ) -> None:
        self.buffer, self.dataset, self.border, self.seeds = buffer, dataset, border, seeds
        self.device = border.device
        self.columns = columns_of(dataset, border) | (columns or {})
        self.scale: tuple[Tensor, Tensor] | None = None
        given = columns is not None and "action" in columns
        if isinstance(dataset.action_space, Box) and not given and ((border.half != 1) | (border.middle != 0)).any():
            # On the fly: a copy of a memory-mapped column would be as large as the file.
            numbers = (border.middle, np.where(border.half > 0, 1 / np.maximum(border.half, 1e-300), 1.0))
            middle, per_unit = (torch.tensor(x, dtype=torch.float32, device=self.device) for x in numbers)
            self.scale = middle, per_unit
        self.is_step = torch.from_numpy(dataset.is_step).to(self.device)
        self.rows = np.full(seeds, dataset.steps, np.int64)
        self._is_step = dataset.is_step
        self.prioritised = Prioritised(buffer.priority, dataset.slots, [0] * seeds, self.device)
        if self.prioritised:
            index = torch.arange(dataset.slots, device=self.device)
            for seed in range(seeds):
                self.prioritised.insert(self, seed, index, self.is_step.double())

    # ------------------------------------------------------------------------------------------------ a store

    def names(self) -> Iterable[str]:
        return dict.fromkeys(name.split("/")[0] for name in self.columns)

    def get(self, name: str, index: Tensor) -> Any:
        """Entries of a column by slot (any shape): a tensor, or a dictionary for Dict observations."""
        if name == "action" and self.scale is not None:
            middle, per_unit = self.scale
            return (_rows(self.columns[name], index) - middle) * per_unit
        if name in self.columns:
            return _rows(self.columns[name], index)
        part = {key: _rows(column, index) for key, column in self.columns.items() if key.startswith(f"{name}/")}
        return unflatten(part)[name]

    def next(self, index: Tensor) -> Tensor:
        return index + 1

    def ends(self, index: Tensor) -> Tensor:
        """Whether a slot holds a final observation."""
        return ~self.is_step[index]

    # -------------------------------------------------------------------------------------------------- drawing

    def sample(self, n: int, rng: Generator | Sequence[Generator], clock: Clock | None = None) -> Columns:
        """A batch of `n` rows of each seed, drawn with replacement, uniformly or in proportion to the priorities."""
        rngs = (rng,) if isinstance(rng, Generator) else rng
        if self.prioritised:
            index = self.prioritised.sample(n, rngs)
            weight = self.prioritised.weights(index, self.rows, clock)  # type: ignore[arg-type]
        else:
            drawn = [self._drawn(n, own) for own in rngs]
            index = torch.from_numpy(np.concatenate(drawn) if self.seeds > 1 else drawn[0]).to(self.device)
            weight = torch.ones(len(index), device=self.device)
        batch = self.buffer.layout(self, index, rng)
        batch["index"], batch["weight"] = index, weight
        return batch if self.seeds == 1 else each(lambda x: x.view(self.seeds, n, *x.shape[1:]), batch)

    def _drawn(self, n: int, rng: Generator) -> np.ndarray:
        """Slots of steps. The few final observations among them are drawn again."""
        index = torch.randint(self.dataset.slots, (n,), generator=rng).numpy()
        bad = (~self._is_step[index]).nonzero()[0]
        while len(bad):
            index[bad] = torch.randint(self.dataset.slots, (len(bad),), generator=rng).numpy()
            bad = bad[~self._is_step[index[bad]]]
        return index

    def update(self, index: Tensor, error: Tensor) -> None:
        """Tell the priorities how far off the drawn rows were: `error [B]` (or [S, B]), non-negative."""
        self.prioritised.update(self, index, error, lambda own: self.is_step[own])

    # ---------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What priorities remember; the rows are the dataset's."""
        return {"dataset": self.dataset.hash, **self.prioritised.state_dict()}

    def load(self, state: dict[str, Any], segments: Iterable[Any]) -> None:
        """ValueError where the state is of another dataset."""
        if state["dataset"] != self.dataset.hash:
            raise ValueError(f"it was written with dataset {state['dataset'][:12]}, this is {self.dataset.hash[:12]}")
        self.prioritised.load_state_dict(state)


def columns_of(dataset: Dataset, border: Border) -> dict[str, Tensor]:
    """The columns of a dataset as tensors [R, ...] on the border's device; choices are counted from 0."""
    columns = dict(dataset.columns)
    if not isinstance(dataset.action_space, Box):
        columns["action"] = border.inner_action(columns["action"]).cpu().numpy()
    for name, space in _spaces(dataset).items():
        if isinstance(space, Discrete | MultiDiscrete) and np.any(space.start):
            columns[name] = columns[name] - np.asarray(space.start, np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing here writes
        return {name: torch.from_numpy(np.asarray(array)).to(border.device) for name, array in columns.items()}


def _spaces(dataset: Dataset) -> dict[str, Any]:
    space = dataset.observation_space
    return dict(zip(dataset.obs_names, space.spaces.values() if isinstance(space, Dict) else (space,), strict=True))


def _rows(column: Tensor, index: Tensor) -> Tensor:
    return column.index_select(0, index) if index.dim() == 1 else column[index]
