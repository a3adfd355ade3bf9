"""`palaestra dataset info`: what it prints, for people and for programs."""

import json
from importlib.resources import files
from pathlib import Path

import gymnasium as gym
import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from palaestra.cli.dataset import dataset_app
from palaestra.data.dataset import from_episodes
from palaestra.data.files import write

SCHEMA = json.loads(files("palaestra.schemas").joinpath("dataset-info.json").read_text())


@pytest.fixture
def walks(tmp_path: Path) -> Path:
    """Forty random walks of five steps on a line, paid where they are."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(40):
        action = rng.uniform(-1, 1, (5, 1)).astype(np.float32)
        obs = np.concatenate([[[0]], action.cumsum(0)]).astype(np.float32)
        ends = np.arange(5) == 4
        obs = np.concatenate([obs, 2 * obs], 1)
        made.append({"obs": obs, "action": action, "reward": obs[1:, 0], "terminated": ends & False, "truncated": ends})
    spaces = gym.spaces.Box(-20, 20, (2,)), gym.spaces.Box(-1, 1, (1,))
    return write(from_episodes(made, *spaces, {"reference": {"random": 0.0, "best": 10.0}}), tmp_path / "walks.npz")


def told(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(dataset_app, ["info", *arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_for_programs(walks: Path, tmp_path: Path) -> None:
    plain = json.loads(told(str(walks), "--json")[0])
    jsonschema.validate(plain, SCHEMA, jsonschema.Draft202012Validator)
    assert (plain["episodes"], plain["steps"], plain["ends"]["truncated"]) == (40, 200, 40)
    assert plain["quality"]["tq"] == pytest.approx(plain["returns"]["mean"] / 10)
    picture = tmp_path / "walks.png"
    given = ("--reference", str(walks), "--best-return", "5", "--plot", str(picture))
    against = json.loads(told(str(walks), *given, "--json")[0])
    jsonschema.validate(against, SCHEMA, jsonschema.Draft202012Validator)
    assert (against["coverage"]["saco"], against["picture"]) == (1, str(picture))
    assert against["quality"]["tq"] == pytest.approx(plain["quality"]["tq"] * 2)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_only_the_catalogue_is_recommended(walks: Path) -> None:
    from palaestra import api

    listed = {row["slug"] for what in ("algorithms", "methods") for row in api.listed(what)}
    named = {row["slug"] for row in json.loads(told(str(walks), "--json")[0])["recommended"]}
    assert named <= listed
    assert "normalised-obs" in named


def test_for_people(walks: Path) -> None:
    out, _ = told(str(walks))
    for line in (
        "40: 40 truncated",
        "200: 5 each, median 5",
        "TQ ",
        "(random 0, best 10)",
        "SACo unknown: give --reference",
    ):
        assert line in out
    assert "SACo 1.000" in told(str(walks), "--reference", str(walks))[0]


def test_what_is_no_dataset_is_one_line(tmp_path: Path) -> None:
    out, err = told(str(tmp_path / "none.npz"), code=1)
    assert (out, err.count("\n"), err[:7]) == ("", 1, "error: ")
