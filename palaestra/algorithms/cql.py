"""CQL: critics pay for values that actions in general have above the logged one; also Cal-QL, and of discrete actions.

    critic: sum_i (Q_i(s, a) - y)^2 + conservatism * (log sum_k exp(Q_i(s, a_k)) / p(a_k) - Q_i(s, a))
    y = r + gamma (1 - terminated) min_i Q_target_i(s', a'),  a' ~ pi(.|s');  actor and entropy coefficient as `sac`
    a_k: n uniform actions, n of pi(.|s) and n of pi(.|s'), all valued at s;  p: their densities, without gradient
    Cal-QL:    Q_i(s, a_k) of the 2n actions of pi is max(Q_i(s, a_k), the return that was logged from s on)
    discrete:  huber(Q(s, a) - y) + conservatism * (log sum_b exp(Q(s, b)) - Q(s, a)),  y of double dqn
    tuned:     log conservatism rises while the overestimate, which is in brackets, is above a threshold

Papers: Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning" (2020), eq. 4 and appendix F;
`conservatism` is their alpha. Nakamoto et al., "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online
Fine-Tuning" (2023), eq. 5.1.

Traps: the logged action is not among the a_k. The actions of pi(.|s') are valued at s, not at s'. `conservatism`
compares an overestimate with a squared error, so what suits depends on the scale of rewards: 5 is for rewards around 1
in each of a thousand steps, 10 for sparse ones that were scaled up, and returns below 1 need less. Cal-QL's returns are
those of the dataset, with its rewards as they are: a method that scales or shifts rewards when they are drawn leaves
them behind. An episode that was cut off counts as if it had ended; where returns are too low, Cal-QL is CQL.

Differs from the papers: the squared error has no factor 1/2; pi(.|s') is sampled too; the sum over k is not divided by
3n, which shifts it by a constant (all three as in the authors' code). What Cal-QL collects itself has no return yet and
is not bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Loss,
    Nets,
    Term,
    Transform,
    above,
    add_loss,
    add_networks,
    add_term,
    append_transform,
    between,
    expressed,
    gives,
    rebind,
    replace_term,
)  # fmt: skip
from palaestra.algorithms.bc import EDGE
from palaestra.algorithms.dqn import double, dqn, of_action
from palaestra.algorithms.sac import sac, soft_improvement, soft_td
from palaestra.batch import Columns, each
from palaestra.data.whole import return_to_go
from palaestra.functional.distributions import LOG_TWO, Normal, only_allowed, tanh_normal
from palaestra.functional.targets import squared
from palaestra.networks.actors import instead
from palaestra.networks.critics import Regression, learnt_number
from palaestra.networks.encoders import Encoder, action_mask
from palaestra.networks.mlp import Activation

UNBOUNDED = (-math.inf, math.inf)
CANDIDATES = ("candidates", "log_density")


def hard_td(nets: Nets, b: Columns, gamma: float, regression: Regression = squared) -> tuple[Tensor, Columns]:
    """`soft_td` whose next state is worth no entropy: rows [B]."""
    return soft_td(instead(nets, entropy_coefficient=lambda: b["action"].new_zeros(())), b, gamma, regression)


@gives(*CANDIDATES)
def with_candidates(nets: Nets, b: Columns, rng: Generator, actions: int) -> Columns:
    """`candidates` [B, 3n, A] (`actions=n`: uniform, of pi(.|s), of pi(.|s')) and their `log_density` [B, 3n]."""
    logged = b["action"]
    rows, size = logged.shape
    uniform = 2.0 * torch.rand((rows, actions, size), generator=rng, device=logged.device) - 1.0
    drawn = [(uniform, uniform.new_full((rows, actions), -LOG_TWO * size))]
    for obs in (b["obs"], b["next_obs"]):
        mean, log_std = nets["actor"](obs)
        noise = torch.randn((rows, actions, size), generator=rng, device=logged.device)
        drawn.append(tanh_normal(mean.unsqueeze(1), log_std.unsqueeze(1), noise))
    candidates, log_density = (torch.cat(parts, 1) for parts in zip(*drawn, strict=True))
    return {**b, "candidates": candidates, "log_density": log_density}


def as_they_are(values: Tensor, b: Columns) -> Tensor:
    """The neutral `calibrate`."""
    return values


def above_return(values: Tensor, b: Columns) -> Tensor:
    """Nakamoto et al. 2023, eq. 5.1: values [E, B, 3n], those of the policy's actions not below `return_to_go`."""
    uniform, of_policy = values.tensor_split((values.shape[-1] // 3,), -1)
    return torch.cat((uniform, torch.maximum(of_policy, b["return_to_go"].unsqueeze(-1))), -1)


def overestimate(
    nets: Nets, b: Columns, clip: tuple[float, float] = UNBOUNDED, calibrate: Callable[..., Tensor] = as_they_are
) -> Tensor:
    """`log sum_k exp(Q_i(s, a_k)) / p(a_k) - Q_i(s, a)`, each within `clip`, summed over critics: rows [B]."""
    actions = torch.cat((b["candidates"], b["action"].unsqueeze(1)), 1)
    count = actions.shape[1]
    obs = each(lambda x: x.unsqueeze(1).expand(-1, count, *x.shape[1:]).flatten(0, 1), b["obs"])
    q = nets["critic"](obs, actions.flatten(0, 1)).unflatten(1, (-1, count))  # [E, B, 3n + 1]
    values = calibrate(q[..., :-1], b)
    return ((values - b["log_density"]).logsumexp(-1) - q[..., -1]).clamp(*clip).sum(0)


def log_prob_of(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """The log-density [B] of an action where `tanh_normal` draws it; one at a bound counts as next to it."""
    u = action.clamp(-EDGE, EDGE).atanh()
    return Normal(mean, log_std).log_prob(u) - 2.0 * (LOG_TWO - u - F.softplus(-2.0 * u)).sum(-1)


def cloning_first(nets: Nets, b: Columns, updates: int) -> tuple[Tensor, Columns]:
    """`soft_improvement`, with the logged action's log-density for the value in the first `updates`: rows [B]."""
    improvement, given = soft_improvement(nets, b)
    entropy = nets["entropy_coefficient"]().detach() * given["log_prob"]
    mean, log_std = nets["actor"](b["obs"])
    cloning = entropy - log_prob_of(mean, log_std, b["action"])
    return torch.where(nets.clock.updates <= updates, cloning, improvement), given


@expressed
def cql(
    conservatism: float = 5.0,
    actions: int = 10,
    clip: tuple[float, float] = UNBOUNDED,
    cloning_updates: int = 0,
    actor_lr: float = 3e-5,
    critic_lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    entropy_coefficient: float | None = None,
    target_entropy: float | None = None,
    batch_size: int = 256,
    start: int = 0,
    updates: float = 1.0,
    capacity: int = 1_000_000,
    critics: int = 2,
    hidden: Sequence[int] = (256, 256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Conservative Q-learning for continuous actions.

    Arguments as `sac`, and

    Args:
        conservatism: what a unit of overestimation costs in the critics' loss; with 0 it is `sac` without the entropy
            in its targets. Published settings are 5 to 10.
        actions: drawn uniformly at each state, and as many of the policy there, and at the next state.
        clip: smallest and largest overestimate of one critic that has a gradient.
        cloning_updates: first updates in which the actor imitates logged actions.
        actor_lr, critic_lr: learning rates of actor and entropy coefficient, and of the critics.
    """
    above(0, actor_lr=actor_lr, critic_lr=critic_lr, actions=actions)
    between(0, math.inf, conservatism=conservatism, cloning_updates=cloning_updates)
    base = sac(
        actor_lr, gamma, tau, entropy_coefficient, target_entropy, batch_size, start, updates, capacity, critics,
        hidden, activation, encoder,
    )  # fmt: skip
    td = replace(base.losses["critic"].terms["td"], value=partial(hard_td, gamma=gamma))
    cost = Term(partial(overestimate, clip=clip), coefficient=conservatism, needs=CANDIDATES)
    critic = replace(
        base.losses["critic"],
        terms={"td": td, "conservative": cost},
        transforms=(Transform(partial(with_candidates, actions=actions), gives=CANDIDATES),),
        lr=critic_lr,
    )
    actor = base.losses["actor"]
    if cloning_updates:
        improvement = replace(actor.terms["improvement"], value=partial(cloning_first, updates=cloning_updates))
        actor = replace(actor, terms={"improvement": improvement})
    return replace(base, losses={**base.losses, "critic": critic, "actor": actor})


def without_return(nets: Nets, steps: Columns, rng: Generator) -> Columns:
    """Steps whose return is not known, and so no bound."""
    return {**steps, "return_to_go": torch.full_like(steps["reward"], -math.inf)}


@expressed
def cal_ql(
    conservatism: float = 5.0,
    actions: int = 10,
    actor_lr: float = 3e-5,
    critic_lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    entropy_coefficient: float | None = None,
    target_entropy: float | None = None,
    batch_size: int = 256,
    start: int = 0,
    updates: float = 1.0,
    capacity: int = 1_000_000,
    critics: int = 2,
    hidden: Sequence[int] = (256, 256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """`cql` that pushes no value of its own actions below the return that was logged from the state on.

    Arguments as `cql`.
    """
    algorithm = cql(
        conservatism, actions, UNBOUNDED, 0, actor_lr, critic_lr, gamma, tau, entropy_coefficient, target_entropy,
        batch_size, start, updates, capacity, critics, hidden, activation, encoder,
    )  # fmt: skip
    algorithm = append_transform(algorithm, Transform(partial(return_to_go, gamma=gamma), "dataset"))
    algorithm = append_transform(algorithm, Transform(without_return, "collect"))
    return rebind(algorithm, "critic", "conservative", calibrate=above_return)


def overestimate_of_choices(nets: Nets, b: Columns) -> Tensor:
    """`log sum_b exp(Q(s, b)) - Q(s, a)` over the actions that are allowed: rows [B]."""
    q = nets["critic"](b["obs"])
    return only_allowed(q, action_mask(b["obs"])).logsumexp(-1) - of_action(q, b["action"])


@expressed
def cql_discrete(
    conservatism: float = 1.0,
    lr: float = 2.5e-4,
    gamma: float = 0.99,
    target_every: int = 500,
    tau: float = 1.0,
    exploration: float = 0.05,
    exploration_steps: int = 10_000,
    batch_size: int = 128,
    start: int = 0,
    collect: int = 1,
    updates: float = 1.0,
    capacity: int = 100_000,
    clip_norm: float | None = None,
    hidden: Sequence[int] = (120, 84),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Conservative double DQN for discrete actions; honours an `action_mask` key.

    Arguments as `dqn`, and

    Args:
        conservatism: what a unit of overestimation costs; with 0 it is double dqn.
    """
    between(0, math.inf, conservatism=conservatism)
    base = dqn(
        lr, gamma, target_every, tau, exploration, exploration_steps, batch_size, start, collect, updates, capacity,
        clip_norm, hidden, activation, encoder,
    )  # fmt: skip
    term = Term(overestimate_of_choices, coefficient=conservatism)
    return add_term(double(base), "critic", "conservative", term)


def priced(nets: Nets, b: Columns, overestimate: Callable[..., Tensor]) -> tuple[Tensor, Columns]:
    """What an overestimate costs now: rows [B]; gives the `overestimate`."""
    rows = overestimate(nets, b)
    return nets["conservatism"]().detach().clamp(max=1e6) * rows, {"overestimate": rows}


def above_threshold(nets: Nets, b: Columns, threshold: float) -> Tensor:
    """`-conservatism * (overestimate - threshold)` (Kumar et al. 2020, appendix F): rows [B]."""
    return nets["conservatism"]() * (threshold - b["overestimate"])


@expressed
def tuned_conservatism(algorithm: Algorithm, threshold: float = 20.0, lr: float = 3e-4) -> Algorithm:
    """A conservatism that is learnt (CQL's Lagrange variant), from the base's on. On `cql`, `cal-ql`, `cql-discrete`.

    Args:
        threshold: the overestimate that it allows, of all critics together: the paper has 5 or 10 for each of two.
        lr: learning rate of its logarithm.
    """
    above(0, lr=lr)
    term = algorithm.losses["critic"].terms.get("conservative") if "critic" in algorithm.losses else None
    if term is None or not term.coefficient:
        raise ValueError(f"tuned-conservatism does not fit {algorithm}: it tunes that of cql, if it is above 0")
    cost = replace(term, value=partial(priced, overestimate=term.value), coefficient=1.0, gives=("overestimate",))
    algorithm = add_networks(algorithm, conservatism=learnt_number(term.coefficient))  # type: ignore[arg-type]
    excess = Term(partial(above_threshold, threshold=threshold), needs=("overestimate",))
    return add_loss(
        replace_term(algorithm, "critic", "conservative", cost),
        "conservatism",
        Loss({"threshold": excess}, trains=("conservatism",), lr=lr),
    )
