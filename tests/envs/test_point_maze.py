"""Mazes: geometry, generation, shortest paths, tasks."""

import numpy as np
import pytest

from palaestra.envs.point_maze import LAYOUTS, PointMazeEnv, PointMazeVectorEnv, generated_layout, shortest_paths


@pytest.mark.parametrize("layout", [*LAYOUTS, "generated"])
def test_the_point_is_never_inside_a_wall(layout):
    env = PointMazeVectorEnv(256, layout=layout, inertia=0.3)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    heading = rng.uniform(-2, 2, (256, 2))
    slid = 0
    for step in range(1500):
        if step % 25 == 0:  # long pushes against the walls, and past the action's bounds
            heading = rng.uniform(-2, 2, (256, 2))
        if step % 50 == 0:
            heading = np.sign(heading)
        before = env.get_physics()
        env.step(heading + rng.normal(0, 0.1, (256, 2)))
        physics = env.get_physics()
        assert not env.blocked(physics[:, 6], physics[:, :2]).any()
        moved = np.abs(physics[:, :2] - before[:, :2]) > 1e-6
        slid += (moved[:, 0] ^ moved[:, 1]).sum()
    assert slid > 100


def test_a_wall_stops_one_axis_and_leaves_the_other():
    env = PointMazeVectorEnv(1, layout=["#####", "#   #", "#   #", "#####"], inertia=0.0)
    env.reset(seed=0)
    env.set_physics(0, [1.5, 1.25, 0, 0, 3.5, 2.5, 0])
    env.step(np.array([[0.5, -1.0]]))
    x, y, x_speed, y_speed = env.get_physics(0)[:4]
    assert x == pytest.approx(1.625)
    assert y == pytest.approx(1.2, abs=1e-8)
    assert y >= 1.2
    assert (x_speed, y_speed) == (pytest.approx(0.125), 0.0)


def test_the_goal_rewards_and_ends():
    env = PointMazeVectorEnv(2, layout=["#####", "#S G#", "#####"], autoreset_mode="Disabled")
    env.reset(seed=0)
    rewards = []
    for _ in range(20):
        _, reward, terminated, truncated, info = env.step(np.array([[1.0, 0.0], [-1.0, 0.0]]))
        rewards.append(reward)
        np.testing.assert_array_equal(info["success"], terminated)
        if terminated.any():
            break
    assert terminated.tolist() == [True, False]
    assert not truncated.any()
    np.testing.assert_array_equal(np.sum(rewards, axis=0), [1, 0])


def test_generated_mazes():
    for maze in range(60):
        layout = generated_layout(5, 3, maze, loops=0.0 if maze % 2 else 0.2)
        walls = np.array([list(row) for row in layout]) == "#"
        free = np.flatnonzero(~walls.ravel())
        distance, _ = shortest_paths(walls)
        assert (distance[np.ix_(free, free)] >= 0).all()  # connected
        if maze % 2:  # a tree: 25 rooms and 24 doors
            assert len(free) == 49
    assert generated_layout(5, 3, 7) == PointMazeVectorEnv(1, layout="generated", size=5, pool_seed=3).layouts[7]
    assert len({generated_layout(5, 3, maze) for maze in range(60)}) == 60


def test_shortest_paths_by_hand():
    walls = np.array([list(row) for row in LAYOUTS["umaze"]]) == "#"
    distance, ahead = shortest_paths(walls)
    start, goal = 3 * 5 + 1, 1 * 5 + 1
    assert distance[goal, start] == 6
    assert ahead[goal, start] == 3 * 5 + 2
    assert ahead[goal, goal] == goal
    assert distance[goal, 0] == -1


def test_the_dense_reward_telescopes():
    env = PointMazeVectorEnv(16, layout="generated", dense=True, autoreset_mode="Disabled", max_episode_steps=None)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    start, total = env.remaining(env.get_physics()), 0.0
    for _ in range(30):
        _, reward, terminated, _, _ = env.step(rng.uniform(-1, 1, (16, 2)))
        total = total + reward - terminated
        if terminated.any():
            env._finished[:] = False
    np.testing.assert_allclose(total, start - env.remaining(env.get_physics()), atol=1e-12)


