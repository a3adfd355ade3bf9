"""What a row is: `layout(store, index, rng) -> batch`. Shape legend: `B` rows, `n` rewards of a row, `T` steps.

A store keeps each environment's steps in order, an observation once: the observation behind a step is that of the next
index. `store.ends(index)` says where nothing follows that could be read (a final observation, or the newest).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Store, gives
from palaestra.batch import Columns

STEP = ("obs", "action", "reward", "terminated", "truncated", "next_obs")


def _others(store: Store) -> list[str]:
    """The stored columns that every layout handles alike."""
    return [name for name in store.names() if name not in ("obs", "reward", "terminated")]


@gives(*STEP)
def transition(store: Store, index: Tensor, rng: Generator) -> Columns:
    """One step: `obs, action, reward [B], terminated [B], truncated [B], next_obs` and every other stored column."""
    batch = {name: store.get(name, index) for name in store.names()}
    batch["next_obs"] = store.get("obs", store.next(index))
    return batch


@gives(*STEP, "steps")
def n_steps(store: Store, index: Tensor, rng: Generator, n: int) -> Columns:
    """Up to `n` steps: `reward [B, n]` (zero after the last), `steps [B]`, `next_obs` and `terminated` at the last."""
    rewards = []
    steps = torch.zeros_like(index)
    live = torch.ones_like(index, dtype=torch.bool)
    last, at = index, index
    for _ in range(n):
        rewards.append(torch.where(live, store.get("reward", at), 0.0))
        steps = steps + live
        last = torch.where(live, at, last)
        following = store.next(at)
        live = live & ~store.ends(following)
        at = torch.where(live, following, at)
    reward = torch.stack(rewards, 1)
    batch = {name: store.get(name, index) for name in ("obs", *_others(store))}
    batch |= {"reward": reward, "steps": steps, "next_obs": store.get("obs", store.next(last))}
    batch["terminated"], batch["truncated"] = store.get("terminated", last), store.get("truncated", last)
    return batch


@gives("obs", "action", "reward", "terminated", "truncated", "mask")
def windows(store: Store, index: Tensor, rng: Generator, length: int) -> Columns:
    """`length` steps from each index on: every stored column as [B, T, ...], and `mask [B, T]`, false after an end."""
    places, masks = [], []
    live = torch.ones_like(index, dtype=torch.bool)
    at = index
    for _ in range(length):
        places.append(at)
        masks.append(live)
        following = store.next(at)
        live = live & ~store.ends(following)
        at = torch.where(live, following, at)
    place = torch.stack(places, 1)
    return {**{name: store.get(name, place) for name in store.names()}, "mask": torch.stack(masks, 1)}


@gives(*STEP)
def once(store: Store, index: Tensor, rng: Generator) -> Columns:
    """What was just collected, all stored columns: for algorithms that learn from a rollout and throw it away."""
    return {name: store.get(name, index) for name in store.names()}


@gives(*STEP, "first", "valid")
def sequences(store: Store, index: Tensor, rng: Generator) -> Columns:
    """As `once`, each row all steps of one environment, in order: columns [B, T, ...] at `index` [B, T].

    For policies with memory. `first` [B, T] marks observations that begin an episode, `valid` [B, T] those that a step
    followed; where a column is called `memory`, its entry at step 0 is what the policy remembered then.
    """
    return {name: store.get(name, index) for name in store.names()}
