"""SnapshotRL: values and odds by hand, when its episodes end, what the teacher leaves behind, exact resume."""

import json

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from palaestra.algorithms.dqn import dqn
from palaestra.algorithms.ppo import ppo
from palaestra.algorithms.sac import sac
from palaestra.algorithms.td3 import td3
from palaestra.envs.make import make_vector
from palaestra.envs.starts import start_from
from palaestra.envs.state import get_state
from palaestra.functional.clusters import clusters
from palaestra.loops.online import Online, online
from palaestra.methods.curriculum.snapshotrl import (
    Snapshots,
    probabilities,
    return_to_go,
    snapshotrl,
    snapshotrl_classified,
    snapshotrl_truncated,
    snapshotrl_uniform,
)
from palaestra.runs import RunError
from palaestra.stored import load
from palaestra.teachers.episodes import Episode, played
from palaestra.teachers.teacher import Controller
from palaestra.training import resume, train
from tests.parts.test_source import Counting

MAZE, CART, PENDULUM = "palaestra/PointMaze-v0", "palaestra/CartPole-v0", "palaestra/Pendulum-v0"
HILL = "palaestra/MountainCarContinuous-v0"
TIME_LIMIT = "gymnasium.wrappers.common.TimeLimit"
SMALL = {"hidden": (8,), "batch_size": 8}


def small_td3(**settings):
    return td3(start=10, **SMALL, **settings)


def run_of(algorithm, world=MAZE, copies=2, seeds=(0,), **settings):
    return Online(algorithm, make_vector(world, copies * len(seeds)), seeds, **settings)


def as_text(tree):
    """Nested states, every number of them."""
    return json.dumps(tree, default=lambda array: array.tolist())


def snapshots_of(run, seed=0):
    return run.source.choosers[seed].initial_states[0]


# ------------------------------------------------------------------------------------------------- numbers by hand


def test_what_followed():
    rewards = torch.tensor([1.0, 0.0, 4.0, 2.0], dtype=torch.float64)
    # 2;  4 + 2/2 = 5;  0 + 5/2 = 2.5;  1 + 2.5/2 = 2.25
    assert return_to_go(rewards, 0.5).tolist() == [2.25, 2.5, 5.0, 2.0]
    assert return_to_go(rewards, 1.0).tolist() == [7.0, 6.0, 6.0, 2.0]
    assert return_to_go(rewards, 0.0).tolist() == rewards.tolist()


def test_a_class_is_drawn_and_then_one_of_its_snapshots():
    values = torch.tensor([9.0, 0.0, 5.0, 0.2, 5.1, 0.1], dtype=torch.float64)
    third = 1 / 3
    expected = torch.tensor([third, third / 3, third / 2, third / 3, third / 2, third / 3], dtype=torch.float64)
    torch.testing.assert_close(probabilities(values, 3), expected)
    torch.testing.assert_close(probabilities(values, 1), torch.full((6,), 1 / 6, dtype=torch.float64))


def watched(classes):
    """Snapshots of an episode of 60 steps that pays 1 at its end: what follows most of them is worth nearly nothing."""
    episode = Episode([0.0] * 59 + [1.0], list(range(60)), [None] * 60)
    snapshots = Snapshots("a teacher", steps=100, length=50, episodes=1, every=1, classes=classes, gamma=0.9)
    assert snapshots.prepare(lambda teacher, episodes, every: [episode]) == {"teacher_steps": 60}
    return snapshots


def test_rare_values_are_as_likely_as_common_ones():
    own = clusters(0.9 ** torch.arange(59, -1, -1), 6)
    sizes = own.bincount()
    assert sizes.max() > 10 * sizes.min()
    rng = torch.Generator().manual_seed(0)
    for classes, expected in ((1, sizes / 60), (6, torch.full((6,), 1 / 6))):
        snapshots = watched(classes)
        starts = [snapshots.sample(None, 0, rng).state for _ in range(6_000)]
        found = torch.bincount(own[starts], minlength=6) / 6_000
        assert (found - expected).abs().max() < 4 * (0.25 / 6_000) ** 0.5  # four standard errors of a share at most
        assert len(set(starts)) == 60


# ----------------------------------------------------------------------------------------------- when episodes end


def lengths(run, steps):
    while run.env_steps < steps:
        run.advance()
    return [(int(e["environment"]), int(e["episode_length"])) for e in run.source.finished()]


def test_episodes_are_short_until_the_phase_ends_and_then_the_environments_own():
    run = run_of(snapshotrl_truncated(td3(**SMALL), steps=99, length=30), PENDULUM)
    # Two copies: the phase ends after 50 steps of each, the least that make 99; a pendulum's own limit is 200.
    assert lengths(run, 600) == [(0, 30), (1, 30), (0, 20), (1, 20), (0, 200), (1, 200)]


