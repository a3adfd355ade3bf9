"""Small random worlds, and batches that an algorithm's own parts make in them."""

from __future__ import annotations

import inspect
from functools import cache, partial

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from palaestra.data import mixture
from palaestra.envs.border import Border
from palaestra.expression import catalogue, parse
from palaestra.learner import Learner
from palaestra.loops.online import Online

IMAGE = Box(0, 255, (6, 6, 2), np.uint8)
MASKED = Dict({"position": Box(-1, 1, (4,)), "symbol": Discrete(3), "action_mask": MultiBinary(3)})
WORLDS = {  # observation and action; the first two are where every contract is tried
    "continuous": (Box(-1, 1, (5,)), Box(-1, 1, (2,))),
    "discrete": (Box(-1, 1, (4,)), Discrete(3)),
    "masked": (MASKED, Discrete(3)),
    "image": (IMAGE, Discrete(3)),
    "privileged": (Dict({"image": IMAGE, "critic_obs": Box(-1, 1, (6,))}), Box(-1, 1, (2,))),
}


class RandomWorld(gym.Env):
    """Observations and rewards are random; a step terminates with probability 0.1, or else truncates with 0.1.

    Its state is that of its random streams, and its controller does always the same.
    """

    def __init__(self, observation, action):
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.seen(), {}

    def seen(self):
        obs = self.observation_space.sample()
        if isinstance(obs, dict) and "action_mask" in obs:
            obs["action_mask"][self.np_random.integers(len(obs["action_mask"]))] = 1
        return obs

    def step(self, action):
        ends, limit = self.np_random.random(2) < 0.1
        return self.seen(), float(self.np_random.normal()), bool(ends), bool(limit and not ends), {}

    def controller(self, obs):
        return np.zeros(self.action_space.shape, self.action_space.dtype)

    def get_state(self):
        return {"rng": [rng.bit_generator.state for rng in self.streams()]}

    def set_state(self, state):
        for rng, saved in zip(self.streams(), state["rng"], strict=True):
            rng.bit_generator.state = saved

    def streams(self):
        space = self.observation_space
        return [self.np_random, space.np_random, *(part.np_random for part in getattr(space, "spaces", {}).values())]


def make(world, n=2):
    return SyncVectorEnv([partial(RandomWorld, *WORLDS[world])] * n, autoreset_mode=AutoresetMode.DISABLED)


def spec(world):
    return Border(*WORLDS[world]).spec


def small(base, **settings):
    """The expression of a base with small networks and those of the other settings that it has."""
    names = inspect.signature(catalogue("algorithms")[base].load()).parameters
    inside = [f"{k}={v!r}" for k, v in {"hidden": (16, 16), **settings}.items() if k in names]
    return f"{base}({', '.join(inside)})"


@cache
def fits(expression, world):
    """Whether an expression can be read and built for a world."""
    try:
        Learner(parse(expression), spec(world))
    except (ValueError, TypeError):  # that a misfit is an error of the right kind is tested in test_algorithm.py
        return False
    return True


@cache
def batches(expression, world, rows=32, number=4):
    """`number` batches (stream -> columns) from what the algorithm's own parts collected and kept in a world."""
    algorithm = parse(expression)
    run = Online(algorithm, make(world))
    run.begin()
    nets = run.learner.nets
    steps = algorithm.collect(nets, run.policy, run.source, 60, run.acting)
    for transform in run.transforms:
        steps = transform.fn(nets, steps, run.changing)
    for replay in run.replays.values():
        replay.insert(steps)
    columns = algorithm.advantage(nets, steps) if algorithm.advantage else {}
    for rollout in run.rollouts.values():
        rollout.insert({**steps, **columns})
    drawn = []
    for _ in range(number):
        batch = {s: mixture.sample(run.replays, s, rows, run.drawing, nets.clock) for s in run.replays}
        batch |= {s: next(iter(r.minibatches(2, run.drawing))) for s, r in run.rollouts.items()}
        drawn.append({stream: batch[stream] for stream in run.streams})
    return tuple(drawn)
