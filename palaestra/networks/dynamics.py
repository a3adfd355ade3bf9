"""Models of an environment's steps, fitted to logged ones: where an action leads, or where it came from.

Ensembles of networks that say a normal distribution: Chua et al., "Deep Reinforcement Learning in a Handful of Trials
using Probabilistic Dynamics Models" (2018). Shape legend: `E` members, `D` numbers of an observation, `A` of an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Generator, Tensor, nn

from palaestra.algorithm import Factory, Nets, Unfit
from palaestra.batch import Columns, Space, Spec
from palaestra.functional.distributions import Normal
from palaestra.networks.actors import continuous_size
from palaestra.networks.fitting import fitted
from palaestra.networks.mlp import Activation, EnsembleMLP

FARTHEST = 10.0  # standard deviations of the dataset that a model looks and leads away from its mean
LOG_STD = (-5.0, 1.0)  # smallest and largest, of a standardised change
SMALLEST_STD = 1e-6  # a number that varies less is a constant


class GaussianDynamics(nn.Module):
    """Where a step from `obs` [B, D] by `action` [B, A] leads, as each member sees it; fitted backwards, where from.

    A member reads the pair and says the change of the observation, both standardised by what was `measure`d. Until
    then nothing changes: each step leads where it began.
    """

    pair_mean: Tensor
    pair_std: Tensor
    change_mean: Tensor
    change_std: Tensor

    def __init__(
        self, size: int, actions: int, members: int, hidden: Sequence[int], activation: Activation = "silu"
    ) -> None:
        super().__init__()
        self.mlp = EnsembleMLP(members, (size + actions, *hidden, 2 * size), activation)
        self.register_buffer("pair_mean", torch.zeros(size + actions))
        self.register_buffer("pair_std", torch.ones(size + actions))
        self.register_buffer("change_mean", torch.zeros(size))
        self.register_buffer("change_std", torch.zeros(size))

    def measure(self, obs: Tensor, action: Tensor, reached: Tensor) -> None:
        """Take mean and deviation of these steps [N, ...] in the place of what was."""
        for name, rows in (("pair", torch.cat((obs, action), -1)), ("change", reached - obs)):
            std, mean = torch.std_mean(rows, 0, correction=0)
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_std").copy_(std)
        self.pair_std[self.pair_std < SMALLEST_STD] = 1.0

    def change(self, obs: Tensor, action: Tensor) -> Normal:
        """The standardised change, as each member sees it: [E, B, D]."""
        pair = (torch.cat((obs, action), -1) - self.pair_mean) / self.pair_std
        mean, log_std = self.mlp(pair.clamp(-FARTHEST, FARTHEST)).chunk(2, -1)
        return Normal(mean.clamp(-FARTHEST, FARTHEST), log_std.clamp(*LOG_STD))

    def after(self, obs: Tensor, change: Tensor) -> Tensor:
        """The observation [B, D] that a standardised change [B, D] leads to."""
        return obs + self.change_mean + self.change_std * change

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """The mean of all members' means: [B, D]."""
        return self.after(obs, self.change(obs, action).mean.mean(0))

    def sample(self, obs: Tensor, action: Tensor, rng: Generator) -> Tensor:
        """A draw [B, D] from a member that is drawn for each row."""
        said = self.change(obs, action)
        members, rows, size = said.mean.shape
        drawn = torch.randint(members, (1, rows, 1), generator=rng, device=rng.device).expand(1, rows, size)
        one = Normal(*(numbers.gather(0, drawn).squeeze(0) for numbers in said))
        return self.after(obs, one.sample(rng))


def negative_log_likelihood(dynamics: GaussianDynamics, steps: Columns) -> Tensor:
    """Of `reached` [B, D] after `obs` [B, D] and `action` [B, A], standardised, in nats, summed over members: [B]."""
    change = steps["reached"] - steps["obs"] - dynamics.change_mean
    said = dynamics.change(steps["obs"], steps["action"])
    return -said.log_prob(change / dynamics.change_std.clamp(min=SMALLEST_STD)).sum(0)


def fitted_dynamics(
    dynamics: GaussianDynamics, train: Columns, held_out: Columns, rng: Generator, *, updates: int = 5_000
) -> GaussianDynamics:
    """`dynamics` after measuring and fitting steps, in place: `obs`, `action` and `reached`, as `fitted` takes them.

    All members see the same batches; they differ by their first parameters.
    """
    dynamics.measure(train["obs"], train["action"], train["reached"])
    return fitted(dynamics, negative_log_likelihood, train, held_out, rng, updates=updates)


def vector_size(spec: Spec, who: str) -> int:
    """How many numbers an observation is; Unfit where it is an image, a symbol or a dictionary."""
    if not isinstance(spec.obs, Space) or not spec.obs.dtype.is_floating_point or len(spec.obs.shape) != 1:
        raise Unfit(f"{who} reads observations that are vectors of numbers, and not {spec.obs}")
    return spec.obs.shape[0]


def gaussian_dynamics(members: int = 7, hidden: Sequence[int] = (200, 200, 200, 200)) -> Factory:
    """A `GaussianDynamics` of vectors of numbers and continuous actions."""
    return partial(_gaussian_dynamics, members=members, hidden=hidden)


def _gaussian_dynamics(spec: Spec, nets: Nets, **settings: object) -> nn.Module:
    size, actions = vector_size(spec, "a model of steps"), continuous_size(spec, "a model of steps")
    return GaussianDynamics(size, actions, **settings)  # type: ignore[arg-type]
