"""Raw returns of whole episodes."""

import pytest
import torch

from palaestra.algorithms.td3 import td3
from palaestra.envs.make import make_vector
from palaestra.evaluation import returns
from palaestra.learner import Learner
from palaestra.rollout.source import Source


def policy(nets, obs, memory, rng):
    return torch.zeros(len(obs), 1), {}, memory


def evaluated() -> dict[str, list[float]]:
    source = Source(make_vector("palaestra/Pendulum-v0", 3), 0)
    nets = Learner(td3(hidden=(4,)), source.border.spec).nets
    return returns.episode_return(nets, policy, source)


def test_one_return_for_each_environment():
    env = make_vector("palaestra/Pendulum-v0", 3)
    env.reset(seed=0)
    expected = sum(env.step([[0.0]] * 3)[1] for _ in range(200))
    assert evaluated()["episode_return"] == pytest.approx(list(expected), rel=1e-6)


def test_an_episode_without_an_end_is_named(monkeypatch):
    monkeypatch.setattr(returns, "MOST_STEPS", 50)
    with pytest.raises(ValueError, match="has not ended after 50 steps: give the environment a limit"):
        evaluated()
