"""Running statistics, and the bases that see the world through them."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import tensor

import palaestra as pal
from palaestra.algorithm import Nets, Unfit
from palaestra.algorithms.normalisation import (
    SoFar,
    measure_obs,
    measure_reward,
    normalised_obs,
    normalised_reward,
    scale_reward,
    standardise_obs,
    standardise_then_measure_obs,
)
from palaestra.algorithms.ppo import evaluated, ppo
from palaestra.algorithms.sac import sac
from palaestra.batch import Space, Spec, each
from palaestra.learner import Learner
from palaestra.loops.online import Online
from palaestra.networks.statistics import RunningStatistics
from tests.parts.test_stacking import test_stacked_equals_single as stacked_equals_single
from tests.parts.worlds import batches, make, small, spec

SMALL = {"hidden": (16, 16), "collect": 8, "minibatches": 2, "epochs": 2}
TINY = {"hidden": (16, 16), "start": 20, "batch_size": 16, "capacity": 500}
RNG = torch.Generator()


# -------------------------------------------------------------------------------------------------------- statistics


def test_batches_are_merged_into_the_statistics_of_all_rows():
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 4, 3, generator=rng) * tensor([1.0, 5.0, 0.1]) + tensor([0.0, -3.0, 1e5])
    counted = torch.rand(50, 4, generator=rng) < 0.8
    statistics = RunningStatistics((3,))
    for some in (slice(0, 1), slice(1, 30), slice(30, 50)):
        statistics.measure(rows[some], counted[some])
    whole = rows[counted].double()
    assert statistics.count.item() == counted.sum().item()
    assert torch.allclose(statistics.mean, whole.mean(0), rtol=1e-12)
    assert torch.allclose(statistics.variance, whole.var(0, correction=0), rtol=1e-9)
    assert torch.allclose(statistics.scale(), 1 / whole.std(0, correction=0), rtol=1e-4)


def test_before_anything_is_measured_rows_are_as_they_came():
    statistics = RunningStatistics((2,))
    rows = tensor([[0.3, -7.0]])
    assert torch.equal(statistics.standardised(rows, 10.0), rows)
    assert statistics.standardised(rows, 5.0)[0].tolist() == pytest.approx([0.3, -5.0])
    statistics.measure(rows, tensor([False]))
    assert statistics.count == 0
    assert torch.equal(statistics.standardised(rows, 10.0), rows)


def test_standardised_by_hand():
    statistics = RunningStatistics()
    statistics.measure(tensor([1.0, 3.0, 5.0, 7.0]), torch.ones(4, dtype=torch.bool))
    found = statistics.standardised(tensor([[4.0, 6.0], [1e9, -1e9]]), 10.0)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx([0.0, 2 / math.sqrt(5), 10.0, -10.0], abs=1e-6)


# ------------------------------------------------------------------------------------------------------ observations


def collected(run):
    """What was seen, raw, and the rows that are learnt from."""
    a, nets = run.algorithm, run.learner.nets
    raw = steps = a.collect(nets, run.policy, run.source, 20, run.acting)
    for transform in run.transforms:
        steps = transform.fn(nets, steps, run.changing)
    return raw, steps


@pytest.mark.parametrize("world", ["continuous", "discrete"])
def test_a_rollout_is_standardised_as_it_was_acted_on(world):
    run = Online(normalised_obs(ppo(**SMALL)), make(world))
    for _ in range(2):
        run.advance()
    nets = run.learner.nets
    before = copy.deepcopy(nets["obs_statistics"])
    raw, steps = collected(run)
    assert torch.equal(steps["obs"], before(raw["obs"]))
    assert torch.equal(steps["next_obs"], before(raw["next_obs"]))
    assert (steps["obs"] - raw["obs"]).abs().max() > 0.1
    assert nets["obs_statistics"].of_key[0].count == before.of_key[0].count + 40
    assert not torch.equal(nets["obs_statistics"](raw["obs"]), steps["obs"])
    run.rollouts["rollout"].insert({**steps, **run.algorithm.advantage(nets, steps)})
    batch = next(iter(run.rollouts["rollout"].minibatches(1, run.drawing)))
    with torch.no_grad():  # the ratio is one though the statistics have moved
        assert torch.allclose(evaluated(nets, batch)["logp"], batch["old_logp"], atol=2e-6)


def test_evaluating_reads_the_statistics_and_leaves_them():
    run = Online(normalised_obs(normalised_reward(ppo(**SMALL))), make("discrete"))
    run.advance()
    nets = run.learner.nets
    before = copy.deepcopy(nets.state_dict())
    run.evaluate(make("discrete", 4), 0)
    assert all(torch.equal(before[name], value) for name, value in nets.state_dict().items())
    obs = run.source.obs
    action, columns, _ = run.learner.deployed()(nets, obs, None, None)
    expected = nets["actor"](nets["obs_statistics"](obs))
    assert torch.equal(columns["old_logp"], expected.log_prob(action))
    assert not torch.equal(expected.log_probs, nets["actor"](obs).log_probs)


def test_a_replay_keeps_rows_as_they_came():
    run = Online(normalised_obs(sac(**TINY)), make("continuous"))
    while run.env_steps < 60:
        run.advance()
    assert run.learner.updates > 10
    replay, statistics = run.replays["replay"], run.learner.nets["obs_statistics"].of_key[0]
    seen = replay.columns["obs"][replay.kind == 1].double()
    assert statistics.count == run.env_steps == len(seen)
    assert torch.allclose(statistics.mean, seen.mean(0))
    assert torch.allclose(statistics.variance, seen.var(0, correction=0))


def test_rows_that_are_drawn_are_standardised():
    """An update on raw rows is the base's update on rows standardised by hand."""
    given = batches(small("sac"), "continuous")[0]["replay"]
    one, base = (Learner(algorithm, spec("continuous")) for algorithm in (normalised_obs(sac(**TINY)), sac(**TINY)))
    one.nets["obs_statistics"].measure(given["obs"], given["weight"] > 0)
    standard = {key: one.nets["obs_statistics"](given[key]) for key in ("obs", "next_obs")}
    one.update({"replay": given})
    base.update({"replay": {**given, **standard}})
    state = one.nets.state_dict()
    for name, value in base.nets.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_only_numbers_are_standardised():
    spaces = {
        "vector": Space((2,)),
        "symbol": Space((), torch.int64, (3,)),
        "image": Space((6, 6, 2), torch.uint8),
        "picture": Space((6, 6, 2)),
        "action_mask": Space((3,)),
    }
    nets = Nets(Spec(spaces, Space((), torch.int64, (3,))))
    statistics = normalised_obs(ppo()).networks["obs_statistics"](nets.spec, nets)
    assert statistics.keys == ["vector"]
    obs = {key: torch.ones(4, *space.shape, dtype=space.dtype) for key, space in spaces.items()}
    statistics.measure(obs, torch.ones(4, dtype=torch.bool))
    found = statistics(obs)
    assert list(found) == list(obs)
    assert not found.pop("vector").any()
    assert all(found[key] is obs[key] for key in found)
    with pytest.raises(Unfit, match="no vector of numbers"):
        Learner(normalised_obs(ppo(**SMALL)), spec("image"))


