"""C51: the distribution of returns, as probabilities of fixed atoms, in place of their mean.

    Z(s, a) = sum_i p_i(s, a) at z_i,  z from v_min to v_max at equal distances,  p = softmax(network)
    target: r + gamma (1 - terminated) z_j with probability p_j of Z_target(s', argmax_a E Z_target(s', a)), projected
            on the atoms                                          loss: -sum_i target_i log p_i(s, a)

Paper: Bellemare, Dabney and Munos, "A Distributional Perspective on Reinforcement Learning" (2017), algorithm 1.
`double`, `dueling`, `n-step` and `prioritised` change it as they change dqn.

Traps: [v_min, v_max] must hold every discounted return; what lies beyond counts as the end, and values are wrong
without an error. The metric `clipped` is the probability of the target that lay beyond: it should be nearly 0. The
range should not be far too wide either: where actions differ by a small part of an atom, learning is slow. Priorities
are the divergence of the target from the prediction, not the loss, which is never 0.

Differs from the paper: sizes, learning rate and exploration are for small control problems, not Atari; 101 atoms in
[-100, 100], which hold what a reward of 1 a step is worth at gamma 0.99, not 51 in [-10, 10].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from palaestra.algorithm import Algorithm, Nets, Schedule, Term, above, between, expressed
from palaestra.algorithms.dqn import greedy, largest, of_action, q_learning
from palaestra.batch import Columns
from palaestra.functional.distributional import atoms as atoms_of
from palaestra.functional.distributional import categorical_projection
from palaestra.functional.targets import bellman
from palaestra.networks.critics import action_distributions
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation
from palaestra.optimisers import adam


def expectation(logits: Tensor, v_min: float, v_max: float) -> Tensor:
    """`sum_i z_i softmax(logits)_i`: [..., M] -> [...]."""
    return logits.softmax(-1) @ atoms_of(v_min, v_max, logits)


def categorical_td(
    nets: Nets,
    b: Columns,
    gamma: float,
    v_min: float,
    v_max: float,
    next_value: Callable[..., Tensor] = largest,
) -> tuple[Tensor, Columns]:
    """Bellemare et al. 2017, algorithm 1: rows [B]. Gives the divergence `error`, the mean `q`, and `clipped`."""
    expected = partial(expectation, v_min=v_min, v_max=v_max)
    logits = of_action(nets["critic"](b["obs"]), b["action"])
    with torch.no_grad():
        support = atoms_of(v_min, v_max, logits)
        probs = next_value(nets, b["next_obs"], expected).softmax(-1)
        values = bellman(b["reward"], b["terminated"], support.expand_as(probs), gamma, b.get("steps"))
        target = categorical_projection(values, probs, support)
        clipped = (probs * ((values < v_min) | (values > v_max))).sum(-1)
    rows = -(target * logits.log_softmax(-1)).sum(-1)
    error = (rows - torch.special.entr(target).sum(-1)).clamp(min=0.0)  # not below 0 by rounding: it is a priority
    return rows, {"error": error, "q": expected(logits), "clipped": clipped}


@expressed
def c51(
    lr: float = 2.5e-4,
    gamma: float = 0.99,
    atoms: int = 101,
    v_min: float = -100.0,
    v_max: float = 100.0,
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
    """Categorical deep Q-network for discrete actions; honours an `action_mask` key.

    Arguments as `dqn`, and

    Args:
        atoms: how many values a distribution has, at least 2.
        v_min: the smallest; no discounted return may be smaller.
        v_max: the largest; no discounted return may be larger.

    Adam's eps is 0.01 / batch_size, as in the paper.
    """
    between(0, 1, gamma=gamma)
    above(1, atoms=atoms)
    above(v_min, v_max=v_max)
    return q_learning(
        critic=action_distributions(atoms, hidden, activation, encoder),
        policy=partial(greedy, expected=partial(expectation, v_min=v_min, v_max=v_max)),
        td=Term(partial(categorical_td, gamma=gamma, v_min=v_min, v_max=v_max), gives=("error", "q", "clipped")),
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
