"""`check` finds everything that is wrong, once for each field and kind, and says where."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium as gym
import jsonschema
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from palaestra.cli.dataset import dataset_app
from palaestra.data.check import check, examine
from palaestra.data.dataset import DatasetError
from palaestra.data.files import write
from tests.data.logs import dataset, hdf5, logged, npz

h5py = pytest.importorskip("h5py")

BOUNDED = gym.spaces.Box(-100, 100, (3,), np.float32)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALAESTRA_CACHE", str(tmp_path / "cache"))


def said(path: Path, **options: Any) -> list[tuple[str, str]]:
    problems = check(path, **options)
    assert all(problem.remedy and "\n" not in str(problem) for problem in problems)
    assert all(Path(problem.file).is_file() for problem in problems)
    return [(problem.where, problem.what) for problem in problems]


@pytest.mark.parametrize("name", ["set-v0", "set.hdf5", "set.npz"])
def test_a_sound_file_has_no_problems(tmp_path: Path, name: str) -> None:
    assert check(write(dataset(), tmp_path / name)) == []
    assert check(hdf5(tmp_path / "log.hdf5", logged(dataset()))) == []


def test_several_problems_are_found_at_once(tmp_path: Path) -> None:
    rows = logged(dataset((3, 1, 5), BOUNDED, gym.spaces.Box(-2, 2, (1,), np.float32)))
    rows["rewards"][[1, 2, 7]] = np.nan
    rows["observations"][5, 0] = np.inf  # it is the next observation of row 4 as well, which then does not continue
    rows["actions"][8] = 2.5
    path = hdf5(tmp_path / "log.hdf5", rows)
    assert said(path, env="Pendulum-v1") == [
        ("field 'next_observations', row 4", "it is not the next row's observation"),
        ("field 'observations', episode 3, step 0", "an infinite value"),
        ("field 'rewards', episode 0, step 1", "NaN (3 times, here first)"),
        ("field 'actions', episode 3, step 3", "outside the space Box(-2.0, 2.0, (1,), float32)"),
    ]


def test_observations_beyond_their_bounds_are_worth_knowing_and_no_problem(tmp_path: Path) -> None:
    data = dataset(obs=gym.spaces.Box(-1, 1, (3,), np.float32))
    data.columns["obs"][5] = 7
    problems, notes = examine(write(data, tmp_path / "set.npz"))
    assert problems == []
    assert [note.where for note in notes] == ["field 'obs', episode 1, step 1"]


def test_an_action_that_there_is_not(tmp_path: Path) -> None:
    data = dataset((3, 2), action=gym.spaces.Discrete(3, start=5))
    data.columns["action"][1] = 8
    path = write(data, tmp_path / "set-v0")
    assert said(path) == [("field 'actions', episode 0, step 1", "outside the space Discrete(3, start=5)")]


def test_ends(tmp_path: Path) -> None:
    rows = logged(dataset((3, 4)))
    rows["timeouts"][-1] = False
    assert said(npz(tmp_path / "log.npz", rows)) == [("field 'timeouts', row 6", "the last episode has no end")]
    path = write(dataset((2, 2, 2, 2)), tmp_path / "set.hdf5")
    with h5py.File(path, "a") as file:
        del file.attrs["palaestra"], file["episode_0"].attrs["palaestra"]
        for number in (1, 3):
            file[f"episode_{number}/truncations"][-1] = False
    assert said(path) == [("field 'truncations', episode 1", "an episode has no end (2 times, here first)")]


def test_structure(tmp_path: Path) -> None:
    path = write(dataset((3, 1, 5, 4, 2)), tmp_path / "set.hdf5")
    with h5py.File(path, "a") as file:
        file.attrs["total_steps"] = 16
        file["episode_0"].attrs["total_steps"] = 4
        del file["episode_1/rewards"], file["episode_2"], file["episode_3/actions"]
        file["episode_3/actions"] = np.zeros((3, 2))
    found = dict(said(path))
    assert found.keys() == {
        "field 'episode_2'", "field 'total_episodes'", "field 'total_steps', episode 0", "field 'total_steps'",
        "field 'rewards', episode 1", "field 'actions', episode 3", "",
    }  # fmt: skip
    assert found["field 'actions', episode 3"] == "it has shape (3, 2): 4 rows are needed"
    assert "its arrays were changed" in found[""]


def test_lengths_that_differ(tmp_path: Path) -> None:
    rows = logged(dataset((3, 4)))
    rows["actions"], rows["rewards"] = rows["actions"][1:], rows["rewards"].astype("S8")
    assert [where for where, _ in said(npz(tmp_path / "log.npz", rows))] == ["field 'actions'"]
    rows["actions"] = np.zeros((7, 2))
    assert said(npz(tmp_path / "log.npz", rows)) == [("field 'rewards'", "it has dtype |S8: numbers are needed")]


@pytest.mark.parametrize("name", ["set-v0", "set.hdf5", "set.npz"])
def test_any_flipped_bit_of_an_array_of_ours_is_seen(tmp_path: Path, name: str) -> None:
    data = dataset((30,))
    path = write(data, tmp_path / name)
    path = path if path.is_file() else path / "data" / "main_data.hdf5"
    content = bytearray(path.read_bytes())
    at = content.index(data.columns["obs"][4:9].tobytes())
    content[at + 5] ^= 4
    path.write_bytes(content)
    (problem,) = check(path)
    assert "changed" in problem.what or "CRC" in problem.what


def test_a_large_file_is_laid_out_on_disk_and_removed(tmp_path: Path) -> None:
    rows = logged(dataset((30,)))
    rows["rewards"][7] = np.nan
    path = npz(tmp_path / "log.npz", rows)
    assert examine(path, memory=100) == examine(path)
    assert not list((tmp_path / "cache" / "datasets").iterdir())


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        check(tmp_path / "nothing")
    (tmp_path / "text.npz").write_bytes(b"PK hello")
    (problem,) = check(tmp_path / "text.npz")
    assert "it cannot be read (BadZipFile" in problem.what
    problems = check(hdf5(tmp_path / "other.hdf5", {"x": np.zeros(3), "ys": np.zeros(2)}))
    assert [problem.where for problem in problems] == [
        f"field '{name}'" for name in ("action", "reward", "terminated", "obs")
    ]
    assert all("there are x, ys" in problem.what for problem in problems)


# ------------------------------------------------------------------------------------------------ the command line


def asked(*arguments: str) -> Any:
    app = typer.Typer()
    app.add_typer(dataset_app, name="dataset")
    return CliRunner().invoke(app, ["dataset", "check", *arguments])


@pytest.mark.parametrize("sound", [True, False])
def test_the_command(tmp_path: Path, sound: bool) -> None:
    rows = logged(dataset((3, 4)))
    rows["rewards"][2] = 0 if sound else np.nan
    path = str(hdf5(tmp_path / "log.hdf5", rows))
    done = asked(path, "--json")
    assert done.exit_code == (0 if sound else 1)
    answer = json.loads(done.stdout)
    schema = json.loads(files("palaestra.schemas").joinpath("dataset-check.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(answer, schema, jsonschema.Draft202012Validator)
    assert answer["ok"] is sound
    line = f"error: {path}, field 'rewards', episode 0, step 2: NaN; drop the episodes, or log them again\n1 problem\n"
    assert asked(path).stderr == ("whole and sound\n" if sound else line)


def test_what_cannot_be_read_is_one_line_and_exit_code_one(tmp_path: Path) -> None:
    done = asked(str(tmp_path / "nothing.hdf5"))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    (tmp_path / "text.hdf5").write_text("hello")
    done = asked(str(tmp_path / "text.hdf5"))
    assert done.exit_code == 1
    assert asked().exit_code == 2
