"""IQL: an actor-critic for logged data that never asks what an action is worth that was not logged; also discrete.

    value:  |expectile - 1{u < 0}| u^2,  u = min_i Q_target_i(s, a) - V(s)
    actor:  -min(exp(sharpness (min_i Q_target_i(s, a) - V(s))), weight_limit) log pi(a|s)
    critic: sum_i (Q_i(s, a) - (r + gamma (1 - terminated) V(s')))^2

Paper: Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning" (2022); tau is `expectile`,
beta is `sharpness`. The policy's loss is that of Peng et al., "Advantage-Weighted Regression" (2019).

Each loss steps before the next is computed: the actor and the critic read the new V. V and the actor read the target
critics, of which they take the smaller, and a batch asks them once.

Traps: `sharpness` and the advantage have inverse units. Where `weight_clipped` says that most weights are at their
limit, rewards are too large: the paper scales locomotion's with `normalised-return`, and takes 1 from AntMaze's with
`shifted-reward`. The normal distribution is not squashed: the likelihood of an action at the bound stays finite.

Differs from the paper: no dropout in the actor, which it has on Kitchen and Adroit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from palaestra.algorithm import (
    AfterUpdate,
    Algorithm,
    Buffer,
    Factory,
    Loss,
    Nets,
    Schedule,
    Term,
    above,
    between,
    expressed,
)  # fmt: skip
from palaestra.algorithms.bc import imitated, negative_log_likelihood
from palaestra.batch import Columns
from palaestra.data.layouts import transition
from palaestra.evaluation.returns import episode_return
from palaestra.functional.regressions import expectile as expectile_of
from palaestra.functional.schedules import cosine
from palaestra.functional.targets import bellman, squared
from palaestra.networks.actors import bounded_normal_policy, stochastic_policy
from palaestra.networks.critics import (
    Regression,
    action_critic,
    copy_of,
    each_action_critic,
    follow,
    regressed,
    said_by,
    state_value,
    value_of,
    with_columns,
)  # fmt: skip
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation
from palaestra.rollout.collect import step
from palaestra.rollout.exploration import uniform_until

ValueLoss = Callable[[Tensor], Tensor | tuple[Tensor, Columns]]  # of errors `Q - V` [B]


def said_of_logged(critic: nn.Module, b: Columns) -> Tensor:
    """What a critic of (s, a), or of each action, says of the logged one: [E, B], or [E, B, M]."""
    if b["action"].is_floating_point():
        return said_by(critic, b["obs"], b["action"])
    said = said_by(critic, b["obs"])
    return said.take_along_dim(b["action"].view(1, -1, *[1] * (said.dim() - 2)), 2).squeeze(2)


def in_sample_value(nets: Nets, b: Columns, value_loss: ValueLoss) -> tuple[Tensor, Columns]:
    """Kostrikov et al. 2022, eq. 5: rows [B]; gives the logged action's `target_q`, and V as it was."""
    critic = nets["target_critic"]
    with torch.no_grad():
        q = value_of(critic, said_of_logged(critic, b)).amin(0)
    value = nets["value"](b["obs"])
    rows, columns = with_columns(value_loss(q - value))
    return rows, {"target_q": q, "value": value, **columns}


def weighted_imitation(nets: Nets, b: Columns, sharpness: float, limit: float) -> tuple[Tensor, Columns]:
    """Kostrikov et al. 2022, eq. 7: rows [B]; gives the `advantage`, and whether its weight is above the limit."""
    with torch.no_grad():
        advantage = b["target_q"] - nets["value"](b["obs"])
        weight = (sharpness * advantage).exp()
    columns = {"advantage": advantage, "weight_clipped": weight > limit}
    return weight.clamp(max=limit) * negative_log_likelihood(nets, b), columns


def in_sample_td(nets: Nets, b: Columns, gamma: float, regression: Regression = squared) -> tuple[Tensor, Columns]:
    """Kostrikov et al. 2022, eq. 6: rows [B]. `regression(prediction [E, B], target [B])`."""
    with torch.no_grad():
        target = bellman(b["reward"], b["terminated"], nets["value"](b["next_obs"]), gamma, b.get("steps"))
    return regressed(nets["critic"], said_of_logged(nets["critic"], b), target, regression)


