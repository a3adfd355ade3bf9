"""What every verb prints with `--json` fits its schema in `palaestra/schemas`."""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from palaestra.cli import app
from palaestra.inspection import LISTS

TD3 = "td3(start=20,hidden=(8,),batch_size=8)"
SCHEMAS = [entry.name.removesuffix(".json") for entry in files("palaestra.schemas").iterdir()]


def schema(name: str) -> Any:
    return json.loads(files("palaestra.schemas").joinpath(f"{name}.json").read_text())


def answered(*arguments: str) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def fits(answer: Any, name: str) -> None:
    jsonschema.validate(answer, schema(name), jsonschema.Draft202012Validator)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("runs") / "first"
    given = ("--env", "palaestra/Pendulum-v0", "--steps", "60", "--episodes", "2", "--evaluate-every", "40")
    return folder, answered("train", TD3, *given, "--out", str(folder))


def test_every_verb_has_one() -> None:
    listed = {f"list-{what}" for what in LISTS}
    runs = {f"runs-{what}" for what in ("list", "show", "plot", "check", "report", "export", "import")}
    dataset = {f"dataset-{what}" for what in ("check", "info", "make")}
    single = {"train", "compare", "stages", "claim", "evaluate", "export", "show"}
    assert set(SCHEMAS) == {*single, *runs, *dataset, *listed}


@pytest.mark.parametrize("name", SCHEMAS)
def test_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))


@pytest.mark.parametrize("what", LISTS)
def test_list(what: str) -> None:
    fits(answered("list", what), f"list-{what}")


@pytest.mark.parametrize("expression", ["sac", "td3(lr=1e-3)+n-step+prioritised", "dqn+double+dueling", "sac-discrete"])
def test_show(expression: str) -> None:
    answer = answered("show", expression)
    fits(answer, "show")
    assert answer["expression"] == expression.replace("1e-3", "0.001")


def test_train(run: tuple[Path, Any]) -> None:
    folder, answer = run
    fits(answer, "train")
    assert (answer["run"], answer["env"], answer["seeds"]) == (str(folder), "palaestra/Pendulum-v0", [0])
    assert (answer["env_steps"], answer["updates"]) == (60, 40)
    assert list(map(len, answer["scores"]["episode_return"].values())) == [2]


def test_compare(tmp_path: Path) -> None:
    given = ("--env", "palaestra/Pendulum-v0", "--steps", "60", "--episodes", "2", "--evaluate-every", "30")
    answer = answered(
        "compare", TD3, f"{TD3}+n-step", *given, "--group", "2", "--alpha", "0.5", "--max-groups", "1", "--out",
        str(tmp_path / "both"),
    )  # fmt: skip
    fits(answer, "compare")
    assert [len(arm["scores"]) for arm in answer["arms"].values()] == [2, 2]
    assert Path(answer["report"]).read_text().startswith("<!DOCTYPE html>")


def test_stages(tmp_path: Path) -> None:
    stage = 'env = "palaestra/Pendulum-v0"\nsteps = 60\nepisodes = 2\n[[stage]]\nname = "only"\ntrain = "{}"\n'
    (tmp_path / "one.toml").write_text(stage.format(TD3))
    answer = answered("stages", str(tmp_path / "one.toml"), "--out", str(tmp_path / "runs"))
    fits(answer, "stages")
    (only,) = answer["stages"]
    assert (only["name"], only["run"], only["env_steps"]) == ("only", str(tmp_path / "runs" / "only"), 60)
    assert answered("stages", str(tmp_path / "one.toml"), "--out", str(tmp_path / "runs")) == answer  # nothing to do


def test_claim(tmp_path: Path) -> None:
    answer = answered("claim", "props", "--scale", "smoke", "--out", str(tmp_path / "props"))
    fits(answer, "claim")
    assert (answer["slug"], answer["scale"], list(answer["scores"])) == ("props", "smoke", ["baseline", "props"])


def test_evaluate(run: tuple[Path, Any]) -> None:
    answer = answered("evaluate", str(run[0]), "--episodes", "3")
    fits(answer, "evaluate")
    assert list(map(len, answer["scores"]["episode_return"].values())) == [3]
    assert (answer["env_steps"], answer["problems"]) == (60, [])


@pytest.mark.parametrize("format", ["policy", "onnx"])
def test_export(run: tuple[Path, Any], tmp_path: Path, format: str) -> None:
    answer = answered("export", str(run[0]), "--out", str(tmp_path / "policy"), "--format", format)
    fits(answer, "export")
    assert sorted(answer["files"]) == sorted(path.name for path in (tmp_path / "policy").iterdir())
    assert (answer["env_steps"], answer["nets"] is None) == (60, format == "onnx")


