"""Replay: a ring an environment, an observation kept once.

Shape legend: `N` environments, `T` steps, `B` rows, `S` seeds.

Each environment writes its own ring of `capacity // N` slots. A step's slot holds its observation, action, reward and
flags; the observation that it led to is that of the next slot. That slot is `PENDING` until the next step fills it in,
or stays as an `END`, where an episode's final observation lies. Rows drawn are always whole steps.

Several seeds share the store and nothing else: each owns the rings of its environments, which follow one another, draws
from them by its own generator, and has its own priorities. Batches are then [S, B, ...].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from palaestra.algorithm import Buffer, Clock
from palaestra.batch import Columns, each, flatten, unflatten
from palaestra.data.layouts import once, sequences
from palaestra.data.priorities import Prioritised

EMPTY, STEP, PENDING, END = 0, 1, 2, 3
NOT_KEPT = ("next_obs", "first", "valid")  # next_obs is the next slot's obs; the others describe the collection


class Replay:
    """The runtime of a `Buffer`: `insert(steps)`, `sample(n, rng) -> batch`, `update(index, error)`; a `Store` too.

    Args:
        buffer: what to keep and how to lay it out. Its priorities are copied, so that two runs never share state; its
            capacity is that of each seed.
        environments: how many write into it, of all seeds.
        device: where rows live and are drawn.
        seeds: how many share it.
    """

    def __init__(
        self, buffer: Buffer, environments: int = 1, device: torch.device | str = "cpu", seeds: int = 1
    ) -> None:
        self.buffer = buffer
        self.seeds = seeds
        self.ring = buffer.capacity * seeds // environments
        if self.ring < 3:
            raise ValueError(
                f"capacity={buffer.capacity} leaves {self.ring} rows for each of {environments // seeds} environments: "
                "at least 3 are needed"
            )
        self.environments = environments
        self.capacity = self.ring * environments
        self.device = torch.device(device)
        self.columns: dict[str, Tensor] = {}
        # Where to write is decided on the host, in NumPy: a handful of numbers a step, and no synchronisation.
        self._kind = np.zeros(self.capacity, np.uint8)
        self.kind = torch.from_numpy(self._kind).to(self.device)  # on the CPU the same memory
        self.heads = np.zeros(environments, np.int64)  # slots written, ever
        self.pending = np.zeros(environments, bool)
        self.offset = np.arange(environments) * self.ring
        self.rows = np.zeros(seeds, np.int64)  # whole steps that can be drawn
        self.share = self.capacity // seeds  # slots of one seed
        self.prioritised = Prioritised(buffer.priority, self.share, range(0, self.capacity, self.share), self.device)
        self._saved = self.heads.copy()

    # ------------------------------------------------------------------------------------------------ a store

    def names(self) -> Iterable[str]:
        return dict.fromkeys(name.split("/")[0] for name in self.columns)

    def get(self, name: str, index: Tensor) -> Any:
        """Entries of a column by index (any shape): a tensor, or a dictionary for Dict observations."""
        return _entries(self.columns, name, index)

    def next(self, index: Tensor) -> Tensor:
        """The slot after each, in the same environment's ring."""
        following = index + 1
        return torch.where(following % self.ring == 0, following - self.ring, following)

    def ends(self, index: Tensor) -> Tensor:
        """Whether a slot holds no step of its own: a final observation, or the newest one."""
        return self.kind[index] != STEP

    # ------------------------------------------------------------------------------------------------ insertion

    def insert(self, steps: Columns) -> None:
        """Keep steps [T, N, ...]: `obs, action, reward, terminated, truncated, next_obs`, `first` (the observation
        begins an episode), `valid` (a step was taken), and any other column."""
        flat = flatten(steps)
        if not self.columns:
            self._allocate(flat)
        for t in range(len(steps["reward"])):
            self._insert({key: value[t] for key, value in flat.items()})

    def _allocate(self, flat: dict[str, Tensor]) -> None:
        kept = [key for key in flat if key.split("/")[0] not in NOT_KEPT]
        for key in kept:  # empty, not zeros: the operating system gives pages only as they are written
            shape = (self.capacity, *flat[key].shape[2:])
            self.columns[key] = torch.empty(shape, dtype=flat[key].dtype, device=self.device)

    def _insert(self, step: dict[str, Tensor]) -> None:
        valid, first, terminated, truncated = (
            step[name].cpu().numpy() for name in ("valid", "first", "terminated", "truncated")
        )
        keep = valid if self.buffer.keep is None else valid & self.buffer.keep(unflatten(step)).cpu().numpy()
        # A pending observation that its step does not follow (a new episode, rows left out) stays as an end.
        abandoned = self.pending & (first | ~keep)
        if abandoned.any():
            self._mark((self.heads % self.ring + self.offset)[abandoned], END)
            self.heads += abandoned
            self.pending &= ~abandoned
        who = keep.nonzero()[0]
        if not len(who):
            return
        slot = self.heads[who] % self.ring + self.offset[who]
        following = (self.heads[who] + 1) % self.ring + self.offset[who]
        here, there = (torch.from_numpy(index).to(self.device) for index in (slot, following))
        some = None if len(who) == self.environments else torch.from_numpy(who).to(self.device)
        for key, column in self.columns.items():
            column.index_copy_(0, here, step[key] if some is None else step[key][some])
            if key == "obs" or key.startswith("obs/"):
                after = step["next_" + key]
                column.index_copy_(0, there, after if some is None else after[some])
        done = (terminated | truncated)[who]
        self._mark(slot, STEP)
        self._mark(following, np.where(done, END, PENDING))
        self.heads[who] += 1 + done
        self.pending[who] = ~done

    def _mark(self, slot: np.ndarray, kind: int | np.ndarray) -> None:
        before = self._kind[slot] == STEP
        self._kind[slot] = kind
        now = self._kind[slot] == STEP
        if self.seeds == 1:
            self.rows[0] += int(now.sum()) - int(before.sum())
        else:
            np.add.at(self.rows, slot // self.share, now.astype(np.int64) - before)
        index = None
        if self.device.type != "cpu":
            index = torch.from_numpy(slot).to(self.device)
            self.kind[index] = torch.from_numpy(self._kind[slot]).to(self.device)
        if self.prioritised:
            for seed in range(self.seeds):
                own = slot // self.share == seed
                if own.any():
                    value = torch.from_numpy(now[own]).to(self.device, torch.float64)
                    self.prioritised.insert(self, seed, torch.from_numpy(slot[own]).to(self.device), value)

    # -------------------------------------------------------------------------------------------------- drawing

    def sample(self, n: int, rng: Generator | Sequence[Generator], clock: Clock | None = None) -> Columns:
        """A batch of `n` rows, drawn with replacement: uniform, or in proportion to the product of the priorities.

        With several seeds `rng` holds a generator for each.
        """
        if not self.rows.all():
            raise ValueError("the replay is empty: insert steps before drawing from it")
        rngs = (rng,) if isinstance(rng, Generator) else rng
        index = self.draw(n, rngs)
        batch = self.buffer.layout(self, index, rng)
        batch["index"] = index
        if self.prioritised:
            batch["weight"] = self.prioritised.weights(index, self.rows, clock)  # type: ignore[arg-type]
        else:
            batch["weight"] = torch.ones(index.shape, device=self.device)
        return batch if self.seeds == 1 else each(lambda x: x.view(self.seeds, n, *x.shape[1:]), batch)

    def draw(self, n: int, rngs: Sequence[Generator]) -> Tensor:
        """Slots [S * n] of whole steps, `n` of each seed.

        Drawn on the host, where their kinds are known: nothing waits for the device.
        """
        if self.prioritised:
            return self.prioritised.sample(n, rngs)
        index = np.concatenate([self._drawn(n, seed, rng) for seed, rng in enumerate(rngs)])
        return torch.from_numpy(index).to(self.device)

    def _drawn(self, n: int, seed: int, rng: Generator) -> np.ndarray:
        own = self.environments // self.seeds
        longest = min(int(self.heads[seed * own : (seed + 1) * own].max()) + 1, self.ring)
        kind = self._kind[seed * self.share : (seed + 1) * self.share]
        index = self._candidates(n, longest, rng)
        bad = (kind[index] != STEP).nonzero()[0]
        while len(bad):  # ends and newest observations are few: the odd second draw is cheaper than an index of steps
            index[bad] = self._candidates(len(bad), longest, rng)
            bad = bad[kind[index[bad]] != STEP]
        return index + seed * self.share if seed else index

    def _candidates(self, n: int, longest: int, rng: Generator) -> np.ndarray:
        drawn = torch.randint(longest * (self.environments // self.seeds), (n,), generator=rng).numpy()
        if longest == self.ring or self.environments == self.seeds:
            return drawn
        return drawn // longest * self.ring + drawn % longest

    def update(self, index: Tensor, error: Tensor) -> None:
        """Tell the priorities how far off the drawn rows were: `error [B]` (or [S, B]), non-negative."""
        self.prioritised.update(self, index, error, lambda own: self.kind[own] == STEP)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything but the rows, which go into segments."""
        state: dict[str, Any] = {"heads": self.heads.copy(), "pending": self.pending.copy(), "rows": self.rows.copy()}
        return state | self.prioritised.state_dict()

    def segment(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The slots written since the last segment, and what places them: append-only, so that saving costs the new."""
        if not self.columns:
            return {}, {}
        first = np.maximum(self._saved, self.heads + 1 - self.ring)
        index = self._between(first, self.heads)
        kind = self.kind[index]
        empty = kind != STEP  # these slots hold an observation alone; what else lies there is whatever memory held
        rows = {"kind": kind}
        for key, column in self.columns.items():
            rows[key] = column[index]
            if key.split("/")[0] != "obs":
                rows[key][empty] = 0
        meta = {"first": first.tolist(), "last": self.heads.tolist()}
        self._saved = self.heads.copy()
        return rows, meta

    def alive(self, meta: dict[str, Any]) -> bool:
        """Whether some slot of an earlier segment has not been overwritten since."""
        return any(
            last + 1 > head + 1 - self.ring for last, head in zip(meta["last"], self.heads.tolist(), strict=True)
        )

    def load(self, state: dict[str, Any], segments: Iterable[tuple[dict[str, Tensor], dict[str, Any]]]) -> None:
        """The inverse: the state, and the segments, oldest first."""
        for rows, meta in segments:
            if not self.columns:
                self._allocate({key: value[None] for key, value in rows.items() if key != "kind"})
            index = self._between(np.array(meta["first"]), np.array(meta["last"]))
            for key, column in self.columns.items():
                column[index] = rows[key].to(self.device)
            self.kind[index] = rows["kind"].to(self.device)
        self._kind[:] = self.kind.cpu().numpy()
        self.heads[:] = state["heads"]
        self.pending[:] = state["pending"]
        self.rows[:] = state["rows"]
        self._saved = self.heads.copy()
        self.prioritised.load_state_dict(state)

    def _between(self, first: np.ndarray, last: np.ndarray) -> Tensor:
        """The slots from `first` to `last`, both included (the last holds the newest observation), of every ring."""
        spans = zip(first, last, self.offset, strict=True)
        return torch.cat([torch.from_numpy(np.arange(a, b + 1) % self.ring + offset) for a, b, offset in spans]).to(
            self.device
        )


class Rollout:
    """What was just collected, for algorithms that learn from it once: passes in minibatches, then nothing is kept.

    A minibatch is drawn from all steps; where the layout is `sequences`, from all environments, each with its steps in
    order. `seeds` share it as they share a `Replay`.
    """

    def __init__(self, buffer: Buffer, device: torch.device | str = "cpu", seeds: int = 1) -> None:
        self.buffer = buffer
        self.device = torch.device(device)
        self.seeds = seeds
        self.environments = 0
        self.columns: dict[str, Tensor] = {}
        self.units = torch.empty(0)  # what is shuffled: of one seed, [steps], or [environments, T]

    def insert(self, steps: Columns) -> None:
        """Steps [T, S * N, ...], columns of the advantage included; they replace what was there."""
        flat = flatten(steps)
        length, self.environments = flat["valid"].shape
        valid = flat.pop("valid").flatten()
        self.columns = {key: value.flatten(0, 1) for key, value in flat.items()}
        at = torch.arange(length * self.environments, device=self.device).view(length, self.seeds, -1)
        if self.buffer.layout is sequences:
            self.columns["valid"] = valid
            self.units = at[:, 0].T
        elif self.seeds > 1:  # they stay in step: every step was taken
            self.units = at[:, 0].flatten()
        else:
            self.columns = {key: value[valid] for key, value in self.columns.items()}
            self.units = torch.arange(len(self.columns["reward"]), device=self.device)

    def names(self) -> Iterable[str]:
        return dict.fromkeys(name.split("/")[0] for name in self.columns)

    def get(self, name: str, index: Tensor) -> Any:
        return _entries(self.columns, name, index)

    def minibatches(self, count: int, rng: Generator | Sequence[Generator]) -> Iterable[Columns]:
        """One pass over all rows, in random order (of each seed its own), in `count` pieces; one piece is in order."""
        rngs = (rng,) if isinstance(rng, Generator) else rng
        if count == 1 and self.seeds == 1 and self.buffer.layout is once:  # nothing to gather
            rows = len(self.units)
            yield {**unflatten(self.columns), "index": self.units, "weight": torch.ones(rows, device=self.device)}
            return
        if count == 1:
            orders = torch.arange(len(self.units), device=self.device).expand(self.seeds, -1)
        else:
            orders = torch.stack([torch.randperm(len(self.units), generator=rng) for rng in rngs]).to(self.device)
        own = self.environments // self.seeds
        first = torch.arange(self.seeds, device=self.device).view(-1, *[1] * self.units.dim()) * own
        for order in orders.chunk(count, dim=1):
            index = (self.units[order] + first).flatten(0, 1)
            batch = self.buffer.layout(self, index, rngs if self.seeds > 1 else rngs[0])  # type: ignore[arg-type]
            batch |= {"index": order.flatten(), "weight": torch.ones(order.numel(), device=self.device)}
            yield batch if self.seeds == 1 else each(lambda x: x.view(self.seeds, -1, *x.shape[1:]), batch)


def _entries(columns: dict[str, Tensor], name: str, index: Tensor) -> Any:
    if name in columns:
        return _rows(columns[name], index)
    part = {key: _rows(column, index) for key, column in columns.items() if key.startswith(f"{name}/")}
    return unflatten(part)[name]


def _rows(column: Tensor, index: Tensor) -> Tensor:
    """`column[index]`; `index_select` takes a third of its time."""
    return column.index_select(0, index) if index.dim() == 1 else column[index]
