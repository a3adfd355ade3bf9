"""XQL: Gumbel regression by hand and in one dimension, and what xql changes of iql."""

import math

import pytest
import torch
from torch import tensor

from palaestra.algorithm import changed_parts, same
from palaestra.algorithms.iql import iql
from palaestra.algorithms.xql import soft_maximum, xql
from palaestra.expression import parse
from palaestra.functional.regressions import gumbel_regression
from palaestra.learner import Learner
from palaestra.networks.mlp import MLP, NormalisedMLP
from tests.algorithms.test_iql import SETTINGS, bandit, solved
from tests.algorithms.test_numbers import GAMMA, ONE, ROWS, close, doubles, linear, made, snapshot
from tests.parts.worlds import batches, small, spec

TINY = {"hidden": (16, 16)}


# ------------------------------------------------------------------------------------------------- Gumbel regression


def test_gumbel_regression():
    # m is 1: (e^z - z - 1) / e
    close(gumbel_regression(doubles(0.0, 1.0, -2.0)), 0.0, (math.e - 2) / math.e, (math.exp(-2) + 1) / math.e)
    # m is -1, not -2
    close(gumbel_regression(doubles(-3.0, -2.0)), (math.exp(-3) + 2) * math.e, (math.exp(-2) + 1) * math.e)
    # 10 counts as 7, and m is 7
    close(gumbel_regression(doubles(10.0, 0.0)), 1 - 8 * math.exp(-7), 0.0)


def gradient(error, max_clip=7.0):
    error = error.clone().requires_grad_()
    gumbel_regression(error, max_clip).sum().backward()
    return error.grad


def test_its_gradient():
    """`(e^z - 1) e^-m`, without a part of the shift's; none of an error that is clipped."""
    close(gradient(doubles(0.5, -1.0)), 1 - math.exp(-0.5), (math.exp(-1) - 1) * math.exp(-0.5))
    close(gradient(doubles(8.0, -1.0)), 0.0, (math.exp(-1) - 1) * math.exp(-7))


def fitted(targets, temperature, max_clip=7.0):
    """The number whose regression on `targets` is least: where the gradient changes its sign, by bisection."""
    low, high = targets.min().item() - 1, targets.max().item() + 1
    for _ in range(60):
        middle = (low + high) / 2
        if gradient((targets - middle) / temperature, max_clip).sum() > 0:  # targets pull upwards
            low = middle
        else:
            high = middle
    return (low + high) / 2


NORMAL = torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 100.0])
def test_what_is_fitted_is_the_soft_maximum(temperature):
    exact = temperature * (NORMAL / temperature).exp().mean().log().item()
    # no error there is as large as 12: nothing is clipped at the minimum
    assert fitted(NORMAL, temperature, max_clip=12.0) == pytest.approx(exact, abs=1e-6)
    # of a normal distribution it is 1 / (2 temperature)
    assert exact == pytest.approx(0.5 / temperature, abs=0.1)


def test_its_limits():
    assert fitted(NORMAL, 1e4) == pytest.approx(NORMAL.mean().item(), abs=1e-3)
    few = doubles(0.0, 1.0, 3.0)
    assert fitted(few, 0.02, max_clip=500.0) == pytest.approx(3.0 - 0.02 * math.log(3), abs=1e-6)
    error = 1e-3 * NORMAL  # a small one is half a square, like that of an expectile of 0.5
    torch.testing.assert_close(gumbel_regression(error) * error.max().exp(), error.square() / 2, rtol=5e-3, atol=1e-15)


def test_a_small_clip_fits_too_little():
    assert fitted(NORMAL, 0.5, max_clip=2.0) < fitted(NORMAL, 0.5, max_clip=12.0) - 0.05


def test_outliers_in_float32():
    """One in a hundred is 50 too large. Without the shift float32 overflows."""
    targets = NORMAL.float().clone()
    targets[::100] += 50.0
    error = (targets / 0.5).requires_grad_()
    (error.exp() - error - 1).sum().backward()
    assert not error.grad.isfinite().all()
    for max_clip in (7.0, torch.inf):
        found = gradient(targets / 0.5, max_clip)
        assert found.isfinite().all()
        assert found.abs().max() <= 1.0 + 1e-6
        assert gumbel_regression(targets / 0.5, max_clip).isfinite().all()
    for far in (1e6, -1e6, 1e30, -1e30):
        assert gradient(tensor([far, 0.0])).isfinite().all()


