"""DQN: Q-learning with a network, a target network and replay; its double and dueling variants.

    y = r + gamma (1 - terminated) max_a Q_target(s', a)          loss: huber(Q(s, a) - y)
    double:  y uses Q_target(s', argmax_a Q(s', a))
    dueling: Q(s, a) = V(s) + A(s, a) - mean_a A(s, a)

Papers: Mnih et al., "Human-level control through deep reinforcement learning" (2015); van Hasselt, Guez and Silver,
"Deep Reinforcement Learning with Double Q-learning" (2016); Wang et al., "Dueling Network Architectures" (2016).
Multi-step rows and prioritised replay are `n-step` and `prioritised`, which change any replay algorithm.

Traps: the maximum is over the actions that are allowed in the next state (`action_mask`). The target moves every
`target_every` updates, not environment steps. Priorities are the unweighted error.

Differs from the paper: sizes, learning rate and exploration are for small control problems, not Atari; Adam, not
RMSProp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from palaestra.algorithm import (
    AfterUpdate,
    Algorithm,
    Buffer,
    Factory,
    Loss,
    Memory,
    Nets,
    OptimiserFactory,
    Policy,
    Schedule,
    Term,
    above,
    between,
    delayed,
    expressed,
    rebind,
    replace_network,
)  # fmt: skip
from palaestra.batch import Columns, Obs
from palaestra.data.layouts import transition
from palaestra.evaluation.returns import episode_return
from palaestra.functional.distributions import only_allowed
from palaestra.functional.schedules import linear
from palaestra.functional.targets import bellman, huber
from palaestra.networks.critics import Regression, action_values, copy_of, dueling_values, follow, regressed, said_by
from palaestra.networks.encoders import Encoder, action_mask
from palaestra.networks.mlp import Activation
from palaestra.optimisers import adam
from palaestra.rollout.collect import step
from palaestra.rollout.exploration import mostly

# A critic says one number of each action, [B, A], or several that describe a distribution, [B, A, M]: `expected` makes
# values [B, A] of them (c51 and qr-dqn have their own), and decides between actions.
Expected = Callable[[Tensor], Tensor]


def itself(values: Tensor) -> Tensor:
    """The neutral `expected`: what a Q-network says is the value."""
    return values


def best(values: Tensor, obs: Obs) -> Tensor:
    """The allowed action of the highest value: [B] of [B, A]."""
    return only_allowed(values, action_mask(obs)).argmax(-1)


def of_action(said: Tensor, action: Tensor) -> Tensor:
    """What was said of one action: [B] of [B, A], or [B, M] of [B, A, M]."""
    return said.take_along_dim(action.view(-1, *[1] * (said.dim() - 1)), 1).squeeze(1)


def greedy(
    nets: Nets, obs: Obs, memory: Memory, rng: torch.Generator | None, expected: Expected = itself
) -> tuple[Tensor, Columns, Memory]:
    """The allowed action of the highest value."""
    return best(expected(nets["critic"](obs)), obs), {}, memory


def largest(nets: Nets, obs: Obs, expected: Expected = itself) -> Tensor:
    """`max_a Q_target(s, a)`: [B], or the distribution that has this mean, [B, M]."""
    said = nets["target_critic"](obs)
    return of_action(said, best(expected(said), obs))


def value_of_greedy(nets: Nets, obs: Obs, expected: Expected = itself) -> Tensor:
    """`Q_target(s, argmax_a Q(s, a))` (van Hasselt et al. 2016, eq. 4): [B], or the distribution [B, M] of it."""
    return of_action(nets["target_critic"](obs), best(expected(nets["critic"](obs)), obs))


def optimal_td(
    nets: Nets,
    b: Columns,
    gamma: float,
    next_value: Callable[[Nets, Obs], Tensor] = largest,
    regression: Regression = huber,
) -> tuple[Tensor, Columns]:
    """Mnih et al. 2015, algorithm 1: rows [B]. `regression(prediction [B], target [B])`."""
    with torch.no_grad():
        target = bellman(b["reward"], b["terminated"], next_value(nets, b["next_obs"]), gamma, b.get("steps"))
    said = of_action(said_by(nets["critic"], b["obs"]), b["action"])
    return regressed(nets["critic"], said, target, regression)


@expressed
def dqn(
    lr: float = 2.5e-4,
    gamma: float = 0.99,
    target_every: int = 500,
    tau: float = 1.0,
    exploration: float = 0.05,
    exploration_steps: int = 10_000,
    batch_size: int = 128,
    start: int = 1_000,
    collect: int = 1,
    updates: float = 1.0,
    capacity: int = 100_000,
    clip_norm: float | None = None,
    hidden: Sequence[int] = (120, 84),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Deep Q-network for discrete actions; honours an `action_mask` key.

    Args:
        lr: learning rate.
        gamma: discount factor, in [0, 1].
        target_every: updates between two moves of the target.
        tau: share of the way to the network that it then goes, in (0, 1]; with 1 it is copied.
        exploration: share of random actions in the end, in [0, 1].
        exploration_steps: environment steps over which that share falls linearly from 1.
        batch_size: rows an update.
        start: environment steps without updates at the beginning.
        collect: environment steps (in each environment) between updates.
        updates: gradient updates for each environment step.
        capacity: transitions that are kept.
        clip_norm: largest norm of a gradient; not clipped when None.
        hidden: units of each hidden layer.
        activation: between layers: "relu", "tanh", "elu", "gelu", "silu", "mish" or "softplus".
        encoder: from an observation to features; chosen by the space when None.
    """
    between(0, 1, gamma=gamma)
    return q_learning(
        critic=action_values(hidden, activation, encoder),
        policy=greedy,
        td=Term(partial(optimal_td, gamma=gamma), gives=("error", "q")),
        lr=lr,
        clip_norm=clip_norm,
        target_every=target_every,
        tau=tau,
        exploration=exploration,
        exploration_steps=exploration_steps,
        capacity=capacity,
        schedule=Schedule(batch_size=batch_size, start=start, collect=collect, updates=updates),
    )


