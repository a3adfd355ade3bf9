"""Hindsight goals: rows that say of a goal which was reached what they said of one that was not.

For environments whose observation holds the goal. A later step of the same episode is drawn, uniformly from the row's
own to the last; what its next observation achieves becomes the goal of the row, and reward and end are those that a row
with this goal would have had: 1 and the end where it is reached, else 0.

    hindsight   the row itself, on its way to that goal        entering   the later step, which enters that goal

Paper: Andrychowicz et al., "Hindsight Experience Replay" (2017), its "future" strategy.

Shape legend: `B` rows, `T` steps, `G` entries of a goal.

Traps: `distance` is in the observation's units, and must be the environment's own where own goals count. Steps are
walked one after another to the end of the episode: long episodes make slow draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Store, above, gives
from palaestra.batch import Columns, Obs
from palaestra.data.layouts import STEP, transition

WANTED, ACHIEVED = "desired_goal", "achieved_goal"  # keys of a Dict observation, as Gymnasium's robots have them


@dataclass(frozen=True)
class Goal:
    """Where an observation says what is wanted and what is achieved.

    Args:
        wanted: entries of a vector observation that hold the goal, [G]; -1 is the last.
        achieved: entries that are compared with them, in the same units, [G]. A Dict observation has keys instead,
            `desired_goal` and `achieved_goal`, and neither counts.
        distance: Euclidean, below which a goal is reached.
    """

    wanted: tuple[int, ...] = (-2, -1)
    achieved: tuple[int, ...] = (0, 1)
    distance: float = 0.2

    def __post_init__(self) -> None:
        above(0, distance=self.distance)
        if not self.wanted or len(self.wanted) != len(self.achieved):
            raise ValueError(f"goal is {self.wanted} and achieved {self.achieved}: give as many entries, at least one")

    def wanted_in(self, obs: Obs) -> Tensor:
        """The goal, [B, G]."""
        return _entries(obs, WANTED, self.wanted)

    def achieved_in(self, obs: Obs) -> Tensor:
        """What is to be compared with the goal, [B, G]."""
        return _entries(obs, ACHIEVED, self.achieved)

    def put_into(self, obs: Obs, goal: Tensor) -> Obs:
        """The observation with another goal [B, G]."""
        if isinstance(obs, dict):
            return {**obs, WANTED: goal}
        changed = obs.clone()
        changed[..., list(self.wanted)] = goal
        return changed

    def reached(self, obs: Obs, goal: Tensor) -> Tensor:
        """Whether what is achieved lies near enough to `goal` [B, G]: [B]."""
        return torch.linalg.vector_norm((self.achieved_in(obs) - goal).float(), dim=-1) < self.distance


def _entries(obs: Obs, key: str, entries: tuple[int, ...]) -> Tensor:
    if isinstance(obs, dict):
        if key not in obs:
            raise ValueError(f"the observation has no {key!r} among {', '.join(obs)}: hindsight needs a goal in it")
        return obs[key]
    if obs.dim() != 2 or not all(-obs.shape[1] <= entry < obs.shape[1] for entry in entries):
        shape = tuple(obs.shape[1:])
        raise ValueError(
            f"an observation of shape {shape} has no entries {entries}: set goal= and achieved= to its own"
        )
    return obs[..., list(entries)]


@gives(*STEP)
def hindsight(store: Store, index: Tensor, rng: Generator, goal: Goal, share: float) -> Columns:
    """A `transition` whose goal is, with probability `share`, what a later step of its episode achieves."""
    later, _, changed = _drawn(store, index, rng, share)
    return _towards(transition(store, index, rng), goal, store.get("obs", store.next(later)), changed)


@gives(*STEP)
def entering(store: Store, index: Tensor, rng: Generator, goal: Goal, share: float) -> Columns:
    """A `transition` that enters its goal: a later step, whose goal becomes what it achieves.

    With probability 1 - `share` the last step of the episode instead, and its own goal, where that was reached.
    """
    later, last, changed = _drawn(store, index, rng, share)
    final = store.get("obs", store.next(last))
    changed = changed | ~goal.reached(final, goal.wanted_in(final))
    batch = transition(store, torch.where(changed, later, last), rng)
    return _towards(batch, goal, batch["next_obs"], changed)


def steps_ahead(store: Store, index: Tensor) -> tuple[Tensor, Tensor]:
    """The slots of a step and of all that follow it in its episode, and how many these are: [B, T] and [B].

    The last one is repeated up to T, the longest.
    """
    places = [index]
    while True:
        following = store.next(places[-1])
        at = torch.where(store.ends(following), places[-1], following)
        if torch.equal(at, places[-1]):  # all are at their last
            ahead = torch.stack(places, 1)
            return ahead, 1 + (ahead.diff(dim=1) != 0).sum(1)
        places.append(at)


def _drawn(store: Store, index: Tensor, rng: Generator, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row a later step (or its own), the last one, and whether its goal changes: slots [B] twice, [B] bool."""
    ahead, count = steps_ahead(store, index)
    which, chance = _uniform(len(index), rng).to(index.device)
    later = ahead.gather(1, (which * count).long().unsqueeze(1)).squeeze(1)
    return later, ahead[:, -1], chance < share


def _uniform(rows: int, rng: Generator | Sequence[Generator]) -> Tensor:
    """Two numbers in [0, 1) for each row, [2, B]. Seeds that share the rows draw those of their own, as many each."""
    rngs = (rng,) if isinstance(rng, Generator) else rng
    return torch.cat([torch.rand(2, rows // len(rngs), dtype=torch.float64, generator=own) for own in rngs], 1)


def _towards(batch: Columns, goal: Goal, later_obs: Obs, changed: Tensor) -> Columns:
    """The rows, those that are `changed` [B] with what `later_obs` achieves as their goal."""
    obs, next_obs = batch["obs"], batch["next_obs"]
    own = goal.wanted_in(obs)
    new = torch.where(changed.unsqueeze(-1), goal.achieved_in(later_obs), own)
    reached = goal.reached(next_obs, new)
    return {
        **batch,
        "obs": goal.put_into(obs, new),
        "next_obs": goal.put_into(next_obs, new),
        "reward": reached.float(),
        "terminated": batch["terminated"]
        | reached,  # the last step of an episode has no later one: it reaches its goal
    }
