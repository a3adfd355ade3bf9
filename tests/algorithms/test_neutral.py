"""Neutral elements: with its setting at zero (or one) a method is exactly its base."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from palaestra.algorithm import add_loss, with_reward
from palaestra.algorithms.c51 import c51
from palaestra.algorithms.dqn import double, dqn
from palaestra.algorithms.experience import n_step, prioritised
from palaestra.algorithms.ppo import ppo
from palaestra.algorithms.qr_dqn import qr_dqn
from palaestra.algorithms.sac import sac, sac_discrete
from palaestra.algorithms.td3 import ddpg, td3
from palaestra.batch import each
from palaestra.data.replay import Replay
from palaestra.functional.targets import huber, squared
from palaestra.learner import Learner, generator
from palaestra.loops.online import Online
from palaestra.methods.curriculum.snapshotrl import snapshotrl, snapshotrl_uniform
from palaestra.methods.exploration.mex import mex, mex_without_baseline
from palaestra.methods.online.pmoe import pmoe
from palaestra.methods.online.props import props
from palaestra.methods.online.stop_regressing import stop_regressing, two_hot
from tests.parts.worlds import batches, make, small, spec

TINY = {"hidden": (16, 16)}


def after(algorithm, world, given, updates=5):
    learner = Learner(algorithm, spec(world))
    for n in range(updates):
        learner.update(given[n % len(given)])
    return learner.nets.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_not_same(one, other):
    assert any(not torch.equal(one[name], other[name]) for name in one if name in other)


def test_td3_without_its_three_ideas_is_ddpg():
    given = batches(small("ddpg"), "continuous")
    base = after(ddpg(**TINY), "continuous", given)
    neutral = {"policy_delay": 1, "target_noise": 0.0, "critics": 1}
    assert_same(after(td3(**TINY, **neutral), "continuous", given), base)
    for idea in neutral:
        without = {key: value for key, value in neutral.items() if key != idea}
        if idea != "critics":  # two critics are other networks
            assert_not_same(after(td3(**TINY, **without), "continuous", given), base)


def run(algorithm, world, steps=60):
    """The networks after acting and learning, batches drawn by the run's own generators."""
    online = Online(algorithm, make(world))
    while online.env_steps < steps:
        online.advance()
    assert online.learner.updates > 10
    return online.learner.nets.state_dict()


SETTINGS = {**TINY, "start": 40, "batch_size": 16, "capacity": 500}
BASES = [
    (td3, "continuous"), (ddpg, "continuous"), (sac, "continuous"),
    (sac_discrete, "discrete"), (dqn, "discrete"), (c51, "discrete"), (qr_dqn, "discrete"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "world"), BASES)
def test_one_step_rows_are_transitions(base, world):
    plain = run(base(**SETTINGS), world)
    one = run(n_step(base(**SETTINGS), n=1), world)
    assert plain.keys() == one.keys()
    for name in plain:  # the same sum, rounded once more
        assert torch.allclose(plain[name], one[name], atol=1e-5), name
    assert_not_same(run(n_step(base(**SETTINGS), n=3), world), plain)


def test_a_one_step_target_is_the_plain_one_exactly():
    drawn = batches(small("dqn"), "discrete")[0]["replay"]
    rows = {**drawn, "reward": drawn["reward"][:, None], "steps": torch.ones_like(drawn["action"])}
    learners = [Learner(dqn(**TINY, gamma=0.5), spec("discrete")) for _ in range(2)]
    for learner, batch in zip(learners, (drawn, rows), strict=True):
        learner.update({"replay": batch})
    assert_same(*(learner.nets.state_dict() for learner in learners))  # exact where gamma is a power of two


def test_priorities_without_sharpness_are_uniform():
    flat = prioritised(dqn(**SETTINGS), sharpness=0.0)
    online = Online(flat, make("discrete"))
    while online.env_steps < 60:
        online.advance()
    replay = online.replays["replay"]
    steps = replay.kind == 1
    assert torch.equal(replay.prioritised.trees[0].get(torch.arange(replay.capacity)), steps.double())
    batch = replay.sample(20_000, generator(0, "test"), online.learner.nets.clock)
    assert torch.equal(batch["weight"], torch.ones(20_000))
    counts = torch.bincount(batch["index"], minlength=replay.capacity)[steps].double()
    rows = int(replay.rows[0])
    expected = 20_000 / rows
    chi_square = ((counts - expected).square() / expected).sum()
    assert abs(chi_square - (rows - 1)) < 4 * (2 * (rows - 1)) ** 0.5


