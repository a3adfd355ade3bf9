"""PMOE: the policy is a mixture of Gaussian experts, of which the best one learns; `sac` otherwise.

    pi(a|s) = sum_k w_k(s) N_k(a|s);  a_k ~ N_k(.|s),  best = argmax_k min_i Q_i(s, a_k)
    actor:  alpha log N_best(a_best|s) - min_i Q_i(s, a_best)        router:  mean_k (w_k(s) - [k = best])^2
    critic: as sac's, with a' drawn from one expert k' ~ w(s'), and its log N_k'(a'|s')

Paper: Ren et al., "Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning" (2021); `experts` is K.

To every equation of `sac` its actor is therefore one expert, another one in every row, and this file says which. The
entropy that its coefficient holds is the chosen expert's, not that of the mixture, which is larger.

Traps: an expert that is never the best learns nothing, not even entropy. Deterministic, the likeliest expert acts: the
mean of all experts may be an action that none of them would take.

Differs from the paper: the rewards are not normalised by the batch, which would change what Q means from batch to
batch; the last layers begin as sac's do; `experts` is 4, of the paper's 2 to 16.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Loss,
    Memory,
    Nets,
    Term,
    Transform,
    above,
    add_loss,
    add_networks,
    expressed,
    replace_network,
    replace_policy,
    replace_term,
)  # fmt: skip
from palaestra.algorithms.sac import soft_improvement, soft_td, squashed_gaussian
from palaestra.batch import Columns, Obs, each
from palaestra.functional.distributions import categorical_by, categorical_sample
from palaestra.functional.targets import squared
from palaestra.networks.actors import experts_actor, gaussian_actor, instead, router
from palaestra.networks.critics import Regression


def of(choice: Tensor, values: Tensor) -> Tensor:
    """Each row's entry `choice` [B] of `values` [B, K, A]: [B, A]."""
    return values.gather(1, choice.view(-1, 1, 1).expand(-1, 1, values.shape[-1])).squeeze(1)


def with_expert(nets: Nets, choice: Tensor) -> Nets:
    """The networks, where the actor of each row is its expert `choice` [B]."""

    def actor(obs: Obs) -> tuple[Tensor, Tensor]:
        mean, log_std = nets["actor"](obs)
        return of(choice, mean), of(choice, log_std)

    return instead(nets, actor=actor)


def likely_expert(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
    """`tanh` of a draw from one drawn expert; of the likeliest one's mean when `rng` is None."""
    return squashed_gaussian(with_expert(nets, categorical_sample(nets["router"](obs), rng)), obs, memory, rng)


def drawn_expert_td(nets: Nets, b: Columns, gamma: float, regression: Regression = squared) -> tuple[Tensor, Columns]:
    """`soft_td` whose next action is a drawn expert's: rows [B]. It is drawn by `weight_noise`, a number a row."""
    with torch.no_grad():
        choice = categorical_by(b["weight_noise"], nets["router"](b["next_obs"]))
    return soft_td(with_expert(nets, choice), b, gamma, regression)


def best_expert(nets: Nets, b: Columns) -> Tensor:
    """Whose action has the largest least value, of one of each expert, by `each_action_noise` [B, K, A]: [B]."""
    with torch.no_grad():
        mean, log_std = nets["actor"](b["obs"])
        action = torch.addcmul(mean, log_std.exp(), b["each_action_noise"]).tanh()
        rows, experts, _ = action.shape
        obs = each(lambda x: x.repeat_interleave(experts, 0), b["obs"])
        return nets["critic"](obs, action.flatten(0, 1)).amin(0).view(rows, experts).argmax(-1)


def best_expert_improvement(nets: Nets, b: Columns) -> tuple[Tensor, Columns]:
    """`soft_improvement` of the best expert: rows [B]; gives its `log_prob`, and which it was, `best` [B]."""
    best = best_expert(nets, b)
    noise = of(best, b["each_action_noise"])
    rows, columns = soft_improvement(with_expert(nets, best), {**b, "action_noise": noise})
    return rows, {**columns, "best": best}


def routing_error(nets: Nets, b: Columns) -> Tensor:
    """`mean_k (w_k - [k = best])^2`: rows [B]."""
    weights = nets["router"](b["obs"]).exp()
    was_best = b["best"].unsqueeze(-1) == torch.arange(weights.shape[-1], device=weights.device)
    return (weights - was_best.to(weights.dtype)).square().mean(-1)


def room_for_each(nets: Nets, b: Columns, rng: Generator, experts: int) -> Columns:
    """`each_action` [B, K, A]: the action once for each expert, for noise in its shape."""
    return {**b, "each_action": b["action"].unsqueeze(1).expand(-1, experts, -1)}


@expressed
def pmoe(algorithm: Algorithm, experts: int = 4) -> Algorithm:
    """A mixture of Gaussian experts, of which the best one learns. On `sac`.

    Args:
        experts: how many; one is sac.
    """
    above(0, experts=experts)
    actor, td = algorithm.networks.get("actor"), algorithm.losses["critic"].terms.get("td")
    gaussian = isinstance(actor, partial) and actor.func is gaussian_actor().func  # type: ignore[attr-defined]
    if not gaussian or td is None or getattr(td.value, "func", None) is not soft_td:
        raise ValueError(f"pmoe does not fit {algorithm}: it changes the Gaussian actor of sac, and its target")
    improving = algorithm.losses["actor"]
    room = Transform(partial(room_for_each, experts=experts), needs=("action",), gives=("each_action",))
    best = Term(best_expert_improvement, gives=("log_prob", "best"), noise=("each_action",))
    drawn = partial(drawn_expert_td, **td.value.keywords)  # type: ignore[attr-defined]

    changed = replace_network(algorithm, "actor", experts_actor(experts, **actor.keywords))  # type: ignore[union-attr]
    changed = add_networks(changed, router=router(experts, actor.keywords["encoder"]))  # type: ignore[union-attr]
    changed = replace_policy(changed, likely_expert)
    changed = replace_term(changed, "critic", "td", replace(td, value=drawn, noise=(*td.noise, "weight")))
    roomy = replace(improving, transforms=(*improving.transforms, room))
    changed = replace(changed, losses={**changed.losses, "actor": roomy})
    changed = replace_term(changed, "actor", "improvement", best)
    routing = Loss({"routing": Term(routing_error, needs=("best",))}, trains=("router",), lr=improving.lr)
    return add_loss(changed, "router", routing)
