"""What every native world has from its base: autoreset, seeds, tasks, physical states, controllers, frames."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import palaestra.envs  # noqa: F401 (registers the ids)
from palaestra.envs.cartpole import CartPoleVectorEnv, ContextualCartPoleVectorEnv
from palaestra.envs.mountain_car import ContextualMountainCarVectorEnv
from palaestra.envs.pendulum import ContextualPendulumVectorEnv, PendulumVectorEnv
from palaestra.envs.point_mass import PointMassVectorEnv
from palaestra.envs.registration import WORLDS, register

MODES = list(AutoresetMode)
NAMES = list(WORLDS)


def same(left, right):
    """Equality of nested infos, with types and dtypes."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, np.ndarray) and left.dtype == object:
        for a, b in zip(left, right, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                same(a, b)
    else:
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_singles_in_gymnasiums_own_vector_env(name, mode):
    copies, limit = 5, 23
    native = gymnasium.make_vec(name, copies, max_episode_steps=limit, autoreset_mode=mode)
    sync = gymnasium.make_vec(
        name, copies, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, max_episode_steps=limit
    )
    assert native.metadata["autoreset_mode"] is mode
    assert native.single_observation_space == sync.single_observation_space
    assert native.action_space == sync.action_space
    left, right = native.reset(seed=7), sync.reset(seed=7)
    np.testing.assert_array_equal(left[0], right[0])
    same(left[1], right[1])
    native.action_space.seed(0)
    ends = 0
    for _ in range(80):
        action = native.action_space.sample()
        left, right = native.step(action), sync.step(action)
        for a, b in zip(left[:4], right[:4], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        same(left[4], right[4])
        finished = left[2] | left[3]
        ends += finished.sum()
        if mode is AutoresetMode.DISABLED and finished.any():
            left = native.reset(options={"reset_mask": finished})
            right = sync.reset(options={"reset_mask": finished})
            np.testing.assert_array_equal(left[0], right[0])
            same(left[1], right[1])
    assert ends >= 2 * copies
    assert native.np_random_seed == (7, 8, 9, 10, 11)


def test_a_list_of_seeds_and_a_stream_that_goes_on():
    env = PendulumVectorEnv(3)
    first, _ = env.reset(seed=[4, 9, 4])
    np.testing.assert_array_equal(first[0], first[2])
    later, _ = env.reset()
    assert (first != later).any()
    again, _ = env.reset(seed=[4, 9, None])
    np.testing.assert_array_equal(again[:2], first[:2])
    assert (again[2] != first[2]).any()
    with pytest.raises(ValueError, match="2 numbers"):
        env.reset(seed=[1, 2])


def test_next_step_ignores_the_action_of_the_reset():
    env = PointMassVectorEnv(2, max_episode_steps=3)
    env.reset(seed=0)
    for _ in range(3):
        _, _, _, truncated, _ = env.step(np.zeros((2, 2)))
    assert truncated.all()
    obs, reward, terminated, truncated, _ = env.step(np.full((2, 2), np.nan))
    assert (reward == 0).all()
    assert not (terminated | truncated).any()
    assert (obs[:, 2:] == 0).all()
    with pytest.raises(ValueError, match="copy 0 is"):
        env.step(np.full((2, 2), np.nan))


def test_disabled_asks_for_the_reset():
    env = PointMassVectorEnv(2, max_episode_steps=1, autoreset_mode="Disabled")
    with pytest.raises(gymnasium.error.ResetNeeded, match="before the first reset"):
        env.step(np.zeros((2, 2)))
    env.reset(seed=0)
    env.step(np.zeros((2, 2)))
    with pytest.raises(gymnasium.error.ResetNeeded, match="copy 0"):
        env.step(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_mask": [True, False]}, "reset_mask"),
        ({"reset_mask": np.zeros(2, dtype=bool)}, "no True"),
        ({"low": 1}, "'low' is unknown"),
        ({"task": [1.0]}, "has no tasks"),
    ],
)
def test_reset_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        PointMassVectorEnv(2).reset(seed=0, options=options)


def test_actions_are_checked():
    env = CartPoleVectorEnv(2)
    env.reset(seed=0)
    for action, message in (([0, 2], "copy 1 is 2"), ([0], "shape"), ([0.0, 1.0], "integers")):
        with pytest.raises(ValueError, match=message):
            env.step(np.array(action))


@pytest.mark.parametrize(
    ("world", "plain"),
    [
        (ContextualPendulumVectorEnv, "palaestra/Pendulum-v0"),
        (ContextualCartPoleVectorEnv, "palaestra/CartPole-v0"),
        (ContextualMountainCarVectorEnv, "palaestra/MountainCar-v0"),
    ],
)
def test_contexts(world, plain):
    contextual, standard = world(4), gymnasium.make_vec(plain, 4)
    contextual.reset(seed=1), standard.reset(seed=1)
    contextual.action_space.seed(0)
    for _ in range(60):  # the default task is the standard world
        action = contextual.action_space.sample()
        for a, b in zip(contextual.step(action)[:4], standard.step(action)[:4], strict=True):
            np.testing.assert_array_equal(a, b)
    space = contextual.task_space
    tasks = np.tile(space.low, (4, 1))
    tasks[2:] = space.high
    seen = world(4, visible=True)
    obs, _ = seen.reset(seed=1, options={"task": tasks})
    assert seen.observation_space.contains(obs)
    np.testing.assert_array_equal(obs[:2, -len(space.low) :], -1)
    np.testing.assert_array_equal(obs[2:, -len(space.low) :], 1)
    # Each copy has the dynamics of its own task.
    physics = np.array([[0.1, 0.02, 0.03, 0.01][: len(world.physics_names)]] * 4)
    seen.set_physics(np.arange(4), physics)
    obs, *_ = seen.step(np.ones((4, *seen.single_action_space.shape), seen.single_action_space.dtype))
    seen.step(np.ones((4, *seen.single_action_space.shape), seen.single_action_space.dtype))
    after = seen.get_physics()
    np.testing.assert_array_equal(after[0], after[1])
    np.testing.assert_array_equal(after[2], after[3])
    assert (after[0] != after[2]).any()
    # A task waits for the next episode.
    seen.set_task(space.low, np.array([False, False, True, True]))
    assert (seen.tasks == tasks).all()
    seen.reset(options={"reset_mask": np.array([False, False, False, True])})
    np.testing.assert_array_equal(seen.tasks[:3], tasks[:3])
    np.testing.assert_array_equal(seen.tasks[3], space.low)
    with pytest.raises(ValueError, match=rf"{world.task_names[0]}=.* must lie in"):
        seen.reset(options={"task": space.high * 2})
    with pytest.raises(ValueError, match="shape"):
        seen.reset(options={"task": [1.0]})


@pytest.mark.parametrize("name", NAMES)
def test_physics_and_state(name):
    env = gymnasium.make_vec(name, 3, max_episode_steps=20)
    env.reset(seed=3)
    env.action_space.seed(1)
    for _ in range(5):
        env.step(env.action_space.sample())
    start = env.get_physics(1)
    obs = env.set_physics(2, start)
    np.testing.assert_array_equal(obs, env.set_physics([1, 2], np.stack([start, start]), elapsed=17)[0])
    for step in range(3):
        action = env.action_space.sample()
        action[1] = action[2]
        obs, _, terminated, truncated, _ = env.step(action)
        np.testing.assert_array_equal(obs[1], obs[2])
        if terminated[1]:
            return
        assert truncated.tolist() == [False, step == 2, step == 2]
    with pytest.raises(ValueError, match="shape"):
        env.set_physics(0, np.zeros(9))
    with pytest.raises(ValueError, match="not finite"):
        env.set_physics(0, np.full(len(start), np.nan))
    with pytest.raises(ValueError, match="cannot be"):
        env.set_physics(0, np.full(len(start), 99.0))


# Mean and lowest return that a scripted controller must reach.
SOLVED = {
    "palaestra/PointMass-v0": (-12, -25),
    "palaestra/Pendulum-v0": (-180, -450),
    "palaestra/CartPole-v0": (500, 500),
    "palaestra/MountainCar-v0": (-125, -135),
    "palaestra/MountainCarContinuous-v0": (93, 92),
}


@pytest.mark.parametrize("name", NAMES)
def test_controllers_solve_their_worlds(name):
    copies = 64
    env = gymnasium.make_vec(name, copies)
    obs, _ = env.reset(seed=11)
    total, alive = np.zeros(copies), np.ones(copies, dtype=bool)
    while alive.any():
        action = env.controller(obs)
        assert action.dtype == env.single_action_space.dtype
        obs, reward, terminated, truncated, _ = env.step(action)
        assert reward.dtype == np.float64
        total += reward * alive
        alive &= ~(terminated | truncated)
    mean, lowest = SOLVED.get(name.replace("Contextual", ""), (1, 1))
    assert total.mean() >= mean
    assert total.min() >= lowest


@pytest.mark.filterwarnings("ignore:.*Box.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*action space.*:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_singles_are_ordinary_environments(name):
    env = gymnasium.make(name, render_mode="rgb_array")
    assert env.spec.max_episode_steps == WORLDS[name][2]
    check_env(env.unwrapped)
    obs, info = env.reset(seed=5)
    assert obs.dtype == env.observation_space.dtype
    assert obs.dtype in (np.float32, np.uint8)
    assert "success" not in info or info["success"] is False
    obs, reward, terminated, truncated, _ = env.step(env.unwrapped.controller(obs))
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    start = env.unwrapped.get_physics()
    np.testing.assert_array_equal(env.unwrapped.set_physics(start), obs)


def test_one_time_limit():
    env = gymnasium.make("palaestra/Pendulum-v0", max_episode_steps=300)  # longer than the id's own
    env.reset(seed=0)
    ends = [env.step([0.0])[3] for _ in range(300)]
    assert ends == [False] * 299 + [True]
    assert gymnasium.make_vec("palaestra/Pendulum-v0", 2).max_episode_steps == 200


def test_registering_again_changes_nothing():
    before = gymnasium.spec("palaestra/PointMass-v0")
    register()
    assert gymnasium.spec("palaestra/PointMass-v0") is before


@pytest.mark.parametrize("name", NAMES)
def test_frames(name):
    env = gymnasium.make_vec(name, 2, render_mode="rgb_array")
    env.reset(seed=2)
    before = env.render()
    assert len(before) == 2
    for frame in before:
        assert (frame.dtype, frame.shape) == (np.uint8, (400, 400, 3))
        assert frame.std() > 5  # something dark
        assert frame.max() > 240  # on a light ground
    for _ in range(15):
        env.step(env.action_space.sample())
    assert (env.render()[0] != before[0]).any()
    with pytest.raises(gymnasium.error.Error, match="render_mode"):
        gymnasium.make_vec(name, 1).render()
