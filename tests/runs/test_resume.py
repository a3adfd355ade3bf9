"""A run that was killed, at any moment and any number of times, ends as the one that nobody killed."""

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import palaestra as pal
from palaestra.cli.progress import Progress
from palaestra.runs import Run, RunError
from tests.runs.resuming import (
    Job,
    differences,
    final,
    finish,
    finished,
    kill_after,
    kill_in_a_save,
    rows,
    training_seconds,
)

TINY = "start=60, hidden=(8,), batch_size=8, capacity=100"
ROLLOUT = "hidden=(8,), collect=7, epochs=2"  # 7 divides neither an episode nor a period

FAST = {
    "sac": Job(f"sac({TINY})", "Pendulum-v1", 260, checkpoint_every=40),
    "dqn": Job(
        f"dqn({TINY}, target_every=20, exploration_steps=200)+n-step+prioritised",
        "CartPole-v1", 330, environments=3, checkpoint_every=40,
    ),
}  # fmt: skip
SLOW = {
    "td3": Job(f"td3({TINY})", "palaestra/PointMaze-v0", 600, environments=4),
    "sac on MuJoCo": Job(f"sac({TINY})", "HalfCheetah-v5", 300, episodes=1, evaluate_every=170),
    "td3 on contexts": Job(f"td3({TINY})", "palaestra/ContextualPendulum-v0", 500),
    "sac-discrete": Job(f"sac-discrete({TINY})", "Acrobot-v1", 700, episodes=1, evaluate_every=170),
    "ddpg": Job(f"ddpg({TINY})", "MountainCarContinuous-v0", 1_200, episodes=1, evaluate_every=370),
    "c51": Job(f"c51({TINY}, target_every=20, exploration_steps=200)+double", "CartPole-v1", 500),
    "qr-dqn": Job(f"qr-dqn({TINY}, target_every=20, exploration_steps=200)+prioritised", "palaestra/CartPole-v0", 500),
    "ppo": Job(
        f"ppo({ROLLOUT}, minibatches=2, anneal_steps=900)+normalised-obs+normalised-reward", "Pendulum-v1", 900,
        environments=3, episodes=1, evaluate_every=270,
    ),
    "recurrent-ppo": Job(f"recurrent-ppo({ROLLOUT}, memory=8)", "palaestra/Recall-v0", 900, environments=3),
    "seeds of sac": Job(f"sac({TINY})", "palaestra/Pendulum-v0", 400, seeds="0-2"),
    "seeds of dqn": Job(
        f"dqn({TINY}, target_every=20, exploration_steps=200)+n-step+prioritised", "CartPole-v1", 400, seeds="4,1",
    ),
    "seeds of recurrent-ppo": Job(
        f"recurrent-ppo({ROLLOUT}, memory=8)+normalised-obs", "palaestra/Recall-v0", 600, environments=2, seeds="0-2",
    ),
}  # fmt: skip


