"""Networks that read an observation as two parts, one that is known and the difference from it.

    h_t = sum_k F_tk(obs - anchor, rest) G_tk(anchor, rest);  what the network was reads h

Netanyahu et al., "Learning to Extrapolate: A Transductive Approach" (2023): where both parts have been seen, though
never together, a product of the two knows what to make of them. `rest` is whatever the network reads beside the
observation: a critic's action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from palaestra.algorithm import Factory, Nets, Unfit
from palaestra.batch import Space, Spec
from palaestra.networks.critics import MeanOfAtoms
from palaestra.networks.dynamics import vector_size
from palaestra.networks.encoders import Vector, by_space
from palaestra.networks.mlp import MLP, Activation, EnsembleMLP, NormalisedMLP

Anchor = Callable[[Nets, Tensor], Tensor]  # of observations [..., D], their anchors [..., D]


class Beside:
    """The networks beside one of them, which reads them and does not own them.

    A copy of all of them stands beside the copies; a copy of the one (a target network) stays beside the same.
    """

    def __init__(self, nets: Nets) -> None:
        self.nets = nets

    def __deepcopy__(self, memo: dict[int, Any]) -> Beside:
        return Beside(memo.get(id(self.nets), self.nets))


class Transductive(nn.Module):
    """A perceptron `mlp` that reads the product of two embeddings in place of an observation and the `rest`.

    Called as `mlp` was, with both side by side, [..., D + R]; further arguments are handed on.
    """

    def __init__(
        self,
        mlp: nn.Module,
        reads: int,
        size: int,
        rest: int,
        anchor: Anchor,
        nets: Nets,
        embedding: int,
        hidden: Sequence[int],
        activation: Activation,
    ) -> None:
        super().__init__()
        self.size, self.reads, self.anchor, self.beside = size, reads, anchor, Beside(nets)
        sizes = (size + rest, *hidden, reads * embedding)
        self.of_difference, self.of_anchor = (NormalisedMLP(MLP(sizes, activation)) for _ in range(2))
        self.mlp = mlp

    def forward(self, x: Tensor, *settings: Any) -> Tensor:
        obs, rest = x[..., : self.size], x[..., self.size :]
        anchor = self.anchor(self.beside.nets, obs)
        of_difference = self.of_difference(torch.cat((obs - anchor, rest), -1))
        of_anchor = self.of_anchor(torch.cat((anchor, rest), -1))
        return self.mlp((of_difference * of_anchor).unflatten(-1, (self.reads, -1)).sum(-1), *settings)


def transductive(
    factory: Factory,
    anchor: Anchor,
    features: int = 256,
    embedding: int = 32,
    hidden: Sequence[int] = (256, 256, 256),
    activation: Activation = "relu",
) -> Factory:
    """The network of a factory (an encoder and a perceptron), its perceptron `Transductive`.

    Args:
        anchor: `anchor(nets, obs)`, which may read networks that are built later.
        features: products that stand for the observation; each number beside it (an action's) adds one.
        embedding: numbers whose product each of them is.
        hidden: units of each hidden layer of the two embeddings, with layer normalisation.
    """
    return partial(
        _transductive,
        factory=factory,
        anchor=anchor,
        features=features,
        embedding=embedding,
        hidden=hidden,
        activation=activation,
    )


def _transductive(
    spec: Spec, nets: Nets, factory: Factory, anchor: Anchor, features: int, **embeddings: Any
) -> nn.Module:
    size = vector_size(spec, "a transductive network")
    network = factory(replace(spec, obs=Space((features,))), nets)
    body = network.critic if isinstance(network, MeanOfAtoms) else network
    mlp = getattr(body, "mlp", None)
    if not isinstance(mlp, nn.Module) or not isinstance(body.encoder, Vector):
        raise Unfit("a transductive network has a perceptron that reads the observation as it is: leave encoder= out")
    reads = int(mlp.weights[0].shape[1] if isinstance(mlp, EnsembleMLP) else mlp.layers[0].in_features)  # type: ignore
    body.encoder = by_space(spec.obs)
    body.mlp = Transductive(mlp, reads, size, reads - features, anchor, nets, **embeddings)
    return network
