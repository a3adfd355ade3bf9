"""V-GPS: of several actions that a policy draws, one is taken by its value; the policy stays as it was learnt.

    deployed:  a_1, ..., a_K ~ pi(.|s),  P(a_k) = softmax_k(sharpness * min_i Q_i(s, a_k))
    values, where the algorithm has none (those of `iql`):
               V: |expectile - 1{u < 0}| u^2,  u = min_i Q_target_i(s, a) - V(s)
               Q: sum_i (Q_i(s, a) - (r + gamma (1 - terminated) V(s')))^2

Paper: Nakamoto et al., "Steering Your Generalists: Improving Robotic Foundation Models via Value Guidance" (2024); K is
`candidates`, 1 / beta is `sharpness`.

On a cloning base the values are learnt beside the clone, from the same rows: it is bit for bit what it is without them.
On a base with a critic of its own, that is the value, whose policy has learnt from it already: what is left to gain is
what the policy spreads over. `palaestra.rollout.reranking` wraps a policy that was trained elsewhere.

Traps: `sharpness` has the inverse unit of the differences between candidates' values, which are those of one step: 1 is
next to nothing where all returns lie in [0, 1] (`shifted-reward` makes a cost of each step on the way to a success).
Many candidates and a large sharpness find where the critic is mistaken. A policy that draws nothing (td3's, or bc's of
continuous actions) cannot be re-ranked. Each candidate costs a forward pass of actor and critic. A base alone is
deployed most likely: `v-gps(candidates=1)` is the same policy as it draws. After `percentile-bc` the values, too, are
learnt from the best episodes alone.

Differs from the paper: its values are Cal-QL's, learnt with an actor of their own and 30 more actions a row, and
lowered where data are missing. Those of `iql` are asked of logged actions alone, and nothing lowers them elsewhere but
the minimum over the ensemble. They read one task's observations, without an instruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from palaestra.algorithm import (
    Algorithm,
    Factory,
    Nets,
    above,
    add_loss,
    add_networks,
    also_after,
    between,
    deploy_with,
    expressed,
    given_by,
)  # fmt: skip
from palaestra.algorithms.iql import iql, iql_discrete, said_of_logged
from palaestra.batch import Obs, Spec
from palaestra.networks.actors import deterministic_actor
from palaestra.networks.critics import value_of
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation
from palaestra.rollout.reranking import reranked

NETWORKS, LOSSES = ("critic", "value", "target_critic"), ("value", "critic")


def least_value(nets: Nets, obs: Obs, action: Tensor) -> Tensor:
    """`min_i Q_i(s, a)`: [B], of actions [B, A] or choices [B]."""
    critic = nets["critic"]
    return value_of(critic, said_of_logged(critic, {"obs": obs, "action": action})).amin(0)


def by_space(spec: Spec, nets: Nets, continuous: Factory, discrete: Factory) -> nn.Module:
    """The network of the factory for the space of actions."""
    return (discrete if spec.action.discrete else continuous)(spec, nets)


@expressed
def v_gps(algorithm: Algorithm, candidates: int = 10, sharpness: float | None = 1.0) -> Algorithm:
    """Deployed, the policy draws several actions and takes one by its value. On `gaussian-bc`, `iql`, `cql`, `sac`...

    An algorithm without a critic gets `in-sample-values`, as they are; name them before for other settings of them.

    Args:
        candidates: actions that are drawn, at least 1; with 1 the policy acts as it draws.
        sharpness: of the choice among them, in one over the unit of returns, at least 0; with 0 any may be taken, with
            None the best is.
    """
    above(0, candidates=candidates)
    between(0, math.inf, sharpness=sharpness)
    actor = algorithm.networks.get("actor")
    if actor is None or getattr(actor, "func", None) is deterministic_actor().func:  # type: ignore[attr-defined]
        raise ValueError(f"v-gps does not fit {algorithm}, whose policy draws nothing: choose gaussian-bc, iql or sac")
    valued = algorithm
    if "target_critic" not in algorithm.networks:
        _must_fit("v-gps", algorithm)
        valued = in_sample_values(algorithm)
    sharp = math.inf if sharpness is None else sharpness
    return deploy_with(valued, partial(reranked, value=least_value, candidates=candidates, sharpness=sharp))


@expressed
def in_sample_values(
    algorithm: Algorithm,
    gamma: float = 0.98,
    expectile: float = 0.7,
    lr: float = 3e-4,
    tau: float = 0.005,
    critics: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """`iql`'s values are learnt beside a clone, which does not read them. On `gaussian-bc`, `bc` and `percentile-bc`.

    Args:
        gamma, expectile, lr, tau, critics, hidden, activation, encoder: as for `iql`.
    """
    _must_fit("in-sample-values", algorithm)
    settings: dict[str, Any] = {"lr": lr, "gamma": gamma, "tau": tau, "expectile": expectile, "critics": critics}
    settings |= {"hidden": hidden, "activation": activation, "encoder": encoder}
    values, of_choices = iql(**settings), iql_discrete(**settings)
    networks = {name: values.networks[name] for name in NETWORKS}
    networks["critic"] = partial(by_space, continuous=networks["critic"], discrete=of_choices.networks["critic"])
    algorithm = add_networks(algorithm, **networks)
    for name in LOSSES:
        algorithm = add_loss(algorithm, name, values.losses[name])
    for after in values.after_update:
        algorithm = also_after(algorithm, after)
    return algorithm


def _must_fit(slug: str, algorithm: Algorithm) -> None:
    """ValueError where values cannot be learnt beside what there is."""
    replay = algorithm.buffers.get("replay")
    if taken := [name for name in NETWORKS if name in algorithm.networks]:
        raise ValueError(f"{slug} does not fit {algorithm}, which has a network {taken[0]!r} already")
    if replay is None or "next_obs" not in given_by(replay.layout):
        raise ValueError(f"{slug} does not fit {algorithm}: it has no replay of transitions, as gaussian-bc")