def test_starts_and_goals():
    env = PointMazeVectorEnv(500, layout=["######", "#S  G#", "#G  S#", "######"])
    env.reset(seed=0)
    physics = env.get_physics()
    starts = set(map(tuple, np.floor(physics[:, :2]).astype(int).tolist()))
    goals = set(map(tuple, np.floor(physics[:, 4:6]).astype(int).tolist()))
    assert starts == {(1, 1), (4, 2)}
    assert goals == {(4, 1), (1, 2)}

    env = PointMazeVectorEnv(2000, layout="umaze")
    env.reset(seed=0)
    physics = np.floor(env.get_physics()[:, [0, 1, 4, 5]]).astype(int)
    assert (physics[:, :2] != physics[:, 2:]).any(axis=1).all()
    assert len(np.unique(physics, axis=0)) == 7 * 6  # every pair occurs

    env = PointMazeVectorEnv(50, layout="umaze", start=(3, 1), goal=(1, 1))
    env.reset(seed=0)
    np.testing.assert_array_equal(np.floor(env.get_physics()[:, [0, 1, 4, 5]]), [[1, 3, 1, 1]] * 50)


def test_tasks():
    env = PointMazeVectorEnv(3, layout="generated", pool_size=4)
    env.reset(seed=0, options={"task": [[2, 1, 1, 3, 3], [1, -1, -1, 1, 1], [-1, -1, -1, -1, -1]]})
    physics = env.get_physics()
    assert physics[:2, 6].tolist() == [2, 1]
    np.testing.assert_array_equal(np.floor(physics[0, :6]), [1, 1, 0, 0, 3, 3])
    np.testing.assert_array_equal(physics[1, 4:6], [1.5, 1.5])
    for task, message in (
        ([4, -1, -1, -1, -1], "maze=4.0: it must lie in"),
        ([0, 0, 0, -1, -1], "lies in a wall"),
        ([0, 1, 1, 1, 1], "same cell"),
        ([0, 1.5, 1, 1, 1], "whole numbers"),
        ([0, 1, -1, 3, 3], "both a row and a column"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options={"task": task})
    with pytest.raises(ValueError, match="same cell"):
        PointMazeVectorEnv(1, layout=["#####", "#S G#", "#####"], start=(1, 3))


def test_what_is_seen():
    env = PointMazeVectorEnv(4, layout="generated", size=3, view="all")
    obs, _ = env.reset(seed=0)
    for row, maze in zip(obs, env.get_physics()[:, 6].astype(int), strict=True):
        np.testing.assert_array_equal(row[6:], env.walls[maze][1:-1, 1:-1].ravel())
    env = PointMazeVectorEnv(1, layout="umaze", view=1)
    env.reset(seed=0)
    obs = env.set_physics(0, [1.5, 1.5, 0, 0, 3.5, 1.5, 0])
    np.testing.assert_array_equal(obs[6:], [1, 1, 1, 1, 0, 1, 1, 1])
    np.testing.assert_allclose(obs[:6], [-0.4, -0.4, 0, 0, 0.4, -0.4], atol=1e-6)
    assert PointMazeVectorEnv(1, layout="umaze", view=2).single_observation_space.shape == (6 + 24,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "labyrinth"}, "unknown"),
        ({"layout": ["###", "# #", "##"]}, "differ in length"),
        ({"layout": ["####", "#  x", "####"]}, "'x'"),
        ({"layout": ["####", "#   ", "####"]}, "open at its edge"),
        ({"layout": ["#####", "# # #", "#####"]}, "cannot be reached"),
        ({"layout": ["###", "# #", "###"]}, "fewer than two"),
        ({"inertia": 1.0}, "inertia"),
        ({"view": -1}, "view"),
        ({"start": (0, 0)}, "lies in a wall"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        PointMazeVectorEnv(1, **options)


def test_set_physics_refuses_walls():
    env = PointMazeEnv(layout="umaze")
    env.reset(seed=0)
    for physics in ([0.5, 1.5, 0, 0, 3.5, 1.5, 0], [1.1, 1.5, 0, 0, 3.5, 1.5, 0], [1.5, 1.5, 0, 0, 0.5, 0.5, 0]):
        with pytest.raises(ValueError, match="in a wall"):
            env.set_physics(physics)
    with pytest.raises(ValueError, match="mazes are numbered"):
        env.set_physics([1.5, 1.5, 0, 0, 3.5, 1.5, 1])
