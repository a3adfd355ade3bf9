"""PRDC: which logged action is cloned, by hand; td3-bc where states count for all; one tree for all seeds; resume."""

import copy

import pytest
import torch

from palaestra.algorithm import Conflict, Unfit
from palaestra.algorithms.iql import iql
from palaestra.algorithms.td3_bc import td3_bc
from palaestra.data.tree import Tree
from palaestra.learner import Learner
from palaestra.loops.offline import Offline
from palaestra.loops.online import Online
from palaestra.methods.offline.prdc import nearest, pairs, prdc, remembered
from tests.parts.worlds import batches, dataset, make, small, spec

SMALL = {"hidden": (16, 16), "batch_size": 16}
STATES = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
ACTIONS = torch.tensor([[-1.0], [0.1], [1.0], [0.5]])
VALID = torch.tensor([True, True, True, False])  # the last slot is a final observation


def learnt(algorithm, seeds=(0,), updates=6):
    run = Offline(algorithm, dataset("continuous"), seeds)
    for _ in range(updates):
        run.advance()
    return run


def tree_of(run):
    return run.algorithm.losses["actor"].transforms[-1].fn.keywords["tree"]


# ------------------------------------------------------------------------------------------------- numbers by hand


def cloned(state, action, state_weight, neighbour=1):
    """The action that is cloned where the policy does `action` in `state`, of the three pairs above."""
    nets = {"obs_statistics": lambda obs: obs - 1, "actor": lambda obs: torch.full_like(obs, action)}
    how = {"tree": Tree(), "state_weight": state_weight, "neighbour": neighbour}
    columns = {"obs": STATES, "action": ACTIONS, "valid": VALID}
    assert remembered(nets, columns, None, **how)["nearest_action"] is ACTIONS
    assert len(how["tree"]) == 3
    batch = {"obs": torch.tensor([[state]]) - 1, "action": torch.zeros(1, 1)}  # drawn rows are standardised already
    found = nearest(nets, batch, None, **how)
    assert found["action"] is batch["action"]
    return round(found["nearest_action"].item(), 6)


def test_states_weigh_against_actions():
    # From state 0 and action 0.8 the pairs are at 1.8; sqrt(w^2 + 0.7^2); sqrt(4 w^2 + 0.2^2), w being the weight.
    assert cloned(0.0, 0.8, 0.0) == 1.0  # 1.8, 0.7, 0.2
    assert cloned(0.0, 0.8, 0.5) == 0.1  # 1.8, 0.86, 1.02
    assert cloned(0.0, 0.8, 1.5) == 0.1  # 1.8, 1.66, 3.01
    assert cloned(0.0, 0.8, 2.0) == -1.0  # 1.8, 2.12, 4.00


def test_a_neighbour_is_one_and_no_mean():
    assert [cloned(0.0, 0.8, 0.5, k) for k in (1, 2, 3)] == [0.1, 1.0, -1.0]


def test_pairs_are_of_numbers_alone():
    image, symbol = torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.ones(1, dtype=torch.int64)
    obs = {"image": image, "symbol": symbol, "position": torch.tensor([[1.0, 2.0]])}
    assert pairs(obs, torch.tensor([[0.5]]), 3.0).tolist() == [[3.0, 6.0, 0.5]]
    assert pairs(obs["position"], torch.tensor([[0.5]]), 0.0).tolist() == [[0.0, 0.0, 0.5]]


def test_a_logged_pair_is_its_own_neighbour():
    """To the last bit: rows and keys are standardised alike, and actions are not rounded on their way."""
    run = learnt(prdc(td3_bc(**SMALL)), updates=1)
    batch = run.replays["replay"].sample(64, run.drawing)
    batch["obs"] = run.learner.nets["obs_statistics"](batch["obs"])
    tree, action = tree_of(run), batch["action"]
    found = tree.nearest(pairs(batch["obs"], action, 2.0))
    assert torch.equal(found[:, -2:], action)
    assert len(tree) == dataset("continuous").steps


# ------------------------------------------------------------------------------------------------- as part of a run


def test_where_states_count_for_all_it_is_td3_bc():
    plain, far, near = (learnt(a) for a in (td3_bc(**SMALL), *(prdc(td3_bc(**SMALL), w) for w in (1e6, 2.0))))
    state, same, other = (run.learner.nets.state_dict() for run in (plain, far, near))
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert any(not torch.equal(state[name], other[name]) for name in state)


def test_it_searches_when_the_actor_learns():
    run = learnt(prdc(td3_bc(**SMALL)), updates=0)
    asked = []
    search = tree_of(run).nearest
    tree_of(run).nearest = lambda *keys: asked.append(run.count) or search(*keys)
    for _ in range(6):
        run.advance()
    assert len(asked) == 3


def test_seeds_and_copies_share_one_tree():
    run = learnt(prdc(td3_bc(**SMALL)), seeds=(3, 0, 7), updates=2)
    assert not run.learner._copies
    again = copy.deepcopy(run.algorithm)
    assert again.losses["actor"].transforms[-1].fn.keywords["tree"].index is tree_of(run).index
    value = prdc(td3_bc(**SMALL))
    one, other = (tree_of(learnt(value, updates=0)) for _ in range(2))
    assert one.index is not other.index
    assert not value.losses["actor"].transforms[-1].fn.keywords["tree"]


def test_a_resumed_run_plants_its_own():
    run = learnt(prdc(td3_bc(**SMALL)), updates=3)
    state = run.state_dict()
    assert state["learner"]["parts"] == []  # the dataset is not in the checkpoint
    other = learnt(prdc(td3_bc(**SMALL)), updates=0)
    other.load_state_dict(state, {})
    for each in (run, other):
        for _ in range(3):
            each.advance()
    ours, theirs = (each.learner.nets.state_dict() for each in (run, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---------------------------------------------------------------------------------------------------- what it refuses


def test_what_it_refuses():
    with pytest.raises(ValueError, match="prdc does not fit iql"):
        prdc(iql())
    with pytest.raises(ValueError, match="state_weight is -1"):
        prdc(td3_bc(), state_weight=-1.0)
    with pytest.raises(ValueError, match="neighbour is 0"):
        prdc(td3_bc(), neighbour=0)
    with pytest.raises(Conflict, match="target"):
        prdc(prdc(td3_bc()))
    with pytest.raises(ValueError, match=r"neighbour is 100000, and the dataset has \d+ steps"):
        learnt(prdc(td3_bc(**SMALL), neighbour=100_000), updates=0)
    with pytest.raises(Unfit, match="nearest_action, which only a dataset has"):
        Online(prdc(td3_bc(**SMALL)), make("continuous"))


def test_a_learner_that_has_read_no_dataset_clones_what_its_rows_say():
    given = batches(small("td3-bc") + "+prdc", "continuous")
    nets = []
    for algorithm in (td3_bc(**SMALL), prdc(td3_bc(**SMALL))):
        learner = Learner(algorithm, spec("continuous"))
        for batch in given:
            learner.update(batch)
        nets.append(learner.nets.state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
