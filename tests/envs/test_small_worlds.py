"""Catch, a world of images, and Recall, a world that asks for memory: their rules, and what can be learnt in them."""

import gymnasium
import numpy as np
import pytest
import torch

from palaestra.envs.catch import SIZE, CatchEnv, CatchVectorEnv
from palaestra.envs.make import make_vector
from palaestra.envs.recall import RecallEnv, RecallVectorEnv
from palaestra.expression import parse
from palaestra.loops.online import Online
from palaestra.networks.encoders import Convolutional

LEFT, STAY, RIGHT = 0, 1, 2


def drawn(obs):
    """The image as rows of text."""
    return ["".join(".#"[int(pixel > 0)] for pixel in row) for row in obs[..., 0]]


def test_catch_is_an_image():
    env = CatchEnv()
    env.reset(seed=0)
    obs = env.set_physics([0, 2, 5])
    assert (obs.dtype, obs.shape, set(np.unique(obs))) == (np.uint8, (SIZE, SIZE, 1), {0, 255})
    assert drawn(obs)[0] == "..#......."
    assert drawn(obs)[1:9] == [".........."] * 8
    assert drawn(obs)[9] == ".....#...."
    obs, reward, terminated, truncated, _ = env.step(LEFT)
    assert drawn(obs)[:2] == ["..........", "..#......."]
    assert drawn(obs)[9] == "....#....."
    assert (reward, terminated, truncated) == (0.0, False, False)


@pytest.mark.parametrize(("start", "action", "reward"), [
    ([8, 4, 4], STAY, 1.0), ([8, 4, 5], LEFT, 1.0), ([8, 4, 3], RIGHT, 1.0), ([8, 4, 4], LEFT, -1.0),
    ([8, 4, 5], STAY, -1.0), ([8, 0, 0], LEFT, 1.0), ([8, 9, 9], RIGHT, 1.0),  # the sides hold the paddle
])  # fmt: skip
def test_a_ball_is_caught_or_not(start, action, reward):
    env = CatchEnv()
    env.reset(seed=0)
    env.set_physics(start)
    assert env.step(action)[1:4] == (reward, True, False)


@pytest.mark.parametrize("start", [[9, 0, 0], [0.5, 0, 0], [0, -1, 0], [0, 0, 10]])
def test_balls_that_cannot_be(start):
    env = CatchEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="cannot be: the ball's row is in 0"):
        env.set_physics(start)


def returns_of(env, act):
    """The return of each copy's first episode."""
    obs, _ = env.reset(seed=3)
    total, alive = np.zeros(env.num_envs), np.ones(env.num_envs, bool)
    while alive.any():
        obs, reward, terminated, truncated, _ = env.step(act(obs))
        total += reward * alive
        alive &= ~(terminated | truncated)
    return total


def test_catch_at_random():
    env = CatchVectorEnv(2_000)
    rng = np.random.default_rng(0)
    found = returns_of(env, lambda obs: rng.integers(3, size=2_000))
    assert -0.85 < found.mean() < -0.75  # one column of ten
    env.reset(seed=0)
    assert np.bincount(env.get_physics()[:, 1].astype(int), minlength=SIZE).min() > 150  # each as likely


def test_images_stay_bytes():
    env = make_vector("palaestra/Catch-v0", 2)
    run = Online(parse("dqn(start=20, batch_size=8, capacity=100, hidden=(8,))"), env)
    while run.learner.updates < 4:
        run.advance()
    assert run.source.obs.dtype == torch.uint8
    obs = run.replays["replay"].columns["obs"]
    assert (obs.dtype, obs.shape[1:]) == (torch.uint8, (SIZE, SIZE, 1))
    encoder = run.learner.nets["critic"].encoder
    assert isinstance(encoder, Convolutional)
    assert encoder(obs[:5]).shape == (5, 256)


@pytest.mark.slow
def test_dqn_learns_catch_from_its_pixels():
    settings = (
        "hidden=(64,), start=200, batch_size=32, lr=1e-3, target_every=50, exploration_steps=2_000, gamma=0.9, "
        "updates=0.5"
    )
    run = Online(parse(f"dqn({settings})"), make_vector("palaestra/Catch-v0", 4))
    while run.learner.updates < 3_000:
        run.advance()
    found = run.evaluate(make_vector("palaestra/Catch-v0", 100), 0)[0]["episode_return"]
    assert np.mean(found) > 0.0  # at random -0.8


def test_recall_shows_its_cue_once():
    env = RecallEnv(length=3)
    env.reset(seed=0)
    assert env.set_physics([1, 0]).tolist() == [1.0, 0.0, 0.0]
    assert env.set_physics([0, 0]).tolist() == [-1.0, 0.0, 0.0]
    seen = [env.step(1) for _ in range(4)]
    third = float(np.float32(1 / 3)), float(np.float32(2 / 3))
    assert [obs.tolist() for obs, *_ in seen[:3]] == [[0, third[0], 0], [0, third[1], 0], [0, 1, 1]]
    assert [reward for _, reward, *_ in seen] == [0, 0, 0, -1]
    assert [terminated for _, _, terminated, *_ in seen] == [False, False, False, True]


@pytest.mark.parametrize(("cue", "action", "reward"), [(0, 0, 1.0), (0, 1, -1.0), (1, 0, -1.0), (1, 1, 1.0)])
def test_the_last_action_answers(cue, action, reward):
    env = RecallEnv(length=2)
    env.reset(seed=0)
    env.set_physics([cue, 2])
    assert env.step(action)[1:4] == (reward, True, False)
    env.set_physics([cue, 1])
    assert env.step(action)[1:4] == (0.0, False, False)


def test_whoever_sees_the_present_alone_gets_nothing():
    """No function of the observation does better than chance: where it is asked, all copies see the same."""
    copies = 2_000
    env = RecallVectorEnv(copies, length=4)
    obs, _ = env.reset(seed=1)
    for _ in range(4):
        obs, *_ = env.step(np.zeros(copies, int))
    assert (obs == obs[0]).all()
    for act in (lambda obs: (obs[:, 0] > 0).astype(int), lambda obs: np.ones(len(obs), int)):
        assert abs(returns_of(env, act).mean()) < 4 / copies**0.5
    assert (returns_of(env, env.controller) == 1).all()


def test_the_corridor_has_a_length():
    with pytest.raises(ValueError, match="length=0: the corridor must be at least 1 long"):
        RecallVectorEnv(length=0)
    env = gymnasium.make("palaestra/Recall-v0", length=200)  # no time limit cuts it short
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(201)]
    assert ends == [(False, False)] * 200 + [(True, False)]
