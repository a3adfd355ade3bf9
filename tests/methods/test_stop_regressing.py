"""stop-regressing and two-hot: their labels by hand, what they make of a critic, and whom they fit."""

import math
from functools import partial

import pytest
import torch
from torch import nn, tensor

from palaestra.algorithm import Conflict, Nets
from palaestra.algorithms.c51 import c51
from palaestra.algorithms.dqn import double, dqn
from palaestra.algorithms.qr_dqn import qr_dqn
from palaestra.algorithms.td3 import smoothed_td, td3
from palaestra.batch import Space, Spec
from palaestra.expression import parse
from palaestra.functional.distributional import mean_of_atoms
from palaestra.functional.targets import squared
from palaestra.learner import Learner
from palaestra.methods.online.stop_regressing import classification, hl_gauss, stop_regressing, two_atoms, two_hot
from palaestra.networks.critics import DuelingCritic, MeanOfAtoms, said_by
from tests.parts.worlds import batches, small, spec

PAPER = {"v_min": -10.0, "v_max": 10.0, "bins": 51}
TWO = Spec(Space((1,)), Space((), torch.int64, (2,)))


def doubles(*numbers):
    return tensor(numbers, dtype=torch.float64)


def middles(v_min, v_max, bins):
    half = (v_max - v_min) / bins / 2
    return torch.linspace(v_min + half, v_max - half, bins, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------- labels


def test_a_normal_distribution_in_four_bins():
    # std is one bin of 0.5; the edges are -1, -0.5, 0, 0.5 and 1
    def below(x, mean):
        return 0.5 * (1 + math.erf((x - mean) / 0.5 / math.sqrt(2)))

    for mean in (0.2, -0.9):
        mass = below(1.0, mean) - below(-1.0, mean)
        expected = [(below(e + 0.5, mean) - below(e, mean)) / mass for e in (-1.0, -0.5, 0.0, 0.5)]
        found = hl_gauss(doubles(mean), -1.0, 1.0, 4, smoothing=1.0)
        assert found.tolist() == [pytest.approx(expected, abs=1e-12)]


def test_two_atoms_beside_a_value():
    # atoms at -1, 0 and 1: 0.25 lies a quarter of the way from the second to the third
    found = two_atoms(doubles(0.25, -1.0, 1.0, -0.5), -1.0, 1.0, 3)
    assert found.tolist() == [[0.0, 0.75, 0.25], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]


def test_the_mean_of_a_label_is_its_value():
    y = torch.linspace(-10.0, 10.0, 1001, dtype=torch.float64)
    gaussian = (hl_gauss(y, **PAPER, smoothing=0.75) @ middles(**PAPER)) - y
    inside = y.abs() < 9.0
    assert (gaussian[inside].abs() < 1e-3).all()
    assert (gaussian[y > 9.5] < -0.03).all()  # at the ends it is drawn inwards
    assert (gaussian[y < -9.5] > 0.03).all()
    exact = two_atoms(y, **PAPER) @ torch.linspace(-10.0, 10.0, 51, dtype=torch.float64)
    torch.testing.assert_close(exact, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("y", "mean"), [(9.5, 9.47), (-9.9, -9.70)])
def test_how_far_the_ends_draw_inwards(y, mean):
    label = hl_gauss(doubles(y), **PAPER, smoothing=0.75)
    assert (label @ middles(**PAPER)).item() == pytest.approx(mean, abs=0.005)


@pytest.mark.parametrize("label", [partial(hl_gauss, smoothing=0.75), two_atoms])
def test_labels_are_probabilities(label):
    found = label(torch.linspace(-10.0, 10.0, 301).view(7, 43), **PAPER)
    assert found.shape == (7, 43, 51)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(7, 43), rtol=0, atol=1e-6)


def test_without_smoothing_the_bin_of_the_value_is_certain():
    label = hl_gauss(doubles(0.3), -1.0, 1.0, 4, smoothing=1e-3)
    assert label.tolist() == [pytest.approx([0.0, 0.0, 1.0, 0.0], abs=1e-12)]


