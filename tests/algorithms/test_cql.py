"""CQL: what it adds to sac and dqn, by hand; where it adds nothing; the values of actions that nobody took."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from palaestra.algorithms import cql as module
from palaestra.algorithms.cql import cal_ql, cql, cql_discrete, tuned_conservatism
from palaestra.algorithms.dqn import double, dqn
from palaestra.algorithms.sac import sac
from palaestra.batch import Space, Spec
from palaestra.data.dataset import from_episodes
from palaestra.learner import Learner
from palaestra.loops.offline import Offline
from palaestra.loops.online import Online
from tests.algorithms.test_neutral import after, assert_not_same, assert_same
from tests.parts.worlds import batches, dataset, make, small, spec

TINY = {"hidden": (16, 16)}
LOG = math.log


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def two_critics(obs, action):
    """Q_1 = s + 2 a, Q_2 = s a: [2, B]."""
    return torch.stack((obs + 2 * action, obs * action)).squeeze(-1)


# One state, 1, and three candidates: a uniform one and one of each policy.
ROWS = {
    "obs": column(1.0),
    "action": column(0.5),
    "candidates": torch.tensor([[[-1.0], [0.0], [1.0]]], dtype=torch.float64),
    "log_density": torch.tensor([[LOG(0.5), LOG(0.25), LOG(2.0)]], dtype=torch.float64),
    "return_to_go": torch.tensor([2.0], dtype=torch.float64),
}
# Q_1 is -1, 1, 3 at the candidates and 2 at the logged action; Q_2 is -1, 0, 1 and 0.5.
FIRST = LOG(2 * math.exp(-1) + 4 * math.exp(1) + math.exp(3) / 2) - 2
SECOND = LOG(2 * math.exp(-1) + 4 + math.exp(1) / 2) - 0.5


def test_overestimate_by_hand():
    assert module.overestimate({"critic": two_critics}, ROWS).item() == pytest.approx(FIRST + SECOND, abs=1e-12)


def test_each_critics_overestimate_is_clipped():
    assert FIRST < 1.1 < 1.2 < SECOND
    for clip, wanted in (((1.1, 9.0), 1.1 + SECOND), ((-9.0, 1.2), FIRST + 1.2)):
        clipped = module.overestimate({"critic": two_critics}, ROWS, clip=clip)
        assert clipped.item() == pytest.approx(wanted, abs=1e-12)


def test_calibrated_by_hand():
    # 2 was logged: of the policy's values 1, 3 and 0, 1 those below it become 2; the uniform action's stays
    first = LOG(2 * math.exp(-1) + 4 * math.exp(2) + math.exp(3) / 2) - 2
    second = LOG(2 * math.exp(-1) + 4 * math.exp(2) + math.exp(2) / 2) - 0.5
    rows = module.overestimate({"critic": two_critics}, ROWS, calibrate=module.above_return)
    assert rows.item() == pytest.approx(first + second, abs=1e-12)


def test_rows_keep_their_own_candidates():
    """Several states at once say what each says alone."""
    rng = torch.Generator().manual_seed(0)
    shapes = {"obs": (5, 1), "action": (5, 1), "candidates": (5, 6, 1), "log_density": (5, 6)}
    b = {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}
    together = module.overestimate({"critic": two_critics}, b)
    for i in range(5):
        alone = module.overestimate({"critic": two_critics}, {name: value[i : i + 1] for name, value in b.items()})
        assert together[i].item() == pytest.approx(alone.item(), abs=1e-12)


def test_choices_by_hand():
    q = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
    b = {"obs": {"action_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}, "action": torch.tensor([2, 1])}
    rows = module.overestimate_of_choices({"critic": lambda obs: q}, b)
    # e^1 + e^2 + e^3 against 3; the second row may not choose its third action, whose value does not count
    assert rows.tolist() == pytest.approx([LOG(sum(map(math.exp, (1, 2, 3)))) - 3, LOG(2)], abs=1e-12)


def test_candidates():
    """n uniform actions, n about the policy's mean here, n about its mean there, each with its density."""
    rows, actions = 2_000, 4
    actor = lambda obs: (obs, torch.full_like(obs, -3.0))  # noqa: E731
    b = {"obs": torch.full((rows, 2), 0.5), "next_obs": torch.full((rows, 2), -1.0), "action": torch.zeros(rows, 2)}
    found = module.with_candidates({"actor": actor}, b, torch.Generator().manual_seed(0), actions)
    candidates, log_density = found["candidates"], found["log_density"]
    assert (candidates.shape, log_density.shape) == ((rows, 12, 2), (rows, 12))
    assert (log_density[:, :4] == 2 * LOG(0.5)).all()
    uniform, here, there = candidates.split(actions, 1)
    assert abs(uniform.mean()) < 0.02  # 16,000 of standard deviation 0.58
    assert uniform.abs().amax() > 0.99
    assert abs(here.atanh().mean() - 0.5) < 0.002  # 16,000 of standard deviation 0.05
    assert abs(there.atanh().mean() + 1.0) < 0.002
    b["obs"] = torch.full((rows, 2), 0.1)  # then the last third is as it was: they are drawn from pi(.|s')
    again = module.with_candidates({"actor": actor}, b, torch.Generator().manual_seed(0), actions)
    assert torch.equal(again["candidates"][:, 8:], there)
    assert not torch.equal(again["candidates"][:, 4:8], here)


