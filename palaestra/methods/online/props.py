"""PROPS: another policy acts, adapted while it collects, so that the rows look as if `ppo`'s own had drawn them.

    every m steps: phi <- theta, then down  mean_D[ max(rho, clip(rho, 1 - eps, 1 + eps)) ] + lambda KL(theta || phi),
    rho = pi_phi(a|s) / pi_theta(a|s), until mean_D[(rho - 1) - log rho] > delta
    sampling error of D:  mean_D[ log pi_MLE(a|s) - log pi_theta(a|s) ],  pi_MLE the likeliest policy of D

Paper: Corrado and Hanna, "On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling" (2023). Its m is
`every`, b `batches`, eps `clip`, delta `target_kl`, lambda `kl_coefficient`. D are the rows that `ppo` will learn from,
as far as they are collected.

The objective is `ppo`'s own with an advantage of -1 for whatever was done already: actions that came up too often
become less likely, and so the others more. Where D holds every action as often as it should, its gradient is zero.

Traps: `ppo`'s old log-probabilities are those of theta, computed anew, not of phi, which acted. Of normal distributions
the objective has no minimum: continuous actions need a small `target_kl`, or a `kl_coefficient`. Kept batches follow
one another in time, so that advantages may look across their border; transforms of what is collected see them again,
and what they measure counts them again. Between m steps there are up to `epochs * minibatches` updates: that costs.

Differs from the paper: with several environments, `every` counts steps in each of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from palaestra.algorithm import (
    Algorithm,
    Buffer,
    Collect,
    Loss,
    Memory,
    Nets,
    OptimiserFactory,
    Policy,
    Schedule,
    Term,
    above,
    collect_with,
    expressed,
    gives,
)  # fmt: skip
from palaestra.algorithms.ppo import clipped_surrogate, drawn, drifted
from palaestra.batch import Columns, Obs, Spec, each, flatten, unflatten
from palaestra.data.layouts import once
from palaestra.data.replay import Rollout
from palaestra.learner import Learner
from palaestra.networks.actors import instead, stochastic_policy
from palaestra.optimisers import adam
from palaestra.rollout.collect import step

ONE_STEP = Schedule(epochs=1)


def sampling_error(counts: Tensor, log_probs: Tensor) -> Tensor:
    """`mean_D[log pi_MLE - log pi]` where every pair is a parameter of its own, in nats: 0-d.

    `counts` [S, A] of each state and action in D, `log_probs` [S, A] of the policy that they should be of.
    """
    likeliest = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return (torch.xlogy(counts, likeliest) - counts * log_probs).sum() / counts.sum()


def crowding(nets: Nets, b: Columns, clip: float) -> tuple[Tensor, Columns]:
    """`max(rho, clip(rho, 1 - clip, 1 + clip))`: rows [B]; gives `kl` and `clipped`."""
    return clipped_surrogate(nets, {**b, "advantage": torch.full_like(b["old_logp"], -1.0)}, clip)


def divergence(nets: Nets, b: Columns) -> Tensor:
    """`KL(theta || phi)`: rows [B]."""
    return b["divergence"]


def compared(nets: Nets, b: Columns) -> Columns:
    """What phi says beside theta: `logp` of the action, and `divergence`, [B] each."""
    distribution = nets["actor"](b["obs"])
    intended = type(distribution)(**b["intended"])
    return {"logp": distribution.log_prob(b["action"]), "divergence": intended.kl(distribution)}


@gives("old_logp", "intended")
def intended(nets: Nets, steps: Columns) -> Columns:
    """What theta says of steps [T, N]: `old_logp` [T, N], and the numbers of its distribution, [T, N, ...] each."""
    flat = each(lambda x: x.flatten(0, 1), {"obs": steps["obs"], "action": steps["action"]})
    with torch.no_grad():
        distribution = nets["actor"](flat["obs"])
        columns = {"old_logp": distribution.log_prob(flat["action"]), "intended": distribution._asdict()}
    return each(lambda x: x.unflatten(0, steps["reward"].shape), columns)


@gives("advantage", "lambda_return", "old_value", "old_logp")
def as_of_theta(nets: Nets, steps: Columns, credit: Callable[[Nets, Columns], Columns]) -> Columns:
    """The columns of `credit`, with the log-probabilities that theta gives to what phi did."""
    return {**credit(nets, steps), "old_logp": intended(nets, steps)["old_logp"]}


class Adapted:
    """A `Collect` by phi, which is adapted before every `every` steps. Gives the steps of `batches` collections.

    It remembers phi and its optimiser, in a learner of its own, and the steps that it will give again.
    """

    def __init__(self, collect: Collect, behaviour: Algorithm, every: int, batches: int) -> None:
        self.collect, self.behaviour, self.every, self.batches = collect, behaviour, every, batches
        self.learner: Learner | None = None
        self.kept: Columns = {}
        self.restored: Mapping[str, Any] | None = None

    def __call__(self, nets: Nets, policy: Policy, source: Any, n: int, rng: Generator) -> Columns:
        phi = self._phi(nets)

        def acting(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
            return policy(instead(nets, actor=phi.nets["actor"]), obs, memory, rng)

        steps = each(lambda x: x.to(phi.device), self.kept)
        for taken in range(0, n, self.every):
            adapt(phi, nets, steps, rng)
            steps = joined(steps, self.collect(nets, acting, source, min(self.every, n - taken), rng))
        again = (self.batches - 1) * n
        self.kept = each(lambda x: x[-again:].clone(), steps) if again else {}
        return steps

    def _phi(self, nets: Nets) -> Learner:
        if self.learner is None:
            same = {"actor": partial(copied, module=nets["actor"])}
            device = nets.clock.env_steps.device
            self.learner = Learner(replace(self.behaviour, networks=same), nets.spec, device=device)
            if self.restored is not None:
                self.learner.load_state_dict(self.restored)
        return self.learner

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "phi": self.learner.state_dict() if self.learner else self.restored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept, self.restored, self.learner = state["kept"], state["phi"], None


def copied(spec: Spec, nets: Nets, module: nn.Module) -> nn.Module:
    """A factory's answer: this module, again."""
    return copy.deepcopy(module)


