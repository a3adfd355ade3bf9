"""XQL: iql, its V the soft maximum of the values of logged actions, found by Gumbel regression.

    z = min((min_i Q_target_i(s, a) - V(s)) / temperature, max_clip)        m = max(max_batch z, -1)
    value:  (e^z - z - 1) e^-m, so that V -> temperature log E_logged[exp(Q / temperature)]
    critic: Huber's loss of width 20 in place of the square        V's network has layer normalisation

Paper: Garg et al., "Extreme Q-Learning: MaxEnt RL without Entropy" (2023); beta is `temperature`.

Traps: the shift m is the batch's, without gradient, and taken after the clip. A row beyond `max_clip` pulls no more:
where `residual_clipped` is a large share, V stays too low, and `temperature` or `max_clip` is too small for the scale
of rewards. `largest_residual` is max z before the clip. One far row shrinks the steps of all others in its batch.

Differs from the paper: the code's options that are off by default are left out: actions with noise, or uniformly drawn
ones, among those that V is fitted on, a penalty on the critic's gradient and the logarithm of the loss (the last two
compute something else there than they say, or fail), dropout. There `temperature` is chosen for each task (0.6 on
AntMaze, 2 to 5 on locomotion); here it is 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from palaestra.algorithm import Algorithm, Factory, Nets, Term, above, expressed, rebind, replace_network
from palaestra.algorithms.iql import in_sample_value, iql
from palaestra.batch import Columns, Spec
from palaestra.functional.regressions import gumbel_regression
from palaestra.functional.targets import huber
from palaestra.networks.actors import Body
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation, NormalisedMLP

HUBER_WIDTH = 20.0


def soft_maximum(error: Tensor, temperature: float, max_clip: float) -> tuple[Tensor, Columns]:
    """`gumbel_regression` of `error / temperature`: rows [B]; gives the batch's largest, and which are clipped."""
    z = error / temperature
    columns = {"largest_residual": z.amax().expand_as(z), "residual_clipped": z > max_clip}
    return gumbel_regression(z, max_clip), columns


@expressed
def xql(
    lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    temperature: float = 2.0,
    max_clip: float = 7.0,
    value_updates: int = 1,
    sharpness: float = 3.0,
    weight_limit: float = 100.0,
    decay_over: int | None = 1_000_000,
    batch_size: int = 256,
    start: int = 0,
    updates: float = 1.0,
    capacity: int = 1_000_000,
    critics: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Extreme Q-learning for logged data and continuous actions.

    Args:
        temperature: of the soft maximum, in the unit of returns: large, V is the mean of the values of logged actions,
            and towards 0 their largest.
        max_clip: largest `(Q - V) / temperature` that counts.
        value_updates: steps of V for each one of the actor and the critics.

    The others as `iql`.
    """
    above(0, temperature=temperature, max_clip=max_clip, value_updates=value_updates)
    base = iql(
        lr, gamma, tau, sharpness=sharpness, weight_limit=weight_limit, decay_over=decay_over, batch_size=batch_size,
        start=start, updates=updates, capacity=capacity, critics=critics, hidden=hidden, activation=activation,
        encoder=encoder,
    )  # fmt: skip
    changed = rebind(base, "critic", "td", regression=partial(huber, width=HUBER_WIDTH))
    changed = replace_network(changed, "value", layer_normalised(base.networks["value"]))
    value_loss = partial(soft_maximum, temperature=temperature, max_clip=max_clip)
    value = replace(
        base.losses["value"],
        terms={
            "in_sample": Term(
                partial(in_sample_value, value_loss=value_loss),
                gives=("target_q", "value", "largest_residual", "residual_clipped"),
                across_rows=True,
            )
        },
        times=value_updates,
    )
    return replace(changed, losses={**changed.losses, "value": value})


def layer_normalised(factory: Factory) -> Factory:
    """The network of a factory (an encoder and a perceptron), with a layer normalisation before each activation."""
    return partial(_layer_normalised, factory=factory)


def _layer_normalised(spec: Spec, nets: Nets, factory: Factory) -> Body:
    body = factory(spec, nets)
    assert isinstance(body, Body)
    body.mlp = NormalisedMLP(body.mlp)  # type: ignore[assignment]
    return body
