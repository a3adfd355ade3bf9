"""Trajectory weighting: odds by hand, how often steps are drawn, and what stays as it was."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import tensor

from palaestra.algorithm import Nets, changed_parts
from palaestra.algorithms.bc import bc
from palaestra.algorithms.cql import cql
from palaestra.algorithms.dqn import dqn
from palaestra.algorithms.experience import prior_data, prioritised
from palaestra.algorithms.iql import iql
from palaestra.algorithms.normalisation import normalised_obs, normalised_return
from palaestra.algorithms.ppo import ppo
from palaestra.algorithms.rlpd import rlpd
from palaestra.algorithms.td3_bc import td3_bc
from palaestra.batch import Space, Spec
from palaestra.data.dataset import Dataset
from palaestra.data.fixed import Fixed
from palaestra.data.priorities import InProportion
from palaestra.loops.offline import Offline
from palaestra.loops.online import Online
from palaestra.methods.offline.trajectory_weighting import (
    advantage_odds,
    advantage_weighting,
    among_top,
    linear_value,
    return_odds,
    softened,
    top_trajectories,
    trajectory_weighting,
)
from tests.algorithms.test_numbers import doubles
from tests.parts.worlds import dataset, make

TINY = {"hidden": (4,), "batch_size": 8}
METHODS = [trajectory_weighting, advantage_weighting, top_trajectories]
SPEC = Spec(Space((1,)), Space((1,)))
# Four episodes that begin at 0, 1, 2 and 3. The least-squares line through their returns is 1 + 2 s: the residuals
# 1, -1, -1, 1 have the sum 0 and, with 0, 1, 2, 3, the product 0 - 1 - 2 + 3 = 0.
LENGTHS, STARTS, RETURNS = (1, 3, 2, 4), (0.0, 1.0, 2.0, 3.0), (2.0, 2.0, 4.0, 8.0)


def logged(lengths=LENGTHS, starts=STARTS, returns=RETURNS):
    """Episodes that stay where they begin, do nothing, and are paid at their first step."""
    slots = np.concatenate([np.full(n + 1, i) for i, n in enumerate(lengths)])
    first = np.cumsum(np.array(lengths) + 1) - np.array(lengths) - 1
    columns = {
        "obs": np.array(starts, np.float32)[slots][:, None],
        "action": np.zeros((len(slots), 1), np.float32),
        "reward": np.zeros(len(slots), np.float32),
        "terminated": np.zeros(len(slots), bool),
        "truncated": np.zeros(len(slots), bool),
    }
    columns["reward"][first] = returns
    columns["truncated"][first + lengths - 1] = True
    return Dataset(columns, np.array(lengths), gym.spaces.Box(-9.0, 9.0, (1,)), gym.spaces.Box(-1.0, 1.0, (1,)))


def columns_of(data):
    """As dataset transforms get them."""
    columns = {name: torch.from_numpy(column) for name, column in data.columns.items()}
    first = torch.zeros(data.slots, dtype=torch.bool)
    first[torch.from_numpy(data.first)] = True
    return {**columns, "first": first, "valid": torch.from_numpy(data.is_step)}


def odds_of_slots(run, buffer="replay", seed=0):
    """Of every slot, scaled so that they sum to one."""
    replay = run.replays[buffer]
    odds = replay.prioritised.trees[seed].get(torch.arange(replay.dataset.slots))
    return odds / odds.sum()


def by_hand(exponents, lengths=LENGTHS):
    """The softmax over all steps, of episodes with these exponents; a final observation is never drawn."""
    total = sum(n * math.exp(e) for n, e in zip(lengths, exponents, strict=True))
    return [p for n, e in zip(lengths, exponents, strict=True) for p in [math.exp(e) / total] * n + [0.0]]


# ------------------------------------------------------------------------------------------------------- by hand


def test_by_return():
    # (G - 2) / (8 - 2) = 0, 0, 1/3, 1, over a temperature of 1/2
    expected = by_hand([0.0, 0.0, 2 / 3, 2.0])
    run = Offline(trajectory_weighting(bc(**TINY), temperature=0.5), logged())
    assert odds_of_slots(run).tolist() == pytest.approx(expected, rel=1e-6)
    found = return_odds(None, columns_of(logged()), 0.5)
    assert found.tolist() == pytest.approx([math.exp(-2), math.exp(-2), math.exp(2 / 3 - 2), 1.0])


def test_by_advantage():
    nets = Nets(SPEC)
    value = linear_value(nets, columns_of(logged()), doubles(*RETURNS))
    assert value.tolist() == pytest.approx([1.0, 3.0, 5.0, 7.0])
    # G - V = 1, -1, -1, 1; scaled 1, 0, 0, 1
    expected = by_hand([2.0, 0.0, 0.0, 2.0])
    run = Offline(advantage_weighting(bc(**TINY), temperature=0.5), logged())
    assert odds_of_slots(run).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("share", "kept"), [(1.0, (0, 1, 2, 3)), (0.75, (0, 2, 3)), (0.5, (2, 3)), (0.49, (3,)), (1e-6, (3,))]
)
def test_the_top(share, kept):
    assert among_top(None, columns_of(logged()), share).nonzero()[:, 0].tolist() == list(kept)
    expected = by_hand([0.0 if i in kept else -math.inf for i in range(4)])
    run = Offline(top_trajectories(bc(**TINY), share=share), logged())
    assert odds_of_slots(run).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_share_of_episodes_is_rounded_down_once():
    many = logged(lengths=(1,) * 100, starts=(0.0,) * 100, returns=tuple(range(100)))
    assert 0.29 * 100 < 29
    assert among_top(None, columns_of(many), 0.29).sum() == 29
    assert among_top(None, columns_of(many), 0.299).sum() == 29


@pytest.mark.parametrize(
    ("method", "settings", "share"),
    # Of ten steps: one weighs 1, three 1, two e^(2/3), four e^2; one e^2, three 1, two 1, four e^2; the last two alone.
    [
        (trajectory_weighting, {"temperature": 0.5}, [1, 3, 2 * math.exp(2 / 3), 4 * math.exp(2)]),
        (advantage_weighting, {"temperature": 0.5}, [math.exp(2), 3, 2, 4 * math.exp(2)]),
        (top_trajectories, {"share": 0.5}, [0, 0, 2, 4]),
        (trajectory_weighting, {"temperature": math.inf}, [1, 3, 2, 4]),
    ],
)
@pytest.mark.parametrize("base", [iql, cql, td3_bc, bc])
def test_rows_are_drawn_so_often(base, method, settings, share):
    run = Offline(method(base(**TINY), **settings), logged())
    drawn = run.replays["replay"].sample(20_000, torch.Generator().manual_seed(0), run.learner.clock)
    assert (drawn["weight"] == 1).all()
    counts = torch.bincount(drawn["obs"][:, 0].long(), minlength=4).double()
    share = doubles(*share)
    expected = 20_000 * share / share.sum()
    assert (counts[share == 0] == 0).all()
    assert as_likely(counts[share > 0], expected[share > 0])
    *steps, end = torch.bincount(drawn["index"], minlength=14)[9:].tolist()  # the slots of the last episode
    assert end == 0
    assert as_likely(doubles(*steps), torch.full((4,), sum(steps) / 4, dtype=torch.float64))


def as_likely(counts, expected):
    """Chi-square, four of its standard deviations above its mean at most."""
    freedom = len(counts) - 1
    return ((counts - expected).square() / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


# ---------------------------------------------------------------------------------------- limits and symmetries


def alike(run):
    found = odds_of_slots(run)
    steps = run.dataset.is_step
    return torch.allclose(found[steps], torch.full((int(steps.sum()),), 1 / steps.sum(), dtype=torch.float64)) and bool(
        (found[~steps] == 0).all()
    )


@pytest.mark.parametrize(
    "neutral",
    [
        lambda a: trajectory_weighting(a, temperature=math.inf),
        lambda a: advantage_weighting(a, temperature=math.inf),
        lambda a: top_trajectories(a, share=1.0),
    ],
)
def test_the_neutral_element_draws_all_steps_alike(neutral):
    assert alike(Offline(neutral(bc(**TINY)), logged()))


def test_equal_scores_are_drawn_alike():
    same = logged(returns=(3.0,) * 4)
    assert alike(Offline(trajectory_weighting(bc(**TINY)), same))
    assert alike(Offline(trajectory_weighting(bc(**TINY), temperature=1e-4), same))
    assert alike(Offline(trajectory_weighting(bc(**TINY)), logged(returns=(0.0,) * 4)))
    # What the first observation says of the return to the last digit leaves rounding errors, and no advantage.
    explained = logged(returns=tuple(0.1 + 0.7 * s for s in STARTS))
    assert alike(Offline(advantage_weighting(bc(**TINY)), explained))
    assert not alike(Offline(trajectory_weighting(bc(**TINY)), explained))


def test_without_temperature_only_the_best_is_drawn():
    run = Offline(trajectory_weighting(bc(**TINY), temperature=1e-6), logged())
    assert odds_of_slots(run).tolist() == pytest.approx(by_hand([-math.inf, -math.inf, -math.inf, 0.0]))


def test_neither_the_unit_nor_the_origin_of_returns_counts():
    found = doubles(*RETURNS)
    plain = softened(found, found.max(), 0.1)
    for scale, shift in ((1_000.0, 0.0), (0.001, 0.0), (1.0, -50.0)):
        moved = scale * found + shift
        torch.testing.assert_close(softened(moved, moved.abs().max(), 0.1), plain)


def test_where_all_begin_alike_the_advantage_is_the_return():
    columns = columns_of(logged(starts=(0.3,) * 4))
    torch.testing.assert_close(advantage_odds(Nets(SPEC), columns, 0.1), return_odds(None, columns, 0.1))


def test_symbols_are_indicators():
    """V of a symbol is the mean return of the episodes that begin there: 3 and 6."""
    nets = Nets(Spec(Space((), torch.int64, (2,)), Space((1,))))
    columns = {**columns_of(logged()), "obs": tensor([1] * 6 + [0] * 8)}  # the slots of two episodes each
    value = linear_value(nets, columns, doubles(2.0, 4.0, 4.0, 8.0))
    assert value.tolist() == pytest.approx([3.0, 3.0, 6.0, 6.0])
    with pytest.raises(ValueError, match="fits 4 numbers to the returns of 4 episodes"):
        linear_value(Nets(Spec(Space((), torch.int64, (3,)), Space((1,)))), columns, doubles(*RETURNS))


def test_the_log_in_a_dictionary_is_the_log():
    nets = Nets(Spec({"here": Space((1,)), "there": Space((1,))}, Space((1,))))
    columns = columns_of(logged())
    both = {"here": columns["obs"], "there": torch.zeros_like(columns["obs"])}
    found = advantage_odds(nets, {**columns, "obs": both}, 0.1)
    torch.testing.assert_close(found, advantage_odds(Nets(SPEC), columns, 0.1))


# ------------------------------------------------------------------------------------------------ with other parts


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", [iql, cql, td3_bc, bc])
def test_what_is_changed(base, method):
    assert changed_parts(base(**TINY), method(base(**TINY))) == ("buffers", "transforms")
    run = Offline(method(base(**TINY)), dataset("continuous"), (0, 1))
    for _ in range(3):
        run.advance()
    run.learner.check_finite()
    assert torch.equal(odds_of_slots(run, seed=0), odds_of_slots(run, seed=1))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_measured_of_a_dataset_is_measured_of_all_steps(method):
    data = dataset("continuous")
    for base in (td3_bc(**TINY), normalised_obs(iql(**TINY)), normalised_return(iql(**TINY))):
        plain, weighted = (Offline(algorithm, data).learner.nets.state_dict() for algorithm in (base, method(base)))
        measured = [name for name in plain if name.startswith(("obs_statistics", "return_range"))]
        assert measured
        assert all(torch.equal(plain[name], weighted[name]) for name in measured)
    before = normalised_obs(method(iql(**TINY)))
    assert torch.equal(
        odds_of_slots(Offline(before, data)), odds_of_slots(Offline(method(normalised_obs(iql(**TINY))), data))
    )


def test_two_of_them_multiply():
    both = top_trajectories(trajectory_weighting(bc(**TINY), temperature=0.5), share=0.75)
    expected = by_hand([0.0, -math.inf, 2 / 3, 2.0])
    assert odds_of_slots(Offline(both, logged())).tolist() == pytest.approx(expected, rel=1e-6)


def test_errors_change_the_odds_that_there_are():
    run = Offline(prioritised(trajectory_weighting(iql(**TINY), temperature=0.5), sharpness=1.0), logged())
    before = odds_of_slots(run)
    run.replays["replay"].update(tensor([0, 10]), tensor([3.0, 3.0]))
    after = odds_of_slots(run)
    assert after[10] / after[0] == pytest.approx(before[10] / before[0])
    assert after[10] / after[11] == pytest.approx(3.0, rel=1e-5)


def test_online_it_is_the_dataset_that_is_weighted():
    data = dataset("continuous")
    weighted = trajectory_weighting(rlpd(start=8, critic_updates=1, critics=2, **TINY))
    run = Online(weighted, make("continuous"), dataset=data)
    alone = Offline(trajectory_weighting(td3_bc(**TINY)), data)
    assert torch.equal(odds_of_slots(run, "dataset"), odds_of_slots(alone))
    assert not run.algorithm.buffers["replay"].priority
    for _ in range(12):
        run.advance()
    run.learner.check_finite()


def test_what_is_collected_has_odds_one():
    data = dataset("continuous")
    run = Online(prior_data(trajectory_weighting(iql(start=8, **TINY))), make("continuous"), dataset=data)
    for _ in range(12):
        run.advance()
    replay = run.replays["replay"]
    assert not isinstance(replay, Fixed)
    odds = replay.prioritised.trees[0].get(torch.arange(replay.capacity))
    assert torch.equal(odds, (replay.kind == 1).double())
    assert odds_of_slots(run, "dataset").unique().numel() > 10


def test_the_priority_reads_flags_and_numbers():
    class Store:
        def names(self):
            return ("flag", "number")

        def get(self, name, index):
            return {"flag": tensor([True, False]), "number": tensor([0.25, 3.0])}[name][index]

    for name, expected in (("flag", [1, 0]), ("number", [0.25, 3.0]), ("neither", [1, 1])):
        assert InProportion(name).insert(Store(), tensor([0, 1])).tolist() == expected
    assert InProportion("flag").update(Store(), tensor([0]), tensor([1.0])) is None
    assert InProportion("flag").weight(tensor([0.5]), 2, None) is None


# -------------------------------------------------------------------------------------------------------- errors


def test_errors():
    with pytest.raises(ValueError, match="temperature is 0; it must be larger than 0"):
        trajectory_weighting(bc(), temperature=0)
    with pytest.raises(ValueError, match="temperature is -1"):
        advantage_weighting(bc(), temperature=-1)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"share is {share}"):
            top_trajectories(bc(), share=share)
    for method in METHODS:
        slug = method.__name__.replace("_", "-")
        with pytest.raises(ValueError, match=f"{slug} does not fit ppo.*: try iql or td3-bc"):
            method(ppo())
        with pytest.raises(ValueError, match=rf"{slug} does not fit dqn\+{slug}: it is there already"):
            method(method(dqn()))
    with pytest.raises(ValueError, match="fits 2 numbers to the returns of 2 episodes: use trajectory-weighting"):
        Offline(advantage_weighting(bc(**TINY)), logged((1, 2), (0.0, 1.0), (0.0, 1.0)))
