"""Datasets made to order: how well they play, that they come out the same, what they say of themselves."""

import json
from pathlib import Path

import gymnasium as gym
import jsonschema
import numpy as np
import pytest

from palaestra.data.dataset import Dataset
from palaestra.envs.point_maze import GOAL_RADIUS
from palaestra.factories import behaviours, datasets
from palaestra.factories.behaviours import Behaviour
from palaestra.factories.datasets import make_dataset
from palaestra.runs import Run

MASS, MAZE, PENDULUM = "palaestra/PointMass-v0", "palaestra/PointMazeUMaze-v0", "palaestra/Pendulum-v0"
# PointMass is learnt in a thousand steps where entropy is cheap and the horizon short.
QUICK = Behaviour("sac(lr=3e-3,gamma=0.9,entropy_coefficient=0.05,start=200,batch_size=64,hidden=(64,64))", 1_200)


@pytest.fixture(autouse=True, scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this module's, and few measurements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALAESTRA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(behaviours, "EPISODES_OF_CONTROLLER", 20)
        patch.setattr(behaviours, "CHECKPOINTS", 24)
        yield


def mean(dataset: Dataset) -> float:
    return float(dataset.returns().mean())


@pytest.mark.parametrize("env", [MASS, MAZE, PENDULUM])
def test_a_better_quality_earns_more(env: str) -> None:
    made = {quality: make_dataset(env, quality, 4_000) for quality in ("random", "medium", "expert")}
    assert mean(made["random"]) < mean(made["medium"]) < mean(made["expert"])
    about = made["medium"].about
    random, best = about["reference"]["random"], about["reference"]["best"]
    medium = about["behaviour"]["medium"]
    assert 0.30 <= medium["share"] <= 0.45
    assert medium["share"] == pytest.approx((medium["return"] - random) / (best - random))
    assert medium == about["behaviour"]["tried"][-1]


def test_one_that_learnt_to_play() -> None:
    made = {q: make_dataset(MASS, q, 2_000, behaviour=QUICK) for q in ("random", "medium", "expert", "replay")}
    assert mean(made["random"]) < mean(made["medium"]) < mean(made["expert"])
    behaviour = made["expert"].about["behaviour"]
    assert behaviour["expression"].startswith("sac(")
    assert behaviour["settings"][0]["gamma"] == 0.9
    returns = [one["return"] for one in behaviour["checkpoints"]]
    assert [one["env_steps"] for one in behaviour["checkpoints"]] == list(range(250, 1_201, 50))  # it learns from 200
    assert 0.30 <= behaviour["medium"]["share"] <= 0.45
    earlier = [one for one in behaviour["checkpoints"] if one["env_steps"] < behaviour["medium"]["env_steps"]]
    if "noise" in behaviour["medium"]:  # no checkpoint is medium: the first better one is made so
        assert not any(0.30 <= one["share"] <= 0.45 for one in behaviour["checkpoints"])
        assert all(one["share"] < 0.30 for one in earlier)
    else:
        assert not any(0.30 <= one["share"] <= 0.45 for one in earlier)
    assert behaviour["best"]["return"] == max(returns) == made["expert"].about["reference"]["best"]
    # What training saw until the medium policy: its first 200 steps are uniform in [-1, 1], and episodes have 100.
    replay = made["replay"]
    assert replay.steps == behaviour["medium"]["env_steps"] // 100 * 100
    assert (replay.lengths == 100).all()
    assert np.ptp(replay.episode(0)["action"], axis=0).min() > 1.9
    retraced(replay.episode(0))


def test_training_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_dataset(MASS, "medium", 300, behaviour=QUICK)

    def never(*args: object, **kwargs: object) -> Run:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(behaviours, "train", never)
    assert make_dataset(MASS, "medium", 300, behaviour=QUICK).hash == before.hash
    folder = behaviours.kept() / before.about["behaviour"]["hash"]
    kept = {int(path.name) for path in (folder / "policies").iterdir()}
    assert kept == {before.about["behaviour"][name]["env_steps"] for name in ("medium", "best")}
    for other in ({"seed": 1}, {"threads": 2}, {"behaviour": Behaviour(QUICK.expression, 1_100)}):
        with pytest.raises(AssertionError, match="trained again"):
            make_dataset(MASS, "medium", 300, **{"behaviour": QUICK, **other})


def test_training_that_is_not_kept_comes_out_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = make_dataset(MASS, "expert", 300, behaviour=QUICK)
    monkeypatch.setenv("PALAESTRA_CACHE", str(tmp_path))
    again = make_dataset(MASS, "expert", 300, behaviour=QUICK)
    assert again.hash == before.hash
    assert again.about["behaviour"] == before.about["behaviour"]


@pytest.mark.parametrize("quality", ["random", "medium", "mixed", "stitching"])
def test_a_seed_gives_the_same_data(quality: str) -> None:
    one, same, other = (make_dataset(MAZE, quality, 300, seed=seed) for seed in (3, 3, 4))
    assert one.hash == same.hash
    assert one.about["reference"] == same.about["reference"]
    assert one.hash != other.hash


def test_pendulum_is_cut_off_and_never_ends() -> None:
    data = make_dataset("Pendulum-v1", "random", 500, behaviour=Behaviour("sac(start=30,hidden=(8,),lr=3e-2)", 60))
    assert data.lengths.tolist() == [200, 200, 200]  # whole episodes until there are 500 steps
    assert not data.columns["terminated"].any()
    assert data.columns["truncated"].nonzero()[0].tolist() == [199, 400, 601]  # an episode has 201 slots
    assert np.abs(data.columns["action"]).max() > 1.9  # torque, not the library's [-1, 1]
    assert data.columns["reward"][200] == 0


def test_an_episode_is_what_the_environment_did() -> None:
    """Each step, taken alone from the state that its observation shows."""
    retraced(make_dataset(MASS, "medium", 200, seed=5).episode(1))


def retraced(episode: dict[str, np.ndarray]) -> None:
    env = gym.make(MASS).unwrapped
    env.reset(seed=0)
    for t in (0, 1, 50, 99):
        env.set_physics(episode["obs"][t])
        obs, reward, *_ = env.step(episode["action"][t])
        assert obs == pytest.approx(episode["obs"][t + 1], abs=1e-6)
        assert reward == pytest.approx(episode["reward"][t], abs=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_mixed_has_the_share_of_expert_steps(share: float) -> None:
    data = make_dataset(MASS, "mixed", 4_000, expert_share=share)
    assert data.about["expert_share"] == share  # episodes of 100 steps divide evenly
    expert = data.returns() > -40  # the controller's mean is -9, random actions' -130
    assert expert.mean() == pytest.approx(share, abs=0.05)
    assert 0 < expert[: len(expert) // 2].sum() < expert.sum()  # in random order


@pytest.mark.parametrize("env", [MAZE, "palaestra/PointMazeUTurn-v0", "palaestra/PointMazeMedium-v0"])
def test_stitching_has_no_way_from_start_to_goal(env: str) -> None:
    data = make_dataset(env, "stitching", 3_000)
    about = data.about["stitching"]
    world = gym.make_vec(env, 1, vectorization_mode="vector_entry_point")
    reach, centre = world._reach, world._centre
    goal, middle = (np.array(about[name])[::-1] + 0.5 for name in ("goal", "middle"))
    arrived, waited = 0, 0
    for episode in data:
        way = episode["obs"][:, :2] * reach + centre
        assert episode["obs"][0, 4:6] * reach + centre == pytest.approx(goal, abs=1e-5)
        begins = tuple(int(x) for x in way[0][::-1])
        if begins == about["middle"]:
            arrived += bool(episode["terminated"][-1])
        else:
            assert begins in about["starts"]
            assert np.linalg.norm(way - goal, axis=1).min() > GOAL_RADIUS
            assert episode["reward"].sum() == 0
            waited += bool(np.linalg.norm(way[-1] - middle) < GOAL_RADIUS)
    assert abs(arrived + waited - data.episodes) <= 0.1 * data.episodes  # noise may delay a few
    assert abs(arrived - waited) <= 0.1 * data.episodes + 1


def test_what_a_dataset_says_of_itself() -> None:
    about = make_dataset(MAZE, "expert", 300, seed=2).about
    assert (about["env"], about["quality"], about["seed"]) == (MAZE, "expert", 2)
    assert about["steps"] >= 300
    assert about["behaviour"]["kind"] == "controller"
    assert set(about["reference"]) == {"random", "best"}
    assert about["provenance"]["gymnasium"] == gym.__version__
    assert about["provenance"]["command"]
    json.dumps(about)


def test_a_constructed_environment_is_not_kept() -> None:
    made = make_dataset(
        lambda: gym.make("CartPole-v1"), "random", 200, behaviour=Behaviour("dqn(start=20,lr=1e-2,hidden=(16,))", 300)
    )
    assert made.about["env"] is None
    assert not (behaviours.kept() / made.about["behaviour"]["hash"]).exists()


def test_discrete_actions_and_images() -> None:
    data = make_dataset("palaestra/Catch-v0", "mixed", 90)
    assert (data.columns["obs"].dtype, data.columns["action"].dtype) == (np.uint8, np.int64)
    assert (data.lengths == 9).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((MASS, "good", 100), "there is no quality 'good'"),
        ((MASS, "medium", 0), "steps is 0; it must be at least 1"),
        ((MASS, "stitching", 100), "stitching needs a point maze with one layout"),
        (("palaestra/PointMazeGenerated-v0", "stitching", 100), "stitching needs a point maze with one layout"),
        ((gym.make_vec(MASS, 2, vectorization_mode="vector_entry_point"), "random", 10), "give a function that makes"),
    ],
)
def test_what_does_not_fit_is_said(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_dataset(*arguments)


def test_a_behaviour_that_learnt_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no more than random actions, .*: give behaviour="):
        make_dataset("palaestra/MountainCar-v0", "medium", 100, behaviour=Behaviour("dqn(start=100,hidden=(8,))", 10))


def test_a_replay_that_was_not_kept_is_refused() -> None:
    short = Behaviour(QUICK.expression.replace("start=", "capacity=1000,start="), QUICK.steps)
    with pytest.raises(ValueError, match="does not keep the 1,200 steps that it sees"):
        make_dataset(MASS, "replay", 100, behaviour=short)


def test_ways_through_a_maze() -> None:
    """By hand: the U's ends are six steps apart, its middle is the cell in the wall's opening."""
    starts, middle, goal = datasets._ways(("#####", "#S  #", "### #", "#G  #", "#####"))
    assert (starts, middle, goal) == ([(1, 1), (1, 2)], (2, 3), (3, 1))


def test_the_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from palaestra.cli.dataset import dataset_app
    from palaestra.data.files import read

    out = tmp_path / "mass.hdf5"
    given = ["make", MASS, "--quality", "mixed", "--steps", "500", "--seed", "1", "--out", str(out), "--json"]
    done = CliRunner().invoke(dataset_app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    schema = json.loads((Path(behaviours.__file__).parents[1] / "schemas" / "dataset-make.json").read_text())
    jsonschema.validate(said, schema, jsonschema.Draft202012Validator)
    assert said["hash"] == read(out).hash == make_dataset(MASS, "mixed", 500, seed=1).hash
    again = CliRunner().invoke(dataset_app, given)
    assert again.exit_code == 2
    assert "exists already: give another --out" in again.output.replace("\n", " ")


@pytest.mark.slow
def test_pendulum_at_full_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviours, "CHECKPOINTS", 50)
    made = {q: make_dataset("Pendulum-v1", q, 10_000) for q in ("random", "medium", "expert", "replay")}
    assert mean(made["random"]) < mean(made["medium"]) < mean(made["expert"])
    assert mean(made["expert"]) > -250
    assert 0.30 <= made["medium"].about["behaviour"]["medium"]["share"] <= 0.45