def test_the_environments_own_limit_holds_from_the_snapshot_on():
    run = run_of(snapshotrl_uniform(td3(**SMALL), steps=1_000), PENDULUM)
    assert lengths(run, 800) == [(0, 200), (1, 200)] * 2


def test_what_is_cut_off_is_truncated():
    run = run_of(snapshotrl(td3(**SMALL), steps=40, length=7), PENDULUM, copies=1)
    run.advance()
    rows = [run.source.step(torch.zeros(1, 1)) for _ in range(39)]
    assert [t for t, row in enumerate(rows, 2) if row["truncated"]] == [7, 14, 21, 28, 35, 40]
    assert not any(row["terminated"] for row in rows)


def test_returns_are_the_students_own():
    """A cart-pole pays 1 a step: a return that counted the teacher's steps would be longer than its episode."""
    run = run_of(snapshotrl(dqn(start=1_000, **SMALL), steps=300, length=15), CART)
    while run.env_steps < 300:
        run.advance()
    episodes = run.source.finished()
    assert len(episodes) > 15
    assert all(e["episode_return"] == e["episode_length"] <= 15 for e in episodes)


# -------------------------------------------------------------------------------------------------- the teacher


@pytest.mark.parametrize("world", [MAZE, CART, PENDULUM, "palaestra/MountainCar-v0"])
def test_the_environment_is_only_borrowed(world):
    run = run_of(snapshotrl_uniform(dqn(**SMALL) if "Car" in world else td3(**SMALL), steps=0), world)
    untouched, env = get_state(run.source.env), run.source.env
    teacher = Controller(env)
    episodes = [e for one in played(env, teacher, [[1, 2], [3, 4], [1, 2]], every=3) for e in one]
    assert as_text(get_state(env)) == as_text(untouched)
    assert [len(e.states) for e in episodes] == [len(range(0, len(e.rewards), 3)) for e in episodes]
    assert [e.rewards for e in episodes[4:]] == [e.rewards for e in episodes[:2]]  # the same seeds, the same episodes
    assert as_text(episodes[0].states) != as_text(episodes[2].states)
    for episode in episodes:
        for state, seen in zip(episode.states, episode.seen, strict=True):
            assert np.array_equal(start_from(env, 1, state), seen)


def test_a_student_gets_there_from_where_its_teacher_was():
    """The last states of the controller's episodes in a maze are a few steps from the goal."""
    run = run_of(snapshotrl_uniform(td3(**SMALL), every=1))
    run.begin()
    own = snapshots_of(run)
    gap = [np.hypot(*(state[:2] - state[4:6])) for state in own.states]
    assert min(gap) < 0.75 < 2.0 < max(gap)


def test_the_steps_of_the_teacher_are_recorded_and_not_the_students():
    rows = []
    run = run_of(snapshotrl(small_td3(), steps=20, episodes=3), HILL, copies=1, seeds=(4, 5))
    online(run, 40, record=rows.append)
    prepared = [row for row in rows if row["kind"] == "prepared"]
    assert [row["seed"] for row in prepared] == [4, 5]
    assert all(row["env_steps"] == 0 and row["teacher_steps"] > 30 for row in prepared)
    assert run.env_steps == 40
    assert rows[0] == prepared[0]
    alone = run_of(snapshotrl(small_td3(), steps=20, episodes=3), HILL, copies=1, seeds=(5,))
    assert alone.begin() == {5: {"teacher_steps": prepared[1]["teacher_steps"]}}
    assert as_text(snapshots_of(alone).states) == as_text(snapshots_of(run, 1).states)


def test_without_a_phase_no_teacher_plays():
    run = run_of(snapshotrl(small_td3(), teacher="runs/nowhere", steps=0))
    assert run.begin() == {0: {}}


def test_a_run_is_a_teacher(tmp_path):
    teacher = train("td3(start=50, hidden=(8,))", PENDULUM, 60, out=tmp_path / "teacher", episodes=1)
    run = run_of(snapshotrl(small_td3(), teacher=str(teacher.folder), steps=50), PENDULUM, policies=load)
    assert run.begin() == {0: {"teacher_steps": 2_000}}  # ten episodes of 200
    policy = load(teacher.folder)
    own = snapshots_of(run)
    env = make_vector(PENDULUM, 1)
    env.reset(seed=0)
    for first, then in zip(range(19), range(1, 20), strict=True):  # of the first episode, ten steps apart
        obs = start_from(env, 0, own.states[first])
        for _ in range(10):
            obs, *_ = env.step(policy.act(obs))
        assert np.allclose(obs, own.seen[then], atol=1e-5)


