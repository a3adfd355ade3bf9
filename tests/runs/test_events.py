"""What TensorBoard reads of a run is what its metrics say, each row once, after a resume too."""

import sys

import pytest

import palaestra as pal
from palaestra.runs import Run
from palaestra.runs.events import events
from palaestra.runs.queries import interquartile_mean

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
TD3 = "td3(start=20,hidden=(8,),batch_size=8)"
SETTINGS = {"episodes": 2, "evaluate_every": 20, "checkpoint_every": 30, "log_every": 10}


def read(run, seed=0):
    """Every scalar by name: (step, value) in the order of the file."""
    found = accumulator.EventAccumulator(str(run.folder / "tensorboard" / f"seed-{seed}"), {"scalars": 0})
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def said(run):
    """The same from the metrics."""
    rows = run.metrics()
    found = {}
    for row in rows:
        if row["kind"] == "evaluation":
            row = {"env_steps": row["env_steps"], **{f"evaluation/{k}": v for k, v in row["scores"].items()}}
        for name, value in row.items():
            if isinstance(value, list) and value:
                name, value = name if "/" in name else f"train/{name}", interquartile_mean(value)
            elif name in ("kind", "seed", "env_steps", "updates", "seconds") or isinstance(value, list):
                continue
            found.setdefault(name, []).append((row["env_steps"], pytest.approx(value, rel=1e-6)))
    return found


def test_every_metric_and_score(tmp_path):
    run = pal.train(TD3, "palaestra/Pendulum-v0", 60, tensorboard=True, out=tmp_path / "run", **SETTINGS)
    scalars = read(run)
    assert scalars == said(run)
    assert [step for step, _ in scalars["evaluation/episode_return"]] == [20, 40, 60]
    assert [step for step, _ in scalars["loss/critic"]] == [30, 40, 50, 60]
    assert run.about["tensorboard"]


def test_without_being_asked_there_are_none(tmp_path):
    run = pal.train(TD3, "palaestra/Pendulum-v0", 60, out=tmp_path / "run", **SETTINGS)
    assert not (run.folder / "tensorboard").exists()


def test_they_are_there_while_it_runs(tmp_path):
    seen = []

    def look(row):
        if row["kind"] == "evaluation":
            seen.append(len(read(Run.open(tmp_path / "run"))["evaluation/episode_return"]))

    pal.train(TD3, "palaestra/Pendulum-v0", 60, tensorboard=True, out=tmp_path / "run", listen=look, **SETTINGS)
    assert seen == [1, 2, 3]


def test_a_resumed_run_says_nothing_twice(tmp_path):
    def stop(row):
        if row["kind"] == "tick" and row["env_steps"] == 55:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pal.train(TD3, "palaestra/Pendulum-v0", 60, tensorboard=True, out=tmp_path / "run", listen=stop, **SETTINGS)
    run = pal.resume(tmp_path / "run", 80)
    scalars = read(run)
    assert scalars == said(run)
    assert [step for step, _ in scalars["evaluation/episode_return"]] == [20, 40, 60, 80]


def test_each_seed_is_a_run_of_its_own(tmp_path):
    run = Run.create(tmp_path / "run", {"seeds": [3, 5]})
    with events(run) as write:
        for seed, loss in ((3, 1.0), (5, 2.0), (3, 3.0)):
            write({"kind": "train", "seed": seed, "env_steps": int(10 * loss), "updates": 1, "loss/critic": loss})
    assert read(run, 3) == {"loss/critic": [(10, 1.0), (30, 3.0)]}
    assert read(run, 5) == {"loss/critic": [(20, 2.0)]}


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'palaestra\[tensorboard\]'"):
        pal.train(TD3, "palaestra/Pendulum-v0", 60, tensorboard=True, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
