"""Sources of steps in the three autoreset modes, chosen tasks and first states, and the border."""

import json
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from palaestra.algorithm import Start, Transform, Unfit, first_state, prepend_transform, with_tasks
from palaestra.algorithms.td3 import td3
from palaestra.batch import Space
from palaestra.data.layouts import transition
from palaestra.envs.border import Border, describe, undescribe
from palaestra.envs.make import make_vector
from palaestra.envs.state import get_state
from palaestra.evaluation.returns import episode_return
from palaestra.faults import EnvironmentFailed, NotFinite
from palaestra.learner import Learner, generator
from palaestra.loops.online import Online, online
from palaestra.rollout.collect import step
from palaestra.rollout.source import Source

MODES = list(AutoresetMode)


class Counting(gym.Env):
    """obs = (episode, step); the reward is 10 * episode + step; episode i is `lengths[i]` long, then `ends[i]`."""

    observation_space = Box(-np.inf, np.inf, (2,))
    action_space = Box(-1.0, 1.0, (1,))

    def __init__(self, lengths, ends):
        self.lengths, self.ends, self.episode = lengths, ends, -1

    def obs(self):
        return np.array([self.episode, self.count], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self.obs(), {}

    def step(self, action):
        self.count += 1
        over = self.count == self.lengths[self.episode % len(self.lengths)]
        terminates = self.ends[self.episode % len(self.ends)] == "terminates"
        return self.obs(), 10.0 * self.episode + self.count, over and terminates, over and not terminates, {}


class Keyed(Counting):
    """The same with a dictionary of observations."""

    observation_space = Dict({"episode": Box(-np.inf, np.inf, (1,)), "count": Discrete(100)})

    def obs(self):
        return {"episode": np.array([self.episode], np.float32), "count": self.count}


def counting(mode, kind=Counting):
    makers = [
        partial(kind, [3, 1, 2], ["terminates", "truncates", "terminates"]),
        partial(kind, [2, 4], ["truncates", "terminates"]),
        partial(kind, [1], ["terminates"]),
    ]
    return SyncVectorEnv(makers, autoreset_mode=mode)


def taken(source, number):
    """The valid steps of each environment, until the first has made `number`."""
    rows = [[] for _ in range(source.n)]
    while len(rows[0]) < number:
        columns = source.step(torch.zeros(source.n, 1))
        for i in range(source.n):
            if columns["valid"][i]:
                rows[i].append(
                    {k: torch.as_tensor(v[i]).tolist() for k, v in columns.items() if not isinstance(v, dict)}
                )
    return rows


@pytest.mark.parametrize("mode", MODES)
def test_steps_by_hand(mode):
    source = Source(counting(mode), 0)
    rows = taken(source, 6)
    first = rows[0][:6]
    assert [row["obs"] for row in first] == [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0], [2, 1]]
    assert [row["next_obs"] for row in first] == [[0, 1], [0, 2], [0, 3], [1, 1], [2, 1], [2, 2]]
    assert [row["reward"] for row in first] == [1.0, 2.0, 3.0, 11.0, 21.0, 22.0]
    assert [row["terminated"] for row in first] == [False, False, True, False, False, True]
    assert [row["truncated"] for row in first] == [False, False, False, True, False, False]
    assert [row["first"] for row in first] == [True, False, False, True, True, False]
    second = rows[1][:4]
    assert [row["obs"] for row in second] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert [row["next_obs"] for row in second] == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert [row["truncated"] for row in second] == [False, True, False, False]
    assert source.env_steps == sum(map(len, rows))


def test_modes_give_the_same_steps():
    rows = {mode: taken(Source(counting(mode), 0), 12) for mode in MODES}
    for mode in MODES:
        for one, other in zip(rows[mode], rows[AutoresetMode.DISABLED], strict=True):
            shared = min(len(one), len(other))
            assert shared >= 6
            assert one[:shared] == other[:shared]


