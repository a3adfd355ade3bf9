"""Episodes that were watched: NaN for all of their actions, from the file to what is learnt."""

import json
import re
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import palaestra as pal
from palaestra.cli import main
from palaestra.data.check import examine
from palaestra.data.dataset import Dataset, DatasetError
from palaestra.data.files import read, write
from palaestra.data.statistics import describe
from palaestra.data.values import with_actions, without_actions
from palaestra.factories.datasets import action_free
from tests.data.logs import dataset, hdf5, logged, npz

LENGTHS = (3, 1, 5, 4, 2)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALAESTRA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def watched() -> Dataset:
    """Episodes 2 and 4 of five."""
    return action_free(dataset(LENGTHS), [2, 4])


def test_only_steps_of_these_episodes_are_hidden(watched: Dataset) -> None:
    whole = dataset(LENGTHS)
    hidden = np.isnan(watched.columns["action"])
    assert [hidden[begin : begin + n + 1].sum() for begin, n in zip(whole.first, LENGTHS, strict=True)] == [
        0, 0, 10, 0, 4,  # two entries a step, and none of a final slot
    ]  # fmt: skip
    assert (watched.columns["action"][~hidden] == whole.columns["action"][~hidden]).all()
    assert np.isfinite(whole.columns["action"]).all()  # what it was made of is as it was
    assert watched.hash != whole.hash


def test_which_they_are(watched: Dataset) -> None:
    action, lengths = np.array(watched.columns["action"]), watched.lengths
    assert without_actions(action, lengths).tolist() == [False, False, True, False, True]
    action[watched.first[2] + 1, 0] = 0.5  # one entry of one step is known: NaN elsewhere is a mistake
    assert without_actions(action, lengths).tolist() == [False, False, False, False, True]
    assert not without_actions(np.zeros(len(action), np.int64), lengths).any()
    rest = with_actions(watched)
    assert rest.lengths.tolist() == [3, 1, 4]
    for number, of in enumerate((0, 1, 3)):
        for name, rows in watched.episode(of).items():
            assert (rest.episode(number)[name] == rows).all()
    assert with_actions(rest) is rest
    with pytest.raises(DatasetError, match="no episode has actions"):
        with_actions(action_free(watched, range(5)))


@pytest.mark.parametrize("name", ["set-v0", "set.hdf5", "set.npz"])
def test_they_are_written_and_read(tmp_path: Path, watched: Dataset, name: str) -> None:
    path = write(watched, tmp_path / name)
    for memory in (1 << 30, 10):  # in memory, and mapped
        found = read(path, memory=memory)
        assert found.hash == watched.hash
        np.testing.assert_array_equal(found.columns["action"], watched.columns["action"])


@pytest.mark.parametrize("name", ["set-v0", "set.hdf5", "set.npz"])
def test_checking_tells_them_and_finds_nothing_wrong(tmp_path: Path, watched: Dataset, name: str) -> None:
    problems, notes = examine(write(watched, tmp_path / name))
    assert problems == []
    (note,) = notes
    assert note.where.endswith(", episode 2")
    assert "action" in note.where
    assert note.what == "no actions, NaN in all of its steps (2 times, here first)"
    assert note.remedy.startswith("label them with ss-orl")


def test_a_stray_nan_is_wrong_beside_them(tmp_path: Path, watched: Dataset) -> None:
    watched.columns["action"][watched.first[3] + 1, 1] = np.nan
    path = write(watched, tmp_path / "set.hdf5")
    (problem,), (note,) = examine(path)
    assert (problem.where, problem.what) == ("field 'actions', episode 3, step 1", "NaN")
    assert note.where == "field 'actions', episode 2"
    with pytest.raises(DatasetError, match="episode 3, step 1: NaN"):
        read(path)