@pytest.mark.parametrize("world", ["masked", "privileged"])
def test_dictionaries(world):
    run = Online(normalised_obs(ppo(**SMALL)), make(world))
    for _ in range(2):
        run.advance()
    _, steps = collected(run)
    numbers = "position" if world == "masked" else "critic_obs"
    assert steps["obs"][numbers].std().item() == pytest.approx(1.0, abs=0.2)  # of uniform numbers it was 0.58
    assert all(value.isfinite().all() for value in run.learner.nets.state_dict().values())


# ----------------------------------------------------------------------------------------------------------- rewards


def test_rewards_by_hand():
    """Two rollouts of two steps; the second environment begins an episode in the last step, and one row was no step."""
    nets = Nets(Spec(Space((1,)), Space((1,))))
    nets["reward_statistics"] = RunningStatistics()
    so_far = SoFar()

    def given(reward, first, valid=((True, True), (True, True))):
        return {"reward": tensor(reward), "first": tensor(first), "valid": tensor(valid)}

    one = given([[2.0, 4.0], [1.0, 0.0]], [[True, True], [False, False]], [[True, True], [True, False]])
    two = given([[0.0, 3.0], [-6.0, 5.0]], [[False, False], [False, True]])
    for steps in (one, two):
        measure_reward(nets, steps, RNG, so_far, gamma=0.5)
    paid = tensor([2.0, 4.0, 2.0, 1.0, 4.0, -5.5, 5.0], dtype=torch.float64)  # what had been paid, of seven steps
    statistics = nets["reward_statistics"]
    assert statistics.count == 7
    assert statistics.mean.item() == pytest.approx(paid.mean().item(), abs=1e-6)
    assert statistics.variance.item() == pytest.approx(paid.var(correction=0).item(), abs=1e-6)
    std = paid.std(correction=0).item()
    found = scale_reward(nets, two, RNG, clip=1.6)["reward"]
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx([0.0, 3 / std, -1.6, 5 / std], abs=1e-6)
    assert 6 / std > 1.6 > 5 / std