def resumes_exactly(job: Job, folder: Path, kills: int, seed: int) -> None:
    """Kills in a row, by turns at a random moment of training and at a random step of the saves; then to the end."""
    rng = np.random.default_rng(seed)
    finish(job, folder / "whole")
    for replay in final(folder / "whole").state["replays"].values():
        assert (replay["heads"] > 2 * (100 // job.environments)).all(), "the ring has to wrap around"
    struck, latest = 0, 1.2 * training_seconds(folder / "whole") / kills
    for kill in range(kills):
        if finished(folder / "killed"):
            break
        if kill % 2:
            struck += kill_after(job, folder / "killed", rng.uniform(0.0, latest), training=True)
        else:
            struck += kill_in_a_save(job, folder / "killed", int(rng.integers(20, 60)))
    assert struck >= kills // 2, "the run ended before the kills"
    if not finished(folder / "killed"):
        finish(job, folder / "killed")
    assert differences(folder / "whole", folder / "killed") == []


@pytest.mark.parametrize("name", FAST)
def test_killed_twice(name: str, tmp_path: Path) -> None:
    resumes_exactly(FAST[name], tmp_path, kills=2, seed=5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SLOW)
def test_killed_four_times(name: str, tmp_path: Path) -> None:
    if "MuJoCo" in name:
        pytest.importorskip("mujoco")
    resumes_exactly(SLOW[name], tmp_path, kills=4, seed=7)


@pytest.mark.slow
def test_comparing_sees_a_difference(tmp_path: Path) -> None:
    job = Job(f"td3({TINY})", "palaestra/Pendulum-v0", 130)
    finish(job, tmp_path / "one")
    finish(Job(f"td3({TINY}, lr=3.0001e-4)", "palaestra/Pendulum-v0", 130), tmp_path / "other")
    found = differences(tmp_path / "one", tmp_path / "other")
    assert any("/learner/nets/critic" in path for path in found)
    assert any(path.startswith("/metrics") for path in found)


# ------------------------------------------------------------------- in this process: runs that end by an exception


class Stop(Exception):
    """What a test raises in the place of a kill."""


def stop_at(env_steps: int) -> Callable[[dict], None]:
    def listen(row: dict) -> None:
        if row["kind"] == "tick" and row["env_steps"] >= env_steps:
            raise Stop

    return listen


def stopped(at: int, out: Path, steps: int = 130, **options: object) -> Run:
    with pytest.raises(Stop):
        pal.train(
            f"td3({TINY})", steps=steps, out=out, episodes=1, evaluate_every=70, log_every=30, checkpoint_every=50,
            listen=stop_at(at), **{"env": "palaestra/Pendulum-v0", **options},
        )  # fmt: skip
    return Run.open(out)


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    whole = stopped(130, tmp_path / "whole")
    run = stopped(45, tmp_path / "early")
    assert run.metrics(), "rows that the next line has to take back"
    assert not (run.folder / "checkpoints").exists()
    begun = []
    pal.resume(run, listen=begun.append)
    assert begun[0]["env_steps"] == 0
    pal.resume(whole)
    assert differences(whole.folder, run.folder) == []


def test_killed_after_the_last_checkpoint(tmp_path: Path) -> None:
    """Nothing is left to train: resuming takes back what was written after it, and says that the run is finished."""
    options = {"episodes": 1, "evaluate_every": 70, "log_every": 30, "checkpoint_every": 50}
    whole, run = (pal.train(f"td3({TINY})", "palaestra/Pendulum-v0", 130, out=tmp_path / n, **options) for n in "ab")
    run.update(status="running")
    assert pal.resume(run.folder).about["status"] == "finished"
    assert differences(whole.folder, run.folder) == []


def test_more_steps_than_at_first(tmp_path: Path) -> None:
    """A finished run goes on as if it had been begun with more steps; its periods stay."""
    longer = pal.train(f"td3({TINY})", "palaestra/Pendulum-v0", 200, out=tmp_path / "long", episodes=1,
                       evaluate_every=50, log_every=50, checkpoint_every=50)  # fmt: skip
    run = pal.train(f"td3({TINY})", "palaestra/Pendulum-v0", 100, out=tmp_path / "short", episodes=1,
                    evaluate_every=50, log_every=50, checkpoint_every=50)  # fmt: skip
    assert pal.resume(run, 200).about["steps"] == 200
    assert differences(longer.folder, run.folder) == []
    with pytest.raises(RunError, match="at 200 of 200 steps already"):
        pal.resume(run)
    with pytest.raises(ValueError, match="steps is 0"):
        pal.resume(run, 0)


def test_a_run_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    run = stopped(90, tmp_path / "run")
    before = (run.folder / "metrics.jsonl").read_bytes(), (run.folder / "run.json").read_bytes()
    with run.writing(), pytest.raises(RunError, match="is writing this run"):
        pal.resume(run.folder)
    assert ((run.folder / "metrics.jsonl").read_bytes(), (run.folder / "run.json").read_bytes()) == before


# ------------------------------------------------------------ environments that cannot give and take their state


class Sealed(gym.Wrapper):
    """A wrapper that `envs/state.py` does not know."""


def sealed() -> gym.Env:
    return Sealed(gym.make("Pendulum-v1"))


def test_an_environment_that_cannot_give_its_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()

    def listen(row: dict) -> None:
        progress(row)
        stop_at(110)(row)

    with pytest.raises(Stop):
        pal.train(f"td3({TINY})", sealed, 320, out=tmp_path / "run", episodes=1, checkpoint_every=50, listen=listen)
    run = Run.open(tmp_path / "run")
    assert "Sealed is unknown" in run.about["resume"]
    assert "a resumed run will begin a new episode: the wrapper" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"pass it again: pal.resume\(run, env=...\)"):
        pal.resume(run)
    with pytest.raises(RunError, match=r"obs space is now .*give the environment that the run was begun in"):
        pal.resume(run, env="CartPole-v1")
    assert run.metrics()[-1]["env_steps"] > 100

    begun = []
    pal.resume(run, env=sealed, listen=begun.append)
    assert begun[0]["env_steps"] == 100
    assert Run.open(run.folder).about["status"] == "finished"
    last = final(run.folder)
    assert last.count == 320
    assert last.state["learner"]["updates"] == 320 - 60
    # 320 steps, and the final observations of the episode that was left at step 100 and of the one that ended at 300.
    assert int(last.state["replays"]["replay"]["heads"][0]) == 322
    lengths = [length for row in rows(run.folder) if row["kind"] == "train" for length in row["episode_length"]]
    assert lengths == [200], "the resumed run's first episode is counted from its own beginning"


def test_a_constructed_environment_that_can_resumes_exactly(tmp_path: Path) -> None:
    def make() -> gym.Env:
        return gym.wrappers.ClipReward(gym.make("Pendulum-v1"), -10.0, 0.0)

    whole = pal.train(f"td3({TINY})", make, 130, out=tmp_path / "whole", episodes=1, evaluate_every=70, log_every=30,
                      checkpoint_every=50)  # fmt: skip
    assert whole.about["resume"] == "exact"
    run = stopped(110, tmp_path / "run", env=make)
    pal.resume(run, env=make)
    assert differences(whole.folder, run.folder) == []
