"""Networks that read an anchor and the difference from it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from palaestra.algorithm import Nets
from palaestra.batch import Space, Spec
from palaestra.networks.actors import deterministic_actor
from palaestra.networks.critics import action_critic, action_distributions, classifying, copy_of, state_value
from palaestra.networks.encoders import OneHot
from palaestra.networks.transduction import Transductive, transductive

SPEC = Spec(Space((2,)), Space((1,)))


def half(nets: Nets, obs: Tensor) -> Tensor:
    return obs / 2


def moved(nets: Nets, obs: Tensor) -> Tensor:
    return obs + nets["shift"].bias  # type: ignore[operator]


def built(factory, anchor=half, **settings) -> nn.Module:
    return transductive(factory, anchor, **{"features": 2, "embedding": 1, "hidden": (), **settings})(SPEC, Nets(SPEC))


def embedded(network: nn.Module, difference: list[list[float]], anchor: list[list[float]]) -> None:
    """Give both embeddings these weights, and no bias."""
    for part, weight in ((network.mlp.of_difference, difference), (network.mlp.of_anchor, anchor)):
        part.layers[0].weight.data = torch.tensor(weight, dtype=torch.float32)
        part.layers[0].bias.data.zero_()


def test_products_by_hand() -> None:
    network = Transductive(nn.Identity(), 2, 2, 1, half, Nets(SPEC), 2, (), "relu")
    assert network.of_difference.layers[0].weight.shape == (4, 3)  # two products of two numbers, of (s, a)
    for part, weight in (
        (network.of_difference, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]),
        (network.of_anchor, [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 2]]),
    ):
        part.layers[0].weight.data = torch.tensor(weight, dtype=torch.float32)
        part.layers[0].bias.data.zero_()
    # s = (2, 6), a = 5: anchor (1, 3), difference (1, 3); F = (1, 3 | 5, 4), G = (1, 5 | 3, 10)
    assert network(torch.tensor([[2.0, 6.0, 5.0]])).tolist() == [[1 * 1 + 3 * 5, 5 * 3 + 4 * 10]]


def test_what_stands_beside_the_observation_is_in_both_parts() -> None:
    critic = built(action_critic(2, (8,)))
    assert critic.mlp.of_anchor.layers[0].in_features == 3
    embedded(critic, [[0, 0, 1]] * 3, [[0, 0, 1]] * 3)
    obs, action = torch.randn(4, 2), torch.tensor([[0.5], [-0.5], [0.2], [0.1]])
    q = critic(obs, action)  # reads the action's square alone, thrice
    assert q.shape == (2, 4)
    assert torch.allclose(q[:, 0], q[:, 1])
    assert torch.allclose(critic.mlp.mlp(action.square().expand(4, 3)).squeeze(-1), q)
    assert torch.equal(critic(obs, action, first=1), q[:1])


@pytest.mark.parametrize("factory", [deterministic_actor((8,)), state_value((8,)), action_critic(2, (8,))])
def test_an_embedding_that_says_its_input_is_no_embedding(factory) -> None:
    """F = 1 and G = what it reads, whose anchor is the observation: outputs and gradients of the network inside."""
    torch.manual_seed(0)
    plain = factory(SPEC, Nets(SPEC))
    torch.manual_seed(0)
    network = built(factory, anchor=lambda nets, obs: obs)
    reads = network.mlp.reads
    embedded(network, torch.zeros(reads, reads).tolist(), torch.eye(reads).tolist())
    network.mlp.of_difference.layers[0].bias.data.fill_(1.0)
    obs = torch.randn(5, 2), *([torch.rand(5, 1)] if reads == 3 else [])
    assert torch.equal(network(*obs), plain(*obs))
    network(*obs).sum().backward()
    plain(*obs).sum().backward()
    for ours, own in zip(network.mlp.mlp.parameters(), plain.mlp.parameters(), strict=True):
        assert torch.equal(ours.grad, own.grad)
    network.mlp.of_difference.layers[0].bias.data.fill_(2.0)
    assert not torch.equal(network(*obs), plain(*obs))


def test_a_copy_stays_beside_the_same_and_copies_of_all_are_together() -> None:
    nets = Nets(SPEC)
    nets["actor"] = transductive(deterministic_actor((8,)), moved, 2, 1, ())(SPEC, nets)
    nets["shift"] = nn.Linear(2, 2)  # is built later
    nets["target"] = copy_of("actor")(SPEC, nets)
    assert {name.split(".")[0] for name in nets["actor"].state_dict()} == {"mlp"}  # nothing of the others
    both = copy.deepcopy(nets)
    obs = torch.randn(3, 2)
    before = nets["actor"](obs)
    assert torch.equal(before, nets["target"](obs))
    nets["shift"].bias.data += 1.0
    assert torch.equal(nets["actor"](obs), nets["target"](obs))
    assert not torch.equal(nets["actor"](obs), before)
    assert torch.equal(both["actor"](obs), before)
    assert torch.equal(both["target"](obs), before)


def test_a_critic_that_classifies_still_does() -> None:
    network = built(classifying(action_critic(2, (8,)), 5, -1.0, 1.0))
    obs, action = torch.randn(4, 2), torch.rand(4, 1)
    assert network(obs, action).shape == (2, 4)
    assert network(obs, action, logits=True).shape == (2, 4, 5)


def test_what_it_does_not_fit() -> None:
    wide = transductive(deterministic_actor((8,)), half)
    with pytest.raises(ValueError, match="vectors of numbers"):
        wide(Spec({"a": Space((2,))}, Space((1,))), Nets(SPEC))
    with pytest.raises(ValueError, match="leave encoder= out"):
        built(deterministic_actor((8,), encoder=lambda space: OneHot(Space((), torch.int64, (4,)))))
    with pytest.raises(ValueError, match="has a perceptron"):
        built(partial(lambda spec, nets: nn.Linear(2, 2)))
    discrete = Spec(Space((2,)), Space((), torch.int64, (3,)))
    of_each = transductive(action_distributions(4, (8,)), half, 2, 1, ())(discrete, Nets(discrete))
    assert of_each(torch.randn(5, 2)).shape == (5, 3, 4)