@pytest.mark.parametrize("mode", MODES)
def test_final_observations_of_dictionaries(mode):
    source = Source(counting(mode, Keyed), 0)
    found = []
    while len(found) < 6:
        columns = source.step(torch.zeros(3, 1))
        if columns["valid"][0]:
            obs, after = ({k: v[0].item() for k, v in columns[n].items()} for n in ("obs", "next_obs"))
            found.append((obs["episode"], obs["count"], after["episode"], after["count"]))
    assert found == [(0, 0, 0, 1), (0, 1, 0, 2), (0, 2, 0, 3), (1, 0, 1, 1), (2, 0, 2, 1), (2, 1, 2, 2)]


@pytest.mark.parametrize("mode", MODES)
def test_finished_episodes(mode):
    source = Source(counting(mode), 0)
    taken(source, 6)
    mine = [episode for episode in source.finished() if episode["episode_return"] in (6.0, 11.0, 43.0)]
    assert [episode["episode_length"] for episode in mine if episode["episode_return"] != 11.0] == [3, 2]
    assert source.finished() == []


@pytest.mark.parametrize("mode", MODES)
def test_episode_return(mode):
    policy = lambda nets, obs, memory, rng: (torch.zeros(3, 1), {}, memory)  # noqa: E731
    assert episode_return(None, policy, Source(counting(mode), 0)) == {"episode_return": [6.0, 3.0, 1.0]}


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_zero_where_an_episode_begins(mode):
    source = Source(counting(mode), 0)

    def policy(nets, obs, memory, rng):
        seen = torch.zeros(3, dtype=torch.long) if memory is None else memory["deep"]["steps"]
        wide = torch.zeros(3, 2, 2) if memory is None else memory["wide"]
        columns = {"seen": seen, "wide": wide}
        return torch.zeros(3, 1), columns, {"deep": {"steps": seen + 1}, "wide": wide + 1.0}

    class Stopped:
        clock = Learner(td3(hidden=(4,)), source.border.spec).nets.clock

    columns = step(Stopped, policy, source, 12, generator(0, "acting"))
    count = columns["obs"][..., 1].long()
    valid = columns["valid"]
    assert valid.sum() == source.env_steps == Stopped.clock.env_steps
    assert torch.equal(columns["seen"][valid], count[valid])
    assert torch.equal(columns["wide"][valid], count[valid].float().view(-1, 1, 1).expand(-1, 2, 2))


def test_a_vector_environment_that_does_not_say_how_it_resets():
    env = counting(AutoresetMode.SAME_STEP)
    env.metadata = {}
    with pytest.raises(ValueError, match="autoreset_mode"):
        Source(env, 0)


# ------------------------------------------------------------------------------------------ tasks and first states


class Gravities:
    """Tasks 6, 7, 8, ... in the order in which episodes begin; remembers what it is told."""

    def __init__(self):
        self.next, self.told = 6.0, []

    def sample(self, nets, rng):
        task, self.next = (self.next, 1.0, 1.0), min(self.next + 1.0, 15.0)
        return task

    def update(self, tasks, episodes):
        self.told += [(task[0], episode["episode_length"]) for task, episode in zip(tasks, episodes, strict=True)]


class From:
    """Always the same start; remembers how long its episodes were."""

    def __init__(self, start):
        self.start, self.lengths = start, []

    def sample(self, task, env_steps, rng):
        return self.start

    def observe(self, episode):
        self.lengths.append(episode["episode_length"])


class Nowhere(From):
    """Passes the question on."""

    def __init__(self):
        super().__init__(None)


def random_steps(source, number):
    rng = torch.Generator().manual_seed(0)
    return [source.step(torch.rand(source.n, 1, generator=rng) * 2 - 1) for _ in range(number)]