def adapt(phi: Learner, nets: Nets, steps: Columns, rng: Generator) -> None:
    """Make phi a copy of `nets["actor"]`, and let it learn from the steps there are until it has drifted."""
    phi.nets["actor"].load_state_dict(nets["actor"].state_dict())
    if not steps:
        return
    rows = {name: steps[name] for name in ("action", "reward", "valid")}
    # What `normalised-obs` shows the actor: what was kept is as the environment gave it.
    rows["obs"] = nets["obs_statistics"](steps["obs"]) if "obs_statistics" in nets else steps["obs"]
    schedule = phi.algorithm.schedule
    rollout = Rollout(phi.algorithm.buffers["rollout"], phi.device)
    rollout.insert({**rows, **intended(nets, rows)})
    for _ in range(schedule.epochs):
        for batch in rollout.minibatches(schedule.minibatches, rng):
            _, given = phi.update({"rollout": batch})
            if schedule.stop is not None and schedule.stop({"rollout/kl": given["rollout"]["kl"]}):
                return


def joined(before: Columns, after: Columns) -> Columns:
    """Steps [T, N, ...], and those that followed them."""
    if not before:
        return after
    earlier, later = flatten(before), flatten(after)
    return unflatten({name: torch.cat((earlier[name], later[name])) for name in earlier})


def behaviour(
    lr: float,
    clip: float = math.inf,
    kl_coefficient: float = 0.0,
    clip_norm: float | None = None,
    optimiser: OptimiserFactory = adam,
    schedule: Schedule = ONE_STEP,
) -> Algorithm:
    """How phi learns, as an algorithm whose networks are still to be given."""
    crowded = Term(partial(crowding, clip=clip), stream="rollout", needs=("old_logp",), gives=("kl", "clipped"))
    away = Term(divergence, kl_coefficient, "rollout", needs=("intended",))
    loss = Loss(
        {"crowding": crowded, "divergence": away}, ("actor",), compared, optimiser=optimiser, lr=lr, clip_norm=clip_norm
    )
    return Algorithm(
        networks={},
        policy=drawn,
        buffers={"rollout": Buffer(once)},
        losses={"behaviour": loss},
        schedule=schedule,
        collect=step,
        evaluation=(),
        advantage=intended,
    )


@expressed
def props(
    algorithm: Algorithm,
    every: int = 16,
    batches: int = 1,
    lr: float = 1e-3,
    epochs: int = 16,
    minibatches: int = 4,
    clip: float = 0.3,
    target_kl: float = 0.01,
    kl_coefficient: float = 0.0,
    clip_norm: float = 0.5,
) -> Algorithm:
    """A behaviour policy evens out what was sampled too often or too seldom. On `ppo`.

    Args:
        every: environment steps (in each environment) between two adaptations.
        batches: collections that are learnt from: the newest, and those before it.
        lr: learning rate of the behaviour policy.
        epochs: passes over the rows of an adaptation, at most; with 0 the behaviour policy is the policy.
        minibatches: updates of a pass.
        clip: how far below 1 a ratio of probabilities is rewarded to fall.
        target_kl: drift from the policy that ends an adaptation.
        kl_coefficient: of the divergence from the policy.
        clip_norm: largest norm of a gradient.
    """
    above(0, lr=lr, minibatches=minibatches, clip=clip, target_kl=target_kl, clip_norm=clip_norm)
    stop = partial(drifted, target_kl=target_kl)
    schedule = Schedule(epochs=epochs, minibatches=minibatches, stop=stop)
    phi = behaviour(lr, clip, kl_coefficient, clip_norm, schedule=schedule)
    return _adapting("props", algorithm, phi, every, batches)


@expressed
def robust_on_policy_sampling(algorithm: Algorithm, every: int = 1, batches: int = 1, lr: float = 1.0) -> Algorithm:
    """As `props`, one plain gradient step on all rows an adaptation, neither clipped nor stopped. On `ppo`.

    Zhong et al., "Robust On-Policy Sampling for Data-Efficient Policy Evaluation in Reinforcement Learning" (2022).

    Args:
        every: environment steps (in each environment) between two adaptations.
        batches: collections that are learnt from: the newest, and those before it.
        lr: size of the step.
    """
    above(0, lr=lr)
    phi = behaviour(lr, optimiser=torch.optim.SGD)
    return _adapting("robust-on-policy-sampling", algorithm, phi, every, batches)


def _adapting(slug: str, algorithm: Algorithm, phi: Algorithm, every: int, batches: int) -> Algorithm:
    above(0, every=every, batches=batches)
    actor, rollout = algorithm.networks.get("actor"), algorithm.buffers.get("rollout")
    plain = isinstance(actor, partial) and actor.func is stochastic_policy().func  # type: ignore[attr-defined]
    if not plain or rollout is None or rollout.layout is not once or algorithm.advantage is None:
        raise ValueError(f"{slug} does not fit {algorithm}: it adapts the policy of ppo while that collects")
    changed = collect_with(algorithm, partial(Adapted, behaviour=phi, every=every, batches=batches))
    return replace(changed, advantage=partial(as_of_theta, credit=algorithm.advantage))
