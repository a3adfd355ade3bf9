"""TD3: a deterministic actor-critic with clipped double Q, a delayed actor and smoothed targets; and DDPG, without.

    a' = clip(mu_target(s') + clip(N(0, target_noise), +-target_clip), -1, 1)
    y  = r + gamma (1 - terminated) min_i Q_target_i(s', a')
    critic: sum_i (Q_i(s, a) - y)^2        actor, every `policy_delay` updates: -Q_1(s, mu(s))

Papers: Fujimoto, van Hoof and Meger, "Addressing Function Approximation Error in Actor-Critic Methods" (2018), sigma
is `exploration_noise`, sigma~ is `target_noise`, c is `target_clip`, d is `policy_delay`; Lillicrap et al.,
"Continuous control with deep reinforcement learning" (2016).

Traps: targets move only when the actor does. Noise and clips are in units of an action range of [-1, 1]. The actor
climbs Q_1 alone.

Differs from the paper: the defaults are those of the authors' later code (256-256 units, learning rate 3e-4, batches of
256) rather than the paper's tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from palaestra.algorithm import (
    AfterUpdate,
    Algorithm,
    Buffer,
    Loss,
    Memory,
    Nets,
    Schedule,
    Term,
    above,
    between,
    delayed,
    expressed,
)  # fmt: skip
from palaestra.batch import Columns, Obs
from palaestra.data.layouts import transition
from palaestra.evaluation.returns import episode_return
from palaestra.functional.targets import bellman, squared
from palaestra.networks.actors import deterministic_actor
from palaestra.networks.critics import Regression, action_critic, copy_of, follow, regressed, said_by
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation
from palaestra.rollout.collect import step
from palaestra.rollout.exploration import nested, noisy, uniform_until


def deterministic(nets: Nets, obs: Obs, memory: Memory, rng: torch.Generator | None) -> tuple[Tensor, Columns, Memory]:
    """The actor's action, whatever `rng`."""
    return nets["actor"](obs), {}, memory


def smoothed_td(
    nets: Nets,
    b: Columns,
    gamma: float,
    target_noise: float,
    target_clip: float,
    regression: Regression = squared,
) -> tuple[Tensor, Columns]:
    """Fujimoto et al. 2018, eq. 14 and algorithm 1: rows [B]. `regression(prediction [E, B], target [B])`."""
    with torch.no_grad():
        action = nets["target_actor"](b["next_obs"])
        if target_noise:
            action = action + (b["action_noise"] * target_noise).clamp(-target_clip, target_clip)
        value = nets["target_critic"](b["next_obs"], action.clamp(-1.0, 1.0)).amin(0)
        target = bellman(b["reward"], b["terminated"], value, gamma, b.get("steps"))
    said = said_by(nets["critic"], b["obs"], b["action"])
    return regressed(nets["critic"], said, target, regression)


def first_critic(nets: Nets, b: Columns) -> Tensor:
    """`-Q_1(s, mu(s))`: rows [B]."""
    return -nets["critic"](b["obs"], nets["actor"](b["obs"]), first=1)[0]


@expressed
def td3(
    lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    policy_delay: int = 2,
    exploration_noise: float = 0.1,
    target_noise: float = 0.2,
    target_clip: float = 0.5,
    batch_size: int = 256,
    start: int = 25_000,
    updates: float = 1.0,
    capacity: int = 1_000_000,
    critics: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Twin delayed deep deterministic policy gradient.

    Args:
        lr: learning rate of actor and critics.
        gamma: discount factor, in [0, 1].
        tau: share of the way that targets move when the actor steps, in (0, 1].
        policy_delay: updates of the critics for each one of the actor and the targets.
        exploration_noise: standard deviation of the noise on actions, in units of half the action range.
        target_noise, target_clip: standard deviation and bound of the noise on target actions, same unit.
        batch_size: rows an update.
        start: environment steps of uniformly random actions, without updates, at the beginning.
        updates: gradient updates for each environment step after that.
        capacity: transitions that are kept.
        critics: size of the ensemble whose minimum is the target.
        hidden: units of each hidden layer of every network.
        activation: between layers: "relu", "tanh", "elu", "gelu", "silu", "mish" or "softplus".
        encoder: from an observation to features; chosen by the space when None.
    """
    between(0, 1, gamma=gamma, tau=tau)
    above(0, lr=lr, policy_delay=policy_delay, batch_size=batch_size, updates=updates, critics=critics)
    return Algorithm(
        networks={
            "actor": deterministic_actor(hidden, activation, encoder),
            "critic": action_critic(critics, hidden, activation, encoder),
            "target_actor": copy_of("actor"),
            "target_critic": copy_of("critic"),
        },
        policy=deterministic,
        exploration=nested(partial(uniform_until, steps=start), partial(noisy, scale=exploration_noise)),
        collect=step,
        buffers={"replay": Buffer(transition, capacity=capacity)},
        losses={
            "critic": Loss(
                {
                    "td": Term(
                        partial(smoothed_td, gamma=gamma, target_noise=target_noise, target_clip=target_clip),
                        gives=("error", "q"),
                        noise=("action",) if target_noise else (),
                    )
                },
                trains=("critic",),
                lr=lr,
            ),
            "actor": Loss({"value": Term(first_critic)}, trains=("actor",), lr=lr, times=delayed(policy_delay)),
        },
        after_update=(
            AfterUpdate(
                partial(follow, pairs={"target_critic": "critic", "target_actor": "actor"}, tau=tau), follows="actor"
            ),
        ),
        schedule=Schedule(batch_size=batch_size, start=start, updates=updates),
        evaluation=(episode_return,),
    )


@expressed
def ddpg(
    lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    exploration_noise: float = 0.1,
    batch_size: int = 256,
    start: int = 25_000,
    updates: float = 1.0,
    capacity: int = 1_000_000,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Deep deterministic policy gradient: one critic, no delay, no smoothing.

    Arguments as `td3`.

    Differs from the paper: exploration noise is Gaussian, not an Ornstein-Uhlenbeck process.
    """
    return td3(
        lr, gamma, tau, 1, exploration_noise, 0.0, 0.0, batch_size, start, updates, capacity, 1, hidden, activation,
        encoder,
    )  # fmt: skip
