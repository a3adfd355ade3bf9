"""Recurrent PPO: `ppo` whose actor and critic read what a gated recurrent unit remembers of the episode so far.

    h_t = GRU(encoder(s_t), h_{t-1}), h = 0 before an episode begins;  pi(a|h_t), V(h_t)

Papers: Schulman et al., "Proximal Policy Optimization Algorithms" (2017); Cho et al., "Learning Phrase Representations
using RNN Encoder-Decoder" (2014), for the unit. Details as in Huang et al., "The 37 Implementation Details of Proximal
Policy Optimization" (2022).

Traps: a minibatch is of environments, each with all its steps in order, so that there must be as many environments as
minibatches. What was remembered when a rollout began is kept as it was then; within the rollout it is computed anew
with every update, and forgotten where an episode begins. The value behind a truncation is of the final observation
after what was remembered, not after a fresh start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Algorithm, Buffer, Memory, Nets, Term, above, expressed, gives
from palaestra.algorithms.ppo import credit, drawn, evaluated, ppo
from palaestra.batch import Columns, Obs, each, each_token
from palaestra.data.layouts import sequences
from palaestra.networks.encoders import Encoder
from palaestra.networks.memory import features, gated, on_features
from palaestra.networks.mlp import Activation


@gives("old_logp", "memory")
def remembering(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
    """`drawn` from what is remembered; gives the `memory` [N, H] before the observation."""
    rows = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
    before = nothing(nets, rows) if memory is None else memory["hidden"]
    after = nets["memory"](obs, before)
    action, columns, _ = drawn(nets, features(obs, after), None, rng)
    return action, {**columns, "memory": before}, {"hidden": after}


def nothing(nets: Nets, rows: int) -> Tensor:
    """Nothing remembered: zeros [rows, H]."""
    weight: Tensor = nets["memory"].remembered.weight  # type: ignore[union-attr, assignment]
    return torch.zeros(rows, weight.shape[-1], device=weight.device)


@gives("advantage", "lambda_return", "old_value")
def credit_with_memory(nets: Nets, steps: Columns, gamma: float, lam: float) -> Columns:
    """`ppo`'s, of what was remembered at each step and would be after its `next_obs`: [T, N] each."""
    shape = steps["reward"].shape

    def after(obs: Obs, hidden: Tensor) -> Tensor:
        return nets["memory"](each(lambda x: x.flatten(0, 1), obs), hidden.flatten(0, 1)).unflatten(0, shape)

    with torch.no_grad():
        hidden = after(steps["obs"], steps["memory"])
        behind = after(steps["next_obs"], hidden)
    remembered = {"obs": features(steps["obs"], hidden), "next_obs": features(steps["next_obs"], behind)}
    return credit(nets, {**steps, **remembered}, gamma, lam)


def evaluated_in_order(nets: Nets, b: Columns) -> Columns:
    """What all terms read, of every step of every row: `logp, entropy, value` [B, T]."""
    hidden = nets["memory"].unrolled(b["obs"], b["memory"][:, 0], b["first"])  # type: ignore[operator]
    flat = each(lambda x: x.flatten(0, 1), {"obs": features(b["obs"], hidden), "action": b["action"]})
    return {name: value.unflatten(0, b["reward"].shape) for name, value in evaluated(nets, flat).items()}


@expressed
def recurrent_ppo(
    memory: int = 64,
    lr: float = 3e-4,
    gamma: float = 0.99,
    lam: float = 0.95,
    clip: float = 0.2,
    value_coefficient: float = 0.5,
    entropy_coefficient: float = 0.0,
    clip_norm: float | None = 0.5,
    collect: int = 128,
    epochs: int = 10,
    minibatches: int = 1,
    anneal_steps: int | None = None,
    target_kl: float | None = None,
    hidden: Sequence[int] = (64,),
    activation: Activation = "tanh",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Proximal policy optimisation with a memory, for discrete and continuous actions; honours an `action_mask` key.

    Arguments as `ppo`, and

    Args:
        memory: numbers that are remembered.
        minibatches: updates of a pass, each of as many whole environments: at most as many as there are.
        hidden: units of each hidden layer between what is remembered and what is decided.
        encoder: from an observation to what the memory takes in; chosen by the space when None.
    """
    above(0, memory=memory)
    plain = ppo(
        lr, gamma, lam, clip, value_coefficient, entropy_coefficient, clip_norm, collect, epochs, minibatches,
        anneal_steps, target_kl, hidden, activation,
    )  # fmt: skip
    loss = plain.losses["actor_critic"]
    terms = {name: in_order(term) for name, term in loss.terms.items()}
    outputs = replace(loss, terms=terms, trains=("memory", *loss.trains), outputs=evaluated_in_order)
    return replace(
        plain,
        networks={
            "memory": gated(memory, encoder),
            **{name: on_features(factory) for name, factory in plain.networks.items()},
        },
        policy=remembering,
        buffers={"rollout": Buffer(sequences)},
        advantage=partial(credit_with_memory, gamma=gamma, lam=lam),
        losses={"actor_critic": outputs},
    )


def in_order(term: Term) -> Term:
    """The same equation, each of whose rows is a step that was taken."""
    return replace(term, share=each_token("valid"))
