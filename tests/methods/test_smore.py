"""SMORe: losses by hand, what it is without entering rows, which streams see what, misfits."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from palaestra.algorithm import Conflict, changed_parts
from palaestra.algorithms.bc import bc
from palaestra.algorithms.experience import n_step, prior_data
from palaestra.algorithms.iql import iql
from palaestra.algorithms.xql import xql
from palaestra.data import mixture
from palaestra.data.dataset import from_episodes
from palaestra.data.goals import Goal
from palaestra.expression import parse
from palaestra.learner import Learner
from palaestra.loops.offline import Offline
from palaestra.loops.online import Online
from palaestra.methods.offline.smore import (
    arrival,
    consistency,
    contrastive_consistency,
    hindsight_goals,
    negative_score,
    smore,
    smore_contrastive,
)
from tests.parts.worlds import dataset, make, spec

TINY = {"hidden": (16, 16), "batch_size": 16}
GOAL = Goal()  # of the small worlds, whose observations are random: the last two entries of five


def said(scores, value=0.0):
    """Critics that say `scores` [E] of every pair, and a V that says `value`."""
    return {
        "critic": lambda obs, action: torch.tensor(scores, dtype=torch.float64)[:, None].expand(-1, len(obs)),
        "value": lambda obs: torch.full((len(obs),), value, dtype=torch.float64),
    }


def pair():
    row = torch.zeros(1, 1, dtype=torch.float64)
    return {"obs": row, "next_obs": row, "action": row, "reward": row[0], "terminated": torch.tensor([True])}


def test_scores_by_hand():
    nets = said([1.0, 3.0], value=2.0)
    # y = -2 + 0.5 * 2 = -1, though the row terminates:  (2^2 + 4^2) / 2 + 0.1 (1 - 0.5) (1 + 9) = 10 + 0.5
    rows, columns = consistency(nets, pair(), gamma=0.5, shrinkage=0.1)
    torch.testing.assert_close(rows, torch.tensor([10.5], dtype=torch.float64))
    assert (columns["q"].item(), columns["error"].item()) == (1.0, 2.0)
    # 2 / (1 - 0.5) = 4:  3^2 + 1^2
    rows, columns = arrival(nets, pair(), gamma=0.5)
    assert (rows.item(), columns["error"].item()) == (10.0, 3.0)
    # y = 0.5 * 2 = 1:  (0 + 2^2) / 2 + 0.1 (1 + 3)
    rows, _ = contrastive_consistency(nets, pair(), gamma=0.5, shrinkage=0.1)
    torch.testing.assert_close(rows, torch.tensor([2.4], dtype=torch.float64))
    assert negative_score(nets, pair()).item() == -4.0


def test_on_a_way_of_three_steps():
    """Where V(s_k) = S(s_k, a_k), consistent scores fall from 2 / (1 - gamma), by what is said: 20, 16, 12.4, 9.16."""
    scores = [20.0, 16.0, 12.4, 9.16]
    rows, _ = arrival(said([20.0]), pair(), gamma=0.9)
    torch.testing.assert_close(rows, torch.zeros(1, dtype=torch.float64))
    for near, far in pairwise(scores):
        rows, _ = consistency(said([far], value=near), pair(), gamma=0.9, shrinkage=0.0)
        torch.testing.assert_close(rows, torch.zeros(1, dtype=torch.float64))
    rows, _ = consistency(said([-20.0], value=-20.0), pair(), gamma=0.9, shrinkage=0.0)  # and never below
    torch.testing.assert_close(rows, torch.zeros(1, dtype=torch.float64))


def drawn(algorithm, number=4):
    run = Offline(algorithm, dataset("continuous"))
    clock = run.learner.nets.clock
    return [{s: mixture.sample(run.replays, s, 16, run.drawing, clock) for s in run.streams} for _ in range(number)]


@pytest.mark.parametrize("base", [iql, xql])
def test_without_what_enters_a_goal_it_is_the_base_at_minus_two_a_step(base):
    """To rounding: value and actor are the base's own. xql's critic has Huber's loss, so iql's square stands for it."""
    scored = smore(base(**TINY), shrinkage=0.0)
    critic = scored.losses["critic"]
    terms = {
        "td": replace(critic.terms["td"], coefficient=2.0),
        "arrival": replace(critic.terms["arrival"], coefficient=0.0),
    }
    silent = replace(scored, losses={**scored.losses, "critic": replace(critic, terms=terms)})
    plain = iql(**TINY).losses["critic"]
    paid = replace(base(**TINY), losses={**base(**TINY).losses, "critic": plain})
    one, other, loud = (Learner(algorithm, spec("continuous")) for algorithm in (silent, paid, scored))
    for batch in drawn(scored):
        row = batch["replay"]
        never = torch.zeros_like(row["terminated"])
        one.update(batch)
        loud.update(batch)
        other.update({"replay": {**row, "reward": torch.full_like(row["reward"], -2.0), "terminated": never}})
    left, right = one.nets.state_dict(), other.nets.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)
    assert any(not torch.allclose(left[name], number, atol=1e-3) for name, number in loud.nets.state_dict().items())


def test_neither_reward_nor_end_is_seen():
    algorithm = smore(iql(**TINY))
    one, other = (Learner(algorithm, spec("continuous")) for _ in range(2))
    for batch in drawn(algorithm):
        one.update(batch)
        other.update({s: {**b, "reward": b["reward"] + 5.0, "terminated": ~b["terminated"]} for s, b in batch.items()})
    assert all(torch.equal(*pair) for pair in zip(one.nets.parameters(), other.nets.parameters(), strict=True))


@pytest.mark.parametrize("method", [smore, smore_contrastive])
def test_two_streams_of_one_dataset(method):
    """Rows towards a goal, and those that enter it: the latter are the critic's alone."""
    algorithm = method(iql(**TINY), share=1.0)
    for batch in drawn(algorithm, 1):
        assert GOAL.reached(batch["entering"]["next_obs"], GOAL.wanted_in(batch["entering"]["obs"])).all()
        towards = GOAL.reached(batch["replay"]["next_obs"], GOAL.wanted_in(batch["replay"]["obs"]))
        assert not towards.all()
        assert torch.equal(batch["replay"]["reward"], towards.float())
    streams = {name: [term.stream for term in loss.terms.values()] for name, loss in algorithm.losses.items()}
    assert streams == {"value": ["replay"], "actor": ["replay"], "critic": ["replay", "entering"]}
    assert changed_parts(iql(**TINY), algorithm) == ("buffers", "losses")
    assert changed_parts(iql(**TINY), hindsight_goals(iql(**TINY))) == ("buffers",)