def test_full_correction_undoes_what_priorities_change():
    """`sum P(i) weight(i) x(i)` is proportional to the mean of x when `correction=1`."""
    algorithm = prioritised(dqn(**TINY), sharpness=0.7, correction=1.0)
    online = Online(replace(algorithm, schedule=dqn(**SETTINGS).schedule), make("discrete"))
    while online.env_steps < 60:
        online.advance()
    replay: Replay = online.replays["replay"]
    index = (replay.kind == 1).nonzero().squeeze(1)
    probability = replay.prioritised.trees[0].get(index) / replay.prioritised.trees[0].total
    weight = replay.prioritised.priorities[0][0].weight(probability, int(replay.rows[0]), online.learner.nets.clock)
    product = probability * weight
    assert probability.max() > 1.5 * probability.min()
    assert torch.allclose(product, product[0].expand_as(product), rtol=1e-5)


def test_a_reward_that_is_its_own_changes_nothing():
    given = batches(small("sac"), "continuous")
    same = with_reward(sac(**TINY), lambda nets, batch, rng: batch["reward"])
    assert_same(after(same, "continuous", given), after(sac(**TINY), "continuous", given))


@pytest.mark.parametrize("base", [ddpg, td3])
def test_a_loss_of_coefficient_zero_changes_nothing(base):
    """Not even where it wants noise of its own (td3's does): the noise that other losses get stays the same."""
    given = batches(small(base.__name__), "continuous")
    algorithm = base(**TINY)
    loss = algorithm.losses["critic"]
    silent = replace(loss, terms={"td": replace(loss.terms["td"], coefficient=0.0)})
    assert_same(after(add_loss(algorithm, "more", silent), "continuous", given), after(algorithm, "continuous", given))


def test_rows_of_weight_one_are_rows():
    given = batches(small("sac-discrete"), "discrete")
    bare = [{"replay": {k: v for k, v in batch["replay"].items() if k != "weight"}} for batch in given]
    assert_same(*(after(sac_discrete(**TINY), "discrete", batches) for batches in (given, bare)))


def test_a_wide_huber_is_half_a_square():
    batch = batches(small("dqn"), "discrete")[0]["replay"]
    learner = Learner(dqn(**TINY), spec("discrete"))
    optimal = learner.algorithm.losses["critic"].terms["td"].value
    wide, _ = optimal(learner.nets, batch, regression=partial(huber, width=1e6))
    square, _ = optimal(learner.nets, batch, regression=squared)
    narrow, columns = optimal(learner.nets, batch)
    assert torch.allclose(wide, square / 2)
    far = columns["error"] > 1
    assert far.any()
    assert (narrow[far] < wide[far]).all()
    assert torch.allclose(narrow[~far], wide[~far])


def rows_of(algorithm, batch):
    """What its critic's term says of a batch, freshly built."""
    learner = Learner(algorithm, spec("discrete"))
    return learner.algorithm.losses["critic"].terms["td"].value(learner.nets, batch)


def test_one_quantile_is_half_of_dqn():
    batch = batches(small("dqn"), "discrete")[0]["replay"]
    plain, columns = rows_of(dqn(**TINY), batch)
    one, its_columns = rows_of(qr_dqn(**TINY, quantiles=1), batch)
    torch.testing.assert_close(one, plain / 2)
    for name in ("error", "q"):
        torch.testing.assert_close(its_columns[name], columns[name])
    assert not torch.allclose(rows_of(qr_dqn(**TINY, quantiles=2), batch)[0], plain / 2)


def test_two_atoms_are_their_mean():
    """c51 then knows no more of a distribution than dqn: it regresses on the same target, by the cross-entropy."""
    batch = dict(batches(small("dqn"), "discrete")[0]["replay"])
    batch["reward"] = batch["reward"] / 100  # nothing is clipped
    rows, columns = rows_of(c51(**TINY, atoms=2, v_min=-1.0, v_max=1.0, gamma=0.9), batch)
    assert (columns["clipped"] == 0).all()
    learner = Learner(c51(**TINY, atoms=2, v_min=-1.0, v_max=1.0, gamma=0.9), spec("discrete"))
    value = torch.tanh(learner.nets["target_critic"](batch["next_obs"]).diff(dim=-1).squeeze(-1) / 2).amax(-1)
    target = batch["reward"] + 0.9 * torch.where(batch["terminated"], 0.0, value)
    likely = (1 + torch.stack((columns["q"], target))) / 2  # the probability of the upper atom
    expected = torch.nn.functional.binary_cross_entropy(likely[0], likely[1], reduction="none")
    torch.testing.assert_close(rows, expected)


def test_a_target_that_follows_at_once_is_the_network():
    given = batches(small("td3"), "continuous")
    state = after(td3(**TINY, tau=1.0, policy_delay=1), "continuous", given, updates=3)
    for name, value in state.items():
        if name.startswith("target_"):
            assert torch.equal(value, state[name.removeprefix("target_")])


@pytest.mark.parametrize("base", [dqn, c51, qr_dqn])
def test_double_is_plain_where_the_target_is_the_network(base):
    given = batches(small("dqn"), "discrete")
    one = after(base(**TINY, target_every=1), "discrete", given)
    assert_same(after(double(base(**TINY, target_every=1)), "discrete", given), one)
    slow = base(**TINY, target_every=3, lr=0.1)
    assert_not_same(after(double(slow), "discrete", given), after(slow, "discrete", given))


