"""Decision transformer: a sequence model that acts so as to reach the return it is asked for; and a perceptron too.

    a_t = f(R_{t-K+1}, s_{t-K+1}, a_{t-K+1}, ..., R_t, s_t),   R_t = sum_{k>=t} r_k as it was logged
    loss: mean_A (a_t - logged a_t)^2, or -log p(logged a_t) of a choice; every step of a window counts the same
    acting: R_t = the return that is asked for, less what the episode has paid so far

Papers: Chen et al., "Decision Transformer: Reinforcement Learning via Sequence Modeling" (2021), K is `length`; Emmons
et al., "RvS: What is Essential for Offline RL via Supervised Learning?" (2022), for the perceptron.

Traps: a window begins at a step drawn uniformly, so that an episode counts by its length: drawn by episode, short bad
ones would dominate. Returns are divided by the same number in learning and in acting, and are not discounted. Windows
are padded on the right, where a causal network cannot see it. A policy is not told rewards: `AskedReturns` writes them
into its memory. Where nobody does (collecting, and `act` of a policy that was loaded), the target stays where it began.

Differs from the paper: no dropout (noise of a term has a column's shape, and there is none for hidden numbers). Returns
are divided by the dataset's largest, not by 1000, which suits the paper's tasks alone; targets are shares of the
dataset's range, not the paper's number of each task. Observations are as they come: `+normalised-obs` standardises
them. A discrete choice is the most likely one, not a draw, when `rng` is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Algorithm, Buffer, Loss, Memory, Nets, Schedule, Term, Transform, above, expressed
from palaestra.batch import Columns, Obs, each_token, flatten, unflatten
from palaestra.data.layouts import transition, windows
from palaestra.data.whole import return_to_go, returns, timestep
from palaestra.evaluation.asked import AskedReturns
from palaestra.functional.distributions import categorical_sample, only_allowed
from palaestra.functional.schedules import linear
from palaestra.networks.actors import conditioned_actor
from palaestra.networks.encoders import Encoder, action_mask
from palaestra.networks.mlp import Activation
from palaestra.networks.statistics import return_range
from palaestra.networks.transformer import trajectories
from palaestra.optimisers import adamw
from palaestra.rollout.collect import step


def measure_returns(nets: Nets, columns: Columns, rng: Generator) -> Columns:
    nets["returns"].measure(returns(columns))  # type: ignore[operator]
    return columns


OF_RETURNS = (
    Transform(return_to_go, "dataset", gives=("return_to_go",)),
    Transform(measure_returns, "dataset"),
)


def distance(nets: Nets, said: Tensor, b: Columns) -> Tensor:
    """`mean_A (tanh said - a)^2`, or `-log softmax(said)[a]`: [...] from [..., A]."""
    if not nets.spec.action.discrete:
        return (said.tanh() - b["action"]).square().mean(-1)
    log_probs = only_allowed(said, action_mask(b["obs"])).log_softmax(-1)
    return -log_probs.gather(-1, b["action"].unsqueeze(-1)).squeeze(-1)


def chosen(nets: Nets, said: Tensor, obs: Obs, rng: Generator | None) -> Tensor:
    """The action that `said` [N, A] means."""
    if not nets.spec.action.discrete:
        return said.tanh()
    return categorical_sample(only_allowed(said, action_mask(obs)), rng)


def remembered(memory: Memory, rows: int, device: torch.device) -> dict[str, Tensor]:
    """The steps `seen` [N] in the episode and what they `paid` [N], zeros where it begins, and what else there is."""
    seen = torch.zeros(rows, dtype=torch.int64, device=device)
    return {"seen": seen, "paid": torch.zeros(rows, device=device), **(memory or {})}


# ------------------------------------------------------------------------------------------ the decision transformer


def imitated(nets: Nets, b: Columns) -> Tensor:
    """Chen et al. 2021, section 3: of every step of a window, [B, T]."""
    said = nets["actor"](nets["returns"](b["return_to_go"]), b["obs"], b["action"], b["timestep"])
    return distance(nets, said, b)


def moved(window: Tensor, full: Tensor) -> Tensor:
    """The steps of a window [N, K, ...] one place to the left where it is `full` [N]; what was first is then last."""
    return torch.where(full.view(-1, *[1] * (window.dim() - 1)), window.roll(-1, 1), window)


def placed(window: Tensor, at: Tensor, entry: Tensor) -> Tensor:
    """A window [N, K, ...] with `entry` [N, ...] at the place `at` [N]."""
    here = torch.arange(window.shape[1], device=at.device) == at.unsqueeze(1)
    return torch.where(here.view(*here.shape, *[1] * (window.dim() - 2)), entry.unsqueeze(1), window)


def continuing(
    nets: Nets, obs: Obs, memory: Memory, rng: Generator | None, length: int
) -> tuple[Tensor, Columns, Memory]:
    """Acts on the last `length` steps, and remembers them as a `window` [N, length, ...] padded on the right."""
    rows, device = len(next(iter(flatten({"obs": obs}).values()))), nets.clock.updates.device
    memory = remembered(memory, rows, device)
    seen, space = memory["seen"], nets.spec.action
    nothing = torch.zeros((rows, *space.shape), dtype=space.dtype, device=device)
    now = flatten({"obs": obs, "action": nothing, "return_to_go": nets["returns"].high - memory["paid"]})
    before = flatten(memory.get("window", {})) or {
        name: entry.new_zeros((rows, length, *entry.shape[1:])) for name, entry in now.items()
    }
    at = seen.clamp(max=length - 1)
    window = unflatten({name: placed(moved(before[name], seen >= length), at, entry) for name, entry in now.items()})
    steps = (seen - at).unsqueeze(1) + torch.arange(length, device=device)
    said = nets["actor"](nets["returns"](window["return_to_go"]), window["obs"], window["action"], steps)
    action = chosen(nets, said.take_along_dim(at.view(-1, 1, 1), 1).squeeze(1), obs, rng)
    window["action"] = placed(window["action"], at, action)
    return action, {}, {"window": window, "seen": seen + 1, "paid": memory["paid"]}


@expressed
def decision_transformer(
    lr: float = 1e-4,
    length: int = 20,
    size: int = 128,
    layers: int = 3,
    heads: int = 1,
    longest: int = 1_000,
    return_unit: float | None = None,
    targets: Sequence[float] = (1.0, 0.5),
    weight_decay: float = 1e-4,
    warm_up: int = 10_000,
    clip_norm: float | None = 0.25,
    batch_size: int = 64,
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Decision transformer for a dataset, with discrete and continuous actions; honours an `action_mask` key.

    Args:
        lr: learning rate after the warm-up.
        length: steps that it reads, three tokens each.
        size: numbers of a token; a multiple of `heads`.
        layers: blocks of attention and perceptron.
        heads: of attention, in each.
        longest: steps of the longest episode; later steps are taken for the last.
        return_unit: what returns are divided by; the dataset's largest, in size, when None.
        targets: returns that an evaluation asks for, as shares of the way from the dataset's smallest to its largest.
        weight_decay: how much parameters shrink a step, as a share of the learning rate.
        warm_up: updates over which the learning rate rises linearly from 0.
        clip_norm: largest norm of the gradient; as it is when None.
        batch_size: windows an update.
        activation: within the perceptrons: "relu", "tanh", "elu", "gelu", "silu", "mish" or "softplus".
        encoder: from an observation to features; chosen by the space when None.
    """
    above(0, lr=lr, length=length, size=size, layers=layers, heads=heads, longest=longest, batch_size=batch_size)
    above(0, return_unit=return_unit, warm_up=warm_up, clip_norm=clip_norm)
    return Algorithm(
        networks={
            "actor": trajectories(size, layers, heads, longest, activation, encoder),
            "returns": return_range(return_unit),
        },
        policy=partial(continuing, length=length),
        collect=step,
        buffers={"replay": Buffer(partial(windows, length=length))},
        transforms=(*OF_RETURNS, Transform(timestep, "dataset", gives=("timestep",))),
        losses={
            "actor": Loss(
                {"imitation": Term(imitated, share=each_token("mask"), needs=("return_to_go", "timestep", "mask"))},
                trains=("actor",),
                optimiser=partial(adamw, weight_decay=weight_decay),
                lr=linear(0.0, lr, warm_up, of="updates"),
                clip_norm=clip_norm,
            )
        },
        schedule=Schedule(batch_size=batch_size),
        evaluation=(AskedReturns(tuple(targets)),),
    )