def test_densities_weigh_every_action_once():
    """With a constant critic `sum_k exp(Q) / p(a_k)` is 3n times the volume of actions, 2, in the mean."""
    b = {"obs": torch.zeros(20_000, 1), "next_obs": torch.zeros(20_000, 1), "action": torch.zeros(20_000, 1)}
    actor = lambda obs: (obs, torch.full_like(obs, 0.2))  # noqa: E731
    found = module.with_candidates({"actor": actor}, b, torch.Generator().manual_seed(0), 2)
    volumes = found["log_density"].neg().exp().view(-1, 3, 2).mean((0, 2))
    assert volumes.tolist() == pytest.approx([2.0, 2.0, 2.0], rel=0.02)


def test_the_target_has_no_entropy():
    batch = batches(small("sac"), "continuous")[0]["replay"]
    nets = Learner(cql(**TINY, entropy_coefficient=3.0), spec("continuous")).nets
    plain = Learner(sac(**TINY, entropy_coefficient=0.0), spec("continuous")).nets
    given = {**batch, "action_noise": torch.zeros_like(batch["action"])}
    soft = module.soft_td(plain, given, 0.9)[0]
    assert torch.equal(module.hard_td(nets, given, 0.9)[0], soft)
    assert not torch.equal(module.soft_td(nets, given, 0.9)[0], soft)


def test_without_conservatism_it_is_sac_without_entropy_in_its_targets():
    given = batches(small("sac"), "continuous")
    rates = {"actor_lr": 3e-4, "critic_lr": 3e-4}
    base = sac(**TINY)
    critic = base.losses["critic"]
    hard = {"td": replace(critic.terms["td"], value=partial(module.hard_td, gamma=0.99))}
    base = replace(base, losses={**base.losses, "critic": replace(critic, terms=hard)})
    plain = after(base, "continuous", given)
    assert_same(after(cql(**TINY, **rates, conservatism=0.0), "continuous", given), plain)
    assert_not_same(after(cql(**TINY, **rates, conservatism=1e-3), "continuous", given), plain)
    assert_not_same(after(sac(**TINY), "continuous", given), plain)


def test_without_conservatism_it_is_double_dqn():
    given = batches(small("dqn"), "discrete")
    plain = after(double(dqn(**TINY)), "discrete", given)
    assert_same(after(cql_discrete(**TINY, conservatism=0.0), "discrete", given), plain)
    assert_not_same(after(cql_discrete(**TINY, conservatism=1e-3), "discrete", given), plain)


@pytest.mark.parametrize(("returned", "same"), [(-1e6, True), (-math.inf, True), (1.0, False)])
def test_calibration_is_nothing_where_returns_are_low(returned, same):
    given = [
        {"replay": {**batch["replay"], "return_to_go": torch.full_like(batch["replay"]["reward"], returned)}}
        for batch in batches(small("cql"), "continuous")
    ]
    states = [after(base(**TINY), "continuous", given) for base in (cal_ql, cql)]
    (assert_same if same else assert_not_same)(*states)


def test_a_dataset_bounds_and_what_is_collected_does_not():
    run = Offline(cal_ql(**TINY, gamma=0.5), dataset("continuous"))
    rows = run.replays["replay"].sample(64, torch.Generator().manual_seed(0))
    data = dataset("continuous")
    left = np.zeros(data.slots)
    for slot in reversed(np.flatnonzero(data.is_step)):
        left[slot] = data.columns["reward"][slot] + 0.5 * left[slot + 1]
    np.testing.assert_allclose(rows["return_to_go"], left[rows["index"]], rtol=1e-5, atol=1e-6)
    online = Online(cal_ql(**TINY, start=4, batch_size=4), make("continuous"))
    for _ in range(4):
        online.advance()
    assert online.learner.updates > 0
    online.learner.check_finite()
    assert (batches(small("cal-ql"), "continuous")[0]["replay"]["return_to_go"] == -math.inf).all()


def test_the_density_of_a_logged_action():
    """As `tanh_normal` says of an action that it drew."""
    rng = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn((64, 2), generator=rng, dtype=torch.float64) * 0.5 for _ in range(3))
    action, log_prob = module.tanh_normal(mean, log_std, noise)
    torch.testing.assert_close(module.log_prob_of(mean, log_std, action), log_prob)
    assert module.log_prob_of(mean, log_std, torch.ones_like(mean)).isfinite().all()


