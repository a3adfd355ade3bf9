"""Statistics of datasets of a few steps, against numbers worked out by hand; and the rules of advice, each alone."""

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from palaestra.cli.dataset_figure import figure
from palaestra.data.advice import RULES, recommended, unusual
from palaestra.data.coverage import coverage, duplicates
from palaestra.data.dataset import Dataset, DatasetError, from_episodes
from palaestra.data.neighbours import neighbours
from palaestra.data.statistics import (
    actions,
    describe,
    ends,
    features,
    histogram,
    positive_sided_variance,
    quality,
    reward,
    spread,
    whole_returns,
)
from palaestra.runs import RunError

CHOICES = gym.spaces.Discrete(2)
# As bounded as float32 can be: no number is to be scaled by such bounds.
LINE = gym.spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (1,))
TORQUE = gym.spaces.Box(-2, 2, (1,))


def episode(obs: Any, action: Any, reward: Any, end: str = "terminated") -> dict[str, np.ndarray]:
    """One that ends as `end` says, which may be "cut"."""
    last = np.arange(len(reward)) == len(reward) - 1
    flags = {name: last & (end == name) for name in ("terminated", "truncated")}
    return {"obs": np.array(obs), "action": np.array(action), "reward": np.array(reward, np.float32), **flags}


def places(*episodes: dict[str, np.ndarray]) -> Dataset:
    return from_episodes(list(episodes), gym.spaces.Discrete(5), CHOICES)


def line(observations: list[float], chosen: Any, after: list[float], space: Any = TORQUE) -> Dataset:
    """Episodes of one step each."""
    rows = zip(observations, chosen, after, strict=True)
    kind = np.float32 if isinstance(space, gym.spaces.Box) else np.int64
    made = [
        episode(np.float32([[x], [y]]), np.array([[a]] if kind is np.float32 else [a], kind), [0]) for x, a, y in rows
    ]
    return from_episodes(made, LINE, space)


# Three whole walks and a part of one: of 1, 2, 3 and 1 steps with returns 2, 1, 6 and 9.
WALKS = places(
    episode([0, 1], [1], [2], "truncated"),
    episode([0, 1, 2], [1, 1], [1, 0]),
    episode([0, 1, 2, 3], [1, 1, 0], [0, 0, 6]),
    episode([0, 1], [0], [9], "cut"),
)


def test_ends() -> None:
    assert ends(WALKS) == {"terminated": 2, "truncated": 1, "cut": 1, "same_step": 1}
    assert spread(WALKS.lengths) == {"min": 1, "mean": 1.75, "median": 1.5, "max": 3, "std": math.sqrt(0.6875)}


def test_what_ends_both_ways_is_terminated() -> None:
    both = episode([0, 1], [1], [0])
    both["truncated"] = both["terminated"]
    assert ends(places(both)) == {"terminated": 1, "truncated": 0, "cut": 0, "same_step": 1}


def test_a_cut_episode_has_no_whole_return() -> None:
    assert whole_returns(WALKS).tolist() == [2, 1, 6]
    # Their mean is 3: half the way from 1 to 5.
    assert quality(whole_returns(WALKS), 1, 5) == {"tq": 0.5, "random": 1, "best": 5, "episodes": 3}


@pytest.mark.parametrize(("random", "best"), [(None, 5), (1, None), (3, 3)])
def test_quality_needs_two_returns(random: float | None, best: float | None) -> None:
    assert quality(np.ones(3), random, best)["tq"] is None
    assert quality(np.ones(0), 0.0, 1.0)["tq"] is None


def test_positive_sided_variance() -> None:
    # The mean is 2 and one of four is 6 above it: 36 / 4. The range is 8; the variance (4 + 4 + 4 + 36) / 4 = 12.
    assert positive_sided_variance(np.array([0.0, 0, 0, 8])) == {"psv": 9, "scaled": 9 / 64, "share": 0.75}
    # Symmetric returns: half of the variance, 1.
    assert positive_sided_variance(np.array([0.0, 2])) == {"psv": 0.5, "scaled": 0.125, "share": 0.5}


def test_positive_sided_variance_of_nothing() -> None:
    assert positive_sided_variance(np.ones(4)) == {"psv": 0, "scaled": 0, "share": None}
    assert positive_sided_variance(np.ones(0)) == {"psv": None, "scaled": None, "share": None}


