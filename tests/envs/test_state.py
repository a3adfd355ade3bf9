"""Save in the middle of episodes, restore into a fresh environment, go on: the same numbers, bit for bit."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.vector import SyncVectorEnv

import palaestra.envs  # noqa: F401 (registers the ids)
from palaestra.envs.registration import WORLDS
from palaestra.envs.state import EnvState, get_state, set_state, state_problem


def through_storage(state):
    """The state as its JSON and its arrays' bytes give it back; fails on anything that they cannot hold."""
    if isinstance(state, np.ndarray):
        assert state.dtype.kind in "biuf"
        return np.frombuffer(bytearray(state.tobytes()), dtype=state.dtype).reshape(state.shape)
    if isinstance(state, dict):
        assert all(type(key) is str for key in state)
        return {key: through_storage(value) for key, value in state.items()}
    if isinstance(state, list):
        return [through_storage(value) for value in state]
    assert state is None or type(state) in (bool, int, float, str), type(state)
    return json.loads(json.dumps(state))


def identical(left, right):
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            if key.strip("_") not in ("t", "episode_time"):  # seconds
                identical(left[key], right[key])
    elif isinstance(left, tuple) or (isinstance(left, np.ndarray) and left.dtype == object):
        for a, b in zip(left, right, strict=True):
            identical(a, b)
    else:
        assert type(left) is type(right)
        np.testing.assert_array_equal(left, right)


def resumes(make, before=50, after=100, seed=0):
    """Whether `make()`'s environment goes on alike from a state put into another one; True if an episode ended."""
    env, fresh = make(), make()
    vector = isinstance(env, gymnasium.vector.VectorEnv)
    env.reset(seed=seed)
    env.action_space.seed(0)
    fresh.reset(seed=seed + 1)  # what it did before must not matter
    fresh.step(fresh.action_space.sample())

    def act(each, action):
        step = each.step(action)
        if not vector and (step[2] or step[3]):
            return (*step, each.reset())
        return step

    for _ in range(before):
        act(env, env.action_space.sample())
    assert state_problem(env) is None
    set_state(fresh, through_storage(get_state(env)))
    ended = False
    for _ in range(after):
        action = env.action_space.sample()
        left, right = act(env, action), act(fresh, action)
        identical(left, right)
        ended |= bool(np.any(left[2]) or np.any(left[3]))
    never_reset = make()
    set_state(never_reset, get_state(env))
    action = env.action_space.sample()
    identical(act(env, action), act(never_reset, action))
    return ended


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("name", list(WORLDS))
def test_native_vector(name, mode):
    assert resumes(lambda: gymnasium.make_vec(name, 4, max_episode_steps=30, autoreset_mode=mode))


@pytest.mark.parametrize("name", list(WORLDS))
def test_native_single(name):
    assert resumes(lambda: gymnasium.make(name, max_episode_steps=30))


CLASSIC = ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"]
TOY = ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3", "Blackjack-v1"]
MUJOCO = ["HalfCheetah-v5", "Hopper-v5", "Ant-v5", "InvertedPendulum-v5"]


@pytest.mark.parametrize("name", [*CLASSIC, *TOY])
def test_gymnasiums_own(name):
    assert resumes(lambda: gymnasium.make(name, max_episode_steps=40))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("name", [*CLASSIC, "Blackjack-v1", "palaestra/PointMaze-v0"])
def test_sync_vector(name, mode):
    make = lambda: gymnasium.make(name, max_episode_steps=30)  # noqa: E731
    assert resumes(lambda: SyncVectorEnv([make] * 3, autoreset_mode=mode))


def test_gymnasiums_native_vector():
    assert resumes(lambda: gymnasium.make_vec("CartPole-v1", 3))


def test_sync_vector_with_resets_by_hand():
    def make():
        return gymnasium.make_vec(
            "CartPole-v1", 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": "Disabled"}
        )

    env, fresh = make(), make()
    env.reset(seed=0)
    finished = np.zeros(3, dtype=bool)
    while not finished.any():
        _, _, terminated, truncated, _ = env.step(np.zeros(3, dtype=int))
        finished = terminated | truncated
    set_state(fresh, get_state(env))
    mask = np.array([True, True, True]) & finished
    for _ in range(5):
        identical(*(each.reset(options={"reset_mask": mask.copy()}) for each in (env, fresh)))
        left, right = env.step(np.ones(3, dtype=int)), fresh.step(np.ones(3, dtype=int))
        identical(left, right)
        mask = np.array([True, False, False]) | left[2]


