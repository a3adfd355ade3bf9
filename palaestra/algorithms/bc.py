"""BC: behaviour cloning, supervised learning of the logged actions; also by likelihood, and of the best episodes alone.

    bc:             mean_A (mu(s) - a)^2, or -log pi(a|s) where actions are discrete
    gaussian-bc:    -log N(a; tanh(mean(s)), std^2)
    percentile-bc:  bc on the episodes of highest return, as many as hold `percentile` of all steps

Papers: Pomerleau, "ALVINN: An Autonomous Land Vehicle in a Neural Network" (1989); Chen et al., "Decision Transformer:
Reinforcement Learning via Sequence Modeling" (2021), for the last (their %BC).

Traps: where logged behaviour is of several kinds, the mean of two good actions may be a bad one. The normal
distribution is not squashed: its mean cannot reach an action at the bound, which is therefore held a hair within it.
Where it goes on in an environment it clones itself, which teaches nothing.

The best episodes are drawn alone (a priority of 1, and 0 for all others), rather than all rows with a weight of 0 for
most: a tenth of a batch would then count, its size would change from batch to batch, and, as weights are no shares,
every step would be a tenth as long. This way each update is exactly that of `bc` on the smaller dataset. Steps are
counted, not episodes: among short failures a tenth of the episodes may be most of the steps. An episode that the log
cuts off counts with what it had been paid by then.

Differs from the paper: episodes of equal return stay together, and the one in which the share is reached is in; in the
authors' code it is out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from palaestra.algorithm import (
    Algorithm,
    Buffer,
    Factory,
    Loss,
    Memory,
    Nets,
    Schedule,
    Term,
    Transform,
    above,
    between,
    expressed,
    gives,
    reprioritise,
)  # fmt: skip
from palaestra.batch import Columns, Obs, Spec
from palaestra.data.layouts import transition
from palaestra.data.priorities import InProportion
from palaestra.data.whole import episode_return
from palaestra.evaluation.returns import episode_return as return_of_episodes
from palaestra.networks.actors import bounded_normal_policy, deterministic_actor, stochastic_policy
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation
from palaestra.rollout.collect import step
from palaestra.rollout.exploration import uniform_until

EDGE = 1.0 - 1e-5  # the largest action of which a likelihood is taken


def imitated(nets: Nets, obs: Obs, memory: Memory, rng: torch.Generator | None) -> tuple[Tensor, Columns, Memory]:
    """The actor's action, or a draw from its distribution (the likeliest when `rng` is None), within [-1, 1]."""
    said = nets["actor"](obs)
    action = said if isinstance(said, Tensor) else said.sample(rng)
    return action.clamp(-1.0, 1.0) if action.is_floating_point() else action, {}, memory


def squared_distance(nets: Nets, b: Columns) -> Tensor:
    """`mean_A (mu(s) - a)^2`: rows [B]. Of discrete actions it is the cross-entropy."""
    if nets.spec.action.discrete:
        return negative_log_likelihood(nets, b)
    return (nets["actor"](b["obs"]) - b["action"]).square().mean(-1)


def negative_log_likelihood(nets: Nets, b: Columns) -> Tensor:
    """`-log pi(a|s)`, in nats: rows [B]."""
    action = b["action"].clamp(-EDGE, EDGE) if b["action"].is_floating_point() else b["action"]
    log_prob: Tensor = nets["actor"](b["obs"]).log_prob(action)
    return -log_prob


@gives("best")
def among_best(nets: Nets, columns: Columns, rng: torch.Generator, percentile: float) -> Columns:
    """`best` [R]: whether the episode is one of the best, which hold `percentile` of all steps or just more."""
    found = columns["episode_return"]
    steps = found[columns["valid"]]
    count = max(math.ceil(percentile * len(steps) - 1e-9), 1)  # 0.1 * 30 is a little more than 3
    return {**columns, "best": found >= steps.kthvalue(len(steps) - count + 1).values}


@expressed
def bc(
    lr: float = 3e-4,
    batch_size: int = 256,
    start: int = 1_000,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Behaviour cloning by the squared distance, or the cross-entropy for discrete actions (honours an `action_mask`).

    Args:
        lr: learning rate.
        batch_size: rows an update.
        start: environment steps of uniformly random actions, without updates, where there is no dataset to clone.
        hidden: units of each hidden layer.
        activation: between layers: "relu", "tanh", "elu", "gelu", "silu", "mish" or "softplus".
        encoder: from an observation to features; chosen by the space when None.
    """
    actor = partial(_by_space, hidden=hidden, activation=activation, encoder=encoder)
    return _cloning(actor, Term(squared_distance), lr, Schedule(batch_size=batch_size, start=start))


@expressed
def gaussian_bc(
    lr: float = 3e-4,
    batch_size: int = 256,
    start: int = 1_000,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Behaviour cloning by the likelihood of a normal distribution, of which it draws while it learns.

    Arguments as `bc`.
    """
    actor = bounded_normal_policy(hidden, activation, encoder)
    return _cloning(actor, Term(negative_log_likelihood), lr, Schedule(batch_size=batch_size, start=start))


@expressed
def percentile_bc(
    percentile: float = 0.1,
    lr: float = 3e-4,
    batch_size: int = 256,
    start: int = 1_000,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """`bc` on a dataset's episodes of highest return; in an environment, where no episode is over yet, on all.

    Arguments as `bc`, and

    Args:
        percentile: the share of all steps that these hold, in (0, 1]; 1 is `bc`.
    """
    above(0, percentile=percentile)
    between(0, 1, percentile=percentile)
    measured = (
        Transform(episode_return, "dataset", gives=("episode_return",)),
        Transform(partial(among_best, percentile=percentile), "dataset", needs=("episode_return",), gives=("best",)),
    )
    return reprioritise(
        replace(bc(lr, batch_size, start, hidden, activation, encoder), transforms=measured),
        "replay",
        InProportion("best"),
    )


def _by_space(spec: Spec, nets: Nets, **body: object) -> nn.Module:
    """An actor that says an action, or the distribution of a discrete one."""
    factory = stochastic_policy if spec.action.discrete else deterministic_actor
    return factory(**body)(spec, nets)  # type: ignore[arg-type]


def _cloning(actor: Factory, term: Term, lr: float, schedule: Schedule) -> Algorithm:
    above(0, lr=lr, batch_size=schedule.batch_size)
    return Algorithm(
        networks={"actor": actor},
        policy=imitated,
        exploration=partial(uniform_until, steps=schedule.start),
        collect=step,
        buffers={"replay": Buffer(transition)},
        losses={"actor": Loss({"imitation": term}, trains=("actor",), lr=lr)},
        schedule=schedule,
        evaluation=(return_of_episodes,),
    )
