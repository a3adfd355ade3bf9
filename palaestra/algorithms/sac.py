"""SAC: an actor-critic that maximises return plus entropy, its coefficient tuned to hold an entropy; also discrete.

    y = r + gamma (1 - terminated) (min_i Q_target_i(s', a') - alpha log pi(a'|s')),  a' ~ pi(.|s')
    critic: sum_i (Q_i(s, a) - y)^2        actor: alpha log pi(a|s) - min_i Q_i(s, a),  a = tanh(mean + std * noise)
    entropy coefficient: -log alpha * (log pi(a|s) + target_entropy)

Papers: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), alpha is `entropy_coefficient`;
Christodoulou, "Soft Actor-Critic for Discrete Action Settings" (2019).

Traps: densities are those of actions in [-1, 1], so that `target_entropy=-A` means the same whatever the environment's
bounds. The log-probability of the actor's own draw feeds the coefficient's loss: one draw, not two.

Differs from the paper: the coefficient's loss is linear in log alpha (as in the authors' and Stable-Baselines3's code),
which has the same fixed point. All parts share one learning rate.
"""

from __future__ import annotations

import math
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
    expressed,
)  # fmt: skip
from palaestra.batch import Columns, Obs
from palaestra.data.layouts import transition
from palaestra.evaluation.returns import episode_return
from palaestra.functional.distributions import categorical_sample, tanh_normal
from palaestra.functional.targets import bellman, squared
from palaestra.networks.actors import categorical_actor, gaussian_actor
from palaestra.networks.critics import (
    Regression,
    action_critic,
    copy_of,
    each_action_critic,
    fixed_number,
    follow,
    learnt_number,
    regressed,
    said_by,
)  # fmt: skip
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation
from palaestra.rollout.collect import step
from palaestra.rollout.exploration import uniform_until


def squashed_gaussian(
    nets: Nets, obs: Obs, memory: Memory, rng: torch.Generator | None
) -> tuple[Tensor, Columns, Memory]:
    """`tanh` of a draw; of the mean when `rng` is None."""
    mean, log_std = nets["actor"](obs)
    if rng is not None:
        mean = mean + log_std.exp() * torch.randn(mean.shape, generator=rng, device=mean.device)
    return mean.tanh(), {}, memory


def soft_td(nets: Nets, b: Columns, gamma: float, regression: Regression = squared) -> tuple[Tensor, Columns]:
    """Haarnoja et al. 2018, eq. 5 and 6: rows [B]. `regression(prediction [E, B], target [B])`."""
    with torch.no_grad():
        mean, log_std = nets["actor"](b["next_obs"])
        action, log_prob = tanh_normal(mean, log_std, b["action_noise"])
        value = nets["target_critic"](b["next_obs"], action).amin(0)
        soft_value = torch.addcmul(value, nets["entropy_coefficient"](), log_prob, value=-1)
        target = bellman(b["reward"], b["terminated"], soft_value, gamma, b.get("steps"))
    said = said_by(nets["critic"], b["obs"], b["action"])
    return regressed(nets["critic"], said, target, regression)


def soft_improvement(nets: Nets, b: Columns) -> tuple[Tensor, Columns]:
    """Haarnoja et al. 2018, eq. 7: rows [B]; gives the `log_prob` of the action that it drew."""
    mean, log_std = nets["actor"](b["obs"])
    action, log_prob = tanh_normal(mean, log_std, b["action_noise"])
    q = nets["critic"](b["obs"], action).amin(0)
    return nets["entropy_coefficient"]().detach() * log_prob - q, {"log_prob": log_prob}


def entropy_gap(nets: Nets, b: Columns, target_entropy: float | None) -> Tensor:
    """`-log alpha * (log pi + target_entropy)`: rows [B]. The target is `-A` when None."""
    wanted = -float(nets.spec.action.shape[0]) if target_entropy is None else target_entropy
    log_coefficient: Tensor = nets["entropy_coefficient"].log  # type: ignore[assignment]
    return -log_coefficient * (b["log_prob"] + wanted)