def test_runs_check(run: tuple[Path, Any], tmp_path: Path) -> None:
    whole = answered("runs", "check", str(run[0]))
    fits(whole, "runs-check")
    assert whole == {"ok": True, "runs": 1, "problems": []}
    shutil.copytree(run[0], tmp_path / "broken")
    (tmp_path / "broken" / "metrics.jsonl").write_text("{\n")
    done = CliRunner().invoke(app, ["runs", "check", str(tmp_path / "broken"), "--json"])
    assert done.exit_code == 1
    fits(json.loads(done.stdout), "runs-check")
    assert not json.loads(done.stdout)["ok"]


def test_runs(run: tuple[Path, Any], tmp_path: Path) -> None:
    folder = run[0]
    shown = answered("runs", "show", str(folder))
    fits(shown, "runs-show")
    assert (shown["status"], shown["resume"], shown["settings"][0]["batch_size"]) == ("finished", "exact", 8)

    (folder.parent / "broken").mkdir(exist_ok=True)
    (folder.parent / "broken" / "run.json").write_text("{")
    listed = answered("runs", "list", str(folder.parent))
    fits(listed, "runs-list")
    assert [one["folder"] for one in listed["runs"]] == [str(folder)]
    assert "broken/run.json" in listed["broken"][0]["problem"]

    drawn = answered("runs", "plot", str(folder), "--out", str(tmp_path / "curve.png"))
    fits(drawn, "runs-plot")
    assert Path(drawn["picture"]).read_bytes().startswith(b"\x89PNG")

    told = answered("runs", "report", str(folder), "--out", str(tmp_path / "report.html"))
    fits(told, "runs-report")
    assert told == {"report": str(tmp_path / "report.html"), "runs": 1}


def test_runs_that_meet_conditions(run: tuple[Path, Any]) -> None:
    folder = str(run[0])
    for conditions in (("env=palaestra/Pendulum-v0", "algorithm~td3"), ("env=palaestra/Pendulum-v0 algorithm~td3",)):
        assert len(answered("runs", "list", folder, "--where", *conditions)["runs"]) == 1
        several = answered("runs", "show", folder, "--where", *conditions)
        fits(several, "runs-show")
        assert [one["folder"] for one in several] == [folder]
    assert answered("runs", "list", folder, "--where", "algorithm~sac")["runs"] == []
    for arguments, said in {
        ("list", folder, "--where", "algoritm~sac"): "did you mean algorithm",
        ("plot", folder, "--where", "algorithm~sac"): "none of 1 runs meets algorithm~sac",
    }.items():
        done = CliRunner().invoke(app, ["runs", *arguments])
        assert done.exit_code != 0
        assert said in str(done.exception) + done.stderr


@pytest.mark.parametrize("name", ["runs.tar.gz", "runs.csv", "runs.parquet"])
def test_runs_export_and_import(run: tuple[Path, Any], tmp_path: Path, name: str) -> None:
    written = answered("runs", "export", str(run[0]), "--out", str(tmp_path / name))
    fits(written, "runs-export")
    given = ("--hash", written["hash"]) if written["hash"] else ()
    made = answered("runs", "import", str(tmp_path / name), "--out", str(tmp_path / "back"), *given)
    fits(made, "runs-import")
    assert made["runs"] == [str(tmp_path / "back" / "first")]
    shown = [answered("runs", "show", str(folder)) for folder in (run[0], made["runs"][0])]
    assert len({json.dumps({**one, "folder": ""}) for one in shown}) == 1


def test_a_score_that_is_no_number_is_null(run: tuple[Path, Any], tmp_path: Path) -> None:
    """A run that diverged: JSON has no NaN."""
    folder = tmp_path / "diverged"
    folder.mkdir()
    (folder / "run.json").write_bytes((run[0] / "run.json").read_bytes())
    row = {"kind": "evaluation", "seed": 0, "env_steps": 60, "updates": 40, "seconds": 0.1}
    (folder / "metrics.jsonl").write_text(json.dumps({**row, "scores": {"episode_return": ["NaN", 1.0]}}) + "\n")
    for arguments, name in ((("list", str(tmp_path)), "runs-list"), (("show", str(folder)), "runs-show")):
        answer = answered("runs", *arguments)
        fits(answer, name)
        assert answer.get("runs", [answer])[0]["iqm"] == {"episode_return": None}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train", {"env_steps": -1}),
        ("train", {"scores": {"episode_return": [1.0]}}),
        ("evaluate", {"scores": {"episode_return": [1.0]}}),
        ("runs-show", {"status": "done"}),
    ],
)
def test_what_does_not_fit(run: tuple[Path, Any], name: str, change: dict[str, Any]) -> None:
    """The schemas refuse something."""
    folder, trained = run
    verb = {"evaluate": ("evaluate", str(folder)), "runs-show": ("runs", "show", str(folder))}
    answer = trained if name == "train" else answered(*verb[name])
    fits({**answer, "a field of tomorrow": 1}, name)
    with pytest.raises(jsonschema.ValidationError):
        fits({**answer, **change}, name)
    with pytest.raises(jsonschema.ValidationError):
        fits({key: value for key, value in answer.items() if key != next(iter(change))}, name)
