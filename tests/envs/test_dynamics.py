"""Our classic control against Gymnasium's, from the same states and with the same actions."""

import gymnasium
import numpy as np
import pytest

import palaestra.envs  # noqa: F401 (registers the ids)
from palaestra.envs.mountain_car import MountainCarVectorEnv

PAIRS = {
    "palaestra/Pendulum-v0": "Pendulum-v1",
    "palaestra/ContextualPendulum-v0": "Pendulum-v1",
    "palaestra/CartPole-v0": "CartPole-v1",
    "palaestra/ContextualCartPole-v0": "CartPole-v1",
    "palaestra/MountainCar-v0": "MountainCar-v0",
    "palaestra/ContextualMountainCar-v0": "MountainCar-v0",
    "palaestra/MountainCarContinuous-v0": "MountainCarContinuous-v0",
}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS.items())
def test_one_step_from_the_same_state(ours, theirs):
    copies = 300
    env = gymnasium.make_vec(ours, copies)
    env.reset(seed=0)
    reference = gymnasium.make(theirs, disable_env_checker=True).unwrapped
    reference.reset(seed=0)
    assert env.single_action_space == reference.action_space
    np.testing.assert_array_equal(env.single_observation_space.low, reference.observation_space.low)
    np.testing.assert_array_equal(env.single_observation_space.high, reference.observation_space.high)
    rng = np.random.default_rng(0)
    bound = np.minimum(reference.observation_space.high, 3.0)
    if "Pendulum" in theirs:
        physics = rng.uniform([-9.0, -8.0], [9.0, 8.0], (copies, 2))
    elif "Cart" in theirs:
        physics = rng.uniform(-bound / 2, bound / 2, (copies, 4))
    else:
        physics = rng.uniform(reference.observation_space.low, bound, (copies, 2)).astype(np.float32)
    env.set_physics(np.arange(copies), physics)
    env.action_space.seed(0)
    action = env.action_space.sample()
    obs, reward, terminated, truncated, _ = env.step(action)
    assert not truncated.any()
    for copy in range(copies):
        # The continuous car's own state is float32, of the others float64.
        reference.state = physics[copy] if "Continuous" in theirs else physics[copy].astype(np.float64)
        if "Cart" in theirs:
            reference.steps_beyond_terminated = None
        wanted, gain, end, _, _ = reference.step(action[copy])
        np.testing.assert_array_max_ulp(obs[copy], wanted, 1)
        np.testing.assert_allclose(env.get_physics(copy), reference.state, rtol=1e-13, atol=1e-15)
        assert reward[copy] == pytest.approx(gain, rel=1e-12)
        assert terminated[copy] == end


@pytest.mark.parametrize(("ours", "theirs"), PAIRS.items())
def test_whole_episodes_from_the_same_seed(ours, theirs):
    # Not only the dynamics: the initial states are drawn alike too.
    env = gymnasium.make_vec(ours, 2)
    reference = gymnasium.make_vec(theirs, 2, vectorization_mode="sync")
    # Gymnasium's continuous car is float64 until its first step, ours never.
    tolerance = 1e-5 if "Continuous" in theirs else 1e-6
    ours_obs, theirs_obs = env.reset(seed=42)[0], reference.reset(seed=42)[0]
    np.testing.assert_allclose(ours_obs, theirs_obs, rtol=0, atol=1e-7)
    env.action_space.seed(1)
    for _ in range(300):
        action = env.action_space.sample()
        ours_step, theirs_step = env.step(action), reference.step(action)
        np.testing.assert_allclose(ours_step[0], theirs_step[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(ours_step[1], theirs_step[1], rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(ours_step[2], theirs_step[2])
        np.testing.assert_array_equal(ours_step[3], theirs_step[3])


def test_shaping_is_the_energy_gained():
    plain, shaped = MountainCarVectorEnv(8), MountainCarVectorEnv(8, shaping=10.0)
    obs, _ = plain.reset(seed=0)
    shaped.reset(seed=0)
    gained = np.zeros(8)
    for _ in range(90):
        action = plain.controller(obs)
        obs, reward, *_ = plain.step(action)
        gained += shaped.step(action)[1] - reward
    position, speed = plain.get_physics().T
    energy = np.sin(3 * position) / 3 + speed**2 / (2 * 0.0025)
    start = MountainCarVectorEnv(8)
    start.reset(seed=0)
    np.testing.assert_allclose(gained, 10 * (energy - np.sin(3 * start.get_physics()[:, 0]) / 3), rtol=1e-9)