def test_histogram() -> None:
    assert histogram(np.array([0.0, 0, 1, 2]), 2) == {"edges": [0, 1, 2], "counts": [2, 2]}
    assert sum(histogram(np.ones(3))["counts"]) == 3


def test_reward_knows_no_final_slots() -> None:
    found = reward(WALKS)  # 2 | 1 0 | 0 0 6 | 9: three of seven are 0
    assert (found["zeros"], found["values"]) == (3 / 7, 5)
    assert found["commonest"] == {"value": 0, "share": 3 / 7}
    assert found["mean"] == pytest.approx(18 / 7)


def test_actions() -> None:
    assert actions(WALKS)["shares"] == [2 / 7, 5 / 7]
    torque = line([0, 1, 2, 3], [-2, 1.9985, 0, 1], [0, 0, 0, 0])
    # A thousandth of the range is 0.004: two of four are at a bound.
    assert actions(torque)["at_bounds"] == 0.5
    assert [(one["name"], one["min"], one["mean"]) for one in actions(torque)["features"]] == [
        ("action[0]", -2, pytest.approx(0.249625))
    ]
    unbounded = gym.spaces.Box(-np.inf, np.inf, (1,))
    assert actions(line([0], [1], [0], unbounded))["at_bounds"] is None


def test_features() -> None:
    both = from_episodes(
        [{**episode([0, 0], [0], [1]), "obs": np.float32([[1, 5], [9, 9]])}], gym.spaces.Box(0, 9, (2,)), CHOICES
    )
    assert [(one["name"], one["min"], one["max"]) for one in features(both, "obs")] == [
        ("obs[0]", 1, 1),
        ("obs[1]", 5, 5),
    ]
    wide = np.zeros((2, 65), np.uint8)
    wide[0, 0] = 130
    image = from_episodes(
        [{**episode([0, 0], [0], [1]), "obs": wide}], gym.spaces.Box(0, 255, (65,), np.uint8), CHOICES
    )
    assert [(one["name"], one["max"], one["mean"]) for one in features(image, "obs")] == [("obs", 130, 2)]


# --------------------------------------------------------------------------------------------------------- coverage


def test_repeated_transitions() -> None:
    walk = episode([0, 1, 2], [1, 1], [0, 0])
    assert duplicates(places(walk, walk, walk)) == pytest.approx(4 / 6)
    other_end = episode([0, 1, 3], [1, 1], [0, 0])
    assert duplicates(places(walk, other_end)) == pytest.approx(1 / 4)
    not_terminated = episode([0, 1, 2], [1, 1], [0, 0], "truncated")
    assert duplicates(places(walk, not_terminated)) == pytest.approx(1 / 4)


def test_coverage_of_choices() -> None:
    # (0, 1), (1, 1), (2, 0), (0, 0).
    assert coverage(WALKS) == {"unique": 4, "how": "exact", "limits": "itself", "saturated": False}
    few = places(episode([0, 1, 0, 1], [1, 1, 1], [0, 0, 0]))  # (0, 1), (1, 1)
    found = coverage(few, WALKS)
    assert (found["unique"], found["saco"], found["lsaco"]) == (2, 0.5, 0.5)
    assert found["reference"] == {"unique": 4, "steps": 7, "hash": WALKS.hash}
    assert coverage(WALKS, WALKS)["saco"] == 1


def test_coverage_of_real_numbers_is_within_the_reference() -> None:
    # 99 bins from 0 to 1, each 0.0101 wide.
    own = line([0, 0.004, 1, 0], [0, 0, 0, 0], [5, 5, 5, 5], CHOICES)
    assert coverage(own)["unique"] == 2
    # From 0 to 0.01 they are 0.0001 wide; all that is above is one more.
    fine = line([0, 0.01], [0, 0], [5, 5], CHOICES)
    assert coverage(own, fine)["unique"] == 3
    assert coverage(fine, own)["unique"] == 1


def test_coverage_is_saturated_where_every_step_is_new() -> None:
    rng = np.random.default_rng(0)
    assert coverage(line(rng.normal(size=50).tolist(), rng.normal(size=50), [0] * 50))["saturated"]
    assert not coverage(line([1] * 50, [1] * 50, [0] * 50))["saturated"]


