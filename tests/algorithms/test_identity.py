"""Identity worlds: problems so small that every base solves them in seconds, and each asks for one ability."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from palaestra.expression import catalogue, parse
from palaestra.loops.online import Online
from tests.parts.worlds import fits, small

COPIES = 16
# What suits these worlds; a base gets those that it has. One update for each step in all copies.
SETTINGS = {
    "hidden": (32, 32),
    "lr": 3e-3,
    "gamma": 0.5,
    "tau": 0.1,
    "batch_size": 64,
    "start": 20 * COPIES,
    "updates": 1 / COPIES,
    "capacity": 5_000,
    "target_every": 10,
    "exploration_steps": 100 * COPIES,
    "exploration_noise": 0.3,
    "target_entropy_share": 0.1,
    "v_min": -3.0,
    "v_max": 3.0,
}
ROUNDS = {"collect": 16, "epochs": 4, "minibatches": 2}
OWN = {"sac": {"target_entropy": -3.0}, "ppo": ROUNDS, "recurrent-ppo": ROUNDS}
MILD = {"conservatism": 0.01, "actions": 2, "actor_lr": 3e-3, "critic_lr": 3e-3, "target_entropy": -3.0}
OWN |= {"cql": MILD, "cal-ql": MILD, "cql-discrete": {"conservatism": 0.01}}
# What has a target that moves every ten updates copies it then.
OWN |= {base: OWN.get(base, {}) | {"tau": 1.0} for base in ("dqn", "c51", "qr-dqn", "cql-discrete")}
IMITATE = ("bc", "gaussian-bc", "percentile-bc")  # what was done before, whatever it was paid: tested with datasets
LOGGED = ("decision-transformer", "return-conditioned", "rlpd")  # need a dataset: learn in tests of their own
LEARN = [base for base in catalogue("algorithms") if base not in IMITATE + LOGGED]
CONTINUOUS = [base for base in LEARN if fits(small(base), "continuous")]
DISCRETE = [base for base in LEARN if fits(small(base), "discrete")]


class Match(gym.Env):
    """One step: the action should be the observation. Pays `-(action - obs)^2`."""

    observation_space = action_space = Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wanted = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.wanted, {}

    def step(self, action):
        return self.wanted, -float((action - self.wanted)[0] ** 2), True, False, {}


class Name(gym.Env):
    """One step: the action should be the symbol that was seen. Pays 1 or 0."""

    observation_space = action_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wanted = int(self.np_random.integers(3))
        return self.wanted, {}

    def step(self, action):
        return self.wanted, float(action == self.wanted), True, False, {}


class Ends(gym.Env):
    """One step. The first choice pays 1 and terminates, the second pays 0.9 and is truncated; an action in between is
    a draw between the two, so that its value is a straight line.

    With `gamma=0.5` the second is worth 0.9 / (1 - 0.5) = 1.8, but 0.9 to whoever does not bootstrap behind a
    truncation; the first is worth 1, but 2 to whoever bootstraps behind a termination.
    """

    observation_space = Box(-1.0, 1.0, (1,))

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        likely = float(action) if isinstance(self.action_space, Discrete) else (1.0 + float(action[0])) / 2
        second = bool(self.np_random.random() < likely)
        return np.ones(1, np.float32), 0.9 if second else 1.0, not second, second, {}


class Corridor(gym.Env):
    """Five cells in a row; the right end pays 1 and terminates. Only whoever passes values back finds the way."""

    observation_space, action_space = Discrete(5), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.taken = 1, 0
        return self.cell, {}

    def step(self, action):
        self.cell, self.taken = max(self.cell + 2 * int(action) - 1, 0), self.taken + 1
        arrived = self.cell == 4
        return self.cell, float(arrived), arrived, self.taken == 8 and not arrived, {}


def copies(make, n=COPIES):
    return SyncVectorEnv([make] * n, autoreset_mode=AutoresetMode.DISABLED)


def trained(base, make, updates, **settings):
    """The mean return of its deployed policy in 64 episodes."""
    run = Online(parse(small(base, **{**SETTINGS, **OWN.get(base, {}), **settings})), copies(make))
    while run.learner.updates < updates:
        run.advance()
    return float(np.mean(run.evaluate(copies(make, 64), 0)[0]["episode_return"]))


@pytest.mark.parametrize("base", CONTINUOUS)
def test_match(base):
    # a random action is paid -2/3, zero -1/3
    assert trained(base, Match, 350) > -0.02


@pytest.mark.parametrize("base", DISCRETE)
def test_name(base):
    assert trained(base, Name, 250) > 0.97  # at random 1/3


@pytest.mark.parametrize("base", CONTINUOUS)
def test_ends_of_continuous_actions(base):
    # 0.95 at random, 1 for who mistakes an end
    assert trained(base, partial(Ends, Box(-1.0, 1.0, (1,))), 400, hidden=(64,)) < 0.93


@pytest.mark.parametrize("base", DISCRETE)
def test_ends_of_discrete_actions(base):
    assert trained(base, partial(Ends, Discrete(2)), 250) < 0.93


@pytest.mark.parametrize("base", DISCRETE)
def test_corridor(base):
    assert trained(base, Corridor, 300, gamma=0.9, entropy_coefficient=0.02) == 1.0


@pytest.mark.parametrize("terminates", [True, False])
@pytest.mark.parametrize("base", DISCRETE + CONTINUOUS)
def test_values_of_an_end(base, terminates):
    """Every step pays 1 and ends its episode: worth 1 if it terminates, 1 / (1 - gamma) if it is truncated."""

    class Paid(Ends):
        def step(self, action):
            return np.ones(1, np.float32), 1.0, terminates, not terminates, {}

    action = Box(-1.0, 1.0, (1,)) if base in CONTINUOUS else Discrete(2)
    if base == "recurrent-ppo" and not terminates:
        pytest.skip("what is remembered after two observations is never learnt from in episodes of one step")
    settings = {**SETTINGS, **OWN.get(base, {}), "entropy_coefficient": 0.0}
    run = Online(parse(small(base, **settings)), copies(partial(Paid, action)))
    while run.learner.updates < 200:
        run.advance()
    values = run.metrics.get("replay/q", run.metrics.get("rollout/value"))
    if values is None:
        pytest.skip(f"{base} says no values")
    assert torch.allclose(values, torch.tensor(1.0 if terminates else 2.0), atol=0.1)
