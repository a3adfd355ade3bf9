"""PPO's equations against numbers worked out by hand, and that a rollout is learnt from as it should be."""

import copy
import math
import pickle
from dataclasses import replace
from functools import partial
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn, tensor

from palaestra.algorithm import Nets
from palaestra.algorithms.ppo import (
    annealed_clip,
    clipped_surrogate,
    clipped_value,
    clipped_value_error,
    credit,
    drifted,
    evaluated,
    negative_entropy,
    ppo,
    raw_advantage,
    standardised,
    value_error,
)
from palaestra.batch import Space, Spec
from palaestra.functional.schedules import linear
from palaestra.learner import Learner, build
from palaestra.loops.online import Online
from tests.parts.worlds import make, spec

ONE = Spec(Space((1,)), Space((1,)))
SMALL = {"hidden": (16, 16), "collect": 8, "minibatches": 2, "epochs": 2}


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, obs):
        return self.function(obs)


def doubles(*numbers):
    return tensor(numbers, dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------- equations

RATIOS = [0.5, 0.9, 1.1, 1.5]


@pytest.mark.parametrize("advantage", [2.0, -3.0])
def test_surrogate_and_where_its_gradient_is_zero(advantage):
    """A better action is not rewarded beyond 1.2, a worse one not below 0.8; the way back is always open."""
    old = doubles(-1.0, -0.5, -2.0, 0.3)
    logp = (old + doubles(*RATIOS).log()).requires_grad_()
    batch = {"logp": logp, "old_logp": old, "advantage": torch.full_like(old, advantage)}
    rows, columns = clipped_surrogate(Nets(ONE), batch, clip=0.2)
    used = [0.5, 0.9, 1.1, 1.2] if advantage > 0 else [0.8, 0.9, 1.1, 1.5]
    assert rows.tolist() == pytest.approx([-ratio * advantage for ratio in used], abs=1e-12)
    (gradient,) = torch.autograd.grad(rows.sum(), logp)
    expected = [-r * advantage if r == u else 0.0 for r, u in zip(RATIOS, used, strict=True)]
    assert gradient.tolist() == pytest.approx(expected, abs=1e-12)
    assert columns["kl"].tolist() == pytest.approx([r - 1 - math.log(r) for r in RATIOS], abs=1e-12)
    assert columns["clipped"].tolist() == [True, False, False, True]


def test_a_clip_may_be_scheduled():
    nets = Nets(ONE)
    nets.clock.env_steps.fill_(50)
    batch = {"logp": doubles(math.log(1.5)), "old_logp": doubles(0.0), "advantage": doubles(1.0)}
    rows, _ = clipped_surrogate(nets, batch, clip=linear(0.4, 0.0, 100))
    assert rows.tolist() == pytest.approx([-1.2], abs=1e-6)
    term = annealed_clip(ppo(clip=0.4), steps=100).losses["actor_critic"].terms["surrogate"]
    assert term.value(nets, batch)[0].tolist() == pytest.approx([-1.2], abs=1e-6)


def test_value_errors():
    b = {"value": doubles(1.0, 3.0, 1.1), "lambda_return": doubles(2.0, 2.0, 2.0), "old_value": doubles(1.0, 1.0, 1.0)}
    rows, columns = value_error(Nets(ONE), b)
    assert rows.tolist() == pytest.approx([0.5, 0.5, 0.5 * 0.81], abs=1e-12)
    assert columns["value"] is b["value"]
    # the second moved by 2 and is held at 1.5: the larger error is its own; the first has not moved
    assert clipped_value_error(Nets(ONE), b, 0.5)[0].tolist() == pytest.approx([0.5, 0.5, 0.5 * 0.81], abs=1e-12)
    b["value"] = doubles(1.0, 1.9, 4.0).requires_grad_()  # nearer than 1.5 is not rewarded; farther is punished
    rows, _ = clipped_value_error(Nets(ONE), b, 0.5)
    assert rows.tolist() == pytest.approx([0.5, 0.125, 2.0], abs=1e-12)
    assert torch.autograd.grad(rows.sum(), b["value"])[0].tolist() == pytest.approx([-1.0, 0.0, 2.0], abs=1e-12)


def test_entropy_is_rewarded():
    rows, columns = negative_entropy(Nets(ONE), {"entropy": doubles(0.7)})
    assert rows.tolist() == [-0.7]
    assert columns["entropy"].tolist() == [0.7]


@pytest.mark.parametrize("term", [partial(clipped_surrogate, clip=0.2), value_error, negative_entropy])
def test_terms_take_steps_of_rows(term):
    names = ("logp", "old_logp", "advantage", "value", "lambda_return", "entropy")
    rng = torch.Generator().manual_seed(0)
    flat = {name: torch.randn(6, generator=rng) for name in names}
    rows, _ = term(Nets(ONE), flat)
    steps, _ = term(Nets(ONE), {name: column.view(2, 3) for name, column in flat.items()})
    assert torch.equal(steps, rows.view(2, 3))


def test_credit_by_hand():
    """Two environments, two steps: the first is truncated after one, the second terminates after one."""
    nets = Nets(ONE)
    nets["critic"] = Function(lambda obs: obs.squeeze(-1) * 10)
    steps = {
        "obs": tensor([[[0.1], [0.2]], [[0.3], [0.4]]]),
        "next_obs": tensor([[[0.5], [0.6]], [[0.7], [0.8]]]),
        "reward": tensor([[1.0, 2.0], [3.0, 4.0]]),
        "terminated": tensor([[False, True], [False, False]]),
        "truncated": tensor([[True, False], [False, False]]),
    }
    found = credit(nets, steps, gamma=0.5, lam=0.5)
    assert torch.allclose(found["old_value"], tensor([[1.0, 2.0], [3.0, 4.0]]))
    expected = tensor([[1 + 0.5 * 5 - 1, 2.0 - 2], [3 + 0.5 * 7 - 3, 4 + 0.5 * 8 - 4]])
    assert torch.allclose(found["advantage"], expected, atol=1e-6)
    assert torch.allclose(found["lambda_return"], expected + found["old_value"], atol=1e-6)


def test_advantages_of_a_minibatch_are_standardised():
    rng = torch.Generator()
    advantage = torch.randn(64, generator=rng) * 5 + 3
    found = standardised(Nets(ONE), {"advantage": advantage}, rng)["advantage"]
    assert found.mean().abs() < 1e-6
    assert found.std().item() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(found.argsort(), advantage.argsort())
    alone = {"advantage": tensor([7.0])}
    assert standardised(Nets(ONE), alone, rng)["advantage"].tolist() == [7.0]
    same = standardised(Nets(ONE), {"advantage": torch.full((4,), 7.0)}, rng)["advantage"]
    assert same.tolist() == [0.0] * 4
    assert not raw_advantage(ppo()).losses["actor_critic"].transforms


def test_minibatches_of_one_row_stay_finite():
    run = Online(ppo(hidden=(8,), collect=2, minibatches=4, epochs=1), make("discrete"))
    run.advance()
    assert run.learner.updates == 4
    assert all(value.isfinite().all() for value in run.learner.nets.state_dict().values())


# ---------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("world", ["continuous", "discrete"])
def test_orthogonal_initialisation(world):
    nets = build(ppo(hidden=(16, 16)), spec(world), 0)
    for name, head in (("actor", 0.01), ("critic", 1.0)):
        layers = list(nets[name].mlp.layers)
        for layer, gain in zip(layers, (2**0.5, 2**0.5, head), strict=True):
            weight = layer.weight if layer.out_features <= layer.in_features else layer.weight.T
            assert torch.allclose(weight @ weight.T, torch.eye(len(weight)) * gain**2, atol=1e-5)
            assert not layer.bias.any()
    if world == "continuous":
        assert nets["actor"].log_std.tolist() == [0.0, 0.0]


def test_an_encoder_that_is_passed_stays_as_it_is():
    class Fixed(nn.Linear):
        size = 3

    def encoder(space):
        layer = Fixed(*space.shape, 3)
        nn.init.constant_(layer.weight, 0.25)
        return layer

    nets = build(ppo(hidden=(8,), encoder=encoder), spec("discrete"), 0)
    assert (nets["actor"].encoder.weight == 0.25).all()
    images = build(ppo(hidden=(8,)), spec("image"), 0)
    project = images["actor"].encoder.project
    assert not project.bias.any()


# ------------------------------------------------------------------------------------------------------- in a run


def first_minibatch(run):
    """Collect once, and draw."""
    a, nets = run.algorithm, run.learner.nets
    steps = a.collect(nets, run.policy, run.source, 20, run.acting)
    for transform in run.transforms:
        steps = transform.fn(nets, steps, run.changing)
    run.rollouts["rollout"].insert({**steps, **a.advantage(nets, steps)})
    return next(iter(run.rollouts["rollout"].minibatches(4, run.drawing)))


@pytest.mark.parametrize("world", ["continuous", "discrete", "masked", "image", "privileged"])
def test_the_first_ratio_is_one(world):
    run = Online(ppo(**SMALL, lr=1e-2), make(world))
    for _ in range(3):  # also once it has learnt
        run.advance()
    batch = first_minibatch(run)
    with torch.no_grad():
        now = evaluated(run.learner.nets, batch)
    # one row at a time rounds otherwise than many
    assert torch.allclose(now["logp"], batch["old_logp"], atol=2e-6)
    assert torch.allclose(now["value"], batch["old_value"], atol=2e-6)
    _, given = run.learner.update({"rollout": batch})
    assert given["rollout"]["kl"].abs().max() < 1e-6
    assert not given["rollout"]["clipped"].any()
    _, given = run.learner.update({"rollout": batch})
    assert given["rollout"]["kl"].max() > 1e-6


class Bounded(gym.Env):
    """Remembers its actions, which are between 2 and 6."""

    observation_space = Box(-1.0, 1.0, (1,))
    action_space = Box(2.0, 6.0, (1,))
    seen: ClassVar[list[float]] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.seen.append(float(action[0]))
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_what_is_learnt_from_is_not_clipped_and_what_is_done_is():
    Bounded.seen.clear()
    run = Online(ppo(**SMALL), SyncVectorEnv([Bounded], autoreset_mode=AutoresetMode.DISABLED))
    steps = run.algorithm.collect(run.learner.nets, run.policy, run.source, 200, run.acting)
    drawn = steps["action"][:, 0, 0]
    assert drawn.abs().max() > 1.5  # a third of a normal draw is outside of [-1, 1]
    assert Bounded.seen == pytest.approx((4 + 2 * drawn.clamp(-1, 1)).tolist(), abs=1e-6)
    expected = -0.5 * drawn**2 - 0.5 * math.log(2 * math.pi)  # the mean is nearly 0, the deviation 1
    assert torch.allclose(steps["old_logp"][:, 0], expected, atol=0.05)


def test_only_what_is_allowed_is_drawn():
    run = Online(ppo(**SMALL), make("masked"))
    steps = run.algorithm.collect(run.learner.nets, run.policy, run.source, 200, run.acting)
    allowed = steps["obs"]["action_mask"].bool()
    assert not allowed.all()
    assert allowed.gather(-1, steps["action"].unsqueeze(-1)).all()


def test_without_a_generator_it_acts_most_likely():
    for world in ("continuous", "discrete"):
        run = Online(ppo(**SMALL), make(world))
        policy, nets = run.learner.deployed(), run.learner.nets
        distribution = nets["actor"](run.source.obs)
        action, columns, _ = policy(nets, run.source.obs, None, None)
        assert torch.equal(action, distribution.mean if world == "continuous" else distribution.log_probs.argmax(-1))
        assert torch.equal(columns["old_logp"], distribution.log_prob(action))


def test_drift_ends_the_passes():
    def updates(target_kl):
        run = Online(ppo(**{**SMALL, "epochs": 10}, lr=1e-2, target_kl=target_kl), make("continuous"))
        run.advance()
        return run.learner.updates, run.metrics["rollout/kl"].mean().item()

    assert updates(None)[0] == updates(1e6)[0] == 20
    count, kl = updates(0.01)
    assert 1 < count < 20
    assert kl > 0.01
    assert updates(1e-7)[0] == 2  # the first update has not drifted: it is asked after each
    stop = pickle.loads(pickle.dumps(ppo(target_kl=0.5).schedule.stop))
    assert [stop({"rollout/kl": tensor(kl)}) for kl in ([0.4, 0.5], [0.4, 0.7])] == [False, True]
    assert stop.func is drifted


def test_the_learning_rate_falls_to_nothing():
    run = Online(ppo(**SMALL, lr=1e-2, anneal_steps=48), make("discrete"))
    rates, before = [], None
    for _ in range(3):
        before = copy.deepcopy(run.learner.nets.state_dict())
        run.advance()
        rates.append(float(run.learner.optimisers["actor_critic"].param_groups[0]["lr"]))
    assert rates == pytest.approx([1e-2 * 2 / 3, 1e-2 / 3, 0.0], abs=1e-8)
    after = run.learner.nets.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after if "clock" not in name)


