"""Values: of a state and an action, or of a state and every action. Ensembles have a leading axis [E, ...].

Called, a critic gives values. With `atoms` it says as many numbers of each value, [..., M], and who calls it has to
read them. With a `support` as well, they are logits of atoms that it reads itself (`MeanOfAtoms`): who calls it gets
values, and only what it is regressed with sees the logits (`said_by`, `regressed`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from palaestra.algorithm import Factory, Nets
from palaestra.batch import Columns, Obs, Spec
from palaestra.functional.distributional import mean_of_atoms
from palaestra.networks.actors import Body, continuous_size, discrete_size
from palaestra.networks.encoders import Encoder, by_space
from palaestra.networks.mlp import Activation, EnsembleMLP


class ActionCritic(nn.Module):
    """`Q(s, a)` of every member, or of the `first` so many: [E, B] from an observation and an action [B, A].

    With `atoms` it is [E, B, M].
    """

    def __init__(
        self,
        spec: Spec,
        actions: int,
        members: int,
        hidden: Sequence[int],
        activation: Activation,
        encoder: Encoder | None,
        atoms: int | None = None,
    ) -> None:
        super().__init__()
        self.atoms = atoms
        obs = spec.obs
        if isinstance(obs, Mapping) and "critic_obs" in obs:  # privileged: what the critic sees and the actor does not
            self.key: str | None = "critic_obs"
            obs = obs["critic_obs"]
        else:
            self.key = None
        self.encoder = (encoder or by_space)(obs)
        self.mlp = EnsembleMLP(members, (int(self.encoder.size) + actions, *hidden, atoms or 1), activation)  # type: ignore[arg-type]

    def forward(self, obs: Obs, action: Tensor, first: int | None = None) -> Tensor:
        features = self.encoder(obs[self.key] if self.key else obs)  # type: ignore[index]
        said = self.mlp(torch.cat((features, action), -1), first)
        return said.squeeze(-1) if self.atoms is None else said


class StateValue(Body):
    """`V(s)`: [B], or [B, M] with `atoms`.

    Reads `critic_obs` alone where there is one: what the critic sees and the actor does not.
    """

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int],
        activation: Activation,
        encoder: Encoder | None,
        atoms: int | None = None,
    ) -> None:
        self.atoms = atoms
        self.privileged = isinstance(spec.obs, Mapping) and "critic_obs" in spec.obs
        if self.privileged:
            spec = replace(spec, obs=spec.obs["critic_obs"])  # type: ignore[index]
        super().__init__(spec, atoms or 1, hidden, activation, encoder)
        self.initialise(head=1.0)

    def forward(self, obs: Obs) -> Tensor:
        said = super().forward(obs["critic_obs"] if self.privileged else obs)  # type: ignore[index]
        return said.squeeze(-1) if self.atoms is None else said


class EachActionCritic(nn.Module):
    """`Q(s, .)` of every member and every action: [E, B, A], or [E, B, A, M] with `atoms`."""

    def __init__(
        self,
        spec: Spec,
        actions: int,
        members: int,
        hidden: Sequence[int],
        activation: Activation,
        encoder: Encoder | None,
        atoms: int | None = None,
    ) -> None:
        super().__init__()
        self.atoms = atoms
        self.encoder = (encoder or by_space)(spec.obs)
        self.mlp = EnsembleMLP(members, (int(self.encoder.size), *hidden, actions * (atoms or 1)), activation)  # type: ignore[arg-type]

    def forward(self, obs: Obs) -> Tensor:
        said = self.mlp(self.encoder(obs))
        return said if self.atoms is None else said.unflatten(-1, (-1, self.atoms))


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


class MeanOfAtoms(nn.Module):
    """A critic that says logits [..., M] of atoms from `low` to `high`. Called, it gives values [...], their means."""

    support: Tensor

    def __init__(self, critic: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.critic = critic
        self.register_buffer("support", torch.linspace(low, high, critic.atoms))  # type: ignore[call-overload]

    def forward(self, *inputs: object, logits: bool = False, **settings: object) -> Tensor:
        said = self.critic(*inputs, **settings)
        return said if logits else mean_of_atoms(said, self.support)


def said_by(critic: nn.Module, *inputs: object) -> Tensor:
    """What a critic is regressed with: its logits [..., M] where it has any to read, else the value [...]."""
    return critic(*inputs, logits=True) if isinstance(critic, MeanOfAtoms) else critic(*inputs)


def value_of(critic: nn.Module, said: Tensor) -> Tensor:
    """The value [...] of what a critic said."""
    return mean_of_atoms(said, critic.support) if isinstance(critic, MeanOfAtoms) else said


Regression = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Columns]]  # of what was said and a target [B]


def regressed(critic: nn.Module, said: Tensor, target: Tensor, regression: Regression) -> tuple[Tensor, Columns]:
    """Rows of a critic's term, and columns: the first member's `q` and `error = |q - target|`, the regression's own."""
    q = value_of(critic, said)
    q = q[0] if q.dim() > target.dim() else q
    rows, columns = with_columns(regression(said, target))
    return rows, {"error": (q - target).abs(), "q": q, **columns}


