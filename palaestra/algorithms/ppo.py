"""PPO: an actor-critic that learns from each rollout a few times over, and no further than a ratio of probabilities.

    delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)        A_t = delta_t + gamma lam A_{t+1}, in an episode
    rho = pi(a|s) / pi_old(a|s)         surrogate: -min(rho A, clip(rho, 1 - clip, 1 + clip) A)
    value: (V(s) - (A_old + V_old))^2 / 2        entropy: -H(pi(.|s))

Papers: Schulman et al., "Proximal Policy Optimization Algorithms" (2017), their epsilon is `clip`, c_1 is
`value_coefficient`, c_2 is `entropy_coefficient`; Schulman et al., "High-Dimensional Continuous Control Using
Generalized Advantage Estimation" (2016). Details as in Huang et al., "The 37 Implementation Details of Proximal Policy
Optimization" (2022).

Traps: truncated episodes bootstrap from their final observation. Advantages are standardised a minibatch at a time. A
continuous action is drawn from a normal distribution without bounds and learnt from as drawn; only the environment
gets it clipped to [-1, 1]. Every collection takes `collect` steps in each environment: with 8 environments, 256 steps
and 32 minibatches these are 64 rows each.

Differs from the paper: actor and critic share nothing. With `target_kl` the passes over a rollout end after the first
update whose rows had drifted further than that; Stable-Baselines3 ends them before that update, at 1.5 times the
number, and CleanRL after the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from palaestra.algorithm import (
    Algorithm,
    Buffer,
    Loss,
    Memory,
    Nets,
    Schedule,
    Scheduled,
    Term,
    Transform,
    above,
    between,
    expressed,
    gives,
    rebind,
    replace_term,
)  # fmt: skip
from palaestra.batch import Columns, Obs, each
from palaestra.data.layouts import once
from palaestra.evaluation.returns import episode_return
from palaestra.functional.returns import generalised_advantage
from palaestra.functional.schedules import linear, number
from palaestra.functional.targets import half_squared
from palaestra.networks.actors import stochastic_policy
from palaestra.networks.critics import Regression, said_by, state_value, value_of, with_columns
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation
from palaestra.optimisers import adam
from palaestra.rollout.collect import step


@gives("old_logp")
def drawn(nets: Nets, obs: Obs, memory: Memory, rng: torch.Generator | None) -> tuple[Tensor, Columns, Memory]:
    """A draw from the actor's distribution, its mode when `rng` is None; gives its log-probability, `old_logp` [N]."""
    distribution = nets["actor"](obs)
    action = distribution.sample(rng)
    return action, {"old_logp": distribution.log_prob(action)}, memory


@gives("advantage", "lambda_return", "old_value")
def credit(nets: Nets, steps: Columns, gamma: float, lam: float) -> Columns:
    """Schulman et al. 2016, eq. 16: `advantage`, `old_value` and their sum, the `lambda_return`: [T, N] each."""
    with torch.no_grad():
        value, next_value = (_values(nets["critic"], steps[key], steps["reward"]) for key in ("obs", "next_obs"))
    flags = (steps["terminated"], steps["truncated"])
    advantage = generalised_advantage(steps["reward"], value, next_value, *flags, gamma, lam)
    return {"advantage": advantage, "lambda_return": advantage + value, "old_value": value}


def _values(critic: nn.Module, obs: Obs, like: Tensor) -> Tensor:
    """Of observations [T, N, ...], in one batch: [T, N]."""
    return critic(each(lambda entry: entry.flatten(0, 1), obs)).view_as(like)


def evaluated(nets: Nets, b: Columns) -> Columns:
    """What all terms read: `logp` of the action, `entropy` and `value`, [B] each, and what the critic `said` of it."""
    distribution = nets["actor"](b["obs"])
    said = said_by(nets["critic"], b["obs"])
    return {
        "logp": distribution.log_prob(b["action"]),
        "entropy": distribution.entropy(),
        "value": value_of(nets["critic"], said),
        "said": said,
    }