def test_coverage_in_many_dimensions_takes_projections() -> None:
    # Four rows around a mean of 0 on one line through it: what projects to the same signs is the same.
    direction = np.arange(1, 9, dtype=np.float32)
    obs = np.stack([factor * direction for factor in (1, 2, -1, -2, 0)])
    many = from_episodes([episode(obs, [0] * 4, [0] * 4)], gym.spaces.Box(-99, 99, (8,)), CHOICES)
    found = coverage(many)
    assert found["unique"] == 2
    assert found["how"] == "signs of 16 random projections, since there are 8 dimensions"


def test_coverage_refuses_another_environment() -> None:
    with pytest.raises(DatasetError, match=r"'obs' is float32 \[1\] in the reference and int64 \[\] here"):
        coverage(WALKS, line([0], [0], [0], CHOICES))


# ------------------------------------------------------------------------------------------------------- neighbours


def near(dataset: Dataset) -> dict[str, Any]:
    found = neighbours(dataset, np.random.default_rng(0), nearest=2)
    assert found is not None
    return found


def test_action_divergence() -> None:
    # At 0 the actions are -1 and 1 of [-1, 1]: variance 2. At 10 both are 0.5. Over all: 2.25 / 3.
    found = near(line([0, 10, 0, 10], [-2, 1, 2, 1], [0, 0, 0, 0]))
    assert found["action_divergence"] == pytest.approx(1)
    assert found["action_divergence_share"] == pytest.approx(1 / 0.75)
    assert (found["distance"], found["rows"], found["nearest"]) == (0, 4, 2)


def test_action_divergence_of_choices_is_a_chance() -> None:
    # Two neighbours at 0 always differ, those at 10 never. Over all, three ones of four: 2 * 3 * 1 / (4 * 3).
    found = near(line([0, 0, 10, 10], [0, 1, 1, 1], [0, 0, 0, 0], CHOICES))
    assert found["action_divergence"] == pytest.approx(0.5)
    assert found["action_divergence_share"] == pytest.approx(1)


def test_transition_diversity() -> None:
    # States have mean 5 and deviation 5. From 0 one goes to 0 and to 10, that is -1 and 1: variance 2; from 10, to 10.
    found = near(line([0, 0, 10, 10], [1, 1, 1, 1], [0, 10, 10, 10]))
    assert found["transition_diversity"] == pytest.approx(1)
    assert (found["action_divergence"], found["action_divergence_share"]) == (0, None)


def test_transition_diversity_tells_actions_apart() -> None:
    # From one place, like actions lead to like places, and others elsewhere.
    found = near(line([0, 0, 0, 0, 10, 10], [-1, -1, 1, 1, 0, 0], [0, 0, 10, 10, 5, 5]))
    assert found["transition_diversity"] == 0


def test_neighbours_where_nothing_varies() -> None:
    found = near(line([3, 3, 3], [0, 0, 0], [0, 1, 2]))
    assert (found["distance"], found["action_divergence_share"], found["transition_diversity"]) == (0, None, None)


def test_neighbours_are_drawn_by_the_generator() -> None:
    rng = np.random.default_rng(0)
    many = line(rng.normal(size=60).tolist(), rng.normal(size=60), rng.normal(size=60).tolist())
    drawn = [neighbours(many, np.random.default_rng(seed), rows=20) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] is not None
    assert drawn[0]["rows"] == 20


def test_neighbours_need_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    with pytest.raises(DatasetError, match=r"palaestra\[datasets\]"):
        near(WALKS)


def test_no_neighbours_of_one_step_or_of_images() -> None:
    assert neighbours(line([0], [0], [0]), np.random.default_rng(0)) is None
    image = gym.spaces.Box(0, 255, (9, 9, 8), np.uint8)
    seen = from_episodes([episode(np.zeros((4, 9, 9, 8), np.uint8), [0, 0, 0], [0, 0, 0])], image, CHOICES)
    assert neighbours(seen, np.random.default_rng(0)) is None


# ------------------------------------------------------------------------------------------------------ all of them


def test_describe() -> None:
    about = {"env": "Walk-v0", "reference": {"random": 1.0, "best": 5.0}}
    walks = Dataset(WALKS.columns, WALKS.lengths, WALKS.observation_space, WALKS.action_space, about)
    found = describe(walks, reference=walks)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["hash"], found["env"], found["episodes"], found["steps"]) == (WALKS.hash, "Walk-v0", 4, 7)
    assert (found["quality"]["tq"], found["coverage"]["saco"]) == (0.5, 1)
    assert describe(walks, best_return=3.0)["quality"]["tq"] == 1
    assert found["unusual"] == ["1 of 4 episodes end neither terminated nor truncated: they are cut off"]
    assert [row["slug"] for row in describe(walks, walks, listed={"dqn", "td3"})["recommended"]] == ["dqn"]


