"""RLPD: sac that learns in an environment and from logged steps at once, with many normalised critics and updates.

    batch: half of what was collected, half of the buffer "dataset"
    y = r + gamma (1 - terminated) (min_{i in Z} Q_target_i(s', a') - alpha log pi(a'|s')),  Z drawn for each update
    critic: sum_i (Q_i(s, a) - y)^2, `critic_updates` times a step
    actor, once a step: alpha log pi(a|s) - mean_i Q_i(s, a)

Paper: Ball, Smith, Kostrikov and Levine, "Efficient Online Reinforcement Learning with Offline Data" (2023), Z is
`subset`. The subset is that of Chen et al., "Randomized Ensembled Double Q-Learning" (2021); the normalisation is Ba,
Kiros and Hinton's, "Layer Normalization" (2016).

Traps: layers are normalised in the critics alone, before the activation: then no value is larger than the norm of the
last layer's weights, whatever action it is of. The subset is the target's; all critics learn from that one target. The
actor climbs their mean, not their minimum. Where a reward is paid at a goal alone, the paper leaves the entropy out of
the target and adds -1 to every reward (`+shifted-reward`).

Differs from the paper: the normalisation has no scale and shift of its own, as in the paper's bound but not in its
code. The critics' losses are added up, not averaged, which Adam does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Buffer,
    Nets,
    Term,
    Transform,
    above,
    add_buffer,
    delayed,
    expressed,
    gives,
    mix,
)  # fmt: skip
from palaestra.algorithms.sac import entropy_gap, sac, soft_improvement, soft_td
from palaestra.batch import Columns, Obs, number_of_rows
from palaestra.data.layouts import transition
from palaestra.functional.targets import squared
from palaestra.networks.actors import instead
from palaestra.networks.critics import Regression, action_critic
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation, activation_of


def normalised(x: Tensor, activation: Activation) -> Tensor:
    """`activation((x - mean) / std)` over the last axis: what a normalised layer does after its weights."""
    return activation_of(activation)(F.layer_norm(x, x.shape[-1:]))


@gives("asked")
def draw_subset(nets: Nets, b: Columns, rng: Generator, critics: int, subset: int) -> Columns:
    """`asked` [B, Z]: the target critics whose minimum counts, drawn without replacement, the same for every row."""
    order = torch.rand(critics, generator=rng, device=b["reward"].device).argsort()
    return {**b, "asked": order[:subset].expand(number_of_rows(b), subset)}


def subset_td(
    nets: Nets, b: Columns, gamma: float, entropy_backup: bool = True, regression: Regression = squared
) -> tuple[Tensor, Columns]:
    """`sac`'s, of the target critics that are `asked`, and without the entropy's part of the value where not wanted."""

    def asked(obs: Obs, action: Tensor) -> Tensor:
        return nets["target_critic"](obs, action).gather(0, b["asked"].T)

    def nothing() -> Tensor:
        return torch.zeros_like(nets["entropy_coefficient"]())

    others = {"target_critic": asked} if entropy_backup else {"target_critic": asked, "entropy_coefficient": nothing}
    return soft_td(instead(nets, **others), b, gamma, regression)


def mean_improvement(nets: Nets, b: Columns) -> tuple[Tensor, Columns]:
    """`sac`'s, of the critics' mean."""

    def mean(obs: Obs, action: Tensor) -> Tensor:
        return nets["critic"](obs, action).mean(0, keepdim=True)

    return soft_improvement(instead(nets, critic=mean), b)


def half_entropy_gap(nets: Nets, b: Columns, target_entropy: float | None) -> Tensor:
    """`sac`'s, with a target of `-A / 2` when None."""
    return entropy_gap(nets, b, -nets.spec.action.shape[0] / 2 if target_entropy is None else target_entropy)


@expressed
def rlpd(
    lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    entropy_coefficient: float | None = None,
    target_entropy: float | None = None,
    entropy_backup: bool = True,
    dataset_share: float = 0.5,
    critic_updates: int = 20,
    batch_size: int = 256,
    start: int = 5_000,
    capacity: int = 1_000_000,
    critics: int = 10,
    subset: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Soft actor-critic with prior data, in a buffer called "dataset".

    Arguments as `sac`, and

    Args:
        target_entropy: what the tuned coefficient holds; minus half the number of action entries when None.
        entropy_backup: whether the target counts the entropy of what follows.
        dataset_share: of every batch, in (0, 1).
        critic_updates: of the critics for each environment step; actor and coefficient make one, with the last.
        start: environment steps of uniformly random actions, without updates, at the beginning.
        critics: size of the ensemble.
        subset: how many of them, drawn anew for each update, the target is the minimum of.
    """
    above(0, critic_updates=critic_updates, subset=subset)
    if subset > critics:
        raise ValueError(f"subset is {subset}; it must be at most the number of critics, {critics}")
    base = sac(
        lr, gamma, tau, entropy_coefficient, target_entropy, batch_size, start, critic_updates, capacity, critics,
        hidden, activation, encoder,
    )  # fmt: skip
    td = partial(subset_td, gamma=gamma, entropy_backup=entropy_backup)
    terms = {
        "critic": {"td": Term(td, needs=("asked",), gives=("error", "q"), noise=("action",))},
        "actor": {"improvement": Term(mean_improvement, gives=("log_prob",), noise=("action",))},
        "entropy_coefficient": {
            "gap": Term(partial(half_entropy_gap, target_entropy=target_entropy), needs=("log_prob",))
        },
    }
    rarely = {name: delayed(critic_updates) for name in ("actor", "entropy_coefficient")}
    losses = {
        name: replace(loss, terms=terms[name], times=rarely.get(name, loss.times)) for name, loss in base.losses.items()
    }
    asked = Transform(partial(draw_subset, critics=critics, subset=subset), gives=("asked",))
    losses["critic"] = replace(losses["critic"], transforms=(asked,))
    critic = action_critic(critics, hidden, partial(normalised, activation=activation), encoder)
    changed = replace(base, networks={**base.networks, "critic": critic}, losses=losses)
    return mix(add_buffer(changed, "dataset", Buffer(transition)), "replay", dataset=dataset_share)