def standardised(nets: Nets, b: Columns, rng: torch.Generator) -> Columns:
    """Advantages with mean 0 and standard deviation 1 within a minibatch; a single row stays as it is.

    Where rows are sequences, of the steps that were taken (`valid`).
    """
    advantage = b["advantage"]
    if advantage.numel() == 1:
        return b
    if "valid" in b:
        taken = b["valid"].sum()
        mean = (advantage * b["valid"]).sum() / taken
        std = (((advantage - mean) * b["valid"]).square().sum() / (taken - 1).clamp(min=1)).sqrt()
    else:
        std, mean = torch.std_mean(advantage)
    return {**b, "advantage": (advantage - mean) / (std + 1e-8)}


def clipped_surrogate(nets: Nets, b: Columns, clip: Scheduled) -> tuple[Tensor, Columns]:
    """Schulman et al. 2017, eq. 7: rows [B].

    Gives `kl`, an estimate `(rho - 1) - log rho` of how far the policy is from the one that acted, and `clipped`,
    whether the ratio is beyond the clip.
    """
    limit = number(clip, nets.clock)
    log_ratio = b["logp"] - b["old_logp"]
    ratio = log_ratio.exp()
    rows = -torch.minimum(ratio * b["advantage"], ratio.clamp(1 - limit, 1 + limit) * b["advantage"])
    with torch.no_grad():
        drift = ratio - 1
        return rows, {"kl": drift - log_ratio, "clipped": drift.abs() > limit}


def value_error(nets: Nets, b: Columns, regression: Regression = half_squared) -> tuple[Tensor, Columns]:
    """`(V - lambda_return)^2 / 2`: rows [B]. `regression(prediction [B], target [B])`."""
    said = b["said"] if "said" in b else b["value"]  # the same, unless the critic is read
    rows, columns = with_columns(regression(said, b["lambda_return"]))
    return rows, {"value": b["value"], **columns}


def clipped_value_error(nets: Nets, b: Columns, clip: float) -> tuple[Tensor, Columns]:
    """The larger error of `V` and of `V` held within `clip` of what it was: rows [B]."""
    held = b["old_value"] + (b["value"] - b["old_value"]).clamp(-clip, clip)
    error = torch.maximum((b["value"] - b["lambda_return"]).square(), (held - b["lambda_return"]).square())
    return 0.5 * error, {"value": b["value"]}


def negative_entropy(nets: Nets, b: Columns) -> tuple[Tensor, Columns]:
    """`-H(pi)`: rows [B]."""
    return -b["entropy"], {"entropy": b["entropy"]}


def drifted(metrics: Mapping[str, Tensor], target_kl: float) -> bool:
    """Whether the rows of the last update had drifted further than `target_kl`, on average."""
    return bool(metrics["rollout/kl"].mean() > target_kl)