@pytest.mark.parametrize("name", MUJOCO)
def test_mujoco(name):
    pytest.importorskip("mujoco")
    ended = resumes(lambda: gymnasium.make(name, max_episode_steps=70))
    assert ended


def test_mujoco_vector():
    pytest.importorskip("mujoco")
    assert resumes(lambda: gymnasium.make_vec("Hopper-v5", 2, vectorization_mode="sync"), before=30, after=60)


def test_positions_and_velocities_alone_would_not_do():
    # The trap that MjData's whole buffer is saved for: if this fails, the state could be smaller.
    pytest.importorskip("mujoco")
    env, fresh = (gymnasium.make("Ant-v5").unwrapped for _ in range(2))
    for each in (env, fresh):
        each.reset(seed=0)
    for _ in range(50):
        env.step(np.full(8, 0.5))
    gymnasium.envs.mujoco.MujocoEnv.set_state(fresh, env.data.qpos, env.data.qvel)
    assert not np.array_equal(env.step(np.zeros(8))[0], fresh.step(np.zeros(8))[0])


def chain(env):
    env = wrappers.RecordEpisodeStatistics(wrappers.RescaleAction(env, np.float32(-2.0), np.float32(2.0)))
    env = wrappers.ClipAction(env)
    env = wrappers.NormalizeReward(wrappers.NormalizeObservation(env))
    env = wrappers.TransformReward(wrappers.TransformObservation(env, lambda obs: obs * 2, None), lambda r: r * 3)
    env = wrappers.DtypeObservation(wrappers.TimeAwareObservation(env), np.float32)
    env = wrappers.FlattenObservation(wrappers.FrameStackObservation(env, 3))
    return wrappers.StickyAction(env, 0.3)


@pytest.mark.parametrize("name", ["Pendulum-v1", "palaestra/PointMass-v0"])
def test_wrappers(name):
    assert resumes(lambda: chain(gymnasium.make(name, max_episode_steps=40)))


def test_vector_wrappers():
    def make():
        env = gymnasium.make_vec("palaestra/CartPole-v0", 4)
        env = wrappers.vector.RecordEpisodeStatistics(env)
        return wrappers.vector.NormalizeReward(wrappers.vector.NormalizeObservation(env))

    assert resumes(make)


class Unknown(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)


class Remembers(gymnasium.Wrapper):
    pass


class Counter(gymnasium.Env):
    """A third party's environment that joins in by EnvState."""

    observation_space = gymnasium.spaces.Discrete(1000)
    action_space = gymnasium.spaces.Discrete(2)
    count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return 0, {}

    def step(self, action):
        self.count += int(action)
        return self.count, 0.0, self.count >= 20, False, {}

    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        self.count = state["count"]


def test_third_parties():
    assert isinstance(Counter(), EnvState)
    assert resumes(Counter)


def test_problems_are_named():
    assert "Unknown is unknown" in state_problem(Unknown())
    assert "Remembers is unknown" in state_problem(Remembers(gymnasium.make("CartPole-v1")))
    assert "Remembers is unknown" in state_problem(SyncVectorEnv([lambda: Remembers(gymnasium.make("CartPole-v1"))]))
    assert state_problem(gymnasium.make_vec("palaestra/PointMaze-v0", 2)) is None
    with pytest.raises(ValueError, match="Unknown is unknown"):
        get_state(Unknown())


def test_a_state_of_something_else_is_refused():
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"CartPoleEnv.*cannot be given to.*PendulumEnv"):
        set_state(gymnasium.make("Pendulum-v1"), get_state(env))
    two, three = (gymnasium.make_vec("palaestra/PointMass-v0", n) for n in (2, 3))
    two.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        set_state(three, get_state(two))
    two, three = (gymnasium.make_vec("CartPole-v1", n, vectorization_mode="sync") for n in (2, 3))
    two.reset(seed=0)
    with pytest.raises(ValueError, match="2 copies"):
        set_state(three, get_state(two))