def test_an_infinite_action_or_a_nan_elsewhere_is_wrong_as_ever(tmp_path: Path, watched: Dataset) -> None:
    watched.columns["action"][watched.first[0], 0] = np.inf
    watched.columns["reward"][watched.first[4]] = np.nan
    problems, _ = examine(write(watched, tmp_path / "set.npz"))
    assert [(problem.where, problem.what) for problem in problems] == [
        ("field 'action', episode 0, step 0", "an infinite value"),
        ("field 'reward', episode 4, step 0", "NaN"),
        ("field 'action', episode 0, step 0", "outside the space Box(-2.0, 2.0, (2,), float32)"),
    ]


@pytest.mark.parametrize("kind", [hdf5, npz])
def test_spaces_are_inferred_from_the_others(tmp_path: Path, watched: Dataset, kind: object) -> None:
    found = read(kind(tmp_path / f"log.{kind.__name__}", logged(watched)))  # type: ignore[operator, attr-defined]
    acted = with_actions(watched)
    taken = acted.columns["action"][acted.is_step]
    assert found.action_space.low.tolist() == taken.min(0).tolist()
    assert found.action_space.high.tolist() == taken.max(0).tolist()
    assert without_actions(found.columns["action"], found.lengths).tolist() == [False, False, True, False, True]


def test_they_are_described(tmp_path: Path, watched: Dataset) -> None:
    found, rest = describe(watched), describe(with_actions(watched))
    schema = json.loads(files("palaestra.schemas").joinpath("dataset-info.json").read_text())
    jsonschema.validate(json.loads(json.dumps(found)), schema, jsonschema.Draft202012Validator)
    assert (found["without_actions"], rest["without_actions"]) == (2, 0)
    assert (found["episodes"], found["steps"], rest["steps"]) == (5, 15, 8)
    for name in ("actions", "coverage", "neighbours", "duplicates"):
        assert found[name] == rest[name]
    assert found["returns"]["min"] == pytest.approx(watched.returns().min())
    assert found["unusual"][0].startswith("2 of 5 episodes have no actions")
    assert [row["card"] for row in found["recommended"] if row["slug"] == "ss-orl"] == ["ss-orl"]
    assert not any(row["slug"] == "ss-orl" for row in rest["recommended"])
    assert describe(with_actions(watched), watched)["coverage"]["saco"] == 1


def test_from_the_command_line(
    tmp_path: Path, watched: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["palaestra", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        said = capsys.readouterr()
        return int(exit.value.code or 0), said.out, said.err

    path = str(write(watched, tmp_path / "set.hdf5"))
    code, _, err = told("dataset", "check", path)
    assert code == 0
    assert "episode 2: no actions, NaN in all of its steps (2 times, here first); label them with ss-orl" in err
    code, out, _ = told("dataset", "info", path)
    assert code == 0
    assert "ss-orl: 2 of 5 episodes have no actions" in " ".join(out.split())
    common = ["--dataset", path, "--steps", "2", "--evaluate-every", "2", "--quiet"]
    code, out, err = told("train", "bc(hidden=(8,))", *common, "--out", str(tmp_path / "without"))
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: 2 of 5 episodes have no actions [^\n]+ add \+ss-orl to bc[^\n]+\n", err), err
    method = "ss-orl(hidden=(8,), batch_size=4, updates=2)"
    code, out, err = told("train", f"bc(hidden=(8,))+{method}", *common, "--out", str(tmp_path / "with"), "--json")
    assert code == 0, err
    (scores,) = json.loads(out)["scores"]["fitted_q_value"].values()
    assert np.isfinite(scores).all()
    assert len(scores) == 3  # what they are worth is judged by the actions that were logged


def test_in_python(tmp_path: Path, watched: Dataset) -> None:
    pal.write_dataset(watched, tmp_path / "set.npz")
    data = pal.read_dataset(tmp_path / "set.npz")
    training = {"steps": 2, "evaluate_every": 2}
    run = pal.train("bc(hidden=(8,))+labelled-alone", dataset=data, **training, out=tmp_path / "run")
    assert run.about["status"] == "finished"