@pytest.mark.parametrize("method", [snapshotrl, snapshotrl_uniform])
@pytest.mark.parametrize(("base", "world"), BASES)
def test_no_steps_from_snapshots_are_the_base(base, world, method):
    plain = run(base(**SETTINGS), world)
    assert_same(run(method(base(**SETTINGS), steps=0), world), plain)
    assert_not_same(run(method(base(**SETTINGS), steps=100), world), plain)


@pytest.mark.parametrize("method", [mex, mex_without_baseline])
@pytest.mark.parametrize("base", [td3, ddpg, sac])
def test_no_optimism_is_the_base(base, method):
    """Whatever noise it wants, the base's own stays the same."""
    given = batches(small(base.__name__), "continuous")
    plain = after(base(**TINY), "continuous", given)
    assert_same(after(method(base(**TINY), optimism=0.0), "continuous", given), plain)
    assert_not_same(after(method(base(**TINY), optimism=0.1), "continuous", given), plain)


def test_two_hot_of_what_is_paid_is_c51():
    """Classification has no setting that is a regression; but where nothing follows, c51's target is a number too."""
    batch = batches(small("dqn"), "discrete")[0]["replay"]
    support = {"v_min": -2.0, "v_max": 2.0}
    rows, columns = rows_of(two_hot(dqn(**TINY, gamma=0.0), **support, bins=5), batch)
    its_rows, its_columns = rows_of(c51(**TINY, gamma=0.0, **support, atoms=5), batch)
    torch.testing.assert_close(rows, its_rows)
    torch.testing.assert_close(columns["q"], its_columns["q"])
    assert columns["beyond"].any()
    assert torch.equal(columns["beyond"], its_columns["clipped"] > 0.5)
    smeared, _ = rows_of(stop_regressing(dqn(**TINY, gamma=0.0), **support, bins=5), batch)
    assert not torch.allclose(smeared, its_rows)


def test_one_expert_is_sac():
    """Exactly, where its actor's noise, which is a column of its own, is drawn from the same stream."""
    given = batches(small("sac"), "continuous")
    base, one, two = (
        Learner(algorithm, spec("continuous"))
        for algorithm in (sac(**TINY), pmoe(sac(**TINY), experts=1), pmoe(sac(**TINY), experts=2))
    )
    state = one.state_dict()
    state["noise"]["actor/replay/each_action"] = base.state_dict()["noise"]["actor/replay/action"]
    one.load_state_dict(state)
    for n in range(5):
        base.update(given[n % len(given)])
        metrics, _ = one.update(given[n % len(given)])
        assert metrics["loss/router"] == 0
        assert two.update(given[n % len(given)])[0]["loss/router"] > 0
    plain, mixed = base.nets.state_dict(), one.nets.state_dict()
    assert_same({name: mixed[name] for name in plain}, plain)
    assert {name.split(".")[0] for name in mixed.keys() - plain.keys()} == {"router"}
    obs = given[0]["replay"]["obs"]
    actions = [learner.deployed()(learner.nets, obs, None, None)[0] for learner in (base, one)]
    assert torch.equal(*actions)


@pytest.mark.parametrize("world", ["continuous", "discrete"])
def test_a_behaviour_policy_that_never_adapts_is_ppo(world):
    """To float tolerance: the old log-probabilities are then computed of all rows at once."""
    settings = {**TINY, "collect": 16, "epochs": 6, "minibatches": 2}
    plain = run(ppo(**settings), world, steps=100)
    still = run(props(ppo(**settings), every=4, epochs=0), world, steps=100)
    assert plain.keys() == still.keys()
    for name in plain:
        assert torch.allclose(plain[name], still[name], atol=1e-5), name
    assert_not_same(run(props(ppo(**settings), every=4, lr=0.01), world, steps=100), plain)


@pytest.mark.parametrize("allowed", [True, 1.0, 1])
def test_a_mask_that_allows_all_is_no_mask(allowed):
    given = batches(small("sac-discrete"), "masked")

    def unmasked(batch):
        columns = dict(batch["replay"])
        for key in ("obs", "next_obs"):
            mask = columns[key]["action_mask"]
            columns[key] = {**columns[key], "action_mask": torch.full(mask.shape, allowed)}
        return {"replay": columns}

    for base in (sac_discrete, dqn, c51, qr_dqn):
        full = [unmasked(batch) for batch in given]
        without = [each(lambda tensor: tensor, batch) for batch in full]
        for batch in without:
            for key in ("obs", "next_obs"):
                del batch["replay"][key]["action_mask"]
        assert_same(after(base(**TINY), "masked", full), after(base(**TINY), "masked", without))
