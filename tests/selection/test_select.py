"""Runs are chosen by held-out episodes through one ledger."""

import json
from pathlib import Path

import pytest

import palaestra as pal
from palaestra.runs import RunError

pytestmark = pytest.mark.filterwarnings("ignore:.*held-out units are few")
GIVEN = {"low": 0.0, "high": 500.0, "development": 8, "held_out": 40}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    few = "dqn(start=10, batch_size=8, hidden=(8,))"
    one = pal.train(few, "CartPole-v1", 30, episodes=1, out=folder / "one")
    two = pal.train(few, "CartPole-v1", 30, episodes=1, seeds=[1, 2], together="stacked", out=folder / "two")
    return [one.folder, two.folder]


def test_it_names_the_best_by_what_it_was_told(runs: list[Path], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.json"
    found = pal.select(runs, ledger=ledger, **GIVEN)
    assert set(found.answers) == {str(runs[0]), f"{runs[1]}, seed 1", f"{runs[1]}, seed 2"}
    assert found.answers[found.winner] == max(found.answers.values())
    assert [answer.name for answer in found.log] == [*found.answers, f"winner: {found.winner}"]
    kept = json.loads(ledger.read_text())
    assert kept["holdout"]["left"] == found.log[-1].left < 4  # of a tenth of 40: the estimate spent one

    again = pal.select(runs, ledger=ledger, **GIVEN)  # asked again, nothing new is told and nothing is spent
    assert again == found


def test_development_and_held_out_episodes_are_others(runs: list[Path], tmp_path: Path) -> None:
    seen = pal.evaluate(runs[0], episodes=40, seed=0)["scores"]["episode_return"]["0"]
    from palaestra.selection import FAR

    hidden = pal.evaluate(runs[0], episodes=40, seed=FAR)["scores"]["episode_return"]["0"]
    assert seen != hidden
    assert FAR > 100_000  # more copies than anybody evaluates in


def test_what_does_not_fit_is_named(runs: list[Path], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.json"
    with pytest.raises(ValueError, match="has no score 'success'; it has episode_return"):
        pal.select(runs, ledger=ledger, **GIVEN, score="success")
    with pytest.raises(ValueError, match="set low and high"):
        pal.select(runs, ledger=ledger, **{**GIVEN, "high": 2.0})
    ledger.unlink(missing_ok=True)
    pal.select(runs, ledger=ledger, **GIVEN)
    with pytest.raises(RunError, match=r"ledger\.json, seed: seed is 0 there and 1 here"):
        pal.select(runs, ledger=ledger, **GIVEN, seed=1)
    ledger.write_text("{")
    with pytest.raises(RunError, match="is no ledger"):
        pal.select(runs, ledger=ledger, **GIVEN)
