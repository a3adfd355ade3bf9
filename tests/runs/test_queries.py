"""Finding runs, and choosing among them."""

import math
from pathlib import Path
from typing import Any

import pytest

from palaestra.runs import Run, RunError, broken, find, matching, row, table
from palaestra.runs.queries import interquartile_mean, last_scores, split


def make(folder: Path, expression: str = "td3", env: str = "Pendulum-v1", points: int = 5, **about: Any) -> Run:
    run = Run.create(folder, {"expression": expression, "env": env, "seeds": [0, 1], **about})
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


def test_only_the_end_of_long_metrics_is_read(tmp_path, monkeypatch):
    """Blocks of 100 bytes: lines lie across them, and the evaluations of both seeds are in different ones."""
    monkeypatch.setattr("palaestra.runs.queries._BLOCK", 100)
    run = make(tmp_path / "run", points=40)
    whole = [one for one in run.metrics() if one["kind"] == "evaluation"]
    assert last_scores(run) == {seed: [o["scores"] for o in whole if o["seed"] == seed][-1] for seed in (0, 1)}
    assert (row(run)["env_steps"], row(run)["updates"], row(run)["seconds"]) == (39_000, 19_500, 19.5)
    path = run.folder / "metrics.jsonl"
    cut = path.read_bytes()[:-7]
    path.write_bytes(cut)  # the last line, of seed 1, was cut short by a crash
    assert last_scores(run)[1] == {"episode_return": [38, 39, 76]}
    path.write_bytes(b"not read\n" + path.read_bytes() + b"\n")
    with pytest.raises(RunError, match="line 1: is no JSON object"):  # at the end, so all is read to say where
        row(run)
    path.write_bytes(cut[: cut.rfind(b"\n")])
    assert row(run)["env_steps"] == 39_000
    path.write_bytes(b"half")
    assert (row(run)["env_steps"], row(run)["iqm"]) == (None, {})


def test_conditions(tmp_path):
    a = make(tmp_path / "a", "td3(hidden=(16, 16), lr=0.1)", steps=100, deterministic=True)
    b = make(tmp_path / "b", "td3+snapshotrl", "Ant-v5", points=9, steps=2000, dataset=None)
    b.update(seeds=[7])
    runs = [a, b]
    for condition, found in {
        "env=Pendulum-v1": [a],
        "env!=Pendulum-v1": [b],
        "env~nt": [b],
        "algorithm~snapshot": [b],
        "expression=td3+snapshotrl": [b],
        "expression=td3(hidden=(16, 16), lr=0.1)": [a],  # spaces in brackets separate nothing
        "steps<2000": [a],
        "steps<=2e3": [a, b],
        "steps=100.0": [a],
        "steps>=100.5": [b],
        "env_steps>4000": [b],
        "iqm.episode_return>5.25": [b],
        "deterministic=true": [a],
        "deterministic!=true": [b],  # which does not say
        "deterministic<1": [],  # and True is no number
        "seeds=7": [b],
        "seeds<1": [a],
        "seeds=[0, 1]": [a],
        "status=stopped": [a, b],
        "provenance.torch~.": [a, b],
        "folder~/a": [a],
        "env=Ant-v5 algorithm~td3": [b],
        "env=Ant-v5  steps<5": [],
    }.items():
        assert matching(runs, [condition]) == found, condition
    assert matching(runs, ["env~v", "steps>100"]) == [b]
    assert matching(runs, []) == runs
    assert matching([], ["nothing=1"]) == []
    rows, problems = table([tmp_path], ["env=Ant-v5"])
    assert ([one["folder"].name for one in rows], problems) == (["b"], [])


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("envv=1", "no run has the field 'envv'; did you mean env"),
        ("algoritm~td3", "did you mean algorithm"),
        ("provenance.toch=1", "did you mean provenance.torch"),
        ("zzzzzz=1", "no run has the field 'zzzzzz'; did you mean algorithm, created, "),
        ("env", "'env' is no condition; write KEY=VALUE"),
        ("=3", "'=3' is no condition"),
        ("steps<many", "'many' in 'steps<many' is no number"),
    ],
)
def test_conditions_that_are_none(tmp_path, condition, said):
    with pytest.raises(ValueError, match=r"^--where: ") as wrong:
        matching([make(tmp_path / "a")], [condition])
    assert said in str(wrong.value)


def test_split():
    assert split("a+b(c+d, [e+f])+g", "+") == ["a", "b(c+d, [e+f])", "g"]
    assert split(" a  b ", " ") == ["a", "b"]
    assert split("", "+") == []