def test_a_task_an_episode():
    env = make_vector("palaestra/ContextualPendulum-v0", 2)
    source = Source(env, 0)
    tasks = Gravities()
    source.choose(tasks, (), [Learner(td3(hidden=(4,)), source.border.spec).nets], [generator(0, "tasks")])
    source.begin()
    assert env.tasks[:, 0].tolist() == [6.0, 7.0]
    random_steps(source, 200)
    assert env.tasks[:, 0].tolist() == [8.0, 9.0]
    assert source.choosers[0].tasks.told == [(6.0, 200), (7.0, 200)]
    assert (tasks.next, tasks.told) == (6.0, [])  # the caller's own part is untouched
    assert torch.equal(source.obs, torch.from_numpy(env.observe(env.get_physics())))


def chosen(world, states, n=2):
    env = make_vector(world, n)
    source = Source(env, 0)
    source.choose(None, states, [None], [generator(0, "tasks")])
    source.begin()
    return source


def pendulum_states():
    """A state of each pendulum that begins at angle 0.5 and speed -1."""
    single = gym.make("Pendulum-v1")
    single.reset(seed=0)
    single.unwrapped.state = np.array([0.5, -1.0])
    return {"palaestra/Pendulum-v0": np.array([0.5, -1.0]), "Pendulum-v1": get_state(single)}


