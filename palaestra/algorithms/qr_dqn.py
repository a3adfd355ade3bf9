"""QR-DQN: the distribution of returns, as its quantiles, in place of their mean.

    Q(s, a) = mean_i theta_i(s, a),  theta_i the quantile at tau_i = (i + 1/2) / N
    u_ij = r + gamma (1 - terminated) theta_target_j(s', argmax_a Q_target(s', a)) - theta_i(s, a)
    loss: sum_i mean_j |tau_i - 1{u_ij < 0}| huber(u_ij)

Paper: Dabney, Rowland, Bellemare and Munos, "Distributional Reinforcement Learning with Quantile Regression" (2018).
`double`, `dueling`, `n-step` and `prioritised` change it as they change dqn.

Traps: the loss is a sum over quantiles, so that its size (which `clip_norm` and Adam's eps see) grows with their
number, and its cost with the square of it. Within the Huber width the estimates are not quite quantiles: they are drawn
towards the mean. Priorities are the mean |target_i - theta_i|, the distance of two distributions, which is 0 where they
are the same; the mean |u_ij| is not.

Differs from the paper: sizes, learning rate, exploration and the number of quantiles (51, not 200) are for small
control problems, not Atari.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from palaestra.algorithm import Algorithm, Nets, Schedule, Term, above, between, expressed
from palaestra.algorithms.dqn import greedy, largest, of_action, q_learning
from palaestra.batch import Columns
from palaestra.functional.distributional import quantile_huber
from palaestra.functional.targets import bellman
from palaestra.networks.critics import action_distributions
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation
from palaestra.optimisers import adam


def mean_of_quantiles(quantiles: Tensor) -> Tensor:
    """The value: [..., N] -> [...]."""
    return quantiles.mean(-1)


def quantile_td(
    nets: Nets,
    b: Columns,
    gamma: float,
    next_value: Callable[..., Tensor] = largest,
    regression: Callable[[Tensor, Tensor], Tensor] = quantile_huber,
) -> tuple[Tensor, Columns]:
    """Dabney et al. 2018, algorithm 1: rows [B]. `regression(prediction [B, N], target [B, N])`."""
    with torch.no_grad():
        target = next_value(nets, b["next_obs"], mean_of_quantiles)
        target = bellman(b["reward"], b["terminated"], target, gamma, b.get("steps"))
    quantiles = of_action(nets["critic"](b["obs"]), b["action"])
    error = (target - quantiles).abs().mean(-1)
    return regression(quantiles, target), {"error": error, "q": mean_of_quantiles(quantiles)}


@expressed
def qr_dqn(
    lr: float = 2.5e-4,
    gamma: float = 0.99,
    quantiles: int = 51,
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
    """Quantile-regression deep Q-network for discrete actions; honours an `action_mask` key.

    Arguments as `dqn`, and

    Args:
        quantiles: how many describe a distribution.

    Adam's eps is 0.01 / batch_size, as in the paper.
    """
    between(0, 1, gamma=gamma)
    above(0, quantiles=quantiles)
    return q_learning(
        critic=action_distributions(quantiles, hidden, activation, encoder),
        policy=partial(greedy, expected=mean_of_quantiles),
        td=Term(partial(quantile_td, gamma=gamma), gives=("error", "q")),
        lr=lr,
        clip_norm=clip_norm,
        target_every=target_every,
        tau=tau,
        exploration=exploration,
        exploration_steps=exploration_steps,
        capacity=capacity,
        schedule=Schedule(batch_size=batch_size, start=start, collect=collect, updates=updates),
        optimiser=partial(adam, eps=0.01 / batch_size),
    )
