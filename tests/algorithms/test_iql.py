"""IQL: its losses by hand, what reads which V, and what it makes of a dataset whose answer is known."""

import math
from functools import partial

import pytest
import torch
from torch import tensor

from palaestra.algorithm import Clock, Unfit
from palaestra.algorithms.bc import bc, gaussian_bc
from palaestra.algorithms.iql import in_sample_td, in_sample_value, iql, iql_discrete, weighted_imitation
from palaestra.expression import parse
from palaestra.functional.distributions import Normal
from palaestra.functional.regressions import expectile
from palaestra.functional.schedules import cosine
from palaestra.functional.targets import half_squared, huber
from palaestra.learner import Learner
from tests.algorithms.test_numbers import (
    CRITIC,
    GAMMA,
    ONE,
    ROWS,
    TARGET,
    THREE,
    VALUES,
    close,
    doubles,
    linear,
    made,
    q,
    snapshot,
    two,
)
from tests.parts.worlds import batches, small, spec

TINY = {"hidden": (16, 16)}
BASES = [(iql, "continuous"), (iql_discrete, "discrete")]


def value(obs):
    return (0.3 * obs).squeeze(-1)


def test_expectile():
    close(expectile(doubles(2.0, -1.0, 0.5, 0.0), 0.7), 0.7 * 4.0, 0.3 * 1.0, 0.7 * 0.25, 0.0)


def test_half_of_an_expectile_is_the_mean():
    prediction, target = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(expectile(target - prediction, 0.5), half_squared(prediction, target))


def test_in_sample_value():
    nets = made(target_critic=linear(TARGET), value=value)
    rows, columns = in_sample_value(nets, ROWS, partial(expectile, share=0.8))
    # at (0.5, 0.2) the targets say 0.3 and 0.325, at (-1, 0.8) -1.05 and 0.55; V says 0.15 and -0.3
    least = [min(q(TARGET, 0.5, 0.2)), min(q(TARGET, -1.0, 0.8))]
    assert least == pytest.approx([0.3, -1.05])
    close(columns["target_q"], *least)
    close(columns["value"], 0.15, -0.3)
    close(rows, 0.8 * 0.15**2, 0.2 * 0.75**2)


def test_weighted_imitation():
    nets = made(actor=lambda obs: Normal(0.4 * obs, torch.full_like(obs, math.log(0.5))), value=value)
    b = {**ROWS, "target_q": doubles(0.3, -1.05)}
    nll = [
        0.5 * ((a - m) / 0.5) ** 2 + math.log(0.5) + 0.5 * math.log(2 * math.pi) for a, m in ((0.2, 0.2), (0.8, -0.4))
    ]
    rows, columns = weighted_imitation(nets, b, sharpness=2.0, limit=100.0)
    close(columns["advantage"], 0.15, -0.75)
    close(rows, math.exp(0.3) * nll[0], math.exp(-1.5) * nll[1])
    assert columns["weight_clipped"].tolist() == [False, False]
    rows, columns = weighted_imitation(nets, b, sharpness=2.0, limit=1.2)  # exp(0.3) is 1.35
    close(rows, 1.2 * nll[0], math.exp(-1.5) * nll[1])
    assert columns["weight_clipped"].tolist() == [True, False]
    rows, _ = weighted_imitation(nets, {**b, "target_q": tensor([1e5, -1e5])}, sharpness=10.0, limit=100.0)
    close(rows.float(), 100.0 * nll[0], 0.0)  # exp overflows, and the weight does not


@pytest.mark.parametrize("steps", [None, 2])
def test_in_sample_td(steps):
    nets = made(critic=linear(CRITIC), value=value)
    batch = ROWS
    y = [1.0 + GAMMA * 0.6, -2.0]  # V(2) is 0.6; the second row terminates
    if steps:
        batch = {**ROWS, "reward": doubles([1.0, 3.0], [-2.0, 0.0]), "steps": tensor([2, 1])}
        y[0] = 1.0 + GAMMA * 3.0 + GAMMA**2 * 0.6
    rows, columns = in_sample_td(nets, batch, GAMMA)
    found = q(CRITIC, 0.5, 0.2), q(CRITIC, -1.0, 0.8)
    close(rows, *(sum((v - target) ** 2 for v in own) for own, target in zip(found, y, strict=True)))
    close(columns["error"], *(abs(own[0] - target) for own, target in zip(found, y, strict=True)))
    rows, _ = in_sample_td(nets, batch, GAMMA, partial(huber, width=1e6))
    close(rows, *(sum((v - target) ** 2 / 2 for v in own) for own, target in zip(found, y, strict=True)))