def test_minari_scores_are_references() -> None:
    about = {"provenance": {"ref_min_score": 1.0, "ref_max_score": 5.0}}
    walks = Dataset(WALKS.columns, WALKS.lengths, WALKS.observation_space, WALKS.action_space, about)
    assert describe(walks)["quality"]["tq"] == 0.5


def test_describe_of_dict_observations() -> None:
    space = gym.spaces.Dict({"goal": gym.spaces.Discrete(3), "place": LINE})
    made = episode([0, 0, 0], [0, 1], [0, 1])
    del made["obs"]
    both = {"obs/goal": np.array([0, 1, 2]), "obs/place": np.float32([[0], [1], [1]])}
    found = describe(from_episodes([{**both, **made}], space, CHOICES))
    assert [one["name"] for one in found["observations"]] == ["obs/goal", "obs/place[0]"]
    assert found["coverage"]["unique"] == 2


def test_describe_refuses_what_is_not_finite() -> None:
    with pytest.raises(DatasetError, match="'obs' holds numbers that are not finite"):
        describe(line([0, np.nan], [0, 0], [0, 0]))


# ----------------------------------------------------------------------------------------------------------- advice

PLAIN: dict[str, Any] = {
    "env": "Hopper-v5",
    "episodes": 10,
    "without_actions": 0,
    "steps": 1000,
    "lengths": spread(np.full(10, 100)),
    "ends": {"terminated": 4, "truncated": 6, "cut": 0, "same_step": 0},
    "mended": {"dropped": 0, "cut": 0, "unended": 0},
    "returns": spread(np.array([0.0, 1.0])),
    "positive_sided_variance": {"psv": 0.1, "scaled": 0.1, "share": 0.5},
    "quality": {"tq": None},
    "coverage": {"unique": 100, "saturated": False},
    "neighbours": {"action_divergence_share": 0.5, "rows": 1000, "nearest": 10},
    "reward": {"values": 900, "mean": 0.0, "min": -1.0, "max": 1.0, "commonest": {"value": 0.0, "share": 0.1}},
    "actions": {"kind": "continuous", "shares": None, "at_bounds": 0.01, "features": []},
    "observations": [
        {"name": "obs[0]", "min": 0, "max": 1, "std": 0.5},
        {"name": "obs[1]", "min": 0, "max": 4, "std": 2.0},
    ],
    "duplicates": 0.0,
}
SPARSE = {"values": 2, "mean": 0.05, "min": 0.0, "max": 1.0, "commonest": {"value": 0.0, "share": 0.95}}
CHOSEN = {"kind": "discrete", "shares": [0.5, 0.5], "at_bounds": None, "features": []}
AGAINST = {"unique": 100, "saturated": False, "saco": 0.95, "reference": {"steps": 1000, "unique": 105}}


def but(**changed: Any) -> dict[str, Any]:
    found = copy.deepcopy(PLAIN)
    for name, value in changed.items():
        found[name] = {**found[name], **value} if isinstance(value, dict) else value
    return found


