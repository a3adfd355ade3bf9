"""mex: its term by hand, what it does to values, and whom it fits."""

import math
from functools import partial

import pytest
import torch
from torch import nn, tensor

from palaestra.algorithm import Nets
from palaestra.algorithms.normalisation import normalised_obs
from palaestra.algorithms.sac import sac, sac_discrete, squashed_gaussian
from palaestra.algorithms.td3 import deterministic, td3
from palaestra.batch import Space, Spec
from palaestra.expression import parse
from palaestra.learner import Learner
from palaestra.methods.exploration.mex import mex, mex_without_baseline, negative_value, value_gap
from tests.parts.worlds import batches, small, spec

ONE = Spec(Space((1,)), Space((1,)))


def column(*numbers):
    return tensor(numbers, dtype=torch.float64)[:, None]


class Linear(nn.Module):
    """Members `a * obs + b * action + c`: [E, B]."""

    def __init__(self, *members):
        super().__init__()
        self.members = members

    def forward(self, obs, action):
        return torch.stack([(a * obs + b * action + c).squeeze(-1) for a, b, c in self.members])


class Half(nn.Module):
    def forward(self, obs):
        return obs / 2


def made(*members):
    nets = Nets(ONE)
    nets["actor"], nets["critic"] = Half(), Linear(*members)
    return nets


MEMBERS = [(1.0, 2.0, 0.0), (-1.0, 0.5, 3.0)]
ROWS = {
    "obs": column(0.4, -1.0),
    "action": column(0.3, -0.8),
    "next_obs": column(1.0, 0.2),
    "action_noise": column(1.0, -0.5),
}


def by_hand(obs, action, next_obs, noise, baseline=True):
    """Each member's own baseline, of three actions that are all valued at the row's own observation."""
    total = 0.0
    for a, b, c in MEMBERS:
        proposals = (action, next_obs / 2, math.erf(noise / math.sqrt(2)))
        if baseline:
            total += math.log(sum(math.exp(a * obs + b * action + c) for action in proposals))
        total -= a * obs + b * obs / 2 + c
    return total


@pytest.mark.parametrize(("term", "baseline"), [(value_gap, True), (negative_value, False)])
def test_the_term(term, baseline):
    found = term(made(*MEMBERS), ROWS, deterministic)
    rows = zip(*(ROWS[key].squeeze(1).tolist() for key in ("obs", "action", "next_obs", "action_noise")), strict=True)
    assert found.tolist() == pytest.approx([by_hand(*row, baseline=baseline) for row in rows], abs=1e-6)


def test_the_random_action_is_uniform():
    """Through a critic that is the action: with both others at -1000 the baseline is the random action alone."""
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    far = torch.full_like(noise, -1000.0)
    rows = {"obs": torch.zeros_like(noise), "action": far, "next_obs": 2 * far, "action_noise": noise}
    random = value_gap(made((0.0, 1.0, 0.0)), rows, deterministic)
    counts = torch.histc(random, 10, -1.0, 1.0)
    assert counts.sum() == 20_000
    assert (counts / 2_000 - 1).abs().max() < 0.1  # 4.7 standard deviations of a bin


def test_the_baseline_takes_out_what_all_values_share():
    raised = [(a, b, c + 100.0) for a, b, c in MEMBERS]
    gap = [value_gap(made(*members), ROWS, deterministic) for members in (MEMBERS, raised)]
    torch.testing.assert_close(gap[0], gap[1])
    value = [negative_value(made(*members), ROWS, deterministic) for members in (MEMBERS, raised)]
    torch.testing.assert_close(value[0] - 200.0, value[1])


@pytest.mark.parametrize("base", [td3, sac])
def test_what_rises(base):
    """The policy's action gains on random ones; without the baseline random ones gain more than with it."""
    given = batches(small(base.__name__), "continuous")
    obs = torch.cat([batch["replay"]["obs"] for batch in given])
    random = torch.rand(len(obs), 2, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def values(method):
        learner = Learner(method(base(hidden=(16, 16), lr=0.01)), spec("continuous"))
        for n in range(60):
            learner.update(given[n % 4])
        own, _, _ = learner.deployed()(learner.nets, obs, None, None)
        return (learner.nets["critic"](obs, action).mean().item() for action in (own, random))

    own, others = values(lambda plain: plain)
    own_with, others_with = values(partial(mex, optimism=1.0))
    _, others_without = values(partial(mex_without_baseline, optimism=1.0))
    assert own_with - others_with > own - others + 0.1
    assert others_without > others_with + 0.1


def test_rows_are_standardised_once():
    """The policy that acts standardises what it sees; rows are standardised before the term gets them."""
    policies = [
        method(base).losses["critic"].terms["optimism"].value.keywords["policy"]
        for base in (td3(), normalised_obs(td3()))
        for method in (mex, mex_without_baseline)
    ]
    assert policies == [deterministic] * 4
    assert mex(normalised_obs(sac())).losses["critic"].terms["optimism"].value.keywords["policy"] is squashed_gaussian


@pytest.mark.parametrize("pair", ["n-step", "prioritised", "normalised-obs", "normalised-reward", "stop-regressing"])
@pytest.mark.parametrize("base", ["td3", "ddpg", "sac"])
def test_pairs(base, pair):
    for both in (f"mex+{pair}", f"{pair}+mex"):
        expression = f"{small(base)}+{both}"
        learner = Learner(parse(expression), spec("continuous"))
        for batch in batches(expression, "continuous")[:2]:
            metrics, columns = learner.update(batch)
        assert all(v.isfinite().all() for v in (*metrics.values(), *columns["replay"].values()))
        assert "loss/critic/optimism" in metrics


def test_it_needs_a_critic_of_actions():
    with pytest.raises(ValueError, match=r"mex does not fit sac-discrete: it needs a critic of \(s, a\)"):
        mex(sac_discrete())
    with pytest.raises(ValueError, match="optimism is -1; it must be at least 0"):
        mex(td3(), optimism=-1)
