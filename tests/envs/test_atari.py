"""Atari games by their ids: what an observation is, and that a run in one stays in bytes. Needs the extra `atari`."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from palaestra.envs.make import atari, make_vector
from palaestra.expression import parse
from palaestra.loops.online import Online

pytest.importorskip("ale_py")
pytest.importorskip("cv2")
PONG = "ALE/Pong-v5"


def test_an_id_comes_preprocessed():
    env = make_vector(PONG, 2)
    assert env.single_observation_space.shape == (4, 84, 84)
    assert env.single_observation_space.dtype == np.uint8
    first, _ = env.reset(seed=0)
    assert (first.shape, first.dtype) == ((2, 4, 84, 84), np.uint8)
    assert first.max() > 100
    assert (first[0, 0] == first[0, 3]).all()  # padded with the first frame
    obs = first
    for _ in range(4):
        before, (obs, *_) = obs, env.step(np.array([2, 3]))
        assert (obs[:, :3] == before[:, 1:]).all()
    assert (obs[0] != obs[1]).any()


def test_frames_are_skipped_once():
    game = atari(PONG)
    game.reset(seed=0)
    before = game.unwrapped.ale.getEpisodeFrameNumber()
    game.step(0)
    assert game.unwrapped.ale.getEpisodeFrameNumber() - before == 4


def test_rewards_and_episodes_are_the_games():
    wrapped = atari("ALE/Breakout-v5")
    names = []
    while isinstance(wrapped, gym.Wrapper):
        names.append(type(wrapped).__name__)
        if names[-1] == "AtariPreprocessing":
            assert not wrapped.terminal_on_life_loss
            assert wrapped.noop_max == 30
        wrapped = wrapped.env
    assert not any("Reward" in name for name in names)


def test_a_few_steps_of_dqn():
    settings = "start=8, batch_size=4, capacity=100, hidden=(16,), target_every=2, exploration_steps=10"
    run = Online(parse(f"dqn({settings})"), make_vector(PONG, 2))
    while run.env_steps < 24:
        run.advance()
    assert run.learner.updates > 4
    replay = run.replays["replay"]
    assert replay.columns["obs"].dtype == torch.uint8
    assert replay.columns["obs"].shape[1:] == (4, 84, 84)
    assert torch.isfinite(run.metrics["loss/critic"])