def q_learning(
    critic: Factory,
    policy: Policy,
    td: Term,
    lr: float,
    clip_norm: float | None,
    target_every: int,
    tau: float,
    exploration: float,
    exploration_steps: int,
    capacity: int,
    schedule: Schedule,
    optimiser: OptimiserFactory = adam,
) -> Algorithm:
    """What dqn, c51 and qr-dqn have in common: one loss, a target that follows, epsilon-greedy and replay."""
    between(0, 1, exploration=exploration, tau=tau)
    above(
        0,
        tau=tau,
        lr=lr,
        clip_norm=clip_norm,
        target_every=target_every,
        batch_size=schedule.batch_size,
        collect=schedule.collect,
        updates=schedule.updates,
    )
    return Algorithm(
        networks={"critic": critic, "target_critic": copy_of("critic")},
        policy=policy,
        exploration=partial(mostly, random=linear(1.0, exploration, exploration_steps)),
        collect=step,
        buffers={"replay": Buffer(transition, capacity=capacity)},
        losses={"critic": Loss({"td": td}, ("critic",), optimiser=optimiser, lr=lr, clip_norm=clip_norm)},
        after_update=(
            AfterUpdate(
                partial(follow, pairs={"target_critic": "critic"}, tau=tau), "critic", times=delayed(target_every)
            ),
        ),
        schedule=schedule,
        evaluation=(episode_return,),
    )


@expressed
def double(algorithm: Algorithm) -> Algorithm:
    """Double Q-learning: the network chooses the next action, its target values it. On `dqn`, `c51`, `qr-dqn`."""
    return rebind(algorithm, "critic", "td", next_value=value_of_greedy)


@expressed
def dueling(algorithm: Algorithm) -> Algorithm:
    """A value and an advantage stream in place of the plain head; hidden layers and encoder stay.

    On `dqn`, `c51`, `qr-dqn`.
    """
    plain = algorithm.networks.get("critic")
    if not isinstance(plain, partial) or plain.func is not action_values().func:  # type: ignore[attr-defined]
        raise ValueError(f"dueling does not fit {algorithm}: it changes the plain network of dqn, c51 or qr-dqn")
    return replace_network(algorithm, "critic", dueling_values(**plain.keywords))