def test_cloning_comes_first():
    """Critics that are worth nothing to an actor that clones: it goes the same way whatever they say, and then not."""
    given = batches(small("cql"), "continuous")
    louder = [{"replay": {**b["replay"], "reward": b["replay"]["reward"] + 100.0}} for b in given]
    algorithm = cql(**TINY, cloning_updates=3, critic_lr=1e-2)

    def actor(batches, updates):
        state = after(algorithm, "continuous", batches, updates)
        return {name: value for name, value in state.items() if name.startswith("actor.")}

    assert_same(actor(given, 3), actor(louder, 3))
    assert_not_same(actor(given, 4), actor(louder, 4))
    assert_not_same(actor(given, 1), after(cql(**TINY, critic_lr=1e-2), "continuous", given, 1))


def test_cloning_finds_the_logged_action():
    space = Spec(Space((2,)), Space((1,)))
    learner = Learner(cql(**TINY, cloning_updates=10_000, actor_lr=1e-2, entropy_coefficient=0.0), space)
    rng = torch.Generator().manual_seed(0)
    for _ in range(300):
        obs = torch.randn((64, 2), generator=rng)
        action = (obs[:, :1] - obs[:, 1:]).tanh()
        ends = torch.ones(64, dtype=torch.bool)
        columns = {"obs": obs, "next_obs": obs, "action": action, "reward": torch.zeros(64)}
        learner.update({"replay": {**columns, "terminated": ends, "truncated": ~ends}})
    assert (learner.nets["actor"](obs)[0].tanh() - action).abs().mean() < 0.1  # 0 is 0.6 off


# ------------------------------------------------------------------------------------------- what it does to values


def corridor(episodes=60):
    """Six cells in a row: the first choice goes left, the second right, the third was never taken by who logged it.

    A step costs 1, unless it arrives at the right end, which terminates; there is time for twelve.
    """
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(episodes):
        cells, done = [int(rng.integers(5))], []
        while cells[-1] < 5 and len(done) < 12:
            done.append(int(rng.integers(2)))
            cells.append(max(cells[-1] + 2 * done[-1] - 1, 0))
        arrived, last = np.array(cells[1:]) == 5, np.arange(len(done)) == len(done) - 1
        columns = {"obs": np.eye(6, dtype=np.float32)[cells], "action": np.array(done)}
        columns |= {"reward": arrived - np.float32(1), "terminated": arrived, "truncated": last & ~arrived}
        rows.append(columns)
    return from_episodes(rows, Box(0, 1, (6,)), Discrete(3))


def values_of(algorithm, seed, updates=600):
    run = Offline(algorithm, corridor(), (seed,))
    while run.learner.updates < updates:
        run.advance()
    with torch.no_grad():
        return run.learner.nets["critic"](torch.eye(6)[:5])


@pytest.mark.parametrize("seed", range(3))
def test_what_nobody_did_is_not_worth_more(seed):
    """Right is best in every cell, and worth `-sum_{i < 4 - cell} 0.9^i`. Networks begin near 0, which is more."""
    settings = {"hidden": (32,), "lr": 3e-3, "gamma": 0.9, "target_every": 20, "batch_size": 64}
    plain = values_of(double(dqn(**settings)), seed)
    held = values_of(cql_discrete(**settings, conservatism=0.5), seed)
    best = torch.tensor([-sum(0.9**i for i in range(4 - cell)) for cell in range(5)])
    assert (plain.amax(-1) - best).mean() > 0.5
    assert (plain[:, 2] > plain[:, :2].mean(-1)).all()
    assert (held.amax(-1) - best).mean() < 0.1
    assert (held[:, 2] < held[:, :2].mean(-1)).all()
    assert (held.argmax(-1) == 1).all()


# ------------------------------------------------------------------------------------------------ the rest


def test_a_conservatism_that_is_tuned_goes_to_its_threshold():
    given = batches(small("cql"), "continuous")

    def price(threshold):
        tuned = tuned_conservatism(cql(**TINY, conservatism=2.0), threshold=threshold, lr=0.1)
        learner = Learner(tuned, spec("continuous"))
        for n in range(5):
            _, columns = learner.update(given[n % 4])
        assert columns["replay"]["overestimate"].shape == (32,)
        return learner.nets["conservatism"]().item()

    assert price(-100.0) > 2.0 > price(100.0)


def test_a_tuned_conservatism_begins_as_it_was():
    given = batches(small("cql"), "continuous")
    assert_same(*(
        {name: value for name, value in after(algorithm, "continuous", given, 1).items() if "conservatism" not in name}
        for algorithm in (tuned_conservatism(cql(**TINY, conservatism=1.0)), cql(**TINY, conservatism=1.0))
    ))  # fmt: skip


def test_settings():
    for keyword in ("actor_lr", "critic_lr", "actions"):
        with pytest.raises(ValueError, match=f"{keyword} is 0"):
            cql(**{keyword: 0})
    for base in (cql, cal_ql, cql_discrete):
        with pytest.raises(ValueError, match="conservatism is -1"):
            base(conservatism=-1)
    for algorithm in (sac(), cql(conservatism=0.0)):
        with pytest.raises(ValueError, match="tuned-conservatism does not fit"):
            tuned_conservatism(algorithm)