def test_near_a_goal_scores_are_higher():
    """On a line, to and fro: of two pairs that differ in the distance of the goal, the nearer is on its way to it."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(40):
        moves = rng.choice([-1.0, 1.0], 20).astype(np.float32)
        x = np.concatenate([[0.0], moves.cumsum()]).astype(np.float32) / 4
        ends = np.arange(20) == 19
        columns = {"reward": np.zeros(20), "terminated": ends & False, "truncated": ends}
        episodes.append({"obs": np.stack([x, 0 * x + 9], 1), "action": moves[:, None], **columns})
    data = from_episodes(episodes, Box(-99, 99, (2,)), Box(-1, 1, (1,)))
    where = {"goal": (1,), "achieved": (0,), "distance": 0.1}
    run = Offline(smore(iql(hidden=(32, 32), batch_size=64, lr=3e-3, gamma=0.9), **where, share=1.0), data)
    for _ in range(500):
        run.advance()
    seen = torch.tensor([[0.0, goal / 4] for goal in (1, 3, 5)])
    score = run.learner.nets["critic"](seen, torch.ones(3, 1)).mean(0).tolist()
    away = run.learner.nets["critic"](seen[:1], -torch.ones(1, 1)).mean().item()
    assert score[0] > score[1] + 1 > score[2] + 2
    assert score[0] > away + 1
    assert -20 < min(score) < max(score) < 20


@pytest.mark.parametrize("method", [smore, hindsight_goals])
def test_online(method):
    run = Online(method(iql(**TINY, start=20)), make("continuous"))
    while run.env_steps < 60:
        run.advance()
    assert run.learner.updates > 30
    run.learner.check_finite()


def test_what_a_replay_takes_shares_from_gets_goals_too():
    mixed = hindsight_goals(prior_data(iql(**TINY)))
    assert mixed.buffers["dataset"].layout == mixed.buffers["replay"].layout
    scored = smore(prior_data(iql(**TINY)))
    assert scored.buffers["entering"].shares == {}


def test_misfits():
    with pytest.raises(ValueError, match=r"smore does not fit .*: choose iql or xql"):
        smore(bc())
    with pytest.raises(ValueError, match=r"smore does not fit .* no in-sample target"):
        smore(smore(iql(**TINY)))
    with pytest.raises(ValueError, match=r"hindsight-goals does not fit .* single steps"):
        hindsight_goals(n_step(iql(**TINY)))
    with pytest.raises(ValueError, match=r"hindsight-goals does not fit .* single steps"):
        parse("ppo+hindsight-goals")
    with pytest.raises(Conflict, match=r"n-step and hindsight-goals both set buffers.replay.layout"):
        n_step(hindsight_goals(iql(**TINY)))
    with pytest.raises(ValueError, match="gamma is less than 1"):
        smore(iql(gamma=1.0))
    with pytest.raises(ValueError, match=r"share is 1.5; it must be between 0 and 1"):
        hindsight_goals(iql(), share=1.5)
    with pytest.raises(ValueError, match=r"shrinkage is -1; it must be between 0 and inf"):
        smore(iql(), shrinkage=-1)