def test_of_discrete_actions_it_reads_the_chosen_value():
    chosen = {**ROWS, "action": tensor([2, 0])}
    nets = made(THREE, critic=two(VALUES, -VALUES), target_critic=two(VALUES, -VALUES), value=value)
    # VALUES are (1, -2, 3): the third at 0.5 is 1.5, the first at -1 is -1, and the other member's are their opposites
    _, columns = in_sample_value(nets, chosen, expectile)
    close(columns["target_q"], -1.5, -1.0)
    _, columns = in_sample_td(nets, chosen, GAMMA)
    close(columns["q"], 1.5, -1.0)


# ----------------------------------------------------------------------------------------------------- what reads what


@pytest.mark.parametrize(("base", "world"), BASES)
def test_the_actor_and_the_critic_read_the_new_value(base, world):
    learner = Learner(base(**TINY, lr=1e-2, tau=0.25, gamma=0.9), spec(world))
    assert list(learner.algorithm.losses) == ["value", "actor", "critic"]
    batch = batches(small(base.__name__.replace("_", "-")), world)[0]["replay"]
    learner.update({"replay": batch})  # critics and their targets differ from now on
    nets, before = learner.nets, snapshot(learner)
    old, critics = nets["value"](batch["obs"]), chosen(nets["critic"], batch)
    least = chosen(nets["target_critic"], batch).amin(0)
    _, given = learner.update({"replay": batch})
    columns, new = given["replay"], nets["value"](batch["obs"])
    assert not torch.allclose(old, new, atol=1e-3)
    torch.testing.assert_close(columns["value"], old)
    torch.testing.assert_close(columns["target_q"], least)
    torch.testing.assert_close(columns["advantage"], least - new)
    target = batch["reward"] + 0.9 * ~batch["terminated"] * nets["value"](batch["next_obs"])
    torch.testing.assert_close(columns["error"], (critics[0] - target).abs())
    for was, critic, now in zip(
        before["target_critic"], nets["critic"].parameters(), nets["target_critic"].parameters(), strict=True
    ):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * critic)


def chosen(critic, batch):
    """[E, B]"""
    with torch.no_grad():
        if batch["action"].is_floating_point():
            return critic(batch["obs"], batch["action"])
        values = critic(batch["obs"])
        return values[:, torch.arange(len(batch["action"])), batch["action"]]


@pytest.mark.parametrize(("base", "world", "clone"), [(iql, "continuous", gaussian_bc), (iql_discrete, "discrete", bc)])
def test_without_sharpness_it_clones(base, world, clone):
    """Bit for bit, where the learning rate does not fall."""
    given = batches(small(base.__name__.replace("_", "-")), world)
    algorithms = base(**TINY, sharpness=0.0, decay_over=None), clone(**TINY), base(**TINY, decay_over=None)
    flat, cloning, sharp = (Learner(algorithm, spec(world)) for algorithm in algorithms)
    for n in range(6):
        for learner in (flat, cloning, sharp):
            learner.update(given[n % len(given)])
    actors = [list(learner.nets["actor"].parameters()) for learner in (flat, cloning, sharp)]
    assert all(map(torch.equal, actors[0], actors[1]))
    assert not all(map(torch.equal, actors[0], actors[2]))


def test_the_actors_learning_rate_falls_to_nothing():
    clock = Clock()
    rate = cosine(0.4, 0.0, 8)
    for updates, expected in ((0, 0.4), (2, 0.2 * (1 + 0.5**0.5)), (4, 0.2), (8, 0.0), (20, 0.0)):
        clock.updates.fill_(updates)
        assert rate(clock).item() == pytest.approx(expected, abs=1e-7)
    assert cosine(1.0, 0.5, 10, of="env_steps")(clock).item() == 1.0
    learner = Learner(iql(**TINY, decay_over=3), spec("continuous"))
    moved = []
    for batch in batches(small("iql"), "continuous") * 2:
        before = snapshot(learner)
        learner.update(batch)
        after = snapshot(learner)
        moved.append([not all(map(torch.equal, before[name], after[name])) for name in ("actor", "critic")])
    assert moved == [[True, True]] * 2 + [[False, True]] * 6


