"""Values: of a state and an action, or of a state and every action. Ensembles have a leading axis [E, ...]."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from palaestra.algorithm import Factory, Nets
from palaestra.batch import Columns, Obs, Spec
from palaestra.networks.actors import Body, continuous_size, discrete_size
from palaestra.networks.encoders import Encoder, by_space
from palaestra.networks.mlp import Activation, EnsembleMLP


class ActionCritic(nn.Module):
    """`Q(s, a)` of every member, or of the `first` so many: [E, B] from an observation and an action [B, A]."""

    def __init__(
        self,
        spec: Spec,
        actions: int,
        members: int,
        hidden: Sequence[int],
        activation: Activation,
        encoder: Encoder | None,
    ) -> None:
        super().__init__()
        obs = spec.obs
        if isinstance(obs, Mapping) and "critic_obs" in obs:  # privileged: what the critic sees and the actor does not
            self.key: str | None = "critic_obs"
            obs = obs["critic_obs"]
        else:
            self.key = None
        self.encoder = (encoder or by_space)(obs)
        self.mlp = EnsembleMLP(members, (int(self.encoder.size) + actions, *hidden, 1), activation)  # type: ignore[arg-type]

    def forward(self, obs: Obs, action: Tensor, first: int | None = None) -> Tensor:
        features = self.encoder(obs[self.key] if self.key else obs)  # type: ignore[index]
        return self.mlp(torch.cat((features, action), -1), first).squeeze(-1)


class StateValue(Body):
    """`V(s)`: [B]. Reads `critic_obs` alone where there is one: what the critic sees and the actor does not."""

    def __init__(self, spec: Spec, hidden: Sequence[int], activation: Activation, encoder: Encoder | None) -> None:
        self.privileged = isinstance(spec.obs, Mapping) and "critic_obs" in spec.obs
        if self.privileged:
            spec = replace(spec, obs=spec.obs["critic_obs"])  # type: ignore[index]
        super().__init__(spec, 1, hidden, activation, encoder)
        self.initialise(head=1.0)

    def forward(self, obs: Obs) -> Tensor:
        return super().forward(obs["critic_obs"] if self.privileged else obs).squeeze(-1)  # type: ignore[index]


class EachActionCritic(nn.Module):
    """`Q(s, .)` of every member and every action: [E, B, A]."""

    def __init__(
        self,
        spec: Spec,
        actions: int,
        members: int,
        hidden: Sequence[int],
        activation: Activation,
        encoder: Encoder | None,
    ) -> None:
        super().__init__()
        self.encoder = (encoder or by_space)(spec.obs)
        self.mlp = EnsembleMLP(members, (int(self.encoder.size), *hidden, actions), activation)  # type: ignore[arg-type]

    def forward(self, obs: Obs) -> Tensor:
        return self.mlp(self.encoder(obs))


class PlainCritic(Body):
    """`Q(s, .)`: [B, A], or [B, A, M] where `atoms` numbers describe the distribution of each value."""

    def __init__(
        self,
        spec: Spec,
        actions: int,
        hidden: Sequence[int],
        activation: Activation,
        encoder: Encoder | None,
        atoms: int | None = None,
    ) -> None:
        super().__init__(spec, actions * (atoms or 1), hidden, activation, encoder)
        self.atoms = atoms

    def forward(self, obs: Obs) -> Tensor:
        said = super().forward(obs)
        return said if self.atoms is None else said.unflatten(-1, (-1, self.atoms))


class DuelingCritic(PlainCritic):
    """`Q = V + A - mean A` (Wang et al. 2016, eq. 9): [B, A], or the same of each atom, [B, A, M]."""

    def __init__(
        self,
        spec: Spec,
        actions: int,
        hidden: Sequence[int],
        activation: Activation,
        encoder: Encoder | None,
        atoms: int | None = None,
    ) -> None:
        super().__init__(spec, 1 + actions, hidden, activation, encoder, atoms)

    def forward(self, obs: Obs) -> Tensor:
        said = super().forward(obs)
        value, advantage = said[:, :1], said[:, 1:]
        return value + advantage - advantage.mean(1, keepdim=True)


class Positive(nn.Module):
    """One learnt positive number, kept as its logarithm; called, it gives `exp(log)`."""

    def __init__(self, begin: float = 1.0) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(begin).log())

    def forward(self) -> Tensor:
        return self.log.exp()


class Fixed(nn.Module):
    """One number that nobody learns; called, it gives itself."""

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value))

    def forward(self) -> Tensor:
        return self.value


def action_critic(
    members: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Factory:
    return partial(_action_critic, members=members, hidden=hidden, activation=activation, encoder=encoder)


def _action_critic(spec: Spec, nets: Nets, **settings: object) -> nn.Module:
    return ActionCritic(spec, continuous_size(spec, "a critic of (s, a)"), **settings)  # type: ignore[arg-type]


def each_action_critic(
    members: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Factory:
    return partial(_each_action_critic, members=members, hidden=hidden, activation=activation, encoder=encoder)


def _each_action_critic(spec: Spec, nets: Nets, **settings: object) -> nn.Module:
    return EachActionCritic(spec, discrete_size(spec, "a critic of each action"), **settings)  # type: ignore[arg-type]


def action_values(
    hidden: Sequence[int] = (256, 256), activation: Activation = "relu", encoder: Encoder | None = None
) -> Factory:
    """`Q(s, .)` as one network: [B, A]."""
    return partial(_action_values, hidden=hidden, activation=activation, encoder=encoder)


def action_distributions(
    atoms: int, hidden: Sequence[int] = (256, 256), activation: Activation = "relu", encoder: Encoder | None = None
) -> Factory:
    """`atoms` numbers for the distribution of each `Q(s, .)`, as one network: [B, A, M]."""
    return partial(_action_values, hidden=hidden, activation=activation, encoder=encoder, atoms=atoms)


def _action_values(spec: Spec, nets: Nets, **body: object) -> nn.Module:
    return PlainCritic(spec, discrete_size(spec, "a Q-network"), **body)  # type: ignore[arg-type]


def dueling_values(
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
    atoms: int | None = None,
) -> Factory:
    """A `DuelingCritic`: [B, A], or [B, A, M] with `atoms`."""
    return partial(_dueling_values, hidden=hidden, activation=activation, encoder=encoder, atoms=atoms)


def _dueling_values(spec: Spec, nets: Nets, **body: object) -> nn.Module:
    return DuelingCritic(spec, discrete_size(spec, "a dueling Q-network"), **body)  # type: ignore[arg-type]


def state_value(
    hidden: Sequence[int] = (64, 64), activation: Activation = "tanh", encoder: Encoder | None = None
) -> Factory:
    return partial(_state_value, hidden=hidden, activation=activation, encoder=encoder)


def _state_value(spec: Spec, nets: Nets, **body: object) -> nn.Module:
    return StateValue(spec, **body)  # type: ignore[arg-type]


def learnt_number(begin: float = 1.0) -> Factory:
    return partial(_learnt_number, begin=begin)


def _learnt_number(spec: Spec, nets: Nets, begin: float) -> nn.Module:
    return Positive(begin)


def fixed_number(value: float) -> Factory:
    return partial(_fixed_number, value=value)


def _fixed_number(spec: Spec, nets: Nets, value: float) -> nn.Module:
    return Fixed(value)


def copy_of(name: str) -> Factory:
    """A target network: starts as a copy of network `name`, never trained, moved by `follow`."""
    return partial(_copy_of, name=name)


def _copy_of(spec: Spec, nets: Nets, name: str) -> nn.Module:
    return copy.deepcopy(nets[name]).requires_grad_(False)


def follow(
    nets: Nets, batch: Columns, optimisers: Mapping[str, Optimizer], pairs: Mapping[str, str], tau: float
) -> None:
    """`target += tau * (network - target)` for each `target: network` of `pairs` (Polyak averaging); `tau=1` copies."""
    for target, network in pairs.items():
        torch._foreach_lerp_(list(nets[target].parameters()), list(nets[network].parameters()), tau)
