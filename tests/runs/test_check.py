"""`runs check`: a whole run has no problems, and every problem of a broken one is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import palaestra as pal
from palaestra.runs import Run, RunError

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
    (first, second) = told(run)
    assert first == ("metrics.jsonl", "seed 0", "rows of kind 'evaluation' end at 0 of 60 steps")
    assert second[0] == "metrics.jsonl"
    assert second[2].startswith("has ")


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


# ------------------------------------------------------------------------------- what a whole run must say besides

SHORT: dict[str, Any] = {"episodes": 2, "evaluate_every": 25, "checkpoint_every": 20, "log_every": 10}
WORLD = "palaestra/Pendulum-v0"


def stopped(row: dict[str, Any]) -> None:
    if row["kind"] == "tick" and row["env_steps"] >= 45:
        raise KeyboardInterrupt


def begun_and_stopped(folder: Path, expression: str = TD3) -> Path:
    with pytest.raises(KeyboardInterrupt):
        pal.train(expression, WORLD, 60, out=folder, listen=stopped, **SHORT)
    return folder


def resumed(folder: Path) -> None:
    pal.resume(begun_and_stopped(folder))
    pal.resume(folder, 90)


COMPLETE: dict[str, Callable[[Path], object]] = {
    "alone, with plus signs": lambda out: pal.train(
        "td3(start=20,hidden=(8,),batch_size=8,lr=1e-3)+n-step(n=2)", WORLD, 60, out=out, environments=3, **SHORT
    ),
    "stacked": lambda out: pal.train(TD3, WORLD, 60, seeds=[0, 3], together="stacked", out=out, **SHORT),
    "resumed, and prolonged": resumed,
    # Rollouts of 16 steps pass two multiples of log_every at once.
    "rollouts": lambda out: pal.train("ppo(collect=16,minibatches=2,hidden=(8,))", WORLD, 60, out=out, **SHORT),
}


@pytest.mark.parametrize("kind", COMPLETE)
def test_complete_runs_of_every_kind(kind, tmp_path):
    COMPLETE[kind](tmp_path / "run")
    assert pal.check(tmp_path / "run") == {"ok": True, "runs": 1, "problems": []}


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("complete") / "run"
    pal.train(TD3, WORLD, 60, seeds=[0, 3], together="stacked", out=folder, **SHORT)
    return folder


Defect = Callable[[Path], object]


def about(change: Callable[[dict[str, Any]], object]) -> Defect:
    def spoil(run: Path) -> None:
        content = json.loads((run / "run.json").read_text())
        change(content)
        (run / "run.json").write_text(json.dumps(content))

    return spoil


def metrics(change: Callable[[list[dict[str, Any]]], object]) -> Defect:
    """Changed rows. The line before is made as much longer, so that the checkpoints' positions still fit."""

    def spoil(run: Path) -> None:
        path = run / "metrics.jsonl"
        before = path.read_text().splitlines()
        rows = [json.loads(line) for line in before]
        change(rows)
        lines = [json.dumps(row) for row in rows]
        place = next((i for i, line in enumerate(lines) if line != before[i]), len(lines)) - 1
        lines[place] += " " * (len("\n".join(before)) - len("\n".join(lines)))
        path.write_text("\n".join(lines) + "\n")

    return spoil


def where(kind: str, steps: int, seed: int = 3) -> Callable[[list[dict[str, Any]]], int]:
    def at(rows: list[dict[str, Any]]) -> int:
        return next(i for i, r in enumerate(rows) if (r["kind"], r["env_steps"], r["seed"]) == (kind, steps, seed))

    return at


last, middle, logged = where("evaluation", 60), where("evaluation", 25), where("train", 30)

