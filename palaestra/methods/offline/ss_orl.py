"""SS-ORL: episodes of a dataset that lack actions get those that a model, fitted to the other episodes, infers.

    model:    a_t | s_{t-past}, ..., s_t, s_{t+1}  ~  N(mean, std^2),  fitted by maximum likelihood where a_t is known
    action:   mean, within [-1, 1], where it is not

Paper: Zheng, Henaff, Amos and Grover, "Semi-Supervised Offline Reinforcement Learning with Action-Free Trajectories"
(2023). `past` is k; with more than 0, what was seen before may tell which of several policies acted.

An episode without actions has NaN in those of all of its steps, in the file as in memory; its rewards are needed. The
labels are written before anything else reads the dataset: everything that goes together with the base goes together
with this. Two columns say what they are: `labelled` is whether an action was logged, `action_deviation` the model's
standard deviation, in units of half the action's range (0 where it was logged). With every action there no model is
fitted. `labelled-alone` is what to compare with: it learns from the episodes that have actions, and not from the rest.

Traps: an action that the world clips, or that leaves no trace in what is seen, cannot be inferred: look at
`action_deviation`. The model knows the states of the episodes that have actions. Several episodes should have them:
each tenth, at least one, is held out to choose the parameters that are kept. With `labelled-alone`, a method that reads
all actions of a dataset beforehand (prdc) still meets the NaN. All observations are copied once, as numbers.

Differs from the paper: the normal distribution is of the action, and not squashed by tanh, whose density has no bound
at the ends of the range; one network says mean and deviation, without dropout; one model, its default too, and no
ensemble. Its code uses the model's last parameters, and these are the best on held-out episodes; it fits for 100
updates, and here it ends when ten looks at these in a row bring nothing better. It has no observation behind the last
step of an episode, and here there is the final one. Zeros before an episode's first step are of standardised
observations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Generator, Tensor, nn

from palaestra.algorithm import (
    Algorithm,
    Nets,
    Transform,
    Unfit,
    above,
    between,
    expressed,
    prepend_transform,
    reprioritise,
)  # fmt: skip
from palaestra.batch import Columns
from palaestra.data.priorities import InProportion
from palaestra.data.whole import episodes, timestep
from palaestra.functional.distributions import Normal
from palaestra.networks.encoders import as_numbers
from palaestra.networks.fitting import by_episode, drawing_from, fitted
from palaestra.networks.mlp import MLP

LOG_STD = (-5.0, 2.0)  # the paper's
ROWS = 65_536  # that are labelled at a time


def has_actions(columns: Columns) -> Tensor:
    """Whether the episode that a slot belongs to has actions, bool [R]: not NaN in all of its steps."""
    action = columns["action"]
    if not action.dtype.is_floating_point:
        return torch.ones_like(columns["valid"])
    known = columns["valid"] & ~action.isnan().flatten(1).all(1)
    number = episodes(columns)
    return torch.zeros(int(number[-1]) + 1, device=known.device).index_add_(0, number, known.float())[number] > 0


def window(seen: Tensor, begun: Tensor, index: Tensor, past: int) -> Tensor:
    """`[s_{t-past}, ..., s_t, s_{t+1}]` of steps `index` [B], zeros before their episode: [B, (past + 2) * size].

    `seen` [R, size] is what every slot holds, `begun` [R] how many steps its episode had before.
    """
    back = torch.arange(past, -2, -1, device=index.device)
    within = back <= begun[index].unsqueeze(1)
    return torch.where(within.unsqueeze(2), seen[(index.unsqueeze(1) - back).clamp(min=0)], 0.0).flatten(1)


def inferred(model: nn.Module, window: Tensor) -> Normal:
    """Who acts between the last two observations of a window does so by this distribution, [B, A]."""
    mean, log_std = model(window).chunk(2, -1)
    return Normal(mean, log_std.clamp(*LOG_STD))


def standardised(seen: Tensor, steps: Tensor) -> Tensor:
    """Numbers [R, size] with mean 0 and standard deviation 1 over `steps`, bool [R]; those that are constant are 0."""
    std, mean = torch.std_mean(seen[steps], 0, correction=0)
    return (seen - mean) / torch.where(std > 0, std, 1.0)


def label(
    nets: Nets,
    columns: Columns,
    rng: Generator,
    past: int,
    held_out: float,
    hidden: Sequence[int],
    lr: float,
    batch_size: int,
    updates: int,
) -> Columns:
    """Fit the model, and write what it infers."""
    if nets.spec.action.discrete:
        raise Unfit("ss-orl labels continuous actions, and these are choices, which cannot be NaN: leave it out")
    steps, labelled, action = columns["valid"], has_actions(columns), columns["action"]
    deviation = torch.zeros(len(steps), device=steps.device)
    if not labelled.any():
        raise ValueError("ss-orl finds no episode with actions: log those of some, for a model to be fitted to")
    if not labelled.all():
        begun = timestep(nets, columns, rng)["timestep"]
        seen = standardised(as_numbers(nets.spec.obs, columns["obs"]), steps)
        slots = labelled.nonzero()[:, 0]
        train, judge = by_episode({key: columns[key][slots] for key in ("first", "valid")}, held_out, rng)
        with drawing_from(rng):
            model = MLP(((past + 2) * seen.shape[1], *hidden, 2 * action.shape[1])).to(seen.device)

        def surprise(model: nn.Module, batch: Columns) -> Tensor:
            return -inferred(model, window(seen, begun, batch["slot"], past)).log_prob(action[batch["slot"]])

        fitted(
            model, surprise, {"slot": slots[train]}, {"slot": slots[judge]}, rng,
            updates=updates, batch_size=batch_size, lr=lr,
        )  # fmt: skip
        action = action.clone()
        for index in (steps & ~labelled).nonzero()[:, 0].split(ROWS):
            found = inferred(model, window(seen, begun, index, past))
            action[index] = found.mean.clamp(-1, 1)
            deviation[index] = (2 * found.log_std).exp().mean(-1).sqrt()
    return {**columns, "action": action, "labelled": labelled, "action_deviation": deviation}


def told_apart(nets: Nets, columns: Columns, rng: Generator) -> Columns:
    """`labelled` [R], for a priority."""
    return {**columns, "labelled": has_actions(columns)}


@expressed
def ss_orl(
    algorithm: Algorithm,
    past: int = 1,
    held_out: float = 0.1,
    hidden: Sequence[int] = (1024, 1024),
    lr: float = 1e-4,
    batch_size: int = 1024,
    updates: int = 10_000,
) -> Algorithm:
    """Actions that a dataset lacks are inferred before training. On whatever learns continuous actions from one.

    Args:
        past: observations before the one that was acted on that the model reads, besides the next; at least 0.
        held_out: share of the episodes with actions that the model is judged on, in (0, 1).
        hidden: units of each of the model's layers.
        lr: learning rate of the model.
        batch_size: rows of each of the model's updates.
        updates: of the model, at most.
    """
    above(0, held_out=held_out, lr=lr, batch_size=batch_size, updates=updates)
    between(0, 1, held_out=held_out)
    between(0, float("inf"), past=past)
    fn = partial(
        label, past=past, held_out=held_out, hidden=tuple(hidden), lr=lr, batch_size=batch_size, updates=updates
    )
    return _beforehand("ss-orl", algorithm, fn, ("labelled", "action_deviation"))


@expressed
def labelled_alone(algorithm: Algorithm) -> Algorithm:
    """Steps of episodes without actions are never drawn. On whatever draws from a dataset."""
    algorithm = _beforehand("labelled-alone", algorithm, told_apart, ("labelled",))
    return reprioritise(algorithm, algorithm.transforms[0].stream, InProportion("labelled"))


def _beforehand(slug: str, algorithm: Algorithm, fn: Callable[..., Columns], gives: tuple[str, ...]) -> Algorithm:
    """With a transform of the buffer "dataset", or of the first, before all others."""
    if algorithm.schedule.epochs:
        raise ValueError(f"{slug} does not fit {algorithm}, which draws nothing from a dataset: try td3-bc or iql")
    if any("labelled" in transform.gives for transform in algorithm.transforms):
        raise ValueError(f"{slug} does not fit {algorithm}: ss-orl or labelled-alone is there already")
    buffer = "dataset" if "dataset" in algorithm.buffers else next(iter(algorithm.buffers))
    return prepend_transform(algorithm, Transform(fn, "dataset", buffer, gives=gives))
