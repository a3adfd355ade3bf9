"""Small random worlds, and batches that an algorithm's own parts make in them."""

from __future__ import annotations

import copy
import inspect
from functools import cache, partial

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from palaestra.data import mixture
from palaestra.data.dataset import from_episodes
from palaestra.envs.border import Border
from palaestra.expression import catalogue, parse
from palaestra.learner import Learner
from palaestra.loops.filled import DATASET
from palaestra.loops.offline import Offline
from palaestra.loops.online import Online, logged_column

IMAGE = Box(0, 255, (6, 6, 2), np.uint8)
MASKED = Dict({"position": Box(-1, 1, (4,)), "symbol": Discrete(3), "action_mask": MultiBinary(3)})
WORLDS = {  # observation and action; the first two are where every contract is tried
    "continuous": (Box(-1, 1, (5,)), Box(-1, 1, (2,))),
    "discrete": (Box(-1, 1, (4,)), Discrete(3)),
    "masked": (MASKED, Discrete(3)),
    "image": (IMAGE, Discrete(3)),
    "privileged": (Dict({"image": IMAGE, "critic_obs": Box(-1, 1, (6,))}), Box(-1, 1, (2,))),
}


SMALL = {"hidden": (16, 16), "size": 16, "length": 5, "warm_up": 4, "critic_updates": 2}


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


@cache
def dataset(world, episodes=40):
    """Episodes of a world in which actions were drawn from those that it allows."""
    env = RandomWorld(*copy.deepcopy(WORLDS[world]))
    env.action_space.seed(0)
    rows = []
    for seed in range(episodes):
        seen, done, ended = [env.reset(seed=seed)[0]], [], []
        while not (ended and any(ended[-1][1:])):
            mask = seen[-1]["action_mask"] if isinstance(seen[-1], dict) and "action_mask" in seen[-1] else None
            done.append(env.action_space.sample() if mask is None else env.action_space.sample(mask.astype(np.int8)))
            obs, *step, _ = env.step(done[-1])
            seen.append(obs)
            ended.append(step)
        obs = {"": seen} if not isinstance(seen[0], dict) else {f"/{key}": [o[key] for o in seen] for key in seen[0]}
        columns = dict(zip(("reward", "terminated", "truncated"), map(np.array, zip(*ended, strict=True)), strict=True))
        rows.append({**{f"obs{key}": np.stack(of) for key, of in obs.items()}, "action": np.stack(done), **columns})
    return from_episodes(rows, *WORLDS[world])


def beside(algorithm, world):
    """The dataset that an algorithm draws from beside what it collects, or None."""
    return dataset(world) if DATASET in algorithm.buffers else None


def spec(world):
    return Border(*WORLDS[world]).spec


def small(base, **settings):
    """The expression of a base with small networks and those of the other settings that it has."""
    names = inspect.signature(catalogue("algorithms")[base].load()).parameters
    inside = [f"{k}={v!r}" for k, v in {**SMALL, **settings}.items() if k in names]
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
    if logged_column(algorithm):
        run = Offline(algorithm, dataset(world))
        return tuple(
            {s: mixture.sample(run.replays, s, rows, run.drawing, run.learner.nets.clock) for s in run.streams}
            for _ in range(number)
        )
    run = Online(algorithm, make(world), dataset=beside(algorithm, world))
    run.begin()
    nets = run.learner.nets
    steps = algorithm.collect(nets, run.policy, run.source, 60, run.acting)
    for transform in run.transforms:
        steps = transform.fn(nets, steps, run.changing)
    for name, replay in run.replays.items():
        if name != DATASET:
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
