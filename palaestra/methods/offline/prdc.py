"""PRDC: the actor is held to the action of the nearest logged pair, whatever its state, in place of the row's own.

    key = [state_weight s, mu(s)],   j = argmin_i |key - [state_weight s_i, a_i]| over the whole dataset
    actor: -lambda Q_1(s, mu(s)) + mean_A (mu(s) - a_j)^2,   lambda = improvement / mean_B |Q_1(s, mu(s))|

Paper: Ran et al., "Policy Regularization with Dataset Constraint for Offline Reinforcement Learning" (2023); beta is
`state_weight`, k is `neighbour`, alpha the `improvement` of `td3-bc` (40 on HalfCheetah).

With a large `state_weight` the nearest pair is the row itself, and this is td3-bc; with 0 an action need only have been
logged in some state. `neighbour=k` is the k-th nearest alone, and no mean of k.

Traps: distances mix states and actions, so that states must be standardised (td3-bc's are) and actions in one unit
(they are in [-1, 1] here). Both sides of a distance are the same float32 numbers, compared in float64: a policy that
takes the logged action is at distance 0. The gradient flows through mu(s) and not through the choice of j. Neighbours
are searched when the actor learns, in every second update. A k-d tree slows down with the dimensions of its pairs:
docs/benchmarks/neighbours.json says how much. Images and symbols of an observation are not part of the distance.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Algorithm, Nets, Transform, above, append_transform, between, expressed, rebind
from palaestra.batch import Columns, Obs, each, flatten
from palaestra.data.tree import Tree

COLUMN = "nearest_action"
CLONING = "value_and_cloning"


def pairs(obs: Obs, action: Tensor, state_weight: float) -> Tensor:
    """`[state_weight s, a]`, the states first: [B, D]."""
    states = [x.flatten(1) for x in flatten({"obs": obs}).values() if x.dtype.is_floating_point]
    return torch.cat([*(state_weight * x for x in states), action], -1)


def remembered(
    nets: Nets, columns: Columns, rng: Generator, tree: Tree, state_weight: float, neighbour: int
) -> Columns:
    """Plant the pairs of all logged steps. Each one's own action stands in the column until the policy has a say."""
    steps = columns["valid"]
    if neighbour > (logged := int(steps.sum())):
        raise ValueError(f"neighbour is {neighbour}, and the dataset has {logged} steps: choose a smaller one")
    own = each(lambda x: x[steps], columns["obs"])
    tree.plant(pairs(nets["obs_statistics"](own), columns["action"][steps], state_weight))
    return {**columns, COLUMN: columns["action"]}


def nearest(nets: Nets, batch: Columns, rng: Generator, tree: Tree, state_weight: float, neighbour: int) -> Columns:
    """`nearest_action` [B, A]: that of the logged pair nearest to (s, mu(s)); as it is where no dataset was read."""
    if not tree:
        return batch
    action = nets["actor"](batch["obs"])
    found = tree.nearest(pairs(batch["obs"], action, state_weight), neighbour)
    return {**batch, COLUMN: found[:, -action.shape[-1] :]}


@expressed
def prdc(algorithm: Algorithm, state_weight: float = 2.0, neighbour: int = 1) -> Algorithm:
    """Policy regularisation with dataset constraint: cloning of the nearest logged pair's action. On `td3-bc`.

    Args:
        state_weight: how much a distance between states counts against one between actions, at least 0.
        neighbour: which of the nearest pairs it is, 1 being the nearest.
    """
    between(0, float("inf"), state_weight=state_weight)
    above(0, neighbour=neighbour)
    actor = algorithm.losses.get("actor")
    if actor is None or CLONING not in actor.terms:
        raise ValueError(f"prdc does not fit {algorithm}, whose actor clones no action beside a value: choose td3-bc")
    algorithm = rebind(algorithm, "actor", CLONING, target=COLUMN)
    term = algorithm.losses["actor"].terms[CLONING]
    term = replace(term, needs=(*term.needs, COLUMN))
    settings: dict[str, Any] = {"tree": Tree(), "state_weight": state_weight, "neighbour": neighbour}
    find = Transform(partial(nearest, **settings), stream=term.stream, gives=(COLUMN,))
    actor = replace(actor, terms={**actor.terms, CLONING: term}, transforms=(*actor.transforms, find))
    read = Transform(partial(remembered, **settings), "dataset", term.stream, gives=(COLUMN,))
    return append_transform(replace(algorithm, losses={**algorithm.losses, "actor": actor}), read)