@expressed
def ppo(
    lr: float = 3e-4,
    gamma: float = 0.99,
    lam: float = 0.95,
    clip: float = 0.2,
    value_coefficient: float = 0.5,
    entropy_coefficient: float = 0.0,
    clip_norm: float | None = 0.5,
    collect: int = 2_048,
    epochs: int = 10,
    minibatches: int = 32,
    anneal_steps: int | None = None,
    target_kl: float | None = None,
    hidden: Sequence[int] = (64, 64),
    activation: Activation = "tanh",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Proximal policy optimisation, for discrete and continuous actions; honours an `action_mask` key.

    The defaults are those of the paper's continuous tasks, for one environment. Usual for discrete ones, with 4 to 8
    environments: `lr=2.5e-4, collect=128, epochs=4, minibatches=4, entropy_coefficient=0.01`, and `anneal_steps` as
    many as are trained for.

    Args:
        lr: learning rate of actor and critic.
        gamma: discount factor, in [0, 1].
        lam: how far advantages look ahead, in [0, 1]: 0 one step, 1 to the end.
        clip: how far from 1 a ratio of probabilities is rewarded to move.
        value_coefficient: of the critic's loss.
        entropy_coefficient: of the entropy, in nats, that is rewarded.
        clip_norm: largest norm of a gradient, of actor and critic together; not clipped when None.
        collect: environment steps (in each environment) of a rollout.
        epochs: passes over a rollout.
        minibatches: updates of a pass.
        anneal_steps: environment steps over which `lr` falls linearly to 0; it does not when None.
        target_kl: drift that ends the passes over a rollout early; they do not end when None.
        hidden: units of each hidden layer of both networks.
        activation: between layers: "relu", "tanh", "elu", "gelu", "silu", "mish" or "softplus".
        encoder: from an observation to features; chosen by the space when None.
    """
    between(0, 1, gamma=gamma, lam=lam)
    above(
        0,
        lr=lr,
        clip=clip,
        clip_norm=clip_norm,
        collect=collect,
        epochs=epochs,
        minibatches=minibatches,
        anneal_steps=anneal_steps,
        target_kl=target_kl,
    )
    surrogate = Term(
        partial(clipped_surrogate, clip=clip),
        stream="rollout",
        needs=("old_logp", "advantage"),
        gives=("kl", "clipped"),
    )
    value = Term(value_error, value_coefficient, "rollout", needs=("lambda_return",), gives=("value",))
    entropy = Term(negative_entropy, entropy_coefficient, "rollout", gives=("entropy",))
    return Algorithm(
        networks={
            "actor": stochastic_policy(hidden, activation, encoder),
            "critic": state_value(hidden, activation, encoder),
        },
        policy=drawn,
        collect=step,
        buffers={"rollout": Buffer(once)},
        advantage=partial(credit, gamma=gamma, lam=lam),
        losses={
            "actor_critic": Loss(
                {"surrogate": surrogate, "value": value, "entropy": entropy},
                trains=("actor", "critic"),
                outputs=evaluated,
                transforms=(Transform(standardised, stream="rollout", needs=("advantage",)),),
                optimiser=partial(adam, eps=1e-5),
                lr=lr if anneal_steps is None else linear(lr, 0.0, anneal_steps),
                clip_norm=clip_norm,
            )
        },
        schedule=Schedule(
            collect=collect,
            epochs=epochs,
            minibatches=minibatches,
            stop=None if target_kl is None else partial(drifted, target_kl=target_kl),
        ),
        evaluation=(episode_return,),
    )


@expressed
def annealed_clip(algorithm: Algorithm, steps: int = 1_000_000) -> Algorithm:
    """The clip falls linearly to 0 over the first `steps` environment steps. On `ppo`."""
    above(0, steps=steps)
    clip = algorithm.losses["actor_critic"].terms["surrogate"].value.keywords["clip"]  # type: ignore[attr-defined]
    return rebind(algorithm, "actor_critic", "surrogate", clip=linear(clip, 0.0, steps))


@expressed
def clipped_value(algorithm: Algorithm, clip: float = 0.2) -> Algorithm:
    """The critic, too, is rewarded to move no further than `clip`, in units of returns, from what it was. On `ppo`."""
    above(0, clip=clip)
    term = algorithm.losses["actor_critic"].terms["value"]
    clipped = replace(term, value=partial(clipped_value_error, clip=clip), needs=(*term.needs, "old_value"))
    return replace_term(algorithm, "actor_critic", "value", clipped)


@expressed
def raw_advantage(algorithm: Algorithm) -> Algorithm:
    """Advantages as they are, not standardised. On `ppo`."""
    loss = algorithm.losses["actor_critic"]
    kept = tuple(transform for transform in loss.transforms if transform.fn is not standardised)
    return replace(algorithm, losses={**algorithm.losses, "actor_critic": replace(loss, transforms=kept)})