# One item each: the numbers are those of the card's list (settings, code, packages, seeds, environment, data,
# measurements, evaluation, checkpoints, machine, exit), and the place that must be told.
DEFECTS: dict[str, tuple[Defect, str]] = {
    "1 no expression": (about(lambda a: a.pop("expression")), "field 'expression'"),
    "1 no settings": (about(lambda a: a.pop("settings")), "field 'settings'"),
    "1 a setting less": (about(lambda a: a["settings"][0].pop("batch_size")), "field 'settings', td3"),
    "1 settings of another": (about(lambda a: a["settings"][0].update(slug="sac")), "field 'settings'"),
    "2 no commit": (about(lambda a: a["provenance"].update(git={"dirty": False})), "field 'provenance.git'"),
    "2 no dirty flag": (
        about(lambda a: a["provenance"].update(git={"commit": "0" * 40, "dirty": None})), "field 'provenance.git'",
    ),
    "2 no version": (about(lambda a: a["provenance"].pop("palaestra")), "field 'provenance.palaestra'"),
    "3 no packages": (about(lambda a: a["provenance"].pop("packages")), "field 'provenance.packages'"),
    "3 a package less": (
        about(lambda a: a["provenance"].update(packages=[p for p in a["provenance"]["packages"] if "torch" not in p])),
        "field 'provenance.packages'",
    ),
    "3 no python": (about(lambda a: a["provenance"].pop("python")), "field 'provenance.python'"),
    "4 no seeds": (about(lambda a: a.pop("seeds")), "field 'seeds'"),
    "4 not said whether deterministic": (about(lambda a: a.pop("deterministic")), "field 'deterministic'"),
    "5 no environment": (about(lambda a: a.pop("env")), "field 'env'"),
    "6 data without a hash": (about(lambda a: a.update(dataset="mine.hdf5")), "field 'dataset_sha256'"),
    "7 the end is missing": (metrics(lambda rows: rows.pop(last(rows))), "seed 3"),
    "7 a logged row is missing": (metrics(lambda rows: rows.pop(logged(rows))), "seed 3"),
    "7 an evaluation is missing": (metrics(lambda rows: rows.pop(middle(rows))), "seed 3"),
    "7 a row without its step": (metrics(lambda rows: rows[4].pop("env_steps")), "line 5"),
    "8 no number of episodes": (about(lambda a: a.pop("episodes")), "field 'episodes'"),
    "8 an episode less": (metrics(lambda rows: rows[last(rows)]["scores"]["episode_return"].pop()), "line "),
    "9 no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), ""),
    "9 no last checkpoint": (lambda run: shutil.rmtree(run / "checkpoints" / "000000060"), ""),
    "9 a changed byte": (
        lambda run: (run / "checkpoints" / "000000060" / "state.json").write_bytes(
            (run / "checkpoints" / "000000060" / "state.json").read_bytes()[:-1] + b"!"
        ),
        "",
    ),
    "10 no machine": (about(lambda a: a["provenance"].pop("cpu")), "field 'provenance.cpu'"),
    "10 a GPU without a name": (about(lambda a: a.update(device="cuda")), "field 'provenance.gpus'"),
    "11 failed": (about(lambda a: a.update(status="failed", problem="it broke")), "field 'status'"),
    "11 no end": (about(lambda a: a.update(status="lost")), "field 'status'"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_is_found_and_nothing_else(defect, complete, tmp_path):
    run = Path(shutil.copytree(complete, tmp_path / "run"))
    spoil, place = DEFECTS[defect]
    spoil(run)
    found = told(run)
    # What a hash in the dataset's place means for the clock is another matter: that run counts updates.
    assert any(where.startswith(place) for _, where, _ in found), found
    assert len(found) == 1 or defect.startswith("6"), found


def test_a_stopped_run_says_how_to_go_on(tmp_path):
    (problem,) = pal.check(begun_and_stopped(tmp_path / "run"))["problems"]
    assert problem["what"] == "the run was stopped at 40 of 60 steps"
    assert problem["remedy"] == f"continue it with: palaestra train --resume {tmp_path / 'run'}"


def test_a_run_that_is_being_written(complete, tmp_path):
    run = Run.open(Path(shutil.copytree(complete, tmp_path / "run")))
    run.update(status="running")
    with run.writing():
        (problem,) = pal.check(run.folder)["problems"]
    assert problem["what"] == "the run is not finished at 60 of 60 steps"
    assert problem["remedy"].startswith("wait until process ")


def test_a_run_in_processes_and_a_seed_that_is_lost(tmp_path):
    run = tmp_path / "run"
    pal.train(TD3, WORLD, 60, seeds=[0, 3], together="processes", out=run, **SHORT)
    assert told(run) == []
    shutil.rmtree(run / "seeds" / "3")
    assert told(run) == [("seeds/3", "", "the run of this seed is missing")]
