"""From an observation to an action, or to the parameters of a distribution of actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from palaestra.algorithm import Factory, Nets, Unfit
from palaestra.batch import Obs, Spec
from palaestra.functional.distributions import Categorical, Normal, only_allowed
from palaestra.networks.encoders import Encoder, action_mask, by_space
from palaestra.networks.mlp import MLP, Activation, orthogonal


def continuous_size(spec: Spec, who: str) -> int:
    """The number of entries of a continuous action; Unfit for a discrete one."""
    if spec.action.discrete:
        raise Unfit(f"{who} acts in continuous (Box) spaces, and this one is discrete: try dqn or sac-discrete")
    return spec.action.shape[0]


def discrete_size(spec: Spec, who: str) -> int:
    """The number of choices of a discrete action; Unfit for a continuous one."""
    if not spec.action.discrete:
        raise Unfit(f"{who} acts in discrete spaces, and this one is continuous (Box): try sac or td3")
    return spec.action.choices[0]


class Body(nn.Module):
    """An encoder and a perceptron: observation -> [B, outputs]."""

    def __init__(
        self, spec: Spec, outputs: int, hidden: Sequence[int], activation: Activation, encoder: Encoder | None
    ) -> None:
        super().__init__()
        self.by_space = encoder is None
        self.encoder = (encoder or by_space)(spec.obs)
        self.mlp = MLP((int(self.encoder.size), *hidden, outputs), activation)  # type: ignore[arg-type]

    def forward(self, obs: Obs) -> Tensor:
        return self.mlp(self.encoder(obs))

    def initialise(self, head: float) -> None:
        """Orthogonal weights, with gain `head` in the last layer. An encoder that was passed stays as it is."""
        if self.by_space:
            orthogonal(self.encoder)
        orthogonal(self.mlp)
        orthogonal(self.mlp.layers[-1], head)


class DeterministicActor(Body):
    """`tanh(MLP(obs))`: an action [B, A] in [-1, 1]."""

    def forward(self, obs: Obs) -> Tensor:
        return super().forward(obs).tanh()


class GaussianActor(Body):
    """Mean and log standard deviation [B, A] of a normal distribution, the latter clamped to [-20, 2]."""

    def forward(self, obs: Obs) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        mean, log_std = super().forward(obs).chunk(2, -1)
        return mean, log_std.clamp(-20.0, 2.0)


class Experts(GaussianActor):
    """The same of several experts on one trunk: [B, K, A] each."""

    def __init__(self, spec: Spec, actions: int, experts: int, **body: Any) -> None:
        super().__init__(spec, 2 * experts * actions, **body)
        self.experts = experts

    def forward(self, obs: Obs) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        mean, log_std = (numbers.unflatten(-1, (self.experts, -1)) for numbers in super().forward(obs))
        return mean, log_std


class Router(Body):
    """Log-probabilities [B, K] of being asked, of each expert."""

    def forward(self, obs: Obs) -> Tensor:
        return torch.log_softmax(super().forward(obs), -1)


class CategoricalActor(Body):
    """Log-probabilities [B, A] of each choice; choices that are not allowed have (nearly) none."""

    def forward(self, obs: Obs) -> Tensor:
        return torch.log_softmax(only_allowed(super().forward(obs), action_mask(obs)), -1)


class NormalPolicy(Body):
    """`Normal` of a continuous action: its mean by the network, its log standard deviation learnt, whatever is seen."""

    def __init__(self, spec: Spec, **body: Any) -> None:
        super().__init__(spec, spec.action.shape[0], **body)
        self.log_std = nn.Parameter(torch.zeros(spec.action.shape))
        self.initialise(head=0.01)

    def forward(self, obs: Obs) -> Normal:  # type: ignore[override]
        mean = super().forward(obs)
        return Normal(mean, self.log_std.expand_as(mean))


class CategoricalPolicy(CategoricalActor):
    """`Categorical` of a discrete action; choices that are not allowed have (nearly) no probability."""

    def __init__(self, spec: Spec, **body: Any) -> None:
        super().__init__(spec, spec.action.choices[0], **body)
        self.initialise(head=0.01)

    def forward(self, obs: Obs) -> Categorical:  # type: ignore[override]
        return Categorical(super().forward(obs))


class Instead:
    """The networks `nets`, some of them replaced by other modules or functions, as long as one call lasts."""

    def __init__(self, nets: Nets, **others: Callable[..., Any]) -> None:
        self.nets, self.others = nets, others

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.others[name] if name in self.others else self.nets[name]

    def __contains__(self, name: str) -> bool:
        return name in self.others or name in self.nets

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nets, name)


def instead(nets: Nets, **others: Callable[..., Any]) -> Nets:
    """`nets` as terms and policies read them, with these in place of the networks of the same names."""
    return cast(Nets, Instead(nets, **others))


def stochastic_policy(
    hidden: Sequence[int] = (64, 64), activation: Activation = "tanh", encoder: Encoder | None = None
) -> Factory:
    """From an observation to a distribution (`sample`, `log_prob`, `entropy`) that fits the space of actions."""
    return partial(_stochastic_policy, hidden=hidden, activation=activation, encoder=encoder)


def _stochastic_policy(spec: Spec, nets: Nets, **body: object) -> nn.Module:
    return (CategoricalPolicy if spec.action.discrete else NormalPolicy)(spec, **body)


def deterministic_actor(
    hidden: Sequence[int] = (256, 256), activation: Activation = "relu", encoder: Encoder | None = None
) -> Factory:
    return partial(_deterministic_actor, hidden=hidden, activation=activation, encoder=encoder)


def _deterministic_actor(spec: Spec, nets: Nets, **body: object) -> nn.Module:
    return DeterministicActor(spec, continuous_size(spec, "a deterministic actor"), **body)  # type: ignore[arg-type]


def gaussian_actor(
    hidden: Sequence[int] = (256, 256), activation: Activation = "relu", encoder: Encoder | None = None
) -> Factory:
    return partial(_gaussian_actor, hidden=hidden, activation=activation, encoder=encoder)


def _gaussian_actor(spec: Spec, nets: Nets, **body: object) -> nn.Module:
    return GaussianActor(spec, 2 * continuous_size(spec, "a Gaussian actor"), **body)  # type: ignore[arg-type]


def experts_actor(
    experts: int,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Factory:
    return partial(_experts_actor, experts=experts, hidden=hidden, activation=activation, encoder=encoder)


def _experts_actor(spec: Spec, nets: Nets, **settings: Any) -> nn.Module:
    return Experts(spec, continuous_size(spec, "a mixture of Gaussian experts"), **settings)


def router(experts: int, encoder: Encoder | None = None) -> Factory:
    """One linear layer from the observation's features to the experts' log-probabilities."""
    return partial(_router, experts=experts, encoder=encoder)


def _router(spec: Spec, nets: Nets, experts: int, encoder: Encoder | None) -> nn.Module:
    return Router(spec, experts, (), "relu", encoder)


def categorical_actor(
    hidden: Sequence[int] = (256, 256), activation: Activation = "relu", encoder: Encoder | None = None
) -> Factory:
    return partial(_categorical_actor, hidden=hidden, activation=activation, encoder=encoder)


def _categorical_actor(spec: Spec, nets: Nets, **body: object) -> nn.Module:
    return CategoricalActor(spec, discrete_size(spec, "a categorical actor"), **body)  # type: ignore[arg-type]


class ConditionedActor(nn.Module):
    """What is said of an observation and of one number [B] beside it: [B, outputs]."""

    def __init__(
        self, spec: Spec, outputs: int, hidden: Sequence[int], activation: Activation, encoder: Encoder | None
    ) -> None:
        super().__init__()
        self.encoder = (encoder or by_space)(spec.obs)
        self.mlp = MLP((int(self.encoder.size) + 1, *hidden, outputs), activation)  # type: ignore[arg-type]

    def forward(self, obs: Obs, number: Tensor) -> Tensor:
        return self.mlp(torch.cat((self.encoder(obs), number.unsqueeze(-1)), -1))


def conditioned_actor(
    hidden: Sequence[int] = (256, 256), activation: Activation = "relu", encoder: Encoder | None = None
) -> Factory:
    """A `ConditionedActor` that says an action's entries, or a number for each choice."""
    return partial(_conditioned_actor, hidden=hidden, activation=activation, encoder=encoder)


def _conditioned_actor(spec: Spec, nets: Nets, **settings: Any) -> nn.Module:
    outputs = spec.action.choices[0] if spec.action.discrete else spec.action.shape[0]
    return ConditionedActor(spec, outputs, **settings)


class BoundedNormalPolicy(NormalPolicy):
    """`Normal` of a continuous action, its mean in [-1, 1] by tanh, its log standard deviation in [-5, 2]."""

    def forward(self, obs: Obs) -> Normal:  # type: ignore[override]
        mean, log_std = super().forward(obs)
        return Normal(mean.tanh(), log_std.clamp(-5.0, 2.0))


def bounded_normal_policy(
    hidden: Sequence[int] = (256, 256), activation: Activation = "relu", encoder: Encoder | None = None
) -> Factory:
    return partial(_bounded_normal_policy, hidden=hidden, activation=activation, encoder=encoder)


def _bounded_normal_policy(spec: Spec, nets: Nets, **body: object) -> nn.Module:
    continuous_size(spec, "a normal policy")
    return BoundedNormalPolicy(spec, **body)
