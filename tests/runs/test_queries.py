"""Finding runs, and drawing them."""

import math
from pathlib import Path

import pytest

from palaestra.runs import Run, RunError, broken, find, learning_curve, row
from palaestra.runs.plots import thousands
from palaestra.runs.queries import interquartile_mean


def make(folder: Path, expression: str = "td3", env: str = "Pendulum-v1", points: int = 5) -> Run:
    run = Run.create(folder, {"expression": expression, "env": env, "seeds": [0, 1]})
    for seed in (0, 1):
        for step in range(points):
            clock = {"seed": seed, "env_steps": step * 1000, "updates": step * 500, "seconds": step * 0.5}
            run.log({"kind": "train", **clock, "loss/critic": 1 / (1 + step)})
            run.log({"kind": "evaluation", **clock, "scores": {"episode_return": [step, step + seed, 2 * step]}})
    return run


def test_runs_are_found_by_age_and_broken_ones_apart(tmp_path):
    runs = [make(tmp_path / name) for name in ("sweep/z", "a", "sweep/deep/b")]
    for number, run in enumerate(runs):
        run.update(created=f"2026-01-0{number + 1}T00:00:00+00:00")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text("{")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "metrics.jsonl").touch()
    # The third is three levels down, but not from `sweep`.
    assert [run.folder.name for run in find([tmp_path])] == ["z", "a"]
    assert [run.folder.name for run in find([tmp_path, tmp_path / "sweep", tmp_path / "a"])] == ["z", "a", "b"]
    assert [(path.name, error.what) for path, error in broken([tmp_path])] == [
        ("c", "is no JSON: Expecting property name enclosed in double quotes"),
        ("d", "holds no run.json, so it is no run"),
    ]
    with pytest.raises(RunError, match="there is no such folder"):
        find([tmp_path / "nowhere"])


def test_row(tmp_path):
    run = make(tmp_path / "run")
    found = row(run)
    assert (found["expression"], found["env"], found["seeds"]) == ("td3", "Pendulum-v1", [0, 1])
    assert (found["env_steps"], found["updates"], found["seconds"]) == (4000, 2000, 2.0)
    assert found["iqm"] == {"episode_return": (4 + 5 + 8 + 4) / 4}  # of 4 4 8 4 5 8: one dropped on either side
    assert found["status"] == "stopped"
    with run.writing():
        assert row(run)["status"] == "running"
    run.update(status="done")
    assert row(run)["status"] == "done"
    fresh = row(Run.create(tmp_path / "fresh", {}))
    assert (fresh["env_steps"], fresh["iqm"], fresh["seeds"]) == (None, {}, None)


def test_interquartile_mean():
    assert interquartile_mean([100.0, 1.0, 2.0, -100.0]) == 1.5
    assert interquartile_mean([3]) == 3.0
    assert math.isnan(interquartile_mean([]))
    assert math.isnan(interquartile_mean([1.0, 2.0, 3.0, math.nan]))


def test_thousands():
    assert [thousands(x) for x in (0, 250, 10_000, 1_500_000, -1250, 0.1)] == [
        "0",
        "250",
        "10k",
        "1.5M",
        "\N{MINUS SIGN}1.25k",
        "0.1",
    ]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_learning_curve_is_drawn(tmp_path, suffix):
    runs = [make(tmp_path / "a"), make(tmp_path / "b", "td3+snapshotrl")]
    path = learning_curve(runs, tmp_path / "plots" / f"curve.{suffix}")
    assert path.stat().st_size > 5_000
    if suffix == "png":
        from matplotlib.image import imread

        image = imread(path)
        assert image.shape[:2] == (840, 1400)
        assert image[..., :3].std() > 0.05, "blank"
        assert image[0, 0].tolist() == [1, 1, 1, 1]


def test_other_keys_and_clocks_are_drawn(tmp_path):
    run = make(tmp_path / "a")
    learning_curve([run], tmp_path / "loss.png", key="loss/critic")
    offline = Run.create(tmp_path / "offline", {"expression": "iql", "dataset": "mine"})
    offline.log({"kind": "train", "seed": 0, "env_steps": 0, "updates": 10, "loss/value": math.nan})
    offline.log({"kind": "train", "seed": 0, "env_steps": 0, "updates": 20, "loss/value": 1.0})
    learning_curve([offline, run], tmp_path / "offline.png", key="loss/value")


def test_nothing_to_draw_is_said(tmp_path):
    run = make(tmp_path / "a")
    with pytest.raises(RunError, match=r"there is no 'reward' to draw; the metrics have episode_return, loss/critic$"):
        learning_curve([run], tmp_path / "x.png", key="reward")
    with pytest.raises(RunError, match="there are no runs to draw"):
        learning_curve([], tmp_path / "x.png")
    with pytest.raises(RunError, match=r"x.bmp: '.bmp' is no format of a figure; use .png, .svg or .pdf"):
        learning_curve([run], tmp_path / "x.bmp")
    with pytest.raises(RunError, match="let it train until its first evaluation"):
        learning_curve([make(tmp_path / "b", points=0)], tmp_path / "x.png")
    assert not list(tmp_path.glob("x.*"))
