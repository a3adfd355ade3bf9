"""COCOA: networks read an observation as an anchor, nearer to the data, times the difference from it.

    anchor: x <- f(x, mu(x)), `horizon` times from x = s;  f the forward model: the mean of an ensemble's means
    reads:  h_t = sum_k F_tk(s - anchor, a) G_tk(anchor, a), in place of (s, a);  actor and V without a
    mu:     fitted to pairs (x_i, a_i) of steps that lead away from the data, walked backwards:
            x_0 a logged next state, d the logged action of another step, i = 1 ... `rollout_length`:
            a_i = clip(direction_scale d + direction_noise N(0, 1)),  x_i ~ g(x_{i-1}, a_i), the reverse model

Paper: Song, Lee and Kim, "Compositional Conservatism: A Transductive Approach in Offline Reinforcement Learning"
(2024), whose d of "sample" mode this is. f, g and mu are fitted to a dataset before the first update, once for all
seeds, and change no more. A run that is resumed fits them again, to the same numbers. Until then, and in an
environment without a dataset, every anchor is the observation itself.

Traps: the embeddings are most of a network, some 2 * features * embedding times their last width: with the defaults an
actor has 68 times the parameters of iql's and an update takes 35 times as long, and a gain may be that of a larger
network. The authors' own IQL has `embedding=4, embedding_hidden=(64, 64)`. An anchor is one environment step from s for
each of `horizon`: a state far from all data is not brought home by one. Anchors are computed whenever a network is
called, also when it acts: an eighth of an update at the defaults, a quarter of it at 64 units. f, g and mu see what
networks read: where observations are standardised, that comes first in an expression. If learning goes on in an
environment, the measured deviations move on, and the models do not.

Differs from the paper: all members of an ensemble count, while there the 5 of 7 do that are best on held-out steps;
they see the same batches. A model looks and leads 10 standard deviations away at most, and bounds of its own standard
deviation are fixed, with no cost. A critic's members share embeddings, and its h has a number more for each of the
action's entries. Backward walks start from 50,000 next states at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Factory,
    Nets,
    Transform,
    above,
    add_networks,
    append_transform,
    between,
    expressed,
    replace_network,
)  # fmt: skip
from palaestra.algorithms.xql import layer_normalised
from palaestra.batch import Columns
from palaestra.networks.actors import deterministic_actor
from palaestra.networks.dynamics import GaussianDynamics, fitted_dynamics, gaussian_dynamics
from palaestra.networks.fitting import by_episode, cloning_error, drawing_from, fitted, untrained
from palaestra.networks.transduction import transductive

READERS = ("actor", "critic", "value")  # the networks that read observations, in the bases that there are
HELD_OUT = 0.1  # of the episodes: networks are kept as they do best there
MOST_WALKS = 50_000


def anchor_of(nets: Nets, obs: Tensor, horizon: int) -> Tensor:
    """Where the anchor seeker leads from `obs` [..., D] in so many steps of the forward model: [..., D]."""
    for _ in range(horizon):
        obs = nets["forward_model"](obs, nets["anchor_seeker"](obs))
    return obs


def turned(steps: Columns) -> Columns:
    """The same steps, backwards."""
    return {**steps, "obs": steps["reached"], "reached": steps["obs"]}


def away(reverse: GaussianDynamics, steps: Columns, rng: Generator, length: int, scale: float, noise: float) -> Columns:
    """Walks backwards from where `steps` [N] ended, each in the direction of another one's action.

    `obs` [length N, D], and the `action` there that leads back towards where the walk began.
    """
    rows = len(steps["reached"])
    starts = torch.randperm(rows, generator=rng, device=rng.device)[:MOST_WALKS]
    others = torch.randint(rows, starts.shape, generator=rng, device=rng.device)
    at, direction, found = steps["reached"][starts], scale * steps["action"][others], []
    for _ in range(length):
        drawn = torch.randn(direction.shape, generator=rng, device=rng.device)
        action = (direction + noise * drawn).clamp(-1.0, 1.0)
        at = reverse.sample(at, action, rng)
        found.append((at, action))
    obs, action = (torch.cat(part) for part in zip(*found, strict=True))
    return {"obs": obs, "action": action}


def fit(
    nets: Nets,
    columns: Columns,
    rng: Generator,
    model: Factory,
    seeker: Factory,
    length: int,
    scale: float,
    noise: float,
    updates: int,
) -> Columns:
    """Fit both models and the anchor seeker to the dataset, and write what is read later into `nets`."""
    obs = columns["obs"]
    if "obs_statistics" in nets:
        if not nets["obs_statistics"].of_key[0].count:  # type: ignore[union-attr, index]
            raise ValueError("cocoa reads observations as they are standardised: put normalised-obs before it")
        obs = nets["obs_statistics"](obs)
    train, held_out = (
        {"obs": obs[at], "action": columns["action"][at], "reached": obs[at + 1]}
        for at in by_episode(columns, HELD_OUT, rng)
    )
    with drawing_from(rng):
        forward, reverse, mu = (factory(nets.spec, nets).to(obs.device) for factory in (model, model, seeker))
    assert isinstance(forward, GaussianDynamics)
    assert isinstance(reverse, GaussianDynamics)
    fitted_dynamics(forward, train, held_out, rng, updates=updates)
    fitted_dynamics(reverse, turned(train), turned(held_out), rng, updates=updates)
    walk = partial(away, reverse, rng=rng, length=length, scale=scale, noise=noise)
    fitted(mu, cloning_error, walk(train), walk(held_out), rng, updates=updates)
    nets["forward_model"].load_state_dict(forward.state_dict())
    nets["anchor_seeker"].load_state_dict(mu.state_dict())
    return columns


@expressed
def cocoa(
    algorithm: Algorithm,
    horizon: int = 1,
    rollout_length: int = 5,
    direction_scale: float = 0.8,
    direction_noise: float = 0.1,
    features: int = 256,
    embedding: int = 32,
    embedding_hidden: Sequence[int] = (256, 256, 256),
    members: int = 7,
    model_hidden: Sequence[int] = (200, 200, 200, 200),
    seeker_hidden: Sequence[int] = (100, 100),
    fit_updates: int = 20_000,
) -> Algorithm:
    """Actor, critics and V see an anchor, and how the observation differs from it. On `iql`, `cql`, `td3-bc`, ...

    The defaults are those of the authors' CQL.

    Args:
        horizon: steps from an observation to its anchor; with 0 it is its own.
        rollout_length: steps of a walk backwards from the data, on which the anchor seeker is fitted.
        direction_scale: of the logged action that a walk follows.
        direction_noise: standard deviation of the noise on each of its actions, in units of half the action range.
        features: products of embeddings that stand for an observation.
        embedding: numbers whose product each of them is.
        embedding_hidden: units of each hidden layer of the two embeddings of every network.
        members: of the forward and of the reverse model's ensemble.
        model_hidden: units of each hidden layer of a member.
        seeker_hidden: units of each hidden layer of the anchor seeker.
        fit_updates: most updates in which each of the three is fitted, of 256 rows; fewer where it gets no better.
    """
    between(0, torch.inf, horizon=horizon, direction_scale=direction_scale, direction_noise=direction_noise)
    above(
        0, rollout_length=rollout_length, features=features, embedding=embedding, members=members,
        fit_updates=fit_updates,
    )  # fmt: skip
    readers = [name for name in READERS if name in algorithm.networks]
    if not readers or "replay" not in algorithm.buffers:
        raise ValueError(f"cocoa does not fit {algorithm}, which has no networks to learn from a dataset: try iql")
    for name in readers:
        wrapped = transductive(
            algorithm.networks[name], partial(anchor_of, horizon=horizon), features, embedding, embedding_hidden
        )
        algorithm = replace_network(algorithm, name, wrapped)
    model, seeker = gaussian_dynamics(members, model_hidden), layer_normalised(deterministic_actor(seeker_hidden))
    algorithm = add_networks(algorithm, forward_model=untrained(model), anchor_seeker=untrained(seeker))
    fitting = partial(
        fit, model=model, seeker=seeker, length=rollout_length, scale=direction_scale, noise=direction_noise,
        updates=fit_updates,
    )  # fmt: skip
    return append_transform(algorithm, Transform(fitting, "dataset"))
