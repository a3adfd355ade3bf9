"""`runs check`: a whole run has no problems, and every problem of a broken one is told."""

import json
import shutil
from pathlib import Path

import pytest

import palaestra as pal
from palaestra.runs import RunError

TD3 = "td3(start=20,hidden=(8,),batch_size=8)"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    pal.train(TD3, "palaestra/Pendulum-v0", 60, episodes=2, evaluate_every=60, checkpoint_every=20, out=folder)
    return folder


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "first"))


def told(run: Path) -> list[tuple[str, str, str]]:
    found = pal.check(run)
    assert found["ok"] == (not found["problems"])
    return [(str(Path(p["file"]).relative_to(run)), p["where"], p["what"].partition(":")[0]) for p in found["problems"]]


def test_whole(run):
    assert told(run) == []


def test_nothing_is_written(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    pal.check(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_everything_at_once(run):
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "threads": 0, "device": 5}))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1], lines[3] = "{", "[]"
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    newest, older = (run / "checkpoints" / name for name in ("000000060", "000000040"))
    (newest / "state.json").write_text("{}")
    (older / "manifest.json").unlink()
    assert told(run) == [
        ("run.json", "field 'device'", "5 is no str"),
        ("run.json", "field 'threads'", "is 0; it must be at least 1"),
        ("metrics.jsonl", "line 2", "is no JSON object"),
        ("metrics.jsonl", "line 4", "is no JSON object"),
        ("checkpoints/000000040/manifest.json", "", "missing"),
        ("checkpoints/000000060/state.json", "", "truncated"),
    ]


def test_metrics_that_a_checkpoint_does_not_fit(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    ((file, _, what),) = told(run)
    assert file == "metrics.jsonl"
    assert what.startswith("has ")


def test_rows_that_are_missing(run):
    next((run / "checkpoints" / "segments").iterdir()).unlink()
    assert {what for _, _, what in told(run)} == {"missing"}


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_run_json_that_cannot_be_read(run, content):
    (run / "run.json").write_text(content)
    assert [file for file, _, _ in told(run)] == ["run.json"]


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="there is no such run"):
        pal.check(tmp_path / "nowhere")
