"""Behaviour cloning: its losses by hand, and which episodes are the best."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import tensor

from palaestra.algorithm import Nets, Unfit
from palaestra.algorithms.bc import (
    EDGE,
    among_best,
    bc,
    gaussian_bc,
    imitated,
    negative_log_likelihood,
    percentile_bc,
    squared_distance,
)
from palaestra.data.dataset import Dataset
from palaestra.data.whole import episode_return
from palaestra.functional.distributions import Categorical, Normal
from palaestra.learner import Learner
from palaestra.loops.offline import Offline
from palaestra.networks.actors import BoundedNormalPolicy
from tests.algorithms.test_numbers import ONE, THREE, close, column, doubles, made
from tests.parts.worlds import batches, small, spec

TINY = {"hidden": (16,)}


def test_squared_distance():
    nets = made(actor=lambda obs: obs * doubles(1.0, -2.0))
    # actions (0.5, -1) and (-1, 2) of the actor
    rows = squared_distance(nets, {"obs": column(0.5, -1.0), "action": doubles([0.5, 0.0], [0.0, 1.0])})
    close(rows, (0.0 + 1.0) / 2, (1.0 + 1.0) / 2)


def test_negative_log_likelihood():
    nets = made(actor=lambda obs: Normal(0.4 * obs, torch.full_like(obs, math.log(0.5))))
    rows = negative_log_likelihood(nets, {"obs": column(0.5, -1.0), "action": column(0.6, 1.0)})
    constant = math.log(0.5) + 0.5 * math.log(2 * math.pi)
    close(rows, 0.5 * (0.4 / 0.5) ** 2 + constant, 0.5 * ((EDGE + 0.4) / 0.5) ** 2 + constant)


def test_discrete_actions_are_cloned_by_the_cross_entropy():
    p = doubles([0.2, 0.3, 0.5], [0.1, 0.8, 0.1])
    nets = made(THREE, actor=lambda obs: Categorical(p.log()))
    b = {"obs": column(0.0, 0.0), "action": tensor([2, 0])}
    close(squared_distance(nets, b), -math.log(0.5), -math.log(0.1))
    assert imitated(nets, b["obs"], None, None)[0].tolist() == [2, 1]


def test_the_actor_is_bounded():
    actor = BoundedNormalPolicy(ONE, hidden=(4,), activation="relu", encoder=None)
    with torch.no_grad():
        actor.log_std.fill_(9.0)
        actor.mlp.layers[-1].bias.fill_(50.0)
    mean, log_std = actor(torch.zeros(3, 1))
    assert (mean == 1.0).all()
    assert (log_std == 2.0).all()
    nets = Nets(ONE)
    nets["actor"] = actor
    drawn, _, _ = imitated(nets, torch.zeros(1000, 1), None, torch.Generator().manual_seed(0))
    assert drawn.min() == -1.0
    assert drawn.max() == 1.0
    with torch.no_grad():
        actor.log_std.fill_(-9.0)
    assert (actor(torch.zeros(3, 1)).log_std == -5.0).all()


def test_a_gaussian_finds_the_mean_and_the_deviation_of_the_actions():
    rng = torch.Generator().manual_seed(0)
    action = 0.3 + 0.1 * torch.randn(512, 1, generator=rng)
    batch = {"obs": torch.zeros(512, 1), "action": action}
    learner = Learner(gaussian_bc(lr=2e-2, hidden=(8,)), ONE)
    for _ in range(400):
        learner.update({"replay": batch})
    mean, log_std = learner.nets["actor"](torch.zeros(1, 1))
    assert mean.item() == pytest.approx(action.mean().item(), abs=5e-3)
    assert log_std.exp().item() == pytest.approx(action.std().item(), rel=0.05)
    assert learner.deployed()(learner.nets, torch.zeros(1, 1), None, None)[0].item() == mean.item()


def test_spaces():
    for base, world in ((bc, "continuous"), (bc, "discrete"), (bc, "masked"), (gaussian_bc, "continuous")):
        Learner(base(**TINY), spec(world))
    with pytest.raises(Unfit, match="continuous"):
        Learner(gaussian_bc(**TINY), spec("discrete"))


# ----------------------------------------------------------------------------------------------- the best episodes

LENGTHS, RETURNS = (1, 3, 2, 4), (5.0, 3.0, 3.0, -1.0)  # ten steps


def marked(percentile, lengths=LENGTHS, returns=RETURNS):
    """Which episodes are among the best. Their first step pays it all; the last slot's 99 is nobody's."""
    first = torch.cat([torch.arange(n + 1) == 0 for n in lengths])
    valid = torch.cat([torch.arange(n + 1) < n for n in lengths])
    paid = torch.repeat_interleave(tensor(returns), tensor(lengths) + 1)
    columns = {"first": first, "valid": valid, "reward": torch.where(first, paid, torch.where(valid, 0.0, 99.0))}
    columns = episode_return(None, columns, None)
    best = among_best(None, columns, None, percentile)["best"]
    return torch.stack([part.all() for part in best.split([n + 1 for n in lengths])]).tolist()


def test_the_best_episodes_hold_a_share_of_the_steps():
    assert marked(0.1) == [True, False, False, False]  # one step of ten, and the best has one
    assert marked(0.11) == [True, True, True, False]  # two steps are needed, and two episodes are equally good
    assert marked(0.6) == [True, True, True, False]
    assert marked(0.61) == [True] * 4
    assert marked(1.0) == [True] * 4
    assert marked(1e-9) == [True, False, False, False]
    # 0.1 * 30 is 3.0000000000000004 in floating point: three steps, all the same
    assert marked(0.1, (3, 27), (1.0, 0.0)) == [True, False]
    assert marked(0.1, (27, 3), (1.0, 0.0)) == [True, False]


def logged(lengths=(4, 4, 2), returns=(0.0, 1.0, 2.0), actions=(-0.5, 0.5, 0.9)):
    """Episodes that each do one thing throughout, and are paid at their end."""
    slots = np.concatenate([np.full(n + 1, i) for i, n in enumerate(lengths)])
    last = np.cumsum(np.array(lengths) + 1) - 2
    columns = {
        "obs": np.zeros((len(slots), 1), np.float32),
        "action": np.array(actions, np.float32)[slots][:, None],
        "reward": np.zeros(len(slots), np.float32),
        "terminated": np.zeros(len(slots), bool),
        "truncated": np.zeros(len(slots), bool),
    }
    columns["reward"][last] = returns
    columns["terminated"][last] = True
    box = gym.spaces.Box(-1.0, 1.0, (1,))
    return Dataset(columns, np.array(lengths), box, box)


def drawn(percentile, number=4000):
    run = Offline(percentile_bc(percentile, **TINY), logged())
    return run.replays["replay"].sample(number, torch.Generator().manual_seed(0), run.learner.clock)


@pytest.mark.parametrize(("percentile", "shares"), [(0.2, (0, 0, 1)), (0.5, (0, 2 / 3, 1 / 3)), (1.0, (0.4, 0.4, 0.2))])
def test_the_best_rows_are_drawn_alike_and_no_others(percentile, shares):
    batch = drawn(percentile)
    assert (batch["weight"] == 1).all()
    for action, share in zip((-0.5, 0.5, 0.9), shares, strict=True):
        found = (batch["action"] == action).float().mean().item()
        assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))


@pytest.mark.parametrize(("base", "cloned"), [(bc, 0.18), (percentile_bc, 0.9)])
def test_what_is_cloned(base, cloned):
    run = Offline(base(lr=1e-2, batch_size=64, **TINY), logged(), (0, 1))
    for _ in range(300):
        run.advance()
    # -0.5 and 0.5 four times each, 0.9 twice: their mean is 0.18. A tenth of the steps is one, of the best episode.
    for seed in (0, 1):
        nets = run.learner.nets_of(seed)
        assert nets["actor"](torch.zeros(1, 1)).item() == pytest.approx(cloned, abs=0.1 if base is bc else 0.01)


def test_an_update_of_the_best_is_one_of_bc():
    given = batches(small("bc"), "continuous")
    one, other = (Learner(algorithm, spec("continuous")) for algorithm in (bc(**TINY), percentile_bc(**TINY)))
    for batch in given:
        one.update(batch)
        other.update(batch)
    for left, right in zip(one.nets.parameters(), other.nets.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("percentile", [0.0, -0.1, 1.1])
def test_a_wrong_share(percentile):
    with pytest.raises(ValueError, match="percentile is"):
        percentile_bc(percentile)


def test_a_marked_buffer_without_the_column_draws_all():
    priority = percentile_bc().buffers["replay"].priority[0]

    class Store:
        def names(self):
            return ("obs",)

    assert priority.insert(Store(), torch.arange(3)).tolist() == [1, 1, 1]