def with_columns(rows: Tensor | tuple[Tensor, Columns]) -> tuple[Tensor, Columns]:
    """What a regression returned, as rows and columns."""
    return rows if isinstance(rows, tuple) else (rows, {})


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


Support = tuple[float, float] | None  # the smallest and the largest atom


def action_critic(
    members: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Factory:
    return partial(_action_critic, members=members, hidden=hidden, activation=activation, encoder=encoder)


def _action_critic(spec: Spec, nets: Nets, support: Support = None, **settings: object) -> nn.Module:
    return _read(ActionCritic(spec, continuous_size(spec, "a critic of (s, a)"), **settings), support)  # type: ignore[arg-type]


def each_action_critic(
    members: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Factory:
    return partial(_each_action_critic, members=members, hidden=hidden, activation=activation, encoder=encoder)


def _each_action_critic(spec: Spec, nets: Nets, support: Support = None, **settings: object) -> nn.Module:
    return _read(EachActionCritic(spec, discrete_size(spec, "a critic of each action"), **settings), support)  # type: ignore[arg-type]


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


def _action_values(spec: Spec, nets: Nets, support: Support = None, **body: object) -> nn.Module:
    return _read(PlainCritic(spec, discrete_size(spec, "a Q-network"), **body), support)  # type: ignore[arg-type]


def dueling_values(
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
    atoms: int | None = None,
    support: Support = None,
) -> Factory:
    """A `DuelingCritic`: [B, A], or [B, A, M] with `atoms`, which with a `support` are read."""
    return partial(_dueling_values, hidden=hidden, activation=activation, encoder=encoder, atoms=atoms, support=support)


def _dueling_values(spec: Spec, nets: Nets, support: Support = None, **body: object) -> nn.Module:
    return _read(DuelingCritic(spec, discrete_size(spec, "a dueling Q-network"), **body), support)  # type: ignore[arg-type]


def state_value(
    hidden: Sequence[int] = (64, 64), activation: Activation = "tanh", encoder: Encoder | None = None
) -> Factory:
    return partial(_state_value, hidden=hidden, activation=activation, encoder=encoder)


def _state_value(spec: Spec, nets: Nets, support: Support = None, **body: object) -> nn.Module:
    return _read(StateValue(spec, **body), support)  # type: ignore[arg-type]


def _read(critic: nn.Module, support: Support) -> nn.Module:
    return critic if support is None else MeanOfAtoms(critic, *support)


def classifying(critic: Factory, atoms: int, low: float, high: float) -> Factory:
    """The critic of a factory as a `MeanOfAtoms`; ValueError where it is none of the above, or has atoms already."""
    keywords = critic.keywords if isinstance(critic, partial) else {}
    if "factory" in keywords:  # a network on another's features
        return partial(critic.func, factory=classifying(keywords["factory"], atoms, low, high))  # type: ignore[attr-defined]
    if "support" not in inspect.signature(critic).parameters or keywords.get("atoms"):
        raise ValueError("this critic cannot classify values: those of dqn, sac, td3 and ppo can, which say one number")
    return partial(critic.func, **{**keywords, "atoms": atoms, "support": (low, high)})  # type: ignore[attr-defined]


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
        torch._foreach_lerp_(nets.parameters_of(target), nets.parameters_of(network), tau)
