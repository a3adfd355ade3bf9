"""The bases' equations, with tiny stand-in networks, against numbers worked out in plain Python in float64."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn, tensor

from palaestra.algorithm import Nets
from palaestra.algorithms.c51 import c51
from palaestra.algorithms.cql import cql_discrete
from palaestra.algorithms.dqn import dqn, greedy, optimal_td, value_of_greedy
from palaestra.algorithms.qr_dqn import qr_dqn
from palaestra.algorithms.sac import (
    entropy_gap,
    sac,
    sac_discrete,
    share_of_most_entropy,
    soft_expected_improvement,
    soft_expected_td,
    soft_improvement,
    soft_td,
    squashed_gaussian,
)
from palaestra.algorithms.td3 import first_critic, smoothed_td, td3
from palaestra.batch import Space, Spec
from palaestra.functional.targets import huber, squared
from palaestra.learner import Learner
from palaestra.networks.critics import DuelingCritic, Fixed, Positive, action_critic
from tests.parts.worlds import batches, small, spec

ONE = Spec(Space((1,)), Space((1,)))
THREE = Spec(Space((1,)), Space((), torch.int64, (3,)))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs, **options):
        return self.function(*inputs, **options)


def made(spec=ONE, **functions):
    nets = Nets(spec)
    for name, function in functions.items():
        nets[name] = function if isinstance(function, nn.Module) else Function(function)
    return nets


def doubles(*numbers):
    return tensor(numbers, dtype=torch.float64)


def column(*numbers):
    return doubles(*numbers)[:, None]


def linear(weights):
    """An ensemble `[E, B]` of `a * obs + b * action + c`."""

    def critic(obs, action, first=None):
        return torch.stack([(a * obs + b * action + c).squeeze(-1) for a, b, c in weights[:first]])

    return critic


# Two rows: a step that goes on, and one that terminates.
ROWS = {
    "obs": column(0.5, -1.0),
    "action": column(0.2, 0.8),
    "reward": doubles(1.0, -2.0),
    "terminated": tensor([False, True]),
    "next_obs": column(2.0, 3.0),
    "action_noise": column(0.7, -0.4),
}
CRITIC = [(1.0, 2.0, 0.0), (-1.0, 1.0, 0.5)]
TARGET = [(0.5, -1.0, 0.25), (0.25, 1.0, 0.0)]
GAMMA = 0.9


def q(weights, obs, action):
    return [a * obs + b * action + c for a, b, c in weights]


def close(found, *expected):
    assert found.tolist() == pytest.approx(list(expected), abs=1e-6)


def test_smoothed_td():
    nets = made(target_actor=lambda obs: 0.4 * obs, target_critic=linear(TARGET), critic=linear(CRITIC))
    rows, columns = smoothed_td(nets, ROWS, GAMMA, target_noise=0.2, target_clip=0.5)
    next_action = min(0.4 * 2.0 + 0.2 * 0.7, 1.0)
    y0 = 1.0 + GAMMA * min(q(TARGET, 2.0, next_action))
    y1 = -2.0
    q0, q1 = q(CRITIC, 0.5, 0.2), q(CRITIC, -1.0, 0.8)
    close(rows, sum((v - y0) ** 2 for v in q0), sum((v - y1) ** 2 for v in q1))
    close(columns["error"], abs(q0[0] - y0), abs(q1[0] - y1))
    close(columns["q"], q0[0], q1[0])
    rows, _ = smoothed_td(nets, ROWS, GAMMA, 0.2, 0.5, regression=huber)
    half = lambda e: e * e / 2 if abs(e) <= 1 else abs(e) - 0.5  # noqa: E731
    close(rows, sum(half(v - y0) for v in q0), sum(half(v - y1) for v in q1))


def test_targets_of_several_steps():
    nets = made(target_actor=lambda obs: 0.4 * obs, target_critic=linear(TARGET), critic=linear(CRITIC))
    batch = {**ROWS, "reward": doubles([1.0, 3.0, 0.0], [-2.0, 0.0, 0.0]), "steps": tensor([2, 1])}
    rows, _ = smoothed_td(nets, batch, GAMMA, 0.0, 0.0)
    y0 = 1.0 + GAMMA * 3.0 + GAMMA**2 * min(q(TARGET, 2.0, 0.8))
    close(rows, sum((v - y0) ** 2 for v in q(CRITIC, 0.5, 0.2)), sum((v + 2.0) ** 2 for v in q(CRITIC, -1.0, 0.8)))


@pytest.mark.parametrize("noise", [0.1, 1.0, 1e6])
@pytest.mark.parametrize("clip", [0.0, 0.5, 10.0])
def test_smoothing_stays_within_its_bounds(noise, clip):
    seen = []
    mean = torch.linspace(-1, 1, 200)[:, None]

    def target(obs, action):
        seen.append(action)
        return torch.zeros(1, len(action))

    nets = made(target_actor=lambda obs: mean, target_critic=target, critic=lambda obs, action: torch.zeros(1, 200))
    batch = {
        "obs": mean, "next_obs": mean, "action": mean, "reward": torch.zeros(200),
        "terminated": torch.zeros(200, dtype=torch.bool),
        "action_noise": torch.randn(200, 1, generator=torch.Generator().manual_seed(0)),
    }  # fmt: skip
    smoothed_td(nets, batch, GAMMA, noise, clip)
    (action,) = seen
    assert action.abs().max() <= 1.0
    assert ((action - mean).abs() <= clip + 1e-6).all()
    if clip:
        assert not torch.equal(action, mean)


def test_the_first_member_alone_is_that_of_the_ensemble():
    spec = Spec(Space((3,)), Space((2,)))
    critic = action_critic(3, (8,))(spec, Nets(spec))
    obs, action = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.ones(4, 2)
    torch.testing.assert_close(critic(obs, action, first=1), critic(obs, action)[:1])


def test_the_actor_climbs_the_first_critic_alone():
    actor = nn.Linear(1, 1, bias=False)
    rows = first_critic(made(actor=actor, critic=linear(CRITIC)), {"obs": tensor([[0.5], [-1.0]])})
    rows.sum().backward()
    assert rows.tolist() == pytest.approx([-(o + 2 * actor.weight.item() * o) for o in (0.5, -1.0)], abs=1e-6)
    assert actor.weight.grad.item() == pytest.approx(-2 * (0.5 - 1.0), abs=1e-6)


def density(mean, std, noise):
    """Of `tanh(u)`: the normal density of u over the derivative of tanh."""
    u = mean + std * noise
    return math.tanh(u), -0.5 * noise**2 - math.log(std) - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(u) ** 2)


def gaussian(obs):
    return 0.3 * obs, torch.full_like(obs, math.log(0.5))


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_soft_td(alpha):
    nets = made(
        actor=gaussian, critic=linear(CRITIC), target_critic=linear(TARGET), entropy_coefficient=Fixed(alpha).double()
    )
    rows, columns = soft_td(nets, ROWS, GAMMA)
    action, log_prob = density(0.3 * 2.0, 0.5, 0.7)
    y0 = 1.0 + GAMMA * (min(q(TARGET, 2.0, action)) - alpha * log_prob)
    q0, q1 = q(CRITIC, 0.5, 0.2), q(CRITIC, -1.0, 0.8)
    close(rows, sum((v - y0) ** 2 for v in q0), sum((v + 2.0) ** 2 for v in q1))
    close(columns["error"], abs(q0[0] - y0), abs(q1[0] + 2.0))


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_soft_improvement(alpha):
    nets = made(actor=gaussian, critic=linear(CRITIC), entropy_coefficient=Fixed(alpha).double())
    rows, columns = soft_improvement(nets, ROWS)
    drawn = [density(0.3 * obs, 0.5, noise) for obs, noise in ((0.5, 0.7), (-1.0, -0.4))]
    close(rows, *(alpha * lp - min(q(CRITIC, obs, a)) for (a, lp), obs in zip(drawn, (0.5, -1.0), strict=True)))
    close(columns["log_prob"], *(lp for _, lp in drawn))


@pytest.mark.parametrize("function", [soft_improvement, soft_expected_improvement])
def test_the_actors_loss_does_not_reach_the_entropy_coefficient(function):
    discrete = function is soft_expected_improvement
    nets = made(
        actor=(lambda obs: torch.log_softmax(obs * torch.ones(3), -1)) if discrete else gaussian,
        critic=(lambda obs: (obs * tensor([1.0, 2.0, 3.0]))[None]) if discrete else linear(CRITIC),
        entropy_coefficient=Positive(0.5),
    )
    rows, _ = function(nets, {**ROWS, "obs": ROWS["obs"].clone().requires_grad_()})
    rows.sum().backward()
    assert nets["entropy_coefficient"].log.grad is None


def test_entropy_gap():
    nets = made(entropy_coefficient=Positive(math.exp(0.5)))
    b = {"log_prob": tensor([-1.5, 0.25])}
    close(entropy_gap(nets, b, target_entropy=None), -0.5 * (-1.5 - 1.0), -0.5 * (0.25 - 1.0))
    close(entropy_gap(nets, b, target_entropy=2.0), -0.5 * (-1.5 + 2.0), -0.5 * (0.25 + 2.0))
    nets = made(THREE, entropy_coefficient=Positive(math.exp(0.5)))
    close(share_of_most_entropy(nets, b, share=0.5), *(-0.5 * (lp + 0.5 * math.log(3)) for lp in (-1.5, 0.25)))


def test_the_likeliest_action_is_the_tanh_of_the_mean():
    obs = torch.full((20_000, 1), 2.0)
    action, _, _ = squashed_gaussian(made(actor=gaussian), obs, None, None)
    assert action[0].item() == pytest.approx(math.tanh(0.6), abs=1e-6)
    drawn, _, _ = squashed_gaussian(made(actor=gaussian), obs, None, torch.Generator().manual_seed(0))
    u = drawn.atanh()
    assert u.mean().item() == pytest.approx(0.6, abs=4 * 0.5 / 20_000**0.5)
    assert u.std().item() == pytest.approx(0.5, abs=0.02)


CHOSEN = {**ROWS, "action": tensor([2, 0])}
VALUES, TARGETS = doubles(1.0, -2.0, 3.0), doubles(0.5, 4.0, -1.0)


def values(of):
    return lambda obs: obs * of


def test_optimal_td():
    nets = made(THREE, critic=values(VALUES), target_critic=values(TARGETS))
    rows, columns = optimal_td(nets, CHOSEN, GAMMA, regression=squared)
    y0, y1 = 1.0 + GAMMA * 2.0 * 4.0, -2.0  # the largest of the target's (1, 8, -2)
    close(rows, (0.5 * 3.0 - y0) ** 2, (-1.0 * 1.0 - y1) ** 2)
    close(columns["error"], abs(1.5 - y0), abs(-1.0 - y1))
    rows, _ = optimal_td(nets, CHOSEN, GAMMA)
    close(rows, abs(1.5 - y0) - 0.5, 0.5)  # Huber's loss, beyond and at its width


def test_double():
    nets = made(THREE, critic=values(VALUES), target_critic=values(TARGETS))
    rows, _ = optimal_td(nets, CHOSEN, GAMMA, next_value=value_of_greedy, regression=squared)
    y0 = 1.0 + GAMMA * 2.0 * -1.0  # the network's best is its third action, of which the target says -1
    close(rows, (0.5 * 3.0 - y0) ** 2, (-1.0 + 2.0) ** 2)


def masked(**columns):
    mask = tensor([[True, False, True], [True, True, False]])
    b = {**CHOSEN, **columns}
    return {**b, **{key: {"x": b[key], "action_mask": mask} for key in ("obs", "next_obs")}}


def test_masks():
    nets = made(THREE, critic=lambda obs: obs["x"] * VALUES, target_critic=lambda obs: obs["x"] * TARGETS)
    rows, _ = optimal_td(nets, masked(), GAMMA, regression=squared)
    y0 = 1.0 + GAMMA * 2.0 * 0.5  # of the target's (1, 8, -2) only the first and last are allowed
    close(rows, (1.5 - y0) ** 2, 1.0)
    assert greedy(nets, masked()["next_obs"], None, None)[0].tolist() == [2, 0]
    assert greedy(nets, masked(next_obs=column(-2.0, -3.0))["next_obs"], None, None)[0].tolist() == [0, 1]
    rows, _ = optimal_td(nets, masked(next_obs=column(-2.0, 1.0)), GAMMA, value_of_greedy, squared)
    close(rows, (1.5 - (1.0 + GAMMA * -2.0 * 0.5)) ** 2, 1.0)


def test_dueling():
    critic = DuelingCritic(THREE, 3, (), "relu", None).double()
    layer = critic.mlp.layers[-1]
    with torch.no_grad():
        layer.weight.copy_(column(2.0, 1.0, -1.0, 6.0))
        layer.bias.zero_()
    # V = 2 s, A = (s, -s, 6 s), mean A = 2 s
    assert critic(column(0.5)).tolist() == [[0.5, -0.5, 3.0]]
    assert critic(column(1.0)).mean().item() == 2.0  # the mean of Q is V


LOGITS = [0.1, 0.9, -0.4]


def log_softmax(logits):
    total = math.log(sum(map(math.exp, logits)))
    return [logit - total for logit in logits]


def two(a, b):
    return lambda obs: torch.stack((obs * a, obs * b))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_soft_expected_td(alpha):
    other = doubles(1.0, 1.0, 2.0)
    nets = made(
        THREE, actor=lambda obs: torch.log_softmax(obs * doubles(*LOGITS), -1), critic=two(VALUES, other),
        target_critic=two(TARGETS, other), entropy_coefficient=Fixed(alpha).double(),
    )  # fmt: skip
    rows, columns = soft_expected_td(nets, CHOSEN, GAMMA)
    lp = log_softmax([2.0 * x for x in LOGITS])
    least = [min(2 * t, 2 * o) for t, o in zip(TARGETS.tolist(), other.tolist(), strict=True)]
    y0 = 1.0 + GAMMA * sum(math.exp(p) * (v - alpha * p) for p, v in zip(lp, least, strict=True))
    close(rows, (1.5 - y0) ** 2 + (1.0 - y0) ** 2, (-1.0 + 2.0) ** 2 + (-1.0 + 2.0) ** 2)
    close(columns["error"], abs(1.5 - y0), 1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_soft_expected_improvement(alpha):
    nets = made(
        THREE, actor=lambda obs: torch.log_softmax(obs * doubles(*LOGITS), -1),
        critic=two(VALUES, doubles(1.0, 1.0, 2.0)), entropy_coefficient=Fixed(alpha).double(),
    )  # fmt: skip
    rows, columns = soft_expected_improvement(nets, CHOSEN)
    for i, obs in enumerate((0.5, -1.0)):
        lp = log_softmax([obs * x for x in LOGITS])
        least = [min(obs * v, obs * o) for v, o in zip((1.0, -2.0, 3.0), (1.0, 1.0, 2.0), strict=True)]
        expected = sum(math.exp(p) * (alpha * p - v) for p, v in zip(lp, least, strict=True))
        assert rows[i].item() == pytest.approx(expected, abs=1e-6)
        entropy = -sum(math.exp(p) * p for p in lp)
        assert columns["log_prob"][i].item() == pytest.approx(-entropy, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0, 1e3])
def test_actions_that_are_not_allowed_stay_out_of_every_number(alpha):
    learner = Learner(sac_discrete(hidden=(8,), entropy_coefficient=alpha), spec("masked"))
    given = batches(small("sac-discrete"), "masked")
    for batch in given:
        metrics, columns = learner.update(batch)
        assert all(value.isfinite().all() for value in (*metrics.values(), *columns["replay"].values()))
        assert (columns["replay"]["log_prob"] <= 0).all()
        assert (columns["replay"]["log_prob"] >= -math.log(3) - 1e-5).all()


# --------------------------------------------------------------------------------------------- what moves, and when


def snapshot(learner):
    return {name: [p.clone() for p in net.parameters()] for name, net in learner.nets.items()}


def moved(before, after):
    return {
        name for name in before if any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_policy_delay(delay):
    learner = Learner(td3(hidden=(8,), policy_delay=delay), spec("continuous"))
    for update in range(1, 8):
        before = snapshot(learner)
        metrics, _ = learner.update(batches(small("td3"), "continuous")[update % 4])
        everything = {"actor", "critic", "target_actor", "target_critic"}
        assert moved(before, snapshot(learner)) == (everything if update % delay == 0 else {"critic"})
        assert ("loss/actor" in metrics) is (update % delay == 0)


def test_targets_go_a_share_of_the_way():
    learner = Learner(td3(hidden=(8,), tau=0.25, policy_delay=1), spec("continuous"))
    before = snapshot(learner)
    learner.update(batches(small("td3"), "continuous")[0])
    after = snapshot(learner)
    for name in ("actor", "critic"):
        rows = zip(before[f"target_{name}"], after[name], after[f"target_{name}"], strict=True)
        assert all(torch.allclose(now, 0.75 * old + 0.25 * net, atol=1e-7) for old, net, now in rows)


def test_the_target_is_copied_every_so_many_updates():
    learner = Learner(dqn(hidden=(8,), target_every=4), spec("discrete"))
    target = snapshot(learner)["target_critic"]
    for update in range(1, 10):
        learner.update(batches(small("dqn"), "discrete")[update % 4])
        now = snapshot(learner)
        if update % 4 == 0:
            target = now["critic"]
        assert all(map(torch.equal, now["target_critic"], target))
        assert update % 4 == 0 or moved({"x": target}, {"x": now["critic"]})


@pytest.mark.parametrize("base", [dqn, c51, qr_dqn, cql_discrete])
def test_a_target_that_follows_goes_a_share_of_the_way(base):
    learner = Learner(base(hidden=(8,), target_every=2, tau=0.25), spec("discrete"))
    before = snapshot(learner)["target_critic"]
    for update in (1, 2):
        learner.update(batches(small("dqn"), "discrete")[update])
        after = snapshot(learner)
        expected = (
            before
            if update == 1
            else [0.75 * old + 0.25 * net for old, net in zip(before, after["critic"], strict=True)]
        )
        assert all(map(partial(torch.allclose, atol=1e-7), after["target_critic"], expected))
    with pytest.raises(ValueError, match=r"tau is 1\.5; it must be between 0 and 1"):
        base(tau=1.5)


@pytest.mark.parametrize(("target_entropy", "direction"), [(-50.0, -1), (50.0, 1)])
def test_the_entropy_coefficient_holds_an_entropy(target_entropy, direction):
    learner = Learner(sac(hidden=(8,), target_entropy=target_entropy), spec("continuous"))
    coefficients = [1.0]
    for n in range(4):
        learner.update(batches(small("sac"), "continuous")[n])
        coefficients.append(learner.nets["entropy_coefficient"]().item())
    steps = [b - a for a, b in pairwise(coefficients)]
    assert all(step * direction > 0 for step in steps)


@pytest.mark.parametrize(("share", "direction"), [(0.01, -1), (2.0, 1)])
def test_the_entropy_coefficient_of_discrete_actions(share, direction):
    learner = Learner(sac_discrete(hidden=(8,), target_entropy_share=share), spec("discrete"))
    learner.update(batches(small("sac-discrete"), "discrete")[0])
    assert (learner.nets["entropy_coefficient"]().item() - 1.0) * direction > 0


def test_a_fixed_entropy_coefficient_stays():
    learner = Learner(sac(hidden=(8,), entropy_coefficient=0.3), spec("continuous"))
    learner.update(batches(small("sac"), "continuous")[0])
    assert learner.nets["entropy_coefficient"]().item() == pytest.approx(0.3)
    assert set(learner.optimisers) == {"critic", "actor"}
