"""Acting on a window is reading it; what is asked for falls by what was paid; every valid step counts the same."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn, tensor

from palaestra.algorithm import Nets
from palaestra.algorithms.decision_transformer import (
    conditioned,
    continuing,
    decision_transformer,
    distance,
    return_conditioned,
)
from palaestra.batch import Space, Spec, each
from palaestra.data.dataset import from_episodes
from palaestra.evaluation.asked import AskedReturns
from palaestra.expression import parse
from palaestra.learner import Learner
from palaestra.loops.offline import Offline
from palaestra.networks.statistics import ReturnRange
from palaestra.optimisers import adamw
from palaestra.rollout.source import Source
from tests.parts.worlds import batches, small, spec

ONE = Box(-1, 1, (1,), np.float32)
SPEC = Spec(Space((3,)), Space((2,)))
THREE = Spec(Space((3,)), Space((), torch.int64, (3,)))


def built(algorithm, spec=SPEC):
    return Learner(algorithm, spec).nets


class Paying(gym.Env):
    """Episodes of `length` steps, each of which pays `reward`, or the action where that is None."""

    observation_space = action_space = ONE

    def __init__(self, length, reward=None):
        self.length, self.reward, self.step_number = length, reward, 0

    def reset(self, *, seed=None, options=None):
        self.step_number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.step_number += 1
        reward = float(action[0]) if self.reward is None else self.reward
        return np.zeros(1, np.float32), reward, self.step_number == self.length, False, {}


def paying(lengths, reward=None, mode=AutoresetMode.DISABLED):
    return SyncVectorEnv([partial(Paying, length, reward) for length in lengths], autoreset_mode=mode)


# ------------------------------------------------------------------------------------------------------- acting


@pytest.mark.parametrize("space", [SPEC, THREE])
def test_acting_step_by_step_is_reading_the_last_steps(space):
    """Of two environments, the second of which begins anew at its fifth step, for windows that are full and not."""
    nets = built(decision_transformer(length=4, size=16, layers=2, heads=2), space)
    with torch.no_grad():
        nets["actor"].head.weight.normal_(generator=torch.Generator().manual_seed(0))
    nets["returns"].measure(tensor([-3.0, 5.0]))
    rng = torch.Generator().manual_seed(1)
    memory, history = None, ([], [])
    for t in range(9):
        if t == 4:
            history[1].clear()
            memory = each(lambda m: m.masked_fill(tensor([False, True]).view(-1, *[1] * (m.dim() - 1)), 0), memory)
        obs = torch.randn(2, 3, generator=rng)
        paid = torch.zeros(2) if memory is None else memory["paid"]
        with torch.no_grad():
            action, _, memory = continuing(nets, obs, memory, None, length=4)
        assert memory["seen"].tolist() == [t + 1, t + 1 if t < 4 else t - 3]
        for i, steps in enumerate(history):
            steps.append({"return_to_go": (5.0 - paid[i]) / 5, "obs": obs[i], "action": action[i]})
            last = {key: torch.stack([step[key] for step in steps[-4:]])[None] for key in steps[0]}
            when = torch.arange(max(len(steps) - 4, 0), len(steps))[None]
            with torch.no_grad():
                said = nets["actor"](last["return_to_go"], last["obs"], last["action"], when)[0, -1]
            read = said.argmax() if space is THREE else said.tanh()
            torch.testing.assert_close(action[i], read, rtol=1e-4, atol=1e-5)
        memory["paid"] = memory["paid"] + torch.randn(2, generator=rng)


def test_the_target_stays_where_nobody_tells_rewards():
    nets = built(decision_transformer(length=3, size=8, layers=1))
    nets["returns"].measure(tensor([0.0, 7.0]))
    memory = None
    for _ in range(3):
        _, _, memory = continuing(nets, torch.zeros(1, 3), memory, None, length=3)
    assert memory["window"]["return_to_go"].tolist() == [[7.0, 7.0, 7.0]]


class Told(nn.Module):
    """An actor that writes down the number that it is given, and does nothing."""

    def __init__(self):
        super().__init__()
        self.numbers = []

    def forward(self, obs, number):
        self.numbers.append(number.tolist())
        return torch.zeros(len(number), 1)


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("unit", [None, 4.0])
def test_what_is_asked_for_falls_by_what_was_paid_in_the_networks_unit(mode, unit):
    """Returns from 2 to 10: half the range asks for 6. A step pays 1.5, the second environment's episodes are shorter.

    It plays its second episode, at the second target, beside the first one's first; and a third, that nobody counts.
    """
    nets = Nets(Spec(Space((1,)), Space((1,))))
    nets["actor"], nets["returns"] = Told(), ReturnRange(unit)
    nets["returns"].measure(tensor([2.0, 10.0, 3.0]))
    source = Source(paying((3, 2), 1.5, mode), 0)
    scores = AskedReturns((1.0, 0.5))(nets, conditioned, source)
    assert scores == {"episode_return": [4.5, 3.0], "episode_return at 0.5 of the range": [4.5, 3.0]}
    wanted = [[10.0, 10.0], [8.5, 8.5], [7.0, 6.0], [6.0, 4.5], [4.5, 6.0], [3.0, 4.5]]
    assert nets["actor"].numbers == [pytest.approx([n / (unit or 10.0) for n in row]) for row in wanted]


def test_where_a_step_only_resets_nothing_is_paid_or_forgotten_too_early():
    nets = Nets(Spec(Space((1,)), Space((1,))))
    nets["actor"], nets["returns"] = Told(), ReturnRange(1.0)
    nets["returns"].measure(tensor([0.0, 8.0]))
    AskedReturns((1.0, 0.5))(nets, conditioned, Source(paying((2,), 1.0, AutoresetMode.NEXT_STEP), 0))
    assert [number for (number,) in nets["actor"].numbers] == [8, 7, 6, 4, 3]  # at 6 the environment only resets


def test_each_seed_is_asked_for_its_own_datasets_returns():
    learner = Learner(return_conditioned(hidden=(8,)), Spec(Space((1,)), Space((1,))), (0, 1))
    for seed, high in ((0, 4.0), (1, 40.0)):
        learner.nets_of(seed)["returns"].measure(tensor([0.0, high]))
    source = Source(paying((1, 1, 1, 1), 1.0), (0, 1))
    seen = []

    def policy(nets, obs, memory, rng):
        seen.append(memory["paid"].tolist())
        return learner.deployed()(nets, obs, memory, rng)

    AskedReturns((1.0, 0.25))(learner.nets, policy, source)
    assert seen == [[0, 0, 0, 0], [3, 3, 30, 30]]


@pytest.mark.parametrize("targets", [(), (1.0, 1.0)])
def test_targets_are_some_and_each_once(targets):
    with pytest.raises(ValueError, match="give at least one, and each once"):
        decision_transformer(targets=targets)


def test_the_unit_of_returns():
    returns = ReturnRange(None)
    assert returns(tensor([3.0])).item() == 3.0  # nothing measured
    returns.measure(tensor([-8.0, 2.0]))
    assert (returns.low.item(), returns.high.item()) == (-8.0, 2.0)
    assert returns(tensor([-4.0])).item() == -0.5
    returns.measure(tensor([0.0, 0.0]))
    assert returns(tensor([3.0])).item() == 3.0


# ----------------------------------------------------------------------------------------------------- learning


def test_the_distance_by_hand():
    nets = Nets(SPEC)
    said = tensor([[0.0, 100.0]])  # tanh: 0 and 1
    assert distance(nets, said, {"action": tensor([[0.5, -1.0]])}).item() == pytest.approx((0.25 + 4) / 2)
    nets = Nets(THREE)
    said = tensor([[1.0, 3.0, 1.0]]).log()  # probabilities 1/5, 3/5, 1/5
    rows = {"obs": tensor([0.0]), "action": tensor([1])}
    assert distance(nets, said, rows).item() == pytest.approx(-np.log(3 / 5))
    rows["obs"] = {"action_mask": tensor([[True, True, False]])}  # 1/4, 3/4
    assert distance(nets, said, rows).item() == pytest.approx(-np.log(3 / 4))


@pytest.mark.parametrize("base", ["decision-transformer", "return-conditioned"])
def test_no_forbidden_action_is_taken(base):
    learner = Learner(parse(small(base)), spec("masked"))
    mask = tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    obs = {"position": torch.zeros(4, 4), "symbol": torch.zeros(4, dtype=torch.int64), "action_mask": mask}
    rng, memory = torch.Generator().manual_seed(0), None
    for _ in range(50):
        action, _, memory = learner.policy()(learner.nets, obs, memory, rng)
        assert action[:3].tolist() == [0, 1, 2]
        assert action[3] < 2


def windows():
    return batches(small("decision-transformer"), "continuous")[0]["replay"]


SMALL = {"size": 16, "length": 5, "warm_up": 4}


def test_every_valid_step_counts_the_same():
    batch = windows()
    lengths = batch["mask"].sum(1)
    assert lengths.min() < lengths.max() == 5
    learner = Learner(decision_transformer(**SMALL), spec("continuous"))
    returns = learner.nets["returns"](batch["return_to_go"])
    with torch.no_grad():
        said = learner.nets["actor"](returns, batch["obs"], batch["action"], batch["timestep"]).tanh()
    expected = (said - batch["action"]).square().mean(-1)[batch["mask"]].mean()
    metrics, _ = learner.update({"replay": batch})
    assert metrics["loss/actor"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_padded_changes_nothing():
    batch = windows()
    other = dict(batch)
    for name in ("obs", "action", "return_to_go"):
        mask = batch["mask"].view(*batch["mask"].shape, *[1] * (batch[name].dim() - 2))
        other[name] = torch.where(mask, batch[name], 3.0)
    learners = [Learner(decision_transformer(**SMALL), spec("continuous")) for _ in range(2)]
    for _ in range(3):
        metrics = [one.update({"replay": given})[0] for one, given in zip(learners, (batch, other), strict=True)]
        assert metrics[0]["loss/actor"].item() == pytest.approx(metrics[1]["loss/actor"].item(), rel=1e-5)
    for left, right in zip(*(one.nets.parameters() for one in learners), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_the_rate_rises_with_the_first_updates():
    learner = Learner(decision_transformer(**{**SMALL, "lr": 0.1}), spec("continuous"))
    rates = []
    for _ in range(6):
        learner.update({"replay": windows()})
        rates.append(learner.optimisers["actor"].param_groups[0]["lr"].item())
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_parameters_shrink_apart_from_the_gradient():
    """With no gradient Adam stands still, and the rest is `w * (1 - lr * weight_decay)`."""
    weight = nn.Parameter(tensor([2.0]))
    optimiser = adamw([weight], tensor(0.1), weight_decay=0.5)
    weight.grad = torch.zeros(1)
    optimiser.step()
    assert weight.item() == pytest.approx(2.0 * 0.95)


def test_an_episode_counts_by_its_length():
    """Of 1 and of 9 steps: one window in ten begins in the short one (4000 draws: deviation 0.005)."""
    episodes = [
        {
            "obs": np.zeros((length + 1, 1), np.float32),
            "action": np.full((length, 1), short, np.float32),
            "reward": np.ones(length, np.float32),
            "terminated": np.arange(length) == length - 1,
            "truncated": np.zeros(length, bool),
        }
        for length, short in ((1, 1.0), (9, 0.0))
    ]
    run = Offline(decision_transformer(**SMALL), from_episodes(episodes, ONE, ONE))
    batch = run.replays["replay"].sample(4_000, torch.Generator().manual_seed(0))
    assert batch["action"][:, 0].mean().item() == pytest.approx(0.1, abs=0.02)
    begins = 9 - batch["return_to_go"][:, 0]  # of the long one, from which it reads on to the end
    long = batch["action"][:, 0, 0] == 0
    assert torch.equal(batch["timestep"][long, 0], begins[long].long())
    assert torch.equal(batch["mask"][long].sum(1), (9 - begins[long].long()).clamp(max=5))


def logged_one_step_episodes(number=400):
    """Episodes of a step that pays its action."""
    action = np.random.default_rng(0).uniform(-1, 1, (number, 1, 1)).astype(np.float32)
    flags = {"terminated": np.ones(1, bool), "truncated": np.zeros(1, bool)}
    return from_episodes(
        [{"obs": np.zeros((2, 1), np.float32), "action": a, "reward": a[:, 0], **flags} for a in action], ONE, ONE
    )


WITHIN = (0.75, 0.5, 0.25)  # of the range from -1 to 1; at its ends no finite number has that tanh


@pytest.mark.parametrize(
    "algorithm",
    [
        decision_transformer(lr=3e-3, size=16, layers=1, length=2, warm_up=20, targets=WITHIN),
        return_conditioned(lr=3e-3, hidden=(32,), batch_size=64, targets=WITHIN),
    ],
    ids=str,
)
def test_it_reaches_what_it_is_asked_for(algorithm):
    run = Offline(algorithm, logged_one_step_episodes())
    for _ in range(300):
        run.advance()
    scores = run.evaluate(paying((1, 1)), 0)[0]
    found = [values[0] for values in scores.values()]
    assert found == pytest.approx([0.5, 0.0, -0.5], abs=0.15)


@pytest.mark.parametrize("base", ["decision-transformer", "return-conditioned"])
def test_stacked_seeds_are_scored_as_each_alone(base):
    together, *alone = (
        Offline(parse(small(base)), logged_one_step_episodes(), seeds) for seeds in ((0, 3), (0,), (3,))
    )
    for run in (together, *alone):
        for _ in range(5):
            run.advance()
    scores = together.evaluate(paying((3, 2) * 2), 0)
    for run, seed in zip(alone, (0, 3), strict=True):
        own = run.evaluate(paying((3, 2)), 0)[seed]
        assert list(own) == list(scores[seed]) == ["episode_return", "episode_return at 0.5 of the range"]
        assert all(scores[seed][name] == pytest.approx(own[name], abs=1e-4) for name in own)
    assert scores[0] != scores[3]