@expressed
def iql(
    lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    expectile: float = 0.7,
    sharpness: float = 3.0,
    weight_limit: float = 100.0,
    decay_over: int | None = 1_000_000,
    batch_size: int = 256,
    start: int = 0,
    updates: float = 1.0,
    capacity: int = 1_000_000,
    critics: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Implicit Q-learning for continuous actions. The defaults are those of the paper's locomotion tasks.

    Args:
        lr: learning rate of all networks; the actor's at the beginning.
        gamma: discount factor, in [0, 1].
        tau: share of the way that target critics move an update, in (0, 1].
        expectile: of the values of logged actions that V is, in (0, 1): 0.5 is their mean, towards 1 their largest.
        sharpness: of the actor's weights, in one over the unit of returns, at least 0; 0 clones all actions alike.
        weight_limit: largest weight.
        decay_over: updates over which the actor's learning rate falls to 0, along a cosine; it does not when None.
        batch_size: rows an update.
        start: environment steps of uniformly random actions, without updates, where it learns in an environment.
        updates: gradient updates for each environment step after that.
        capacity: transitions that are kept, of those.
        critics: size of the ensemble whose minimum V and the actor read.
        hidden: units of each hidden layer of every network.
        activation: between layers: "relu", "tanh", "elu", "gelu", "silu", "mish" or "softplus".
        encoder: from an observation to features; chosen by the space when None.
    """
    body = (hidden, activation, encoder)
    return _iql(
        bounded_normal_policy(*body), action_critic(critics, *body), state_value(*body), lr, gamma, tau, expectile,
        sharpness, weight_limit, decay_over, capacity, Schedule(batch_size=batch_size, start=start, updates=updates),
    )  # fmt: skip


@expressed
def iql_discrete(
    lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    expectile: float = 0.7,
    sharpness: float = 3.0,
    weight_limit: float = 100.0,
    decay_over: int | None = 1_000_000,
    batch_size: int = 256,
    start: int = 0,
    updates: float = 1.0,
    capacity: int = 1_000_000,
    critics: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Implicit Q-learning for discrete actions, the same losses; its policy honours an `action_mask` key.

    Arguments as `iql`.
    """
    body = (hidden, activation, encoder)
    return _iql(
        stochastic_policy(*body), each_action_critic(critics, *body), state_value(*body), lr, gamma, tau, expectile,
        sharpness, weight_limit, decay_over, capacity, Schedule(batch_size=batch_size, start=start, updates=updates),
    )  # fmt: skip


def _iql(
    actor: Factory,
    critic: Factory,
    value: Factory,
    lr: float,
    gamma: float,
    tau: float,
    expectile: float,
    sharpness: float,
    weight_limit: float,
    decay_over: int | None,
    capacity: int,
    schedule: Schedule,
) -> Algorithm:
    """What the two have in common: three losses in this order, and targets that follow the critics."""
    between(0, 1, gamma=gamma, tau=tau, expectile=expectile)
    between(0, torch.inf, sharpness=sharpness)
    above(
        0, lr=lr, weight_limit=weight_limit, decay_over=decay_over, batch_size=schedule.batch_size,
        updates=schedule.updates,
    )  # fmt: skip
    fit = partial(in_sample_value, value_loss=partial(expectile_of, share=expectile))
    imitation = partial(weighted_imitation, sharpness=sharpness, limit=weight_limit)
    return Algorithm(
        networks={"actor": actor, "critic": critic, "value": value, "target_critic": copy_of("critic")},
        policy=imitated,
        exploration=partial(uniform_until, steps=schedule.start),
        collect=step,
        buffers={"replay": Buffer(transition, capacity=capacity)},
        losses={
            "value": Loss({"in_sample": Term(fit, gives=("target_q", "value"))}, trains=("value",), lr=lr),
            "actor": Loss(
                {"imitation": Term(imitation, needs=("target_q",), gives=("advantage", "weight_clipped"))},
                trains=("actor",),
                lr=lr if decay_over is None else cosine(lr, 0.0, decay_over),
            ),
            "critic": Loss(
                {"td": Term(partial(in_sample_td, gamma=gamma), gives=("error", "q"))}, trains=("critic",), lr=lr
            ),
        },
        after_update=(AfterUpdate(partial(follow, pairs={"target_critic": "critic"}, tau=tau), follows="critic"),),
        schedule=schedule,
        evaluation=(episode_return,),
    )