# ------------------------------------------------------------------------------------------------- the perceptron


def imitated_at_once(nets: Nets, b: Columns) -> Tensor:
    """Emmons et al. 2022, eq. 1: rows [B]."""
    return distance(nets, nets["actor"](b["obs"], nets["returns"](b["return_to_go"])), b)


def conditioned(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
    """Acts on the observation and the return that is still to come; remembers how many were `seen` and `paid` [N]."""
    rows = len(next(iter(flatten({"obs": obs}).values())))
    memory = remembered(memory, rows, nets.clock.updates.device)
    said = nets["actor"](obs, nets["returns"](nets["returns"].high - memory["paid"]))
    return chosen(nets, said, obs, rng), {}, {**memory, "seen": memory["seen"] + 1}


@expressed
def return_conditioned(
    lr: float = 1e-3,
    return_unit: float | None = None,
    targets: Sequence[float] = (1.0, 0.5),
    batch_size: int = 16_384,
    hidden: Sequence[int] = (1024, 1024),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """A perceptron that imitates the dataset, given the return that followed; honours an `action_mask` key.

    Arguments as `decision_transformer`, and

    Args:
        hidden: units of each hidden layer.
        batch_size: rows an update.

    Differs from the paper: it reads the return to go, not its mean over the steps that are left, which one has to know.
    """
    above(0, lr=lr, return_unit=return_unit, batch_size=batch_size)
    return Algorithm(
        networks={"actor": conditioned_actor(hidden, activation, encoder), "returns": return_range(return_unit)},
        policy=conditioned,
        collect=step,
        buffers={"replay": Buffer(transition)},
        transforms=OF_RETURNS,
        losses={
            "actor": Loss({"imitation": Term(imitated_at_once, needs=("return_to_go",))}, trains=("actor",), lr=lr)
        },
        schedule=Schedule(batch_size=batch_size),
        evaluation=(AskedReturns(tuple(targets)),),
    )