def test_nothing_is_unusual_about_plain_data() -> None:
    assert unusual(PLAIN) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ends": {"cut": 3}}, "3 of 10 episodes end neither terminated nor truncated: they are cut off"),
        (
            {"without_actions": 4},
            "4 of 10 episodes have no actions: what is said of actions, coverage, neighbours and repetitions is of the "
            "others",
        ),
        (
            {"ends": {"terminated": 10, "same_step": 10}},
            "all 10 terminated episodes have 100 steps: probably a time limit, and so truncations",
        ),
        (
            {"mended": {"dropped": 1200, "unended": 1}},
            "mended when the file was read: 1,200 steps dropped, since nothing says what they led to; "
            "1 episodes without an end, now truncated",
        ),
        ({"duplicates": 0.25}, "25.0% of the transitions repeat an earlier one exactly"),
        (
            {"observations": [{"name": f"obs[{k}]", "min": 2, "max": 2 + k // 2} for k in range(4)]},
            "constant: obs[0], obs[1]",
        ),
        ({"actions": {"at_bounds": 0.4}}, "40% of the steps have an action at a bound"),
        ({"actions": {"shares": [0.5, 0, 0.5, 0]}}, "never chosen: action 1, 3"),
        ({"reward": {"values": 1, "mean": -1.0}}, "every reward is -1"),
        ({"returns": spread(np.full(9, 7.0))}, "every episode's return is 7"),
        # 36 zeros and one: mean 1 / 37, deviation 6 / 37, so that one is 6 of them above.
        ({"returns": spread(np.eye(37)[0])}, "a return of 1 is 6.0 standard deviations from the mean"),
        (
            {"neighbours": {"action_divergence_share": 0.97}},
            "actions hardly depend on the observation: divergence is 97% of what it is over all states",
        ),
        (
            {"coverage": {"saturated": True, "unique": 950}},
            "coverage is saturated (950 cells of 1,000 steps, over 90% of what there can be): it says little",
        ),
        (
            {"coverage": {**AGAINST, "reference": {"steps": 9}}},
            "the reference has 9 steps and this 1,000: SACo compares equal numbers only",
        ),
    ],
)
def test_what_is_unusual(changed: dict[str, Any], said: str) -> None:
    assert unusual(but(**changed)) == [said]


@pytest.mark.parametrize(
    "changed",
    [
        {"ends": {"terminated": 4, "same_step": 4}},
        {"neighbours": {"action_divergence_share": 1.0, "rows": 50}},
        {"neighbours": None},
        {"coverage": AGAINST},
    ],
)
def test_what_is_not_unusual(changed: dict[str, Any]) -> None:
    assert unusual(but(**changed)) == []


@pytest.mark.parametrize(
    ("changed", "slugs"),
    [
        ({}, {"td3-bc", "normalised-obs", "normalised-return"}),
        ({"without_actions": 4}, {"ss-orl", "td3-bc", "normalised-obs", "normalised-return"}),
        ({"quality": {"tq": 0.95}}, {"bc", "cql", "td3-bc", "normalised-obs", "normalised-return"}),
        ({"quality": {"tq": 0.85}}, {"td3-bc", "normalised-obs", "normalised-return"}),
        ({"reward": SPARSE}, {"iql", "xql", "rlpd", "normalised-obs", "shifted-reward"}),
        ({"reward": SPARSE, "env": None}, {"iql", "xql", "normalised-obs", "shifted-reward"}),
        ({"reward": {**SPARSE, "min": -1.0, "max": 0.0}, "env": None}, {"iql", "xql", "normalised-obs"}),
        ({"positive_sided_variance": {"share": 0.8}, "actions": CHOSEN}, {"trajectory-weighting"}),
        ({"actions": CHOSEN}, set()),
        ({"actions": CHOSEN, "coverage": AGAINST}, {"cql-discrete", "dqn", "qr-dqn"}),
        ({"actions": CHOSEN, "coverage": {**AGAINST, "saturated": True}}, set()),
        ({"actions": CHOSEN, "coverage": {**AGAINST, "saco": 0.5}}, set()),
        ({"actions": CHOSEN, "coverage": {**AGAINST, "reference": {"steps": 9}}}, set()),
        ({"actions": CHOSEN, "quality": {"tq": 1.0}}, {"bc", "cql-discrete"}),
        ({"actions": CHOSEN, "reward": SPARSE}, {"iql-discrete", "shifted-reward"}),
        ({"actions": {"kind": "other"}, "quality": {"tq": 1.0}}, {"bc"}),
    ],
)
def test_what_is_recommended(changed: dict[str, Any], slugs: set[str]) -> None:
    rows = recommended(but(**changed))
    assert {row["slug"] for row in rows} == slugs
    cards = {slug: card for slug, _, card, _ in RULES}
    assert all(row["reason"] and row["card"] == cards[row["slug"]] for row in rows)


def test_only_what_is_listed_is_recommended() -> None:
    assert [row["slug"] for row in recommended(PLAIN, listed={"td3-bc", "iql"})] == ["td3-bc"]


# ---------------------------------------------------------------------------------------------------------- picture


@pytest.mark.parametrize("dataset", [WALKS, line([0, 1], [0, 1], [1, 2])])
def test_figure(dataset: Dataset, tmp_path: Path) -> None:
    path = figure(dataset, tmp_path / "new" / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_figure_refuses_other_formats(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"\.gif"):
        figure(WALKS, tmp_path / "picture.gif")
