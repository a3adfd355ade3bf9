"""Every listed claim runs at its smallest scale; verdicts follow decisions; what is kept knows when it is stale."""

from pathlib import Path
from typing import Any

import pytest

import palaestra as pal
from palaestra.claims import CLAIMS, results
from palaestra.claims.claim import Claim, Scale
from palaestra.claims.running import claim_of, run
from palaestra.data.dataset import Dataset
from palaestra.factories.datasets import make_dataset
from palaestra.runs.files import from_json
from tests.rotation import rotating

SMALL = {scale: Scale(steps=1, max_groups=1) for scale in ("smoke", "cpu", "paper")}


def three(seed: int, budget: int) -> dict[str, list[float]]:
    return {"height": [3.0 + seed / 100]}


def four(seed: int, budget: int) -> dict[str, list[float]]:
    return {"height": [4.0 + seed / 100]}


def ran(tmp_path: Path, baseline: Any, treatment: Any, direction: str, **changes: Any) -> dict[str, Any]:
    claim = Claim("props", "It says so.", baseline, treatment, "a phrase", SMALL, "height", direction)
    return run(claim, "cpu", **{"out": tmp_path / "out", "threads": 1, "record": False, **changes})


@pytest.mark.parametrize(
    ("arms", "direction", "verdict"),
    [
        ((three, four), "larger", "confirmed"),
        ((three, four), "smaller", "contradicted"),
        ((four, three), "smaller", "confirmed"),
        ((four, three), "larger", "contradicted"),
        ((three, three), "larger", "undecided"),
    ],
)
def test_the_verdict_follows_the_direction(tmp_path: Path, arms: Any, direction: str, verdict: str) -> None:
    assert ran(tmp_path, *arms, direction)["verdict"] == verdict


def test_a_result_is_kept_and_knows_when_it_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    claim = claim_of("props")
    assert results.kept(claim) is None
    given = ran(tmp_path, three, four, "larger", record=True)
    kept = results.kept(claim)
    assert kept is not None
    assert (kept["verdict"], kept["stale"], kept["changed"], kept["kernel_changed"]) == ("confirmed", False, [], False)
    assert kept["scores"]["props"] == {str(seed): 4 + seed / 100 for seed in range(5)}
    assert "methods/online/props.py" in given["code"]

    path = results.path_of("props", "cpu")
    path.write_text(path.read_text().replace(given["code"]["methods/online/props.py"], "0" * 64))
    kept = results.kept(claim)
    assert kept is not None
    assert (kept["stale"], kept["changed"]) == (True, ["methods/online/props.py"])
    path.write_text(path.read_text().replace(given["kernel"], "0" * 64))
    assert (results.kept(claim) or {})["kernel_changed"]


def test_comments_and_docstrings_make_nothing_stale(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    hashes = []
    for text in ('"""One."""\nx = 1\n', '"""Two."""\n\n# why\nx = 1  # one\n', "x = 2\n"):
        path.write_text(text)
        hashes.append(results._hash(path))
    assert hashes[0] == hashes[1] != hashes[2]


def test_errors_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean snapshotrl"):
        pal.claim("snapshot")
    with pytest.raises(ValueError, match="did you mean cpu"):
        pal.claim("props", "gpu")
    with pytest.raises(ValueError, match="proves nothing and is not recorded"):
        pal.claim("props", "smoke", record=True)
    with pytest.raises(ValueError, match="both be expressions"):
        Claim("x", "", "td3", four, "a phrase", SMALL)


@pytest.mark.parametrize("slug", rotating(CLAIMS, few=10))
def test_every_claim_runs(slug: str, tmp_path: Path) -> None:
    result = pal.claim(slug, "smoke", out=tmp_path / "out", threads=1)
    assert result["verdict"] in ("confirmed", "contradicted", "undecided")
    assert all(len(scores) >= 2 for scores in result["scores"].values())


def test_kept_results_are_whole() -> None:
    for path in results.RESULTS.glob("*.json"):
        result = from_json(path.read_bytes())
        assert path == results.path_of(result["slug"], result["scale"])
        assert result["slug"] in CLAIMS
        groups, size = result["measured"]["groups"], result["plan"]["group"]
        assert all(len(scores) == groups * size for scores in result["scores"].values())
        assert result["provenance"]["git"] is not None


def random_maze() -> Dataset:
    return make_dataset("palaestra/PointMazeUMaze-v0", "random", 60)


def test_arms_learn_from_the_dataset_of_a_claim(tmp_path: Path) -> None:
    small = {"train": {"episodes": 1}, "group": 2, "max_groups": 1}
    scales = {scale: Scale(steps=4, **small) for scale in ("smoke", "cpu", "paper")}  # type: ignore[arg-type]
    arms = "bc(hidden=(4,), batch_size=4)", "td3-bc(hidden=(4,), batch_size=4)"
    claim = Claim("props", "It says so.", *arms, "palaestra/PointMazeUMaze-v0", scales, dataset=random_maze)
    result = run(claim, "cpu", out=tmp_path / "out", threads=1, record=False)
    assert result["plan"]["training"]["dataset"] == random_maze().hash
    assert str(tmp_path) not in repr({key: value for key, value in result.items() if key != "report"})
    with pytest.raises(ValueError, match="functions make their own"):
        Claim("x", "", three, four, "a phrase", SMALL, dataset=random_maze)
