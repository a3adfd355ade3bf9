"""c51 and qr-dqn: their equations in plain Python in float64, what they learn of a chance, and what they refuse."""

import math
from functools import partial

import pytest
import torch
from torch import nn, tensor

from palaestra.algorithm import Nets, Unfit
from palaestra.algorithms.c51 import c51, categorical_td, expectation
from palaestra.algorithms.dqn import double, dqn, dueling, greedy, value_of_greedy
from palaestra.algorithms.qr_dqn import mean_of_quantiles, qr_dqn, quantile_td
from palaestra.algorithms.sac import sac_discrete
from palaestra.algorithms.td3 import td3
from palaestra.batch import Space, Spec
from palaestra.learner import Learner
from palaestra.networks.critics import DuelingCritic
from tests.parts.worlds import batches, small, spec

TWO = Spec(Space((1,)), Space((), torch.int64, (2,)))
GAMMA = 0.9


def doubles(*numbers):
    return tensor(numbers, dtype=torch.float64)


class Says(nn.Module):
    """`obs * table`: [B, A, M]."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, obs):
        return (obs["x"] if isinstance(obs, dict) else obs)[:, :, None] * self.table


def made(critic, target):
    nets = Nets(TWO)
    nets["critic"], nets["target_critic"] = Says(doubles(*critic)), Says(doubles(*target))
    return nets


# Two rows: a step that goes on, and one that terminates.
ROWS = {
    "obs": doubles([0.5], [-1.0]),
    "action": tensor([1, 0]),
    "reward": doubles(0.25, -0.5),
    "terminated": tensor([False, True]),
    "next_obs": doubles([2.0], [3.0]),
}
CRITIC = ([1.0, 0.0, -1.0], [0.5, 0.2, 0.0])
TARGET = ([0.3, -0.2, 0.1], [-0.4, 0.1, 0.6])  # the second action's mean is the larger one
SUPPORT = [-1.0, 0.0, 1.0]


def softmax(logits):
    total = sum(map(math.exp, logits))
    return [math.exp(logit) / total for logit in logits]


def projected(values, probs):
    def share(y, z):
        return max(1.0 - abs(min(max(y, -1.0), 1.0) - z), 0.0)

    return [sum(p * share(y, z) for y, p in zip(values, probs, strict=True)) for z in SUPPORT]


def cross_entropy(target, logits):
    return -sum(m * math.log(p) for m, p in zip(target, softmax(logits), strict=True))


def divergence(target, logits):
    return sum(m * math.log(m / p) for m, p in zip(target, softmax(logits), strict=True) if m > 0)


def close(found, *expected):
    assert found.tolist() == pytest.approx(list(expected), abs=1e-6)


c51_rows = partial(categorical_td, gamma=GAMMA, v_min=-1.0, v_max=1.0)


def test_categorical_td():
    rows, columns = c51_rows(made(CRITIC, TARGET), ROWS)
    probs = softmax([2 * x for x in TARGET[1]])
    values = [0.25 + GAMMA * z for z in SUPPORT]  # -0.65, 0.25 and 1.15, beyond the largest atom
    first, second = projected(values, probs), projected([-0.5], [1.0])
    logits = [0.5 * x for x in CRITIC[1]], [-1.0 * x for x in CRITIC[0]]
    close(rows, cross_entropy(first, logits[0]), cross_entropy(second, logits[1]))
    close(columns["error"], divergence(first, logits[0]), divergence(second, logits[1]))
    close(columns["q"], *(softmax(each)[2] - softmax(each)[0] for each in logits))
    close(columns["clipped"], probs[2], 0.0)


def test_categorical_td_of_several_steps():
    rows = {**ROWS, "reward": doubles([0.25, 0.5, 0.0], [-0.5, 0.0, 0.0]), "steps": tensor([2, 1])}
    found, _ = c51_rows(made(CRITIC, TARGET), rows)
    values = [0.25 + GAMMA * 0.5 + GAMMA**2 * z for z in SUPPORT]
    first = projected(values, softmax([2 * x for x in TARGET[1]]))
    close(found, cross_entropy(first, [0.5 * x for x in CRITIC[1]]), cross_entropy([0.5, 0.5, 0.0], [-1.0, 0.0, 1.0]))


def test_truncation_bootstraps():
    rows = {**ROWS, "truncated": tensor([True, True]), "terminated": tensor([False, False])}
    torch.testing.assert_close(c51_rows(made(CRITIC, TARGET), rows)[0][0], c51_rows(made(CRITIC, TARGET), ROWS)[0][0])
    found, _ = c51_rows(made(CRITIC, TARGET), rows)
    target = projected([-0.5 + GAMMA * z for z in SUPPORT], softmax([3 * x for x in TARGET[1]]))
    close(found[1:], cross_entropy(target, [-1.0, 0.0, 1.0]))


def test_double_takes_the_action_of_the_network():
    # Of the network's actions the second has the larger mean at x > 0: with the other table it is the first.
    nets = made(CRITIC[::-1], TARGET)
    expected = partial(expectation, v_min=-1.0, v_max=1.0)
    assert expected(nets["critic"](ROWS["next_obs"])).argmax(-1).tolist() == [0, 0]
    found, _ = c51_rows(nets, ROWS, next_value=value_of_greedy)
    target = projected([0.25 + GAMMA * z for z in SUPPORT], softmax([2 * x for x in TARGET[0]]))
    close(found[:1], cross_entropy(target, [0.5 * x for x in CRITIC[0]]))


def masked(*allowed):
    mask = tensor(allowed)
    return {**ROWS, **{key: {"x": ROWS[key], "action_mask": mask} for key in ("obs", "next_obs")}}


def test_a_forbidden_action_is_not_bootstrapped_from():
    rows = masked([True, False], [True, True])
    found, _ = c51_rows(made(CRITIC, TARGET), rows)
    target = projected([0.25 + GAMMA * z for z in SUPPORT], softmax([2 * x for x in TARGET[0]]))
    close(found[:1], cross_entropy(target, [0.5 * x for x in CRITIC[1]]))
    found, _ = quantile_td(made(CRITIC, TARGET), rows, GAMMA, regression=lambda p, t: t.sum(-1))
    close(found[:1], sum(0.25 + GAMMA * 2 * theta for theta in TARGET[0]))
    action, _, _ = greedy(made(TARGET, CRITIC), rows["next_obs"], None, None, mean_of_quantiles)
    assert action.tolist() == [0, 1]


def quantile_row(prediction, target):
    total = 0.0
    for i, theta in enumerate(prediction):
        for y in target:
            u = y - theta
            loss = u * u / 2 if abs(u) <= 1 else abs(u) - 0.5
            total += abs((i + 0.5) / len(prediction) - (u < 0)) * loss / len(target)
    return total


def test_quantile_td():
    rows, columns = quantile_td(made(CRITIC, TARGET), ROWS, GAMMA)
    target = [0.25 + GAMMA * 2 * theta for theta in TARGET[1]]
    prediction = [0.5 * x for x in CRITIC[1]], [-1.0 * x for x in CRITIC[0]]
    close(rows, quantile_row(prediction[0], target), quantile_row(prediction[1], [-0.5] * 3))
    gaps = [sum(abs(t - p) for t, p in zip(*pair, strict=True)) / 3 for pair in
            ((target, prediction[0]), ([-0.5] * 3, prediction[1]))]  # fmt: skip
    close(columns["error"], *gaps)
    close(columns["q"], *(sum(p) / 3 for p in prediction))


def test_quantile_td_of_several_steps():
    rows = {**ROWS, "reward": doubles([0.25, 0.5, 0.0], [-0.5, 0.0, 0.0]), "steps": tensor([2, 1])}
    found, _ = quantile_td(made(CRITIC, TARGET), rows, GAMMA)
    target = [0.25 + GAMMA * 0.5 + GAMMA**2 * 2 * theta for theta in TARGET[1]]
    close(found[:1], quantile_row([0.5 * x for x in CRITIC[1]], target))


def test_the_error_of_a_right_distribution_is_nothing():
    """With gamma 1 and no reward a network that is its own target predicts its target, with a loss that is not 0."""
    rows = {**ROWS, "obs": ROWS["next_obs"], "reward": doubles(0.0, 0.0), "terminated": tensor([False, False])}
    rows["action"] = tensor([1, 1])
    found, columns = categorical_td(made(TARGET, TARGET), rows, 1.0, -1.0, 1.0)
    assert (found > 0.5).all()
    assert (columns["error"] >= 0).all()
    close(columns["error"], 0.0, 0.0)
    found, columns = quantile_td(made(TARGET, TARGET), rows, 1.0)
    assert (found > 0.05).all()
    close(columns["error"], 0.0, 0.0)


def test_dueling_of_each_atom():
    critic = DuelingCritic(TWO, 2, (), "relu", None, atoms=3).double()
    with torch.no_grad():
        critic.mlp.layers[-1].weight.copy_(torch.arange(9.0)[:, None])
        critic.mlp.layers[-1].bias.zero_()
    # V = (0, 1, 2), A = (3, 4, 5) and (6, 7, 8), mean A = (4.5, 5.5, 6.5)
    assert critic(doubles([1.0])).tolist() == [[[-1.5, -0.5, 0.5], [1.5, 2.5, 3.5]]]


@pytest.mark.parametrize("base", [dqn, c51, qr_dqn])
def test_dueling_keeps_the_shape(base):
    plain, other = (Learner(a, spec("discrete")).nets for a in (base(hidden=(8,)), dueling(base(hidden=(8,)))))
    obs = torch.zeros(5, 4)
    assert plain["critic"](obs).shape == other["critic"](obs).shape
    assert isinstance(other["target_critic"], DuelingCritic)


@pytest.mark.parametrize("base", [td3, sac_discrete])
def test_dueling_fits_no_other(base):
    with pytest.raises(
        ValueError, match=r"dueling does not fit .*: it changes the plain network of dqn, c51 or qr-dqn"
    ):
        dueling(base())
    with pytest.raises(KeyError, match="next_value"):
        double(base())


def test_the_atoms_lie_where_they_were_asked_for():
    logits = torch.full((1, 2, 5), -100.0)
    logits[0, 0, 0] = logits[0, 1, 3] = 100.0
    assert expectation(logits, -4.0, 4.0).tolist() == [[-4.0, 2.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"atoms": 1}, "atoms is 1; it must be larger than 1"),
        ({"v_min": 3.0, "v_max": 3.0}, "v_max is 3.0; it must be larger than 3"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"exploration": -0.1}, "exploration is -0.1"),
        ({"updates": 0}, "updates is 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        c51(**settings)


def test_quantiles_are_checked():
    with pytest.raises(ValueError, match="quantiles is 0; it must be larger than 0"):
        qr_dqn(quantiles=0)
    with pytest.raises(Unfit, match="try sac or td3"):
        Learner(qr_dqn(), spec("continuous"))


def chances(update, rows=128):
    """Every action ends its episode: the first pays 0, the second 3 with probability 0.3 and else -1."""
    rng = torch.Generator().manual_seed(update)
    action = torch.randint(2, (rows,), generator=rng)
    paid = torch.where(torch.rand(rows, generator=rng) < 0.3, 3.0, -1.0)
    obs = torch.ones(rows, 1)
    return {
        "obs": obs, "next_obs": obs, "action": action, "reward": torch.where(action == 1, paid, 0.0),
        "terminated": torch.ones(rows, dtype=torch.bool), "truncated": torch.zeros(rows, dtype=torch.bool),
    }  # fmt: skip


def learnt(algorithm, updates=400):
    learner = Learner(algorithm, TWO)
    for update in range(updates):
        learner.update({"replay": chances(update)})
    return learner, learner.nets["critic"](torch.ones(1, 1)).detach()[0]


def test_c51_learns_the_distribution():
    learner, logits = learnt(c51(hidden=(16,), lr=0.01, atoms=9, v_min=-4.0, v_max=4.0))
    sure, chance = logits.softmax(-1).tolist()
    assert sure[4] > 0.97
    assert chance[3] == pytest.approx(0.7, abs=0.06)
    assert chance[7] == pytest.approx(0.3, abs=0.06)
    assert learner.deployed()(learner.nets, torch.ones(1, 1), None, None)[0].tolist() == [1]  # worth 0.2


def test_qr_dqn_learns_the_distribution():
    learner, (sure, chance) = learnt(qr_dqn(hidden=(16,), lr=0.01, quantiles=10))
    assert sure.abs().max() < 0.1
    # Where the gradient is 0, with Huber's loss quadratic towards the nearer of -1 and 3: at the quantile tau,
    # 0.7 (1 - tau) (theta + 1) = 0.3 tau, or 0.7 (1 - tau) = 0.3 tau (3 - theta).
    tau = [(i + 0.5) / 10 for i in range(10)]
    expected = [-1 + 0.3 * t / (0.7 * (1 - t)) if t < 0.7 else 3 - 0.7 * (1 - t) / (0.3 * t) for t in tau]
    assert chance.tolist() == pytest.approx(expected, abs=0.15)
    assert learner.deployed()(learner.nets, torch.ones(1, 1), None, None)[0].tolist() == [1]


def test_batches_of_masked_worlds_stay_finite():
    for base in ("c51", "qr-dqn"):
        learner = Learner((c51 if base == "c51" else qr_dqn)(hidden=(8,)), spec("masked"))
        for batch in batches(small(base), "masked"):
            metrics, columns = learner.update(batch)
            assert all(v.isfinite().all() for v in (*metrics.values(), *columns["replay"].values()))
