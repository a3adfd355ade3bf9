"""A2PR: the actor clones the better one of two actions, the logged one and a generated one, and only if it is good.

    A(s, .) = Q_1(s, .) - V(s)
    V:         (V(s) - y)^2,  y and its a' as td3's, with the smallest value of online and of target critics
    generator: [A(s, a) > 0] mean_A (g(s, a) - a)^2 + kl_coefficient * mean_L KL(z | s, a)
    target:    g(s, mu(s)) where A(s, g) >= A(s, a), else a;  none where neither A(s, g) >= 0 nor A(s, a) > 0
    actor:     -lambda Q_1(s, mu(s)) + mean_A (mu(s) - target)^2,  lambda as td3-bc's

Paper: Liu et al., "Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning" (2024), with a
threshold of 0, as in the authors' code. The generator g is a variational autoencoder, and z the L numbers in its
middle. To Adam only ratios within a loss matter: the code's `vae_weight` is 0.5 / `kl_coefficient`, and td3-bc's
`improvement` is its `alpha` / `mask`.

Each loss steps before the next one is computed: critics, V, generator, actor. Advantages are of the new critics, and of
V as it was before its step.

Traps: g moves with mu(s), and the actor's gradient goes through it, as in the authors' code (`generated`); none goes
through the choice. The KL term costs little, and still more than an action is worth where good actions hardly differ:
then z says nothing, and g is the mean of good actions. Critics of two layers are not the paper's.

Differs from the paper: the networks are those of the base, and V is as large as its critics: the authors' critics and V
have four layers of 256, and their actor three. V's a' has noise of its own, not that of the critics' target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
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
    append_transform,
    between,
    expressed,
    rebind,
)  # fmt: skip
from palaestra.algorithms.td3_bc import value_and_cloning
from palaestra.batch import Columns, Obs
from palaestra.functional.targets import squared
from palaestra.networks.actors import instead
from palaestra.networks.critics import state_value
from palaestra.networks.generative import conditional_vae

CLONING = "value_and_cloning"


def pessimistic_error(nets: Nets, b: Columns, td: Callable[..., tuple[Tensor, Columns]]) -> tuple[Tensor, Columns]:
    """td3's `td` of V, towards the smallest value of all critics: rows [B]; gives V(s) as it was, `value`."""

    def value(obs: Obs, action: Tensor) -> Tensor:
        return nets["value"](obs)

    def all_critics(obs: Obs, action: Tensor) -> Tensor:
        return torch.cat([nets[name](obs, action) for name in ("critic", "target_critic")])

    rows, columns = td(instead(nets, critic=value, target_critic=all_critics), b, regression=squared)
    return rows, {"value": columns["q"]}


def advantage(nets: Nets, b: Columns, action: Tensor) -> Tensor:
    """`Q_1(s, action) - V(s)`, without gradient: [B]."""
    with torch.no_grad():
        return nets["critic"](b["obs"], action, first=1)[0] - b["value"]


def room_for_latents(nets: Nets, b: Columns, rng: Generator) -> Columns:
    """`latents` [B, L]: for noise in its shape."""
    return {**b, "latents": b["action"].new_zeros(len(b["action"]), nets["generator"].latents)}


def good_actions_error(nets: Nets, b: Columns, kl_coefficient: float) -> tuple[Tensor, Columns]:
    """What it costs to make good actions again, and to describe all: rows [B]. Gives `advantage` and `divergence`."""
    again, divergence = nets["generator"](b["obs"], b["action"], b["latents_noise"])
    logged = advantage(nets, b, b["action"])
    error = (logged > 0) * (again - b["action"]).square().mean(-1)
    return error + kl_coefficient * divergence, {"advantage": logged, "divergence": divergence}


def generated(nets: Nets, b: Columns, action: Tensor) -> Tensor:
    """What the generator makes of an action [B, A], with its gradient: [B, A]."""
    return nets["generator"](b["obs"], action, b["latents_noise"])[0]


def held(nets: Nets, b: Columns, action: Tensor) -> Tensor:
    """The same without gradient: [B, A]."""
    with torch.no_grad():
        return generated(nets, b, action)


