"""Hindsight goals: which steps are drawn and how often, at the edges of episodes, online, and for seeds that share."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from palaestra.algorithm import Buffer
from palaestra.data.dataset import from_episodes
from palaestra.data.fixed import Fixed
from palaestra.data.goals import Goal, entering, hindsight, steps_ahead
from palaestra.data.layouts import transition
from palaestra.data.replay import STEP, Replay
from palaestra.envs.border import Border
from palaestra.envs.make import make_vector
from palaestra.factories.behaviours import at_random, controlled, played
from palaestra.factories.datasets import until
from palaestra.learner import generator

LINE = Goal(wanted=(1,), achieved=(0,), distance=0.5)  # observations of a walk along a line: (x, goal)
ACTION = Box(-1, 1, (1,))


def walk(xs, goal, terminated=False):
    """An episode that sees (x, goal) at each of `xs`; its action says where it was taken."""
    steps = len(xs) - 1
    ends = np.arange(steps) == steps - 1
    return {
        "obs": np.array([(x, goal) for x in xs], np.float32),
        "action": np.array(xs[:-1], np.float32)[:, None] / 10,
        "reward": np.full(steps, -7.0),
        "terminated": ends & terminated,
        "truncated": ends & (not terminated),
    }


def fixed(*episodes, seeds=1):
    dataset = from_episodes(list(episodes), Box(-99, 99, (2,)), ACTION)
    return Fixed(Buffer(transition), dataset, Border(dataset.observation_space, ACTION), seeds=seeds)


def walks(**settings):
    """Slots 0 to 3, 4 and 5, 6 to 8: a failure of three steps, a success of one, a success of two."""
    return fixed(walk([0, 1, 2, 3], 9), walk([5, 6], 6, True), walk([7, 8, 9], 9.25, True), **settings)


def rows(layout, at, share, n=1, seed=0, goal=LINE, store=None):
    """`n` rows drawn at slot `at`."""
    store = store or walks()
    return layout(store, torch.full((n,), at), generator(seed, "goals"), goal, share)


def where(batch):
    """(x, next x, goal) of each row; the goal is the same before and after."""
    assert torch.equal(batch["obs"][:, 1], batch["next_obs"][:, 1])
    return torch.stack((batch["obs"][:, 0], batch["next_obs"][:, 0], batch["obs"][:, 1]), 1)


def test_steps_ahead_end_with_the_episode():
    places, count = steps_ahead(walks(), torch.tensor([0, 1, 2, 4, 6, 7]))
    assert places.tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [4, 4, 4], [6, 7, 7], [7, 7, 7]]
    assert count.tolist() == [3, 2, 1, 1, 2, 1]


def odds(batch):
    """How often each (x, next x, goal) comes."""
    kinds, counts = where(batch).unique(dim=0, return_counts=True)
    return {tuple(kind): count for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True)}


def test_a_goal_is_any_later_step_alike():
    n = 6_000
    found = odds(rows(hindsight, 0, 1.0, n))
    assert found.keys() == {(0, 1, 1), (0, 1, 2), (0, 1, 3)}  # x = 9, 6 or 5 belong to other goals or episodes
    assert all(abs(count - n / 3) < 4 * (n * 2 / 9) ** 0.5 for count in found.values())
    assert odds(rows(hindsight, 2, 1.0, n)) == {(2, 3, 3): n}  # the last step: nothing but where it led
    assert odds(rows(hindsight, 4, 1.0, n)) == {(5, 6, 6): n}


def test_what_enters_a_goal_is_the_step_before_it():
    n = 6_000
    found = odds(rows(entering, 0, 1.0, n))
    assert found.keys() == {(0, 1, 1), (1, 2, 2), (2, 3, 3)}
    assert all(abs(count - n / 3) < 4 * (n * 2 / 9) ** 0.5 for count in found.values())
    assert odds(rows(entering, 2, 1.0, n)) == {(2, 3, 3): n}
    assert odds(rows(entering, 4, 1.0, n)) == {(5, 6, 6): n}  # never from the episode before, which ended in slot 3
    action = rows(entering, 0, 1.0, n)["action"][:, 0]
    assert torch.allclose(action * 10, rows(entering, 0, 1.0, n)["obs"][:, 0])  # the whole row is the later step's


def test_own_goals():
    n = 1_000
    assert odds(rows(hindsight, 0, 0.0, n)) == {(0, 1, 9): n}
    assert odds(rows(hindsight, 6, 0.0, n)) == {(7, 8, 9.25): n}
    assert odds(rows(entering, 6, 0.0, n)) == {(8, 9, 9.25): n}  # the end of the episode, a success
    assert (0, 1, 9) not in odds(rows(entering, 0, 0.0, n))  # a failure enters only what it achieved
    assert odds(rows(entering, 0, 0.0, n)) == odds(rows(entering, 0, 1.0, n))
    kept = odds(rows(hindsight, 0, 0.8, n))[0, 1, 9]
    assert abs(kept - 0.2 * n) < 4 * (n * 0.16) ** 0.5


def test_reward_and_end_are_those_of_the_goal():
    batch = rows(hindsight, 0, 1.0, 100)
    one = where(batch)[:, 2] == 1
    assert one.any()
    assert not one.all()
    assert torch.equal(batch["reward"], one.float())
    assert torch.equal(batch["terminated"], one)
    for at, share, reward, terminated in ((0, 0.0, 0, False), (7, 0.0, 1, True), (7, 1.0, 1, True)):
        row = rows(hindsight, at, share)
        assert (row["reward"].item(), row["terminated"].item()) == (reward, terminated)
    fell = fixed(walk([0, 1, 2], 9, True))  # it ended, and not because its goal was reached
    row = rows(hindsight, 1, 0.0, store=fell)
    assert (row["reward"].item(), row["terminated"].item()) == (0, True)
    assert rows(hindsight, 2, 1.0)["truncated"].item()  # as it was logged


def test_the_distance_is_euclidean_and_exclusive():
    goal = Goal((2, 3), (0, 1), distance=5.0)
    obs = torch.tensor([[0.0, 0.0, 3.0, 4.0], [0.0, 0.0, 3.0, 3.9]])
    assert goal.reached(obs, goal.wanted_in(obs)).tolist() == [False, True]


def test_with_its_own_goals_a_maze_pays_what_it_paid():
    """Goals that stay are paid by the distance: in a point maze that is its own reward, and its own end."""
    world = make_vector("palaestra/PointMazeUMaze-v0", 4)
    players = (controlled(world), at_random(world))
    episodes = [e for player in players for e in until(300, played(world, player, 0, "test"))]
    dataset = from_episodes(episodes, world.single_observation_space, world.single_action_space)
    store = Fixed(Buffer(transition), dataset, Border(dataset.observation_space, dataset.action_space))
    index = store.is_step.nonzero()[:, 0]
    plain, same = (
        transition(store, index, generator(0, "goals")),
        hindsight(store, index, generator(0, "goals"), Goal((4, 5), (0, 1), 0.2), 0.0),
    )
    assert plain["reward"].sum() > 5
    assert plain.keys() == same.keys()
    assert all(torch.equal(same[name], plain[name]) for name in plain)
    changed = hindsight(store, index, generator(0, "goals"), Goal(), 1.0)
    assert torch.equal(changed["obs"][:, :4], plain["obs"][:, :4])
    assert changed["reward"].sum() > plain["reward"].sum()


def test_a_replay_that_is_full_and_goes_on():
    """Observations say the environment, the episode and the step: goals stay within what is left of the episode."""
    goal = Goal((3, 4, 5), (0, 1, 2), distance=0.5)
    replay = Replay(Buffer(transition, capacity=40), environments=2)
    rng = np.random.default_rng(0)
    episode, step = np.zeros(2), np.zeros(2)

    def seen():
        return torch.tensor(np.stack([np.arange(2), episode, step, [-1, -1], [-1, -1], [-1, -1]], 1)).float()

    for _ in range(100):
        obs, first = seen(), torch.from_numpy(step == 0)
        step += 1
        done = rng.random(2) < 0.2
        columns = {"obs": obs, "next_obs": seen(), "first": first, "reward": torch.zeros(2)}
        columns |= {"terminated": torch.from_numpy(done), "truncated": torch.zeros(2, dtype=torch.bool)}
        columns |= {"valid": torch.ones(2, dtype=torch.bool), "action": torch.zeros(2, 1)}
        replay.insert({name: column[None] for name, column in columns.items()})
        episode, step = episode + done, np.where(done, 0, step)
    index = (replay.kind == STEP).nonzero()[:, 0].repeat(20)
    newest = {}
    for place, number, at in transition(replay, index, generator(0, "x"))["next_obs"][:, :3].tolist():
        newest[place, number] = max(at, newest.get((place, number), 0))
    for layout in (hindsight, entering):
        batch = layout(replay, index, generator(0, "goals"), goal, 1.0)
        obs, wanted = batch["obs"][:, :3], batch["obs"][:, 3:]
        assert torch.equal(wanted[:, :2], obs[:, :2])
        last = torch.tensor([newest[place, number] for place, number in wanted[:, :2].tolist()])
        assert ((wanted[:, 2] > obs[:, 2]) & (wanted[:, 2] <= last)).all()
        assert (wanted[:, 2] == last).any()
        assert layout is hindsight or torch.equal(wanted, batch["next_obs"][:, :3])


def test_goals_of_a_dictionary():
    spaces = {name: Box(-99, 99, (1,)) for name in ("observation", "achieved_goal", "desired_goal")}
    flat = walk([0, 1, 2, 3], 9)
    xs, goals = flat.pop("obs").T[..., None]
    episode = {**flat, "obs/observation": xs * 2, "obs/achieved_goal": xs, "obs/desired_goal": goals}
    dataset = from_episodes([episode], Dict(spaces), ACTION)
    store = Fixed(Buffer(transition), dataset, Border(dataset.observation_space, ACTION))
    for layout in (hindsight, entering):
        batch = rows(layout, 0, 1.0, 50, goal=Goal(distance=0.5), store=store)
        vector = rows(layout, 0, 1.0, 50)
        for name in ("obs", "next_obs"):
            assert torch.equal(batch[name]["achieved_goal"], vector[name][:, :1])
            assert torch.equal(batch[name]["desired_goal"], vector[name][:, 1:])
            assert torch.equal(batch[name]["observation"], 2 * vector[name][:, :1])
        assert torch.equal(batch["reward"], vector["reward"])


@pytest.mark.parametrize("layout", [hindsight, entering])
def test_seeds_that_share_the_rows_draw_their_own(layout):
    index = torch.tensor([0, 1, 2, 6, 0, 0, 0, 0])
    together = layout(walks(), index, tuple(generator(seed, "goals") for seed in (1, 2)), LINE, 0.5)
    alone = [
        layout(walks(), own, generator(seed, "goals"), LINE, 0.5)
        for seed, own in zip((1, 2), index.chunk(2), strict=True)
    ]
    for name, column in together.items():
        assert torch.equal(column, torch.cat([one[name] for one in alone])), name


def test_what_has_no_goal_is_refused():
    with pytest.raises(ValueError, match=r"an observation of shape \(2,\) has no entries \(1, 2\): set goal="):
        rows(hindsight, 0, 1.0, goal=Goal((1, 2), (0, 1)))
    with pytest.raises(ValueError, match=r"no entries \(-3,\)"):
        rows(hindsight, 0, 1.0, goal=Goal((1,), (-3,)))
    with pytest.raises(ValueError, match="no 'desired_goal' among image, x"):
        Goal().wanted_in({"image": torch.zeros(1), "x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"goal is \(1,\) and achieved \(0, 1\): give as many"):
        Goal((1,), (0, 1))
    with pytest.raises(ValueError, match=r"distance is 0.0; it must be larger than 0"):
        Goal(distance=0.0)