# ------------------------------------------------------------------------------------------ a dataset with an answer


def bandit(spec, actions, rewards, rows):
    """One step, `rows` of each action."""
    count = tensor(rows)
    action = torch.repeat_interleave(tensor(actions), count)
    total = len(action)
    return {
        "obs": torch.zeros(total, 1),
        "next_obs": torch.zeros(total, 1),
        "action": action if spec.action.discrete else action[:, None],
        "reward": torch.repeat_interleave(tensor(rewards), count),
        "terminated": torch.ones(total, dtype=torch.bool),
        "truncated": torch.zeros(total, dtype=torch.bool),
    }


def solved(algorithm, spec, batch, updates=400):
    learner = Learner(algorithm, spec)
    for _ in range(updates):
        _, given = learner.update({"replay": batch})
    nothing = torch.zeros(1, 1)
    said = learner.nets["actor"](nothing)
    return learner.nets["value"](nothing).item(), said, given["replay"]


SETTINGS = {"hidden": (16,), "lr": 1e-2, "tau": 0.1, "decay_over": None}


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_bandit(share):
    """Two actions that pay 1 and 0, as often logged: V is the expectile of {0, 1}, which is the share itself."""
    batch = bandit(ONE, [0.5, -0.5], [1.0, 0.0], [16, 16])
    found, said, columns = solved(iql(**SETTINGS, expectile=share, sharpness=8.0), ONE, batch)
    assert found == pytest.approx(share, abs=0.02)
    torch.testing.assert_close(columns["q"], batch["reward"], atol=0.03, rtol=0.0)
    # weights of e^8 to 1: the mean is that of the better action
    assert said.mean.item() == pytest.approx(0.5, abs=0.02)


def test_a_discrete_bandit():
    """Of the logged (1/4, 3/4, 0) it makes these times `exp(sharpness Q)`: an action that was not logged stays out."""
    batch = bandit(THREE, [0, 1], [1.0, 0.0], [8, 24])
    found, said, columns = solved(iql_discrete(**SETTINGS, expectile=0.7, sharpness=1.0), THREE, batch)
    # 0.7 * 1/4 * (1 - V) = 0.3 * 3/4 * V
    assert found == pytest.approx(0.7 / (0.7 + 0.9), abs=0.02)
    likely = said.log_probs.exp()[0].tolist()
    assert likely == pytest.approx([math.e / (math.e + 3), 3 / (math.e + 3), 0.0], abs=0.03)
    assert not columns["weight_clipped"].any()


def test_clipped_weights_are_told():
    batch = bandit(ONE, [0.5, -0.5], [10.0, 0.0], [16, 16])
    _, _, columns = solved(iql(**SETTINGS, expectile=0.5, sharpness=3.0), ONE, batch)
    assert columns["weight_clipped"].float().mean() == 0.5  # exp(3 * 5) is three million


# --------------------------------------------------------------------------------------------------------- the rest


def test_spaces_and_settings():
    with pytest.raises(Unfit, match="continuous"):
        Learner(iql(**TINY), spec("discrete"))
    with pytest.raises(Unfit, match="discrete"):
        Learner(iql_discrete(**TINY), spec("continuous"))
    for wrong in ("expectile=1.1", "sharpness=-1.0", "weight_limit=0.0", "decay_over=0", "gamma=2.0", "lr=0.0"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            parse(f"iql({wrong})")


def test_an_action_that_is_not_allowed_is_not_likely():
    learner = Learner(iql_discrete(**TINY), spec("masked"))
    for batch in batches(small("iql-discrete"), "masked"):
        metrics, _ = learner.update(batch)
        assert all(value.isfinite() for value in metrics.values())
    obs = batch["replay"]["obs"]
    log_probs = learner.nets["actor"](obs).log_probs
    assert (log_probs[obs["action_mask"] == 0] < -1e3).all()