@pytest.mark.parametrize("world", ["palaestra/Pendulum-v0", "Pendulum-v1"])
def test_where_an_episode_starts_and_how_long_it_may_last(world):
    states = From(Start(pendulum_states()[world], time_limit=3))
    source = chosen(world, (Nowhere(), states))
    begins = torch.tensor([[np.cos(0.5), np.sin(0.5), -1.0]], dtype=torch.float32).expand(2, 3)
    assert torch.allclose(source.obs, begins, atol=1e-6)
    rows = random_steps(source, 7)
    assert [row["truncated"].tolist() for row in rows] == [[end] * 2 for end in [False, False, True] * 2 + [False]]
    assert not any(row["terminated"].any() for row in rows)
    for t in (0, 3, 6):
        assert torch.allclose(rows[t]["obs"], begins, atol=1e-6)
        assert rows[t]["first"].all()
    assert torch.equal(rows[0]["next_obs"], rows[1]["obs"])
    assert not torch.allclose(rows[2]["next_obs"], begins, atol=1e-2)  # the final observation, not the next start
    # the first step by the pendulum's own equation: 15 sin(angle) + 3 torque, with Euler steps of 0.05
    torque = 2.0 * (torch.rand(2, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1).squeeze(1)
    speed = -1.0 + (15.0 * np.sin(0.5) + 3.0 * torque) * 0.05
    assert torch.allclose(rows[0]["next_obs"][:, 2], speed, atol=1e-5)
    assert [part.lengths for part in source.choosers[0].initial_states] == [[3] * 4, [3] * 4]
    assert states.lengths == []


def test_an_episode_is_over_when_its_seed_has_taken_so_many_steps():
    start = Start(np.array([0.5, -1.0]), time_limit=3, until=10)
    source = chosen("palaestra/Pendulum-v0", (From(start),))  # two copies: five steps of each are ten
    ends = [row["truncated"].tolist() for row in random_steps(source, 5)]
    assert ends == [[end] * 2 for end in [False, False, True, False, True]]


def test_what_is_seen_may_come_with_the_start():
    """Gymnasium's cart-pole cannot tell what is seen in a state."""
    single = gym.make("CartPole-v1")
    seen, _ = single.reset(seed=3)
    source = chosen("CartPole-v1", (From(Start(get_state(single), obs=seen[None])),))
    assert torch.equal(source.obs, torch.from_numpy(seen).expand(2, 4))
    streams = [copy.unwrapped.np_random.bit_generator.state for copy in source.env.envs]
    assert streams[0] != streams[1]  # they stay each copy's own
    with pytest.raises(TypeError, match="cannot start from a chosen state"):
        chosen("CartPole-v1", (From(Start(get_state(single))),))


def test_no_start_is_the_environments_own_without_a_second_reset():
    plain = Source(make_vector("palaestra/Pendulum-v0", 2), 0)
    for states in ((Nowhere(),), ()):
        assert torch.equal(chosen("palaestra/Pendulum-v0", states).obs, plain.obs)


def test_chosen_episodes_need_resets_on_demand():
    source = Source(counting(AutoresetMode.SAME_STEP), 0)
    with pytest.raises(ValueError, match="DISABLED"):
        source.choose(Gravities(), (), [None], [generator(0, "tasks")])


def test_an_environment_without_states_is_named():
    source = Source(counting(AutoresetMode.DISABLED), 0)
    source.choose(None, (From(Start([0.0])),), [None], [generator(0, "tasks")])
    with pytest.raises(TypeError, match="cannot start from a chosen state"):
        source.begin()


def test_tasks_and_first_states_are_parts_of_an_algorithm():
    start = Start(np.array([0.5, -1.0]), time_limit=3)
    algorithm = first_state(with_tasks(td3(hidden=(4,), start=1_000), Gravities()), From(start))
    algorithm = first_state(algorithm, Nowhere())
    run = Online(algorithm, make_vector("palaestra/ContextualPendulum-v0", 2))
    for _ in range(7):
        run.advance()
    assert run.env_steps == 14
    assert run.source.env.tasks[:, 0].tolist() == [10.0, 11.0]
    assert run.source.choosers[0].tasks.told == [(6.0, 3), (7.0, 3), (8.0, 3), (9.0, 3)]
    replay = run.replays["replay"]
    rows = transition(replay, (replay.kind == 1).nonzero().squeeze(1), run.drawing)
    begins = torch.tensor([np.cos(0.5), np.sin(0.5), -1.0], dtype=torch.float32)
    assert torch.isclose(rows["obs"], begins, atol=1e-6).all(1).sum() == 6
    assert rows["truncated"].sum() == 4
    other = Online(algorithm, make_vector("palaestra/ContextualPendulum-v0", 2))
    other.advance()
    assert other.source.choosers[0].tasks.told == []  # two runs share no part


# ------------------------------------------------------------------------------------------------------- the border


def border(observation=None, action=None):
    return Border(observation or Box(-1, 1, (2,)), action or Box(-1, 1, (1,)))


def test_continuous_actions():
    space = Box(np.array([0.0, -3.0]), np.array([10.0, -1.0]), dtype=np.float32)
    at = border(action=space)
    inner = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [0.5, -0.5], [7.0, -7.0]])
    outer = at.action(inner)
    assert outer.tolist() == [[0.0, -3.0], [5.0, -2.0], [10.0, -1.0], [7.5, -2.5], [10.0, -3.0]]
    assert outer.dtype == np.float32
    assert torch.allclose(at.inner_action(outer), inner.clamp(-1, 1))
    assert at.spec.action == Space((2,))


@pytest.mark.parametrize(
    ("space", "choices"),
    [
        (Discrete(4), 4),
        (Discrete(3, start=5), 3),
        (Discrete(3, start=-1), 3),
        (MultiDiscrete([2, 3, 4]), 24),
        (MultiDiscrete([2, 3], start=[10, -2]), 6),
        (MultiBinary(3), 8),
    ],
)
def test_discrete_actions_are_one_choice_and_back(space, choices):
    at = border(action=space)
    inner = torch.arange(choices)
    outer = at.action(inner)
    assert at.spec.action == Space((), torch.int64, (choices,))
    assert all(space.contains(action) for action in outer)
    assert len({np.asarray(action).tobytes() for action in outer}) == choices
    back = at.inner_action(outer)
    assert back.dtype == torch.int64
    assert torch.equal(back, inner)