def test_the_optimiser_is_the_papers():
    learner = Learner(ppo(hidden=(8,)), spec("discrete"))
    assert learner.optimisers["actor_critic"].param_groups[0]["eps"] == 1e-5
    assert ppo().losses["actor_critic"].clip_norm == 0.5


@pytest.mark.parametrize(
    "wrong", [{"clip": 0.0}, {"gamma": 1.5}, {"lam": -0.1}, {"collect": 0}, {"epochs": 0}, {"anneal_steps": 0}]
)
def test_settings_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} is "):
        ppo(**wrong)


# -------------------------------------------------------------------------------------------------- neutral elements


@pytest.mark.parametrize("world", ["continuous", "discrete"])
def test_one_pass_is_the_policy_gradient(world):
    """With one minibatch, raw advantages and no other term, the gradient is that of `-mean(A log pi)`."""
    algorithm = raw_advantage(ppo(hidden=(16, 16), clip=1e6, value_coefficient=0.0, minibatches=1, clip_norm=None))
    run = Online(algorithm, make(world), seeds=(1,))
    batch = first_minibatch(run)
    nets = copy.deepcopy(run.learner.nets)
    run.learner.update({"rollout": batch})
    loss = -(nets["actor"](batch["obs"]).log_prob(batch["action"]) * batch["advantage"]).mean()
    expected = torch.autograd.grad(loss, list(nets["actor"].parameters()))
    assert max(each.abs().max() for each in expected) > 1e-3
    for parameter, gradient in zip(run.learner.nets["actor"].parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
    assert not any(parameter.grad.any() for parameter in run.learner.nets["critic"].parameters())


def trained(algorithm, world="discrete"):
    run = Online(algorithm, make(world))
    for _ in range(3):
        run.advance()
    return run.learner.nets.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_wide_clip_of_the_value_is_none():
    base = trained(ppo(**SMALL))
    assert_same(trained(clipped_value(ppo(**SMALL), clip=1e6)), base)
    narrow = trained(clipped_value(ppo(**SMALL), clip=1e-3))
    assert any(not torch.equal(narrow[name], base[name]) for name in base)


def test_no_reward_for_entropy_is_no_term_for_it():
    algorithm = ppo(**SMALL)
    loss = algorithm.losses["actor_critic"]
    terms = {name: term for name, term in loss.terms.items() if name != "entropy"}
    assert_same(trained(replace(algorithm, losses={"actor_critic": replace(loss, terms=terms)})), trained(algorithm))