@expressed
def sac(
    lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    entropy_coefficient: float | None = None,
    target_entropy: float | None = None,
    batch_size: int = 256,
    start: int = 5_000,
    updates: float = 1.0,
    capacity: int = 1_000_000,
    critics: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Soft actor-critic for continuous actions.

    Args:
        lr: learning rate of actor, critics and entropy coefficient.
        gamma: discount factor, in [0, 1].
        tau: share of the way that target critics move an update, in (0, 1].
        entropy_coefficient: fixed; tuned, from 1, when None.
        target_entropy: what the tuned coefficient holds, in nats for actions in [-1, 1]; minus the number of action
            entries when None.
        batch_size: rows an update.
        start: environment steps of uniformly random actions, without updates, at the beginning.
        updates: gradient updates for each environment step after that.
        capacity: transitions that are kept.
        critics: size of the ensemble whose minimum is the target.
        hidden: units of each hidden layer of every network.
        activation: between layers: "relu", "tanh", "elu", "gelu", "silu", "mish" or "softplus".
        encoder: from an observation to features; chosen by the space when None.
    """
    between(0, 1, gamma=gamma)
    above(0, critics=critics)
    return _sac(
        actor=gaussian_actor(hidden, activation, encoder),
        critic=action_critic(critics, hidden, activation, encoder),
        policy=squashed_gaussian,
        td=Term(partial(soft_td, gamma=gamma), gives=("error", "q"), noise=("action",)),
        improvement=Term(soft_improvement, gives=("log_prob",), noise=("action",)),
        gap=Term(partial(entropy_gap, target_entropy=target_entropy), needs=("log_prob",)),
        lr=lr,
        tau=tau,
        entropy_coefficient=entropy_coefficient,
        capacity=capacity,
        schedule=Schedule(batch_size=batch_size, start=start, updates=updates),
    )


def categorical(nets: Nets, obs: Obs, memory: Memory, rng: torch.Generator | None) -> tuple[Tensor, Columns, Memory]:
    """A draw from the actor's distribution; its mode when `rng` is None."""
    return categorical_sample(nets["actor"](obs), rng), {}, memory


def expected(log_probs: Tensor, values: Tensor) -> Tensor:
    """`sum_a pi(a) values(a)`: [B, A] and [B, A] -> [B]."""
    return (log_probs.exp() * values).sum(-1)


def soft_expected_td(nets: Nets, b: Columns, gamma: float, regression: Regression = squared) -> tuple[Tensor, Columns]:
    """Christodoulou 2019, eq. 10 in the target: the expectation over actions is exact. Rows [B]."""
    with torch.no_grad():
        log_probs = nets["actor"](b["next_obs"])
        q = nets["target_critic"](b["next_obs"]).amin(0)
        value = expected(log_probs, q - nets["entropy_coefficient"]() * log_probs)
        target = bellman(b["reward"], b["terminated"], value, gamma, b.get("steps"))
    said = said_by(nets["critic"], b["obs"])  # [E, B, A], or [E, B, A, M]
    said = said.take_along_dim(b["action"].view(1, -1, *[1] * (said.dim() - 2)), 2).squeeze(2)
    return regressed(nets["critic"], said, target, regression)


def soft_expected_improvement(nets: Nets, b: Columns) -> tuple[Tensor, Columns]:
    """Christodoulou 2019, eq. 12: rows [B]; gives `log_prob`, its expectation under the policy (minus the entropy)."""
    log_probs = nets["actor"](b["obs"])
    with torch.no_grad():
        q = nets["critic"](b["obs"]).amin(0)
    rows = expected(log_probs, nets["entropy_coefficient"]().detach() * log_probs - q)
    return rows, {"log_prob": expected(log_probs, log_probs)}


def share_of_most_entropy(nets: Nets, b: Columns, share: float) -> Tensor:
    """`entropy_gap` with a target of `share` times the entropy of the uniform choice. Rows [B]."""
    return entropy_gap(nets, b, share * math.log(nets.spec.action.choices[0]))


@expressed
def sac_discrete(
    lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    entropy_coefficient: float | None = None,
    target_entropy_share: float = 0.5,
    batch_size: int = 256,
    start: int = 5_000,
    updates: float = 1.0,
    capacity: int = 1_000_000,
    critics: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Soft actor-critic for discrete actions; honours an `action_mask` key.

    Arguments as `sac`, and

    Args:
        target_entropy_share: the entropy that the coefficient holds, as a share of the uniform choice's.

    Differs from the paper: it proposes a share of 0.98, which keeps the policy nearly uniform where one action is best
    in most states; later implementations use 0.89 on Atari. The default here is 0.5.
    """
    between(0, 1, gamma=gamma)
    above(0, critics=critics)
    return _sac(
        actor=categorical_actor(hidden, activation, encoder),
        critic=each_action_critic(critics, hidden, activation, encoder),
        policy=categorical,
        td=Term(partial(soft_expected_td, gamma=gamma), gives=("error", "q")),
        improvement=Term(soft_expected_improvement, gives=("log_prob",)),
        gap=Term(partial(share_of_most_entropy, share=target_entropy_share), needs=("log_prob",)),
        lr=lr,
        tau=tau,
        entropy_coefficient=entropy_coefficient,
        capacity=capacity,
        schedule=Schedule(batch_size=batch_size, start=start, updates=updates),
    )


def _sac(actor, critic, policy, td, improvement, gap, lr, tau, entropy_coefficient, capacity, schedule) -> Algorithm:
    """What the two have in common: three losses in this order, and targets that follow the critics."""
    between(0, 1, tau=tau)
    above(0, lr=lr, batch_size=schedule.batch_size, updates=schedule.updates)
    losses = {
        "critic": Loss({"td": td}, trains=("critic",), lr=lr),
        "actor": Loss({"improvement": improvement}, trains=("actor",), lr=lr),
    }
    if entropy_coefficient is None:
        losses["entropy_coefficient"] = Loss({"gap": gap}, trains=("entropy_coefficient",), lr=lr)
    return Algorithm(
        networks={
            "actor": actor,
            "critic": critic,
            "entropy_coefficient": learnt_number(1.0)
            if entropy_coefficient is None
            else fixed_number(entropy_coefficient),
            "target_critic": copy_of("critic"),
        },
        policy=policy,
        exploration=partial(uniform_until, steps=schedule.start),
        collect=step,
        buffers={"replay": Buffer(transition, capacity=capacity)},
        losses=losses,
        after_update=(AfterUpdate(partial(follow, pairs={"target_critic": "critic"}, tau=tau), follows="critic"),),
        schedule=schedule,
        evaluation=(episode_return,),
    )
