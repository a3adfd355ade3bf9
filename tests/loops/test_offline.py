"""Learning from a dataset: what is drawn, what is measured, that it goes on exactly, and that it goes on online."""

import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

import palaestra as pal
from palaestra.algorithm import Unfit
from palaestra.data.dataset import Dataset, from_episodes
from palaestra.envs.border import Border
from palaestra.envs.make import make_vector
from palaestra.expression import parse
from palaestra.faults import NotFinite
from palaestra.learner import Learner
from palaestra.loops.fitted_q import fitted_q_value
from palaestra.loops.offline import Offline, offline
from palaestra.loops.online import Online
from palaestra.runs import RunError

SMALL = "td3-bc(hidden=(8,), batch_size=16)"
WORLD = "palaestra/Pendulum-v0"


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Six episodes of a pendulum pushed at random."""
    env = make_vector(WORLD, 6)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    seen, done, paid = [obs], [], []
    for _ in range(50):
        action = rng.uniform(-2, 2, (6, 1)).astype(np.float32)
        obs, reward, *_ = env.step(action)
        seen.append(obs), done.append(action), paid.append(reward)
    ends = np.arange(50) == 49
    rest = {"terminated": np.zeros(50, bool), "truncated": ends}
    seen, done, paid = (np.array(x) for x in (seen, done, paid))
    episodes = [{"obs": seen[:, i], "action": done[:, i], "reward": paid[:, i], **rest} for i in range(6)]
    return from_episodes(episodes, env.single_observation_space, env.single_action_space, {"env": WORLD})


def numbers(run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.learner.nets.parameters()]


def test_an_update_is_one_of_a_batch_of_the_dataset(data):
    run = Offline(parse(SMALL), data)
    twin = Learner(parse(SMALL), run.border.spec)
    twin.load_state_dict(run.learner.state_dict())
    batch = run.replays["replay"].sample(16, Learner(parse(SMALL), run.border.spec).streams("drawing"))
    run.advance()
    twin.update({"replay": batch})
    assert all(map(torch.equal, numbers(run), [p.detach() for p in twin.nets.parameters()]))


def test_observations_are_measured_before_the_first_update(data):
    run = Offline(parse(SMALL), data, (0, 1))
    real = data.columns["obs"][data.is_step].astype(np.float64)
    for seed in (0, 1):
        (statistics,) = run.learner.nets_of(seed)["obs_statistics"].of_key
        np.testing.assert_allclose(statistics.mean.numpy(), real.mean(0), rtol=1e-6)
        np.testing.assert_allclose(statistics.variance.numpy(), real.var(0), rtol=1e-6)


def test_rewards_are_scaled_by_the_range_of_returns(data):
    run = Offline(parse(f"{SMALL}+normalised-return(span=10.0)"), data)
    batch = run.replays["replay"].sample(16, torch.Generator().manual_seed(0))
    spread = data.returns().max() - data.returns().min()
    seen = run.learner._completed("replay", batch)["reward"]
    torch.testing.assert_close(seen, batch["reward"] * float(10 / spread))


def test_stacked_seeds_learn_as_they_would_alone(data):
    together = Offline(parse(SMALL), data, (3, 5))
    for _ in range(5):
        together.advance()
    for seed in (3, 5):
        alone = Offline(parse(SMALL), data, (seed,))
        for _ in range(5):
            alone.advance()
        own = together.learner.nets_of(seed)
        for left, right in zip(own.parameters(), alone.learner.nets.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_rows_count_updates_and_no_environment_steps(data):
    rows: list[dict] = []
    offline(Offline(parse(SMALL), data), 10, log_every=5, evaluate_every=10, record=rows.append)
    assert [(row["kind"], row["updates"]) for row in rows] == [("train", 5), ("train", 10), ("evaluation", 10)]
    assert not any("env_steps" in row for row in rows)
    assert list(rows[-1]["scores"]) == ["fitted_q_value"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_resumed_run_is_the_whole_one(data, tmp_path, seeds):
    given = {"dataset": data, "seeds": seeds, "episodes": 2, "together": "stacked", "checkpoint_every": 10}
    whole = pal.train(SMALL, steps=40, out=tmp_path / "whole", evaluate_every=20, log_every=10, **given)
    half = pal.train(SMALL, steps=20, out=tmp_path / "half", evaluate_every=20, log_every=10, **given)
    again = pal.resume(half, 40, dataset=data)

    def told(run):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()]

    assert told(whole) == told(again)
    assert again.about["env"] == WORLD
    assert pal.check(again.folder)["ok"]


def test_a_run_continues_with_its_own_dataset_alone(data, tmp_path):
    run = pal.train(SMALL, steps=10, dataset=data, out=tmp_path / "run", episodes=2)
    with pytest.raises(RunError, match=r"made in memory; give it again: --dataset FILE"):
        pal.resume(run, 20)
    other = from_episodes([data.episode(0)], data.observation_space, data.action_space)
    with pytest.raises(RunError, match="the run was begun with"):
        pal.resume(run, 20, dataset=other)


def test_without_a_simulator_it_says_so(data, tmp_path):
    blind = Dataset(data.columns, data.lengths, data.observation_space, data.action_space)
    run = pal.train(SMALL, steps=10, dataset=blind, out=tmp_path / "run")
    about = json.loads((run.folder / "run.json").read_text())
    assert (about["env"], about["dataset_sha256"], about["offline"]) == (None, data.hash, True)
    assert list(run.metrics()[-1]["scores"]) == ["fitted_q_value"]


def test_it_goes_on_in_an_environment(data, tmp_path):
    run = pal.train(SMALL, steps=10, dataset=data, out=tmp_path / "run", episodes=2)
    then = pal.go_online(run, WORLD, 30, dataset=data, episodes=2)
    assert then.folder == tmp_path / "run-then"
    assert then.about["expression"].endswith("+prior-data")
    assert then.metrics()[-1]["updates"] == 10 + 30
    again = pal.resume(then, 40, dataset=data)
    assert again.metrics()[-1]["updates"] == 10 + 40


def test_half_of_each_batch_is_the_datasets(data):
    env = make_vector(WORLD, 1)
    run = Online(parse(f"{SMALL}+prior-data(share=0.25)"), env, dataset=data)
    run.advance()
    batch = run._draw("replay", 16)
    logged = {tuple(row) for row in data.columns["obs"].tolist()}
    assert [tuple(row) in logged for row in batch["obs"].tolist()] == [False] * 12 + [True] * 4


@pytest.mark.parametrize(
    ("expression", "says"),
    [("ppo", "learns from what it has just collected"), (f"{SMALL}+prior-data", "learns in an environment beside")],
)
def test_what_cannot_learn_from_a_dataset(data, tmp_path, expression, says):
    blind = Dataset(data.columns, data.lengths, data.observation_space, data.action_space)
    with pytest.raises(Unfit, match=says):
        pal.train(expression, steps=10, dataset=blind, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_there_must_be_something_to_learn_from(data, tmp_path):
    with pytest.raises(ValueError, match="give an environment or a dataset"):
        pal.train(SMALL, steps=10, out=tmp_path / "run")
    with pytest.raises(Unfit, match="draws from a dataset"):
        pal.train(f"{SMALL}+prior-data", WORLD, 10, out=tmp_path / "run")
    with pytest.raises(Unfit, match="the dataset's spaces"):
        pal.train(SMALL, "palaestra/PointMass-v0", 10, dataset=data, out=tmp_path / "run")


def test_a_number_that_is_not_finite_stops_it(data):
    columns = {**data.columns, "reward": np.full_like(data.columns["reward"], np.nan)}
    run = Offline(parse(SMALL), Dataset(columns, data.lengths, data.observation_space, data.action_space))
    with pytest.raises(NotFinite, match="loss/critic was not finite in update 1"):
        offline(run, 3)


def test_fitted_q_finds_what_a_fixed_policy_is_paid():
    """One decision: the action a is paid 2 a. A policy that always does 0.5 is worth 1."""
    rng = np.random.default_rng(0)
    rest = {"terminated": np.ones(1, bool), "truncated": np.zeros(1, bool)}
    episodes = [
        {"obs": np.zeros((2, 1)), "action": (a := rng.uniform(-1, 1, (1, 1))), "reward": 2 * a[0], **rest}
        for _ in range(500)
    ]
    one = from_episodes(episodes, Box(-1, 1, (1,)), Box(-1, 1, (1,)))
    border = Border(one.observation_space, one.action_space)
    learner = Learner(parse("td3(hidden=(4,))"), border.spec)
    with torch.no_grad():
        head = learner.nets["actor"].mlp.layers[-1]
        head.weight.zero_(), head.bias.fill_(np.arctanh(0.5))
    values = fitted_q_value(learner, 0, one, border, 0)["fitted_q_value"]
    assert len(values) == 100
    assert values == pytest.approx([1.0] * 100, abs=0.05)