@pytest.mark.parametrize(
    ("space", "raw", "inner"),
    [
        (Box(-1, 1, (2,), np.float64), [[0.25, -1.0]], torch.tensor([[0.25, -1.0]])),
        (Box(0, 255, (2, 2, 1), np.uint8), [[[[0], [255]], [[7], [8]]]], None),
        (Discrete(3, start=5), [6], torch.tensor([1])),
        (MultiDiscrete([2, 3], start=[10, -2]), [[11, -2]], torch.tensor([[1, 0]])),
        (MultiBinary(3), [[1, 0, 1]], torch.tensor([[1.0, 0.0, 1.0]])),
    ],
)
def test_observations(space, raw, inner):
    raw = np.array(raw, space.dtype)
    at = border(observation=space)
    found = at.obs(raw)
    expected = torch.from_numpy(raw) if inner is None else inner
    assert torch.equal(found, expected)
    assert (found.dtype, tuple(found.shape[1:])) == (at.spec.obs.dtype, at.spec.obs.shape)
    kept = found.clone()
    raw[...] = 1  # an environment may write into the array that it returned
    assert torch.equal(found, kept)


def test_dictionaries_with_a_mask():
    space = Dict(
        {"position": Box(-1, 1, (2,)), "image": Box(0, 255, (4, 4, 3), np.uint8), "action_mask": MultiBinary(3)}
    )
    at = border(observation=space, action=Discrete(3))
    raw = {
        "position": np.array([[0.5, -0.5]], np.float32),
        "image": np.full((1, 4, 4, 3), 9, np.uint8),
        "action_mask": np.array([[1, 0, 1]], np.int8),
    }
    found = at.obs(raw)
    assert found["image"].dtype == torch.uint8
    assert found["action_mask"].bool().tolist() == [[True, False, True]]
    assert at.spec.obs["image"].image
    assert set(at.spec.obs) == set(found) == {"position", "image", "action_mask"}


@pytest.mark.parametrize(
    ("observation", "action", "named"),
    [
        (Text(5), Discrete(2), "Text"),
        (Dict({"a": Dict({"b": Discrete(2)})}), Discrete(2), r"observation\['a'\]"),
        (MultiDiscrete([[2, 2]]), Discrete(2), "not a vector"),
        (Discrete(2), Box(-np.inf, np.inf, (1,)), "no bounds"),
        (Discrete(2), Box(-1, 1, (2, 2)), "vector is needed"),
        (Discrete(2), Box(-1, 1, (0,)), "vector is needed"),
        (Discrete(2), MultiBinary((2, 2)), "vector is needed"),
        (Discrete(2), MultiBinary(13), "8192 joint choices"),
        (Discrete(2), Text(5), "Text"),
        (Discrete(2), Dict({"a": Discrete(2)}), "Dict"),
    ],
)
def test_refused_spaces_are_named(observation, action, named):
    with pytest.raises(Unfit, match=named):
        Border(observation, action)


@pytest.mark.parametrize(
    "space",
    [
        Box(-1, 1, (3,)),
        Box(-np.inf, np.inf, (2, 2), np.float64),
        Box(np.array([-1.0, -np.inf]), np.array([2.0, np.inf]), dtype=np.float32),
        Box(np.array([-1.0, 0.1]), np.array([2.0, 0.7]), dtype=np.float32),
        Box(0, 255, (4, 4, 3), np.uint8),
        Discrete(4),
        Discrete(4, start=-2),
        MultiDiscrete([2, 3], start=[1, 5]),
        MultiBinary(4),
        MultiBinary((2, 3)),
        Dict({"a": Discrete(3), "b": Box(-1, 1, (2,))}),
    ],
)
def test_a_space_described_and_made_again(space):
    assert undescribe(json.loads(json.dumps(describe(space)))) == space


