"""A comparison decides what it should, forgets nothing when it is stopped, and refuses what does not fit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import palaestra as pal
from palaestra.comparison.arms import arms_of
from palaestra.evaluation.sequential import SequentialComparator
from palaestra.runs import Run, RunError

CALLS: Counter[tuple[str, int]] = Counter()


def low(seed: int, budget: int) -> dict[str, list[float]]:
    CALLS["low", seed] += 1
    return {"height": [seed, seed + 2.0]}


def high(seed: int, budget: int) -> dict[str, list[float]]:
    CALLS["high", seed] += 1
    return {"height": [100.0 + seed + budget]}


@pytest.fixture(autouse=True)
def _forget() -> None:
    CALLS.clear()


def compared(tmp_path: Path, **changes: Any) -> Any:
    given: dict[str, Any] = {"steps": 7, "score": "height", "measure": "final", "out": tmp_path / "out"}
    return pal.compare([low, high], "a phrase", **given | changes)


def test_arms_that_do_not_overlap_are_decided_at_the_first_look(tmp_path: Path) -> None:
    # Of the 252 dealings of 5 and 5 scores only 2 are as extreme: 0.8 %, below the 1 % of the first of five looks.
    result = compared(tmp_path)
    assert [(one["left"], one["decision"], one["groups"]) for one in result.decisions] == [("low", "smaller", 1)]
    assert result.arms["low"]["scores"] == [1, 2, 3, 4, 5]  # the mean of what a seed gave
    assert result.arms["high"]["scores"] == [107, 108, 109, 110, 111]
    assert result.arms["low"]["iqm"] == 3  # of 2, 3, 4
    assert result.decisions[0]["difference"][0] == -106
    assert result.decisions[0]["probability"][0] == 0
    assert "high has a larger height (last value) than low, decided with 5 seeds each" in result.verdict
    page = result.report.read_text()
    assert result.summary["verdict"][0] in page
    assert all(f"{score:g}" in page for score in result.arms["high"]["scores"])
    assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_it_is_the_comparator_that_decides(tmp_path: Path) -> None:
    def noisy(seed: int, budget: int) -> dict[str, list[float]]:
        return {"height": [(seed * 7919) % 13]}

    def shifted(seed: int, budget: int) -> dict[str, list[float]]:
        return {"height": [(seed * 104729) % 13 + 2.0]}

    result = pal.compare(
        {"noisy": noisy, "shifted": shifted}, "a phrase", 1, score="height", measure="final", out=tmp_path / "out"
    )
    test = SequentialComparator(["noisy", "shifted"])
    while test.needs:
        seeds = range(5 * test.groups, 5 * test.groups + 5)
        test.update({"noisy": [(s * 7919) % 13 for s in seeds], "shifted": [(s * 104729) % 13 + 2.0 for s in seeds]})
    (expected,) = test.decisions.values()
    assert test.groups > 1  # else this says nothing of later groups
    assert (result.decisions[0]["decision"], result.decisions[0]["groups"]) == (expected.decision, expected.groups)


def test_the_same_call_again_runs_nothing(tmp_path: Path) -> None:
    first = compared(tmp_path)
    again = compared(tmp_path)
    assert set(CALLS.values()) == {1}
    assert again.arms == first.arms
    assert again.decisions == first.decisions


def test_a_stopped_comparison_goes_on(tmp_path: Path) -> None:
    fails = [True]

    def fragile(seed: int, budget: int) -> dict[str, list[float]]:
        if seed == 3 and fails:
            fails.clear()
            raise KeyboardInterrupt
        return high(seed, budget)

    arms = {"low": low, "fragile": fragile}
    given: dict[str, Any] = {"score": "height", "measure": "final", "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        pal.compare(arms, "a phrase", 7, **given)
    result = pal.compare(arms, "a phrase", 7, **given)
    assert set(CALLS.values()) == {1}
    assert result.arms["fragile"]["scores"] == [107, 108, 109, 110, 111]


def test_with_three_arms_the_decided_stop(tmp_path: Path) -> None:
    def as_low(seed: int, budget: int) -> dict[str, list[float]]:
        return {"height": [seed + (0.1 if seed % 2 else -0.1)]}

    arms = {
        "a": lambda seed, budget: {"height": [float(seed % 5)]},
        "b": lambda seed, budget: {"height": [1000.0 + seed]},
    }
    result = pal.compare(
        {**arms, "c": as_low}, "a phrase", 1, score="height", measure="final", max_groups=2, alpha=0.2,
        out=tmp_path / "out",
    )  # fmt: skip
    decided = {(one["left"], one["right"]): one["decision"] for one in result.decisions}
    assert decided[("a", "b")] == "smaller"
    assert decided[("b", "c")] == "larger"
    assert [len(arm["seeds"]) for arm in result.arms.values()] == [10, 5, 10]


TD3 = "td3(start=20, hidden=(8,), batch_size=8)"
TRAINED: dict[str, Any] = {
    "env": "palaestra/Pendulum-v0", "steps": 80, "group": 2, "max_groups": 1, "alpha": 0.5, "episodes": 2,
    "evaluate_every": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["td3(lr=1e-3)", "td3(lr=1e-3)+snapshotrl(every=2)"], ["td3", "td3+snapshotrl"]),
        (
            ["td3(lr=1e-3, start=9)", "td3(lr=1e-4, start=9)", "sac(start=9)"],
            ["td3(lr=0.001)", "td3(lr=0.0001)", "sac"],
        ),
        (["td3", "td3(lr=1e-3)"], ["td3", "td3(lr=0.001)"]),
        (
            ["td3+snapshotrl(every=2)", "td3+snapshotrl(every=3)"],
            ["td3+snapshotrl(every=2)", "td3+snapshotrl(every=3)"],
        ),
        (["dqn", "dqn+n-step(n=2)", "dqn+n-step(n=3)+double"], ["dqn", "dqn+n-step(n=2)", "dqn+n-step+double"]),
        ({"mine": "td3", "yours": "td3(lr=1e-3)"}, ["mine", "yours"]),
    ],
)
def test_an_arm_is_named_by_what_tells_it_apart(given: Any, names: list[str]) -> None:
    assert [arm.name for arm in arms_of(given)] == names


def test_algorithms_are_trained_and_measured(tmp_path: Path) -> None:
    result = pal.compare([TD3, f"{TD3}+n-step"], out=tmp_path / "out", **TRAINED)
    arm = result.arms["td3+n-step"]
    assert [call["slug"] for call in arm["calls"]] == ["td3", "n-step"]
    assert arm["calls"][1]["parts"] == ["buffers"]
    assert arm["curve"]["steps"] == [20, 40, 60, 80]
    (run,) = (tmp_path / "out").glob("2-*/*/run.json")
    rows = [row for row in Run.open(run.parent).metrics() if row["kind"] == "evaluation" and row["seed"] == 1]
    heights = [sum(row["scores"]["episode_return"]) / 2 for row in rows]
    assert arm["scores"][1] == pytest.approx((heights[0] / 2 + heights[1] + heights[2] + heights[3] / 2) / 3)


def test_an_environment_of_ones_own_is_compared_in_this_process(tmp_path: Path) -> None:
    import gymnasium as gym

    given = {**TRAINED, "env": lambda: gym.make("Pendulum-v1"), "together": "stacked"}
    result = pal.compare([TD3, f"{TD3}+n-step"], out=tmp_path / "out", **given)
    assert [len(arm["scores"]) for arm in result.arms.values()] == [2, 2]


@pytest.mark.parametrize(
    ("arms", "changes", "says"),
    [
        ([low], {}, "give at least two"),
        ("td3", {}, "give a list"),
        ([low, low], {}, "low stands there twice"),
        ([low, high], {"measure": "acu"}, "did you mean auc"),
        ([low, high], {"episode": 3}, "did you mean episodes"),
        ([low, high], {"steps": 0}, "steps is 0"),
        ([low, high], {"alpha": 1.5}, "alpha"),
        ([TD3, "td4"], {}, "td3"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arms: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pal.compare(arms, "a phrase", **{"steps": 7, "out": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arms", "env", "says"),
    [
        ([TD3, "dqn"], "Pendulum-v1", "dqn: a Q-network acts in discrete spaces"),
        ([TD3, "sac"], "Pendulum", "did you mean Pendulum-v1"),
    ],
)
def test_what_cannot_be_trained_leaves_no_folder(tmp_path: Path, arms: Any, env: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pal.compare(arms, env, 10, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_plan_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    compared(tmp_path)
    with pytest.raises(RunError, match=r"comparison\.json, steps: is of another comparison: steps was 7 and is now 8"):
        compared(tmp_path, steps=8)


def test_a_score_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="seed 0 has no score 'width'; choose one of height"):
        compared(tmp_path, score="width")


def test_a_run_that_fails_stops_it_and_is_named(tmp_path: Path) -> None:
    given = {**TRAINED, "env": "palaestra/Pendulum-v0", "steps": 400}
    with pytest.raises(RunError, match=r"lr=1e\+30.*failed.*the same command goes on"):
        pal.compare([TD3, "td3(lr=1e30, start=20, hidden=(8,), batch_size=8)"], out=tmp_path / "out", **given)


@pytest.mark.slow
def test_killed_and_repeated_it_loses_and_repeats_no_seed(tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        arms = ["td3(start=20, hidden=(8,), batch_size=8, lr=1e-2)", "td3(start=20, hidden=(8,), batch_size=8)"]
        given = [
            "--env",
            "palaestra/Pendulum-v0",
            "--steps",
            "1500",
            "--group",
            "3",
            "--max-groups",
            "2",
            "--alpha",
            "0.4",
        ]
        switches = ["--together", "stacked", "--threads", "1", "--episodes", "2", "--json", "--quiet"]
        return [sys.executable, "-m", "palaestra", "compare", *arms, *given, *switches, "--out", str(out)]

    whole = json.loads(subprocess.run(command(tmp_path / "whole"), capture_output=True, check=True).stdout)
    kills = 0
    while True:
        process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.PIPE, start_new_session=True)
        try:
            out, _ = process.communicate(timeout=6 + 3 * kills)
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)  # it alone: its own children must notice
            process.wait()
            kills += 1
            time.sleep(0.2)
    assert kills
    again = json.loads(out)
    assert process.returncode == 0
    assert again["verdict"] == whole["verdict"]
    for name, arm in whole["arms"].items():
        assert again["arms"][name]["seeds"] == arm["seeds"]
        assert again["arms"][name]["scores"] == arm["scores"]
    for run in (tmp_path / "killed").glob("*/*/run.json"):
        opened = Run.open(run.parent)
        at = Counter((row["seed"], row["env_steps"]) for row in opened.metrics() if row["kind"] == "evaluation")
        assert set(at.values()) == {1}