def test_rewards_of_a_replay_are_kept_as_they_came():
    run = Online(normalised_reward(sac(**TINY)), make("continuous"))
    while run.env_steps < 60:
        run.advance()
    scale = run.learner.nets["reward_statistics"].scale().item()
    replay = run.replays["replay"]
    assert replay.columns["reward"][replay.kind == 1].std().item() == pytest.approx(1.0, abs=0.3)
    assert scale != pytest.approx(1.0, abs=0.02)
    batch = run.learner._completed("replay", replay.sample(16, run.drawing))
    assert torch.allclose(batch["reward"], replay.columns["reward"][batch["index"]] * scale)


def test_two_runs_share_no_sums():
    algorithm = normalised_reward(ppo(**SMALL))
    one, other = (Online(algorithm, make("discrete")) for _ in range(2))
    one.advance()
    (part,) = one.learner.algorithm.transforms[:1]
    assert part.fn.keywords["so_far"].last.shape == (2,)
    assert other.learner.algorithm.transforms[0].fn.keywords["so_far"].last is None
    assert algorithm == normalised_reward(ppo(**SMALL))


# -------------------------------------------------------------------------------------------------- neutral elements


@pytest.mark.parametrize("variant", [normalised_obs, normalised_reward])
@pytest.mark.parametrize(("base", "world"), [(ppo(**SMALL), "discrete"), (sac(**TINY), "continuous")])
def test_unmeasured_statistics_change_nothing(variant, base, world):
    """Mean 0 and deviation 1, which nobody measures, and no clip."""

    def trained(algorithm):
        run = Online(algorithm, make(world))
        while run.env_steps < 64:
            run.advance()
        assert run.learner.updates >= 8
        return run.learner.nets.state_dict()

    def unmeasured(algorithm):
        kept = [t for t in algorithm.transforms if getattr(t.fn, "func", t.fn) not in (measure_obs, measure_reward)]
        both = {standardise_then_measure_obs: standardise_obs}
        return replace(algorithm, transforms=tuple(replace(t, fn=both.get(t.fn, t.fn)) for t in kept))

    plain, changed = trained(base), trained(unmeasured(variant(base, clip=1e6)))
    for name, value in plain.items():
        assert torch.equal(value, changed[name]), name
    for other in (unmeasured(variant(base, clip=0.1)), variant(base, clip=1e6)):  # each can be felt
        assert any(not torch.equal(value, changed[name]) for name, value in trained(other).items())


@pytest.mark.parametrize(
    ("base", "world"),
    [
        ("ppo(hidden=(16, 16), collect=4, minibatches=2, epochs=2)", "masked"),
        ("sac(hidden=(16, 16), start=8, batch_size=8)", "continuous"),
    ],
)
def test_stacked_seeds_each_measure_for_themselves(base, world):
    stacked_equals_single(f"{base}+normalised-obs+normalised-reward", world)


# ------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("base", ["ppo(hidden=(8,), collect=8, minibatches=2, epochs=1)", "sac-discrete(hidden=(8,))"])
def test_resumed_is_uninterrupted(base, tmp_path):
    expression = f"{base}+normalised-obs+normalised-reward"
    settings = {"environments": 2, "evaluate_every": 1_000, "episodes": 1}
    whole = pal.train(expression, "CartPole-v1", 64, out=tmp_path / "whole", **settings)
    half = pal.train(expression, "CartPole-v1", 32, out=tmp_path / "half", **settings)
    pal.resume(half, steps=64)
    states = [pal.load(run).learner.nets.state_dict() for run in (whole, half)]
    assert states[0]["reward_statistics.count"] == 64
    assert states[0]["obs_statistics.of_key.0.count"] == 64
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_learner_remembers_what_was_paid():
    run = Online(normalised_reward(normalised_obs(ppo(**SMALL))), make("discrete"))
    run.advance()
    state = copy.deepcopy(run.learner.state_dict())
    other = Online(normalised_reward(normalised_obs(ppo(**SMALL))), make("discrete"), seeds=(1,))
    other.learner.load_state_dict(state)
    for one, two in zip(run.learner.algorithm.transforms, other.learner.algorithm.transforms, strict=True):
        if "so_far" in getattr(one.fn, "keywords", {}):
            assert torch.equal(one.fn.keywords["so_far"].last, two.fn.keywords["so_far"].last)
    nets = [each(lambda tensor: tensor, dict(r.learner.nets.state_dict())) for r in (run, other)]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
