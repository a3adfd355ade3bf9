"""Causality, padding, and attention by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from palaestra.batch import Space, Spec
from palaestra.networks.transformer import OBS, Block, Trajectories, causal_attention, trajectories

SPEC = Spec(Space((3,)), Space((2,)))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def network(spec=SPEC, size=8, layers=2, heads=2, longest=50, activation="relu"):
    with torch.random.fork_rng(devices=[]):
        found = trajectories(size, layers, heads, longest, activation)(spec, None)
    for parameter in found.parameters():  # as it is built, attention hardly says anything
        parameter.data = torch.randn(parameter.shape, generator=rng(parameter.numel()))
    return found.double()


def window(rows=2, steps=6, seed=1):
    draw = rng(seed)
    numbers = {"return_to_go": (), "obs": (3,), "action": (2,)}
    found = {key: torch.randn((rows, steps, *shape), generator=draw).double() for key, shape in numbers.items()}
    return {**found, "step": torch.arange(steps).expand(rows, -1) + torch.tensor([[0], [7]])[:rows]}


def test_attention_by_hand():
    """Two tokens, d = 1: the second weighs itself by e^(2*3) / (e^(2*1) + e^(2*3)), the first knows itself alone."""
    query, key, value = (torch.tensor([[a], [b]], dtype=torch.float64) for a, b in ((5, 2), (1, 3), (10, 20)))
    own = math.exp(6) / (math.exp(2) + math.exp(6))
    found = causal_attention(query, key, value).squeeze(1).tolist()
    assert found == pytest.approx([10.0, 20 * own + 10 * (1 - own)], abs=1e-12)


def test_attention_is_pytorchs():
    query, key, value = (torch.randn(2, 3, 7, 4, generator=rng(i)).double() for i in range(3))
    theirs = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(causal_attention(query, key, value), theirs)


def test_a_block_without_weights_passes_on():
    block = Block(4, 2, "relu")
    for layer in (block.attended, block.narrow):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.randn(2, 5, 4, generator=rng())
    assert torch.equal(block(x), x)


def test_a_block_says_some_tokens_as_it_says_all():
    block = network().blocks[0]
    x = torch.randn(2, 9, 8, generator=rng()).double()
    torch.testing.assert_close(block(x, OBS), block(x)[:, 1::3])


@pytest.mark.parametrize("t", range(6))
def test_what_comes_later_changes_nothing_earlier(t):
    net, given = network(), window()
    before = net(**given)
    for name, reaches in (("return_to_go", t), ("obs", t), ("action", t + 1), ("step", t)):
        changed = given[name].clone()
        changed[:, t] += 1
        after = net(**{**given, name: changed})
        assert torch.equal(after[:, :reaches], before[:, :reaches]), name
        if reaches < 6:
            gap = (after - before).abs().amax((0, 2))
            assert (gap[reaches:] > 1e-9).all(), f"{name} does not reach the steps from {reaches} on"


def test_padding_on_the_right_changes_nothing():
    net, given = network(), window()
    padded = {name: torch.cat((value, value[:, :3] * 0 + 9), 1) for name, value in given.items()}
    torch.testing.assert_close(net(**padded)[:, :6], net(**given))


def test_steps_beyond_the_longest_are_the_last():
    net, given = network(longest=10), window(rows=1)
    late, last = (net(**{**given, "step": torch.full((1, 6), step)}) for step in (40, 9))
    assert torch.equal(late, last)
    assert not torch.equal(last, net(**{**given, "step": torch.full((1, 6), 8)}))


def test_an_encoder_of_ones_own_stays_as_it_is():
    class Own(torch.nn.Module):
        def __init__(self, space):
            super().__init__()
            self.layer, self.size = torch.nn.Linear(3, 4), 4
            torch.nn.init.ones_(self.layer.weight)

        def forward(self, obs):
            return self.layer(obs)

    net = Trajectories(SPEC, 2, 8, 1, 2, 10, "relu", Own)
    assert (net.encoder.layer.weight == 1).all()
    assert net.of_obs.weight.abs().max() < 0.2
    assert not net.of_obs.bias.any()


def test_heads_that_do_not_share_evenly_are_refused():
    with pytest.raises(ValueError, match="size=8 cannot be shared by heads=3"):
        network(heads=3)