def test_what_cannot_teach_says_so(tmp_path):
    with pytest.raises(ValueError, match="nothing here opens a run's folder"):
        run_of(snapshotrl(small_td3(), teacher="runs/best")).begin()
    with pytest.raises(RunError, match="there is no such run"):
        run_of(snapshotrl(small_td3(), teacher=str(tmp_path / "nowhere")), policies=load).begin()
    with pytest.raises(ValueError, match="PendulumEnv has no controller"):
        run_of(snapshotrl(small_td3()), "Pendulum-v1").begin()
    counting = SyncVectorEnv([lambda: Counting([3], ["terminates"])], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match=r"a teacher cannot borrow this environment: .*Counting is unknown"):
        Online(snapshotrl(small_td3(), teacher="a run"), counting, policies=lambda name: Pushing(np.zeros(1))).begin()
    for wrong in ({"length": 0}, {"episodes": 0}, {"every": 0}, {"classes": 0}, {"gamma": 1.5}, {"steps": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            snapshotrl(small_td3(), **wrong)


class Pushing:
    """A teacher that always does the same."""

    def __init__(self, action):
        self.action = action

    def act(self, obs):
        return np.stack([self.action] * len(obs))

    def reset(self):
        pass


@pytest.mark.parametrize(
    ("world", "base", "action"),
    [
        ("Pendulum-v1", td3(**SMALL), np.array([2.0], np.float32)),
        ("CartPole-v1", dqn(**SMALL), np.array(1)),
        ("MountainCar-v0", dqn(**SMALL), np.array(2)),
    ],
)
def test_gymnasiums_worlds(world, base, action):
    run = run_of(snapshotrl(base, teacher="runs/one", length=5), world, policies=lambda name: Pushing(action))
    told = run.begin()
    own, env = snapshots_of(run), run.source.env
    assert told[0]["teacher_steps"] >= 80
    before = [single.unwrapped.np_random.bit_generator.state for single in env.envs]
    env.reset(options={"reset_mask": np.array([False, True])})
    drawn = env.envs[1].unwrapped.np_random.bit_generator.state
    for state, seen in zip(own.states, own.seen, strict=True):
        assert np.array_equal(start_from(env, 1, state, seen), seen)
        base_state = state["state"]["values"]["state"]
        assert np.array_equal(env.envs[1].unwrapped.state, base_state)
    after = [single.unwrapped.np_random.bit_generator.state for single in env.envs]
    assert after == [before[0], drawn]  # each student's noise is its own
    assert get_state(env.envs[1])["wrappers"][0] == {"class": TIME_LIMIT, "values": {"_elapsed_steps": 0}}


# ------------------------------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("method", [snapshotrl, snapshotrl_classified, snapshotrl_truncated, snapshotrl_uniform])
@pytest.mark.parametrize(
    ("base", "world"),
    [
        (td3(start=50, **SMALL), MAZE),
        (sac(start=50, **SMALL), PENDULUM),
        (ppo(collect=32, minibatches=2, epochs=2, hidden=(8,)), MAZE),
        (dqn(start=50, **SMALL), CART),
    ],
    ids=["td3", "sac", "ppo", "dqn"],
)
def test_any_base_learns_on_through_the_switch(method, base, world):
    changed = run_of(method(base, steps=150), world)
    online(changed, 300)
    assert changed.learner.updates > 10
    assert changed.source.limit.tolist() == [np.iinfo(np.int64).max] * 2


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("at", [15, 60])
def test_resume_is_exact_and_asks_no_teacher(seeds, at):
    def fresh(policies):
        algorithm = snapshotrl(small_td3(), teacher="runs/one", steps=80, length=9, every=3)
        return run_of(algorithm, PENDULUM, seeds=seeds, policies=policies)

    def pushing(name):
        return Pushing(np.array([1.5], np.float32))

    whole, half, rest = fresh(pushing), fresh(pushing), fresh(None)
    for run, times in ((whole, 60), (half, at)):
        for _ in range(times):
            run.advance()
    state = half.state_dict()
    rest.load_state_dict(state, {"replay": [half.replays["replay"].segment()]})
    for _ in range(60 - at):
        rest.advance()
    assert as_text(whole.learner.state_dict()["nets"]) == as_text(rest.learner.state_dict()["nets"])
    assert as_text(whole.source.state_dict()) == as_text(rest.source.state_dict())


def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path):
    settings = {"evaluate_every": 40, "log_every": 30, "checkpoint_every": 50, "episodes": 2, "seeds": [0, 1]}
    settings |= {"together": "stacked", "threads": 1}
    expression = "td3(start=20, hidden=(8,), batch_size=8)+snapshotrl(steps=90, length=20, every=2)"
    whole = train(expression, MAZE, 150, out=tmp_path / "whole", **settings)

    class Stop(Exception):
        pass

    def stopping(row):
        if row["kind"] == "tick" and row["env_steps"] == 73:
            raise Stop

    with pytest.raises(Stop):
        train(expression, MAZE, 150, out=tmp_path / "halves", listen=stopping, **settings)
    halves = resume(tmp_path / "halves")
    left, right = ([json.dumps({**row, "seconds": 0}) for row in run.metrics()] for run in (whole, halves))
    assert left == right
    assert sum('"prepared"' in row for row in left) == 2
