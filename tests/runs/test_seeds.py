"""Runs of several seeds: stacked, in processes, one after another; stopped, resumed, looked at and loaded."""

import gymnasium as gym
import numpy as np
import pytest

import palaestra as pal
from palaestra.algorithm import Transform, prepend_transform
from palaestra.algorithms.td3 import td3
from palaestra.runs import Run, RunError, find, row

SMALL = "td3(batch_size=8, start=20, hidden=(8,))"
WORLD = "palaestra/Pendulum-v0"


def train(folder, steps=240, seeds=(3, 0), env=WORLD, algorithm=SMALL, **settings):
    settings = {"together": "stacked", "episodes": 2, "checkpoint_every": 60, "threads": 1, **settings}
    return pal.train(algorithm, env, steps, seeds=seeds, out=folder, **settings)


def rows(run, but=("seconds",)):
    return [{key: value for key, value in one.items() if key not in but} for one in run.metrics()]


def of(run, seed):
    return [one for one in rows(run) if one["seed"] == seed]


def the_same(left, right, tolerance):
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if key == "scores":
                value, other = value["episode_return"], other["scores"]
                assert other["episode_return"] == pytest.approx(value, rel=tolerance)
            elif key != "kind":
                assert other[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key


def test_each_seed_is_as_it_is_alone(tmp_path):
    stacked = train(tmp_path / "stacked")
    apart = train(tmp_path / "apart", together="processes")
    assert stacked.about["together"] == "stacked"
    assert [path.name for path in apart.parts()] == ["0", "3"]
    for seed in (0, 3):
        alone = pal.train(
            SMALL, WORLD, 240, seed=seed, out=tmp_path / str(seed), episodes=2, checkpoint_every=60, threads=1
        )
        assert of(apart, seed) == rows(alone)  # bit for bit
        the_same(of(stacked, seed), rows(alone), tolerance=1e-2)
    assert row(apart)["iqm"].keys() == {"episode_return"}
    assert row(apart)["env_steps"] == row(stacked)["env_steps"] == 240
    assert {run.folder for run in find([tmp_path])} == {tmp_path / name for name in ("stacked", "apart", "0", "3")}
    for run in (stacked, apart):
        assert pal.check(run.folder) == {"ok": True, "runs": 1, "problems": []}


@pytest.mark.parametrize("together", ["stacked", pytest.param("processes", marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_whole_one(tmp_path, together):
    whole = train(tmp_path / "whole", together=together)
    half = train(tmp_path / "half", steps=120, together=together, evaluate_every=12, log_every=2)
    resumed = pal.resume(half.folder, 240)
    for seed in (0, 3):
        assert of(resumed, seed) == of(whole, seed)
    with pytest.raises(RunError, match="240 of 240 steps already"):
        pal.resume(half.folder)
    for seed in (0, 3):
        left, right = (pal.load(run, seed=seed).learner.nets.state_dict() for run in (whole, resumed))
        assert all((left[name] == right[name]).all() for name in left)


@pytest.mark.parametrize("together", ["stacked", "processes"])
def test_policies_and_scores_are_each_seeds_own(tmp_path, together):
    run = train(tmp_path / "run", together=together)
    obs = np.array([0.5, 0.5, 0.5], np.float32)
    actions = [pal.load(run.folder, seed=seed).act(obs) for seed in (0, 3)]
    assert actions[0] != actions[1]
    assert pal.load(run.folder).act(obs) == actions[1]  # the first is 3
    scores = pal.evaluate(run.folder, episodes=2)["scores"]["episode_return"]
    assert {seed: len(values) for seed, values in scores.items()} == {"3": 2, "0": 2}
    with pytest.raises(ValueError, match="has no seed 7; it has 3,0"):
        pal.load(run.folder, seed=7)
    pal.export(run.folder, tmp_path / "policy", seed=0)
    assert pal.load(tmp_path / "policy").act(obs) == actions[0]


class Constructed(gym.Env):
    """No other process can make it."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, fails_at=None):
        self.steps, self.fails_at = 0, fails_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.fails_at:
            raise OSError("the cable is out")
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action[0]), False, self.steps % 20 == 0, {}


def test_what_no_other_process_can_make_runs_in_turn(tmp_path):
    by_hand = prepend_transform(td3(batch_size=8, start=20, hidden=(8,)), Transform(lambda nets, b, rng: b))
    run = train(tmp_path / "run", steps=40, env=Constructed, algorithm=by_hand, together="processes")
    assert (run.about["workers"], len(run.parts())) == (1, 2)
    assert {one["seed"] for one in run.metrics()} == {0, 3}
    pal.resume(run.folder, 60, env=Constructed, algorithm=by_hand)
    assert row(run)["env_steps"] == 60


def test_the_faster_way_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("palaestra.together.PATIENCE", 0.05)
    heard = []
    run = train(tmp_path / "run", steps=30, together="auto", listen=heard.append)
    assert run.about["together"] in ("stacked", "processes")
    assert "ms for a step of a seed stacked" in run.about["why_together"]
    assert heard[0] == {"kind": "choosing", "seeds": [3, 0]}


def test_a_seed_that_fails_leaves_the_others_alone(tmp_path):
    with pytest.raises(RunError, match="the cable is out") as caught:
        train(tmp_path / "run", steps=60, env=lambda: Constructed(fails_at=45), together="stacked", episodes=1)
    assert "continue with" in str(caught.value)
    run = train(tmp_path / "apart", steps=40, together="processes")
    own = run.folder / "seeds" / "0" / "run.json"
    good = own.read_text()
    own.write_text(good.replace('"env": "palaestra/Pendulum-v0"', '"env": "palaestra/Pendulum-v9"'))
    with pytest.raises(RunError, match="seed 0 failed"):
        pal.resume(run.folder, 60)
    assert row(Run.open(run.folder))["status"] == "failed"
    assert max(one["env_steps"] for one in run.metrics() if one["seed"] == 3) == 60
    own.write_text(good)
    pal.resume(run.folder, 60)
    assert row(Run.open(run.folder))["status"] == "finished"


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1, 0)])
def test_seeds_that_cannot_be(tmp_path, seeds):
    with pytest.raises(ValueError, match="give at least one, from 0 on, and each once"):
        train(tmp_path / "run", seeds=seeds)
    assert not (tmp_path / "run").exists()