def value_and_guidance(
    nets: Nets, b: Columns, improvement: float, proposal: Callable[..., Tensor] = generated, target: str = "action"
) -> tuple[Tensor, Columns]:
    """td3-bc's, guided by a `proposal(nets, b, action)` or by the column `target`: rows [B].

    Gives whether either is good, `guided`, and whether it is then the proposal, `proposed`.
    """
    action = nets["actor"](b["obs"])
    made, logged = proposal(nets, b, action), b[target]
    of_made, of_logged = advantage(nets, b, made), advantage(nets, b, logged)
    better, guided = of_made >= of_logged, (of_made >= 0) | (of_logged > 0)
    towards = torch.where(better.unsqueeze(-1), made, logged)
    towards = torch.where(guided.unsqueeze(-1), towards, action)  # no distance, and no gradient
    rows = value_and_cloning(instead(nets, actor=lambda obs: action), {**b, target: towards}, improvement, target)
    return rows, {"guided": guided, "proposed": guided & better}


@expressed
def a2pr(
    algorithm: Algorithm,
    kl_coefficient: float = 0.5,
    latents: int = 2,
    generator_hidden: Sequence[int] = (750, 750),
    generator_lr: float = 1e-3,
) -> Algorithm:
    """The actor clones what has an advantage, be it logged or generated. On `td3-bc`.

    Args:
        kl_coefficient: what the numbers z cost against the error of an action, at least 0.
        latents: how many of them, for each entry of an action.
        generator_hidden: units of each hidden layer of either half of the generator.
        generator_lr: its learning rate; V has that of the critics.
    """
    return _guided("a2pr", algorithm, generated, kl_coefficient, latents, generator_hidden, generator_lr)


@expressed
def a2pr_detached(
    algorithm: Algorithm,
    kl_coefficient: float = 0.5,
    latents: int = 2,
    generator_hidden: Sequence[int] = (750, 750),
    generator_lr: float = 1e-3,
) -> Algorithm:
    """A2PR whose generated action is a target that stands still while the actor moves. On `td3-bc`.

    Arguments as `a2pr`.
    """
    return _guided("a2pr-detached", algorithm, held, kl_coefficient, latents, generator_hidden, generator_lr)


def _guided(
    slug: str,
    algorithm: Algorithm,
    proposal: Callable[..., Tensor],
    kl_coefficient: float,
    latents: int,
    hidden: Sequence[int],
    lr: float,
) -> Algorithm:
    between(0, torch.inf, kl_coefficient=kl_coefficient)
    above(0, latents=latents, generator_lr=lr)
    cloning = algorithm.losses["actor"].terms.get(CLONING) if "actor" in algorithm.losses else None
    if cloning is None:
        raise ValueError(f"{slug} does not fit {algorithm}, whose actor clones no action beside a value: choose td3-bc")
    critic, learning = algorithm.networks["critic"], algorithm.losses["critic"]
    body = {name: critic.keywords[name] for name in ("hidden", "activation", "encoder")}  # type: ignore[attr-defined]
    td, clone = learning.terms["td"], cloning.value.keywords  # type: ignore[attr-defined]
    fit = Term(partial(pessimistic_error, td=td.value), gives=("value",), noise=td.noise)
    good = partial(good_actions_error, kl_coefficient=kl_coefficient)
    error = Term(good, needs=("value",), gives=("advantage", "divergence"), noise=("latents",))
    guide = partial(value_and_guidance, **clone)
    needs, gives = (*cloning.needs, "value"), ("guided", "proposed")
    guidance = replace(cloning, value=guide, needs=needs, gives=gives, noise=("latents",))

    generator = conditional_vae(latents, hidden, body["activation"], body["encoder"])
    changed = add_networks(algorithm, value=state_value(**body), generator=generator)
    changed = append_transform(changed, Transform(room_for_latents, gives=("latents",)))
    changed = add_loss(changed, "value", Loss({"error": fit}, trains=("value",), lr=learning.lr))
    changed = add_loss(changed, "generator", Loss({"error": error}, trains=("generator",), lr=lr))
    losses = dict(changed.losses)
    actor = losses.pop("actor")  # it comes last: it reads V as the loss before gave it
    losses["actor"] = replace(actor, terms={**actor.terms, CLONING: guidance})
    return rebind(replace(changed, losses=losses), "actor", CLONING, proposal=proposal)