def test_soft_maximum():
    rows, columns = soft_maximum(doubles(3.0, -1.0), 2.0, 1.0)
    close(rows, *gumbel_regression(doubles(1.5, -0.5), 1.0).tolist())
    assert columns["largest_residual"].tolist() == [1.5, 1.5]
    assert columns["residual_clipped"].tolist() == [True, False]


# ---------------------------------------------------------------------------------------------------- what it changes


def test_it_changes_the_value_and_the_critics_regression():
    base, changed = iql(**TINY), xql(**TINY)
    assert changed_parts(base, changed) == ("networks", "losses")
    for part, differing in (("networks", ["value"]), ("losses", ["value", "critic"])):
        before, after = getattr(base, part), getattr(changed, part)
        assert list(before) == list(after)
        assert [name for name in before if not same(before[name], after[name])] == differing


def test_the_critics_errors_beyond_twenty_count_linearly():
    nets = made(critic=linear([(0.0, 0.0, 0.0)]), value=lambda obs: 0 * obs.squeeze(-1))
    td = xql(gamma=GAMMA).losses["critic"].terms["td"].value
    rows, _ = td(nets, {**ROWS, "reward": doubles(30.0, -10.0)})
    close(rows, 20 * (30 - 10), 10**2 / 2)


def test_layer_normalisation():
    torch.manual_seed(0)
    plain = MLP((3, 8, 8, 1)).double()
    net = NormalisedMLP(plain).double()
    x = torch.randn(5, 3, dtype=torch.float64)

    def normal(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    first, second, last = plain.layers
    torch.testing.assert_close(net(x), last(normal(second(normal(first(x)).relu())).relu()))
    value = Learner(xql(**TINY), spec("continuous")).nets["value"]
    assert isinstance(value.mlp, NormalisedMLP)
    assert len(value.mlp.norms) == 2


@pytest.mark.parametrize("times", [1, 3])
def test_value_updates(times):
    learner = Learner(xql(**TINY, value_updates=times), spec("continuous"))
    for batch in batches(small("xql"), "continuous"):
        learner.update(batch)
    steps = {name: {s["step"].item() for s in o.state.values()} for name, o in learner.optimisers.items()}
    assert steps == {"value": {4.0 * times}, "actor": {4.0}, "critic": {4.0}}


def test_the_actor_reads_the_last_of_the_new_values():
    learner = Learner(xql(**TINY, value_updates=3, lr=1e-2), spec("continuous"))
    batch = batches(small("xql"), "continuous")[0]["replay"]
    before = snapshot(learner)
    _, given = learner.update({"replay": batch})
    columns = given["replay"]
    assert not all(map(torch.equal, before["value"], learner.nets["value"].parameters()))
    torch.testing.assert_close(columns["advantage"], columns["target_q"] - learner.nets["value"](batch["obs"]))


@pytest.mark.parametrize(("temperature", "expected"), [(0.25, 0.25 * math.log((math.exp(4) + 1) / 2)), (1e3, 0.5)])
def test_a_bandit(temperature, expected):
    """Two actions that pay 1 and 0, as often logged: `temperature log((e^(1 / temperature) + 1) / 2)`, or the mean."""
    batch = bandit(ONE, [0.5, -0.5], [1.0, 0.0], [16, 16])
    found, said, columns = solved(xql(**SETTINGS, temperature=temperature, sharpness=8.0), ONE, batch)
    assert found == pytest.approx(expected, abs=0.02)
    assert said.mean.item() == pytest.approx(0.5, abs=0.02)
    assert not columns["residual_clipped"].any()
    assert (columns["largest_residual"] == columns["largest_residual"][0]).all()


def test_far_rewards_stay_finite():
    batch = bandit(ONE, [0.5, -0.5], [1e4, 0.0], [1, 31])
    learner = Learner(xql(**SETTINGS), ONE)
    for _ in range(50):
        _, given = learner.update({"replay": batch})
        learner.check_finite()
    assert given["replay"]["residual_clipped"].sum() <= 1


@pytest.mark.parametrize("wrong", ["temperature=0.0", "max_clip=-1.0", "value_updates=0", "sharpness=-1.0"])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=wrong.partition("=")[0]):
        parse(f"xql({wrong})")