def test_a_space_without_a_description():
    with pytest.raises(Unfit, match="Text"):
        describe(Text(5))


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (16,), np.uint8),  # a memory's bytes
        Box(-1, 1, (2, 3)),
        Box(-1, 1, ()),
        Discrete(4),
        MultiDiscrete([3, 2]),
        MultiBinary(4),
        Box(0, 255, (6, 6, 2), np.uint8),
        Box(0, 255, (1, 40, 40), np.uint8),
        Dict({"a": Discrete(3), "b": Box(0, 255, (6, 6, 2), np.uint8), "c": MultiBinary(2)}),
    ],
    ids=str,
)
def test_every_observation_that_passes_the_border_can_be_learnt_from(space):
    at = border(observation=space)
    space.seed(0)
    rows = [space.sample() for _ in range(3)]
    raw = {k: np.stack([row[k] for row in rows]) for k in space} if isinstance(space, Dict) else np.stack(rows)
    learner = Learner(td3(hidden=(8,)), at.spec)
    action, _, _ = learner.deployed()(learner.nets, at.obs(raw), None, None)
    assert action.shape == (3, 1)
    assert action.isfinite().all()


# ------------------------------------------------------------------------------------------------------------ faults


class Faulty(gym.Env):
    """Gives what it is told to in its third step."""

    observation_space, action_space = Dict({"place": Box(-1, 1, (2,))}), Box(-1, 1, (1,))

    def __init__(self, obs=0.0, reward=0.0, raises=None):
        self.obs, self.reward, self.raises = obs, reward, raises

    def seen(self, second):
        return {"place": np.array([0.0, second], np.float32)}

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.seen(0.0), {}

    def step(self, action):
        self.steps += 1
        if self.steps < 3:
            return self.seen(0.0), 0.0, False, False, {}
        if self.raises:
            raise self.raises
        return self.seen(self.obs), self.reward, False, False, {}


def three_steps(faulty, seeds=0):
    well = [Faulty] * 3
    source = Source(SyncVectorEnv([*well, lambda: faulty], autoreset_mode=AutoresetMode.DISABLED), seeds)
    for _ in range(3):
        source.step(torch.zeros(4, 1))


@pytest.mark.parametrize(
    ("faulty", "error", "message"),
    [
        (
            Faulty(obs=np.nan),
            NotFinite,
            r"the observation 'place'\[1\] of environment 3 \(seed 8\) is nan after 6 steps",
        ),
        (Faulty(reward=-np.inf), NotFinite, r"the reward of environment 3 \(seed 8\) is -inf after 4 steps"),
        (
            Faulty(raises=ZeroDivisionError("no ground")),
            EnvironmentFailed,
            "the environment Faulty raised ZeroDivisionError in step after 4 steps: no ground",
        ),
    ],
)
def test_a_fault_is_named_with_its_place(faulty, error, message):
    with pytest.raises(error, match=message):
        three_steps(faulty, seeds=[5, 8])


def test_an_action_that_is_not_finite():
    source = Source(make_vector("palaestra/Pendulum-v0", 2), 0)
    with pytest.raises(NotFinite, match=r"the action\[0\] of environment 1 is nan after 0 steps"):
        source.step(torch.tensor([[0.0], [torch.nan]]))


def test_a_reset_that_raises():
    class Closed(Faulty):
        def reset(self, *, seed=None, options=None):
            raise OSError("no display\nand more")

    with pytest.raises(EnvironmentFailed, match=r"raised OSError in reset after 0 steps: no display$"):
        Source(SyncVectorEnv([Closed], autoreset_mode=AutoresetMode.DISABLED), 0)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved():
    saved = []
    reward = Transform(lambda nets, b, rng: {**b, "reward": b["reward"] / (nets.clock.updates < 7)})
    algorithm = prepend_transform(td3(hidden=(4,), start=0, batch_size=4), reward)
    run = Online(algorithm, make_vector("palaestra/Pendulum-v0"))
    with pytest.raises(NotFinite, match=r"loss/critic was not finite in update 7$"):
        online(run, 40, log_every=40, checkpoint_every=5, save=lambda run: saved.append(run.env_steps))
    assert saved == [5]