# ------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("label", [partial(hl_gauss, smoothing=0.75), two_atoms])
def test_the_gradient_is_bounded(label):
    """It is softmax - label: its entries' sizes add up to 2 at most, wherever the target lies. A square's do not."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 51, generator=rng).requires_grad_()
    target = tensor([0.0, 3.3, -10.0, 1e3, -1e9, 1e30])
    rows, columns = classification(logits, target, label, -10.0, 10.0)
    assert rows.isfinite().all()
    assert columns["beyond"].tolist() == [False, False, False, True, True, True]
    (gradient,) = torch.autograd.grad(rows.sum(), logits)
    expected = logits.detach().softmax(-1) - label(target.clamp(-10.0, 10.0), **PAPER)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)
    assert (gradient.abs().sum(-1) <= 2.0).all()
    value = mean_of_atoms(logits, torch.linspace(-10.0, 10.0, 51))
    (square,) = torch.autograd.grad(squared(value, target)[3], logits)
    assert square.abs().sum() > 100.0


class Says(nn.Module):
    """The same logits [E, 1, M] for every row."""

    atoms = 3

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, obs, action, first=None):
        return self.logits[:first].expand(-1, len(obs), -1)


def test_a_term_sees_logits_and_everyone_else_the_mean():
    half, third = math.log(0.5), math.log(0.25)
    nets = Nets(Spec(Space((1,)), Space((1,))))
    nets["critic"] = MeanOfAtoms(Says(doubles([[half, third, third]], [[third, third, half]])), -2.0, 2.0).double()
    nets["target_critic"] = MeanOfAtoms(Says(doubles([[0.0, 0.0, 0.0]], [[half, half, -99.0]])), -2.0, 2.0).double()
    nets["target_actor"] = nn.Identity()
    obs, action = doubles([0.0], [0.5]), doubles([0.0], [0.0])
    # Q_1 = -2 * 0.5 + 2 * 0.25 = -0.5 and Q_2 = 0.5; the targets' are 0 and -1
    assert nets["critic"](obs, action).tolist() == [pytest.approx([-0.5] * 2), pytest.approx([0.5] * 2)]
    assert nets["critic"](obs, action, first=1).shape == (1, 2)
    assert said_by(nets["critic"], obs, action).shape == (2, 2, 3)
    rows = {"obs": obs, "next_obs": obs, "action": action, "reward": doubles(2.0, -3.0)}
    rows["terminated"] = tensor([False, True])
    regression = partial(classification, label=two_atoms, v_min=-2.0, v_max=2.0)
    found, columns = smoothed_td(nets, rows, 0.5, 0.0, 0.0, regression=regression)
    # y = 2 + 0.5 * -1 = 1.5, a quarter of it at 0; and -3, cut off at -2
    first = [-(0.25 * math.log(a) + 0.75 * math.log(b)) for a, b in ((0.25, 0.25), (0.25, 0.5))]
    second = [-math.log(0.5), -math.log(0.25)]
    assert found.tolist() == pytest.approx([sum(first), sum(second)], abs=1e-6)
    assert columns["q"].tolist() == pytest.approx([-0.5, -0.5])
    assert columns["error"].tolist() == pytest.approx([2.0, 2.5])  # |Q_1 - y|, of y as it was
    assert columns["beyond"].tolist() == [False, True]


def test_the_mean_is_not_rounded_by_autocast():
    critic = MeanOfAtoms(Says(tensor([[[0.0, 0.0, 0.3]]])), 0.0, 87.3)
    value = critic(torch.zeros(1, 1), torch.zeros(1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert critic(torch.zeros(1, 1), torch.zeros(1, 1)).item() == pytest.approx(value.item(), rel=1e-6)


# ------------------------------------------------------------------------------------------------------ whom they fit

HOSTS = [
    (base, method, world)
    for base, world in (
        ("td3", "continuous"), ("ddpg", "continuous"), ("sac", "continuous"), ("ppo", "continuous"),
        ("sac-discrete", "masked"), ("dqn", "masked"), ("ppo", "masked"), ("recurrent-ppo", "discrete"),
    )
    for method in ("stop-regressing", "two-hot")
]  # fmt: skip
PAIRS = ["n-step", "prioritised", "n-step+prioritised", "normalised-obs"]
DQN_PAIRS = ["double", "dueling", "double+dueling"]


def learns(expression, world):
    learner = Learner(parse(expression), spec(world))
    before = {name: parameter.clone() for name, parameter in learner.nets["critic"].named_parameters()}
    for batch in batches(expression, world)[:2]:
        metrics, columns = learner.update(batch)
    (given,) = columns.values()
    assert all(v.isfinite().all() for v in (*metrics.values(), *given.values()))
    assert not given["beyond"].any()  # rewards of about 1, and values that begin near 0
    assert any(not torch.equal(before[name], now) for name, now in learner.nets["critic"].named_parameters())
    return learner


@pytest.mark.parametrize(("base", "method", "world"), HOSTS)
def test_bases(base, method, world):
    learner = learns(f"{small(base)}+{method}", world)
    assert isinstance(learner.nets["critic"], MeanOfAtoms)


@pytest.mark.parametrize(
    ("base", "pair"),
    [(base, pair) for base in ("td3", "sac", "dqn") for pair in PAIRS] + [("dqn", pair) for pair in DQN_PAIRS],
)
def test_pairs(base, pair):
    world = "discrete" if base == "dqn" else "continuous"
    for both in (f"stop-regressing+{pair}", f"{pair}+stop-regressing"):
        learner = learns(f"{small(base)}+{both}", world)
        if "dueling" in pair:
            assert isinstance(learner.nets["critic"].critic, DuelingCritic)
            assert isinstance(learner.nets["target_critic"].critic, DuelingCritic)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (c51, "no critic is regressed on a number: choose dqn"),
        (qr_dqn, "this critic cannot classify values"),
    ],
)
def test_a_distribution_is_no_value(base, message):
    for method in (stop_regressing, two_hot):
        with pytest.raises(ValueError, match=message):
            method(base())


def test_two_of_them_are_a_conflict():
    with pytest.raises(Conflict, match="stop-regressing and two-hot both set"):
        stop_regressing(two_hot(dqn()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": 1}, "bins is 1; it must be larger than 1"),
        ({"bins": 0}, "bins is 0; it must be larger than 1"),
        ({"v_min": 3.0, "v_max": 3.0}, "v_max is 3.0; it must be larger than 3"),
        ({"smoothing": 0.0}, "smoothing is 0.0; it must be larger than 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        stop_regressing(td3(), **settings)


# -------------------------------------------------------------------------------------------------- what they learn


def chances(update, rows=128):
    """Every action ends its episode: the first pays 0, the second 3 or -1, and 0.2 on average."""
    rng = torch.Generator().manual_seed(update)
    action = torch.randint(2, (rows,), generator=rng)
    paid = torch.where(torch.rand(rows, generator=rng) < 0.3, 3.0, -1.0)
    obs = torch.ones(rows, 1)
    return {
        "obs": obs, "next_obs": obs, "action": action, "reward": torch.where(action == 1, paid, 0.0),
        "terminated": torch.ones(rows, dtype=torch.bool), "truncated": torch.zeros(rows, dtype=torch.bool),
    }  # fmt: skip


@pytest.mark.parametrize("method", [stop_regressing, two_hot])
def test_the_value_of_a_chance(method):
    learner = Learner(method(double(dqn(hidden=(16,), lr=0.01)), v_min=-5.0, v_max=5.0, bins=21), TWO)
    for update in range(400):
        learner.update({"replay": chances(update)})
    sure, chance = learner.nets["critic"](torch.ones(1, 1)).detach()[0].tolist()
    assert sure == pytest.approx(0.0, abs=0.05)
    assert chance == pytest.approx(0.2, abs=0.15)
