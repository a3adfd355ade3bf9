"""The sequential comparator: decisions by hand, its level exactly and by simulation, its power, its state."""

import json
from itertools import combinations, product

import numpy as np
import pytest

from palaestra.evaluation import sequential
from palaestra.evaluation.sequential import Decision, SequentialComparator


def run(scores, **settings):
    """Give groups to a comparator until it is finished; `scores` [looks, arms, group]."""
    arms = [str(arm) for arm in range(scores.shape[1])]
    comparator = SequentialComparator(arms, group=scores.shape[2], max_groups=scores.shape[0], **settings)
    while comparator.needs:
        comparator.update({arm: scores[comparator.groups, int(arm)] for arm in comparator.needs})
    return comparator


def decided(comparator):
    return {pair for pair, one in comparator.decisions.items() if one.groups}


def error(draw, means, looks, group, repetitions, **settings):
    """The family-wise error over arms of equal means, its standard error under alpha = 0.05, and the mean looks."""
    rng = np.random.default_rng(7)
    equal = {
        pair for pair in combinations(map(str, range(len(means))), 2) if means[int(pair[0])] == means[int(pair[1])]
    }
    errors = 0
    for repetition in range(repetitions):
        scores = draw(rng, (looks, len(means), group)) + np.array(means)[:, None]
        # many draws of the random dealings, since those of one seed might happen to err less
        errors += bool(equal & decided(run(scores, seed=repetition // 500, **settings)))
    return errors / repetitions, (0.05 * 0.95 / repetitions) ** 0.5


def normal(rng, shape):
    return rng.standard_normal(shape)


def exponential(rng, shape):
    return rng.exponential(size=shape)


def bimodal(rng, shape):
    return np.where(rng.random(shape) < 0.3, 0.0, 1.0) + 0.01 * rng.standard_normal(shape)


# ---------------------------------------------------------------------------------------------------------- by hand


def test_one_look_of_four():
    # 70 ways to deal 8 scores to two arms. Separated arms: the two most extreme, 2/70 = 0.029 <= 0.05.
    assert run(np.array([[[1.0, 2, 3, 4], [5, 6, 7, 8]]])).decisions["0", "1"] == Decision("0", "1", "smaller", 1)
    assert run(np.array([[[5.0, 6, 7, 8], [1, 2, 3, 4]]])).decisions["0", "1"].decision == "larger"
    # 5 and 4 changed places: sums of 11 or less, or 25 or more, have 4/70 = 0.057 > 0.05.
    assert not decided(run(np.array([[[1.0, 2, 3, 5], [4, 6, 7, 8]]])))


def test_a_first_look_may_be_too_small_to_decide():
    # Level 0.05 / 2 at the first of two looks: below 2/70, so nothing can be decided before the second.
    scores = np.array([[[5.0, 6, 7, 8], [1, 2, 3, 4]]] * 2)
    assert run(scores).decisions["0", "1"].groups == 2
    # Five a group: 2/252 <= 0.025.
    scores = np.array([[[6.0, 7, 8, 9, 10], [1, 2, 3, 4, 5]]] * 2)
    assert run(scores).decisions["0", "1"].groups == 1


def test_what_is_decided_frees_its_arms():
    rng = np.random.default_rng(0)
    comparator = SequentialComparator(["a", "b", "c"], comparisons=[("c", "a"), ("c", "b")])
    assert comparator.needs == ("a", "b", "c")
    same = rng.standard_normal(5)
    comparator.update({"a": rng.standard_normal(5) - 50, "b": same, "c": same[::-1]})
    assert comparator.decisions["c", "a"] == Decision("c", "a", "larger", 1)
    assert comparator.decisions["c", "b"].decision == "undecided"
    assert comparator.needs == ("b", "c")
    comparator.update({"b": same, "c": same})
    assert comparator.groups == 2


def test_steps_down():
    # One look, 126 pairs of mirrored dealings, of which alpha lets two cross. (2, 3) has one dealing beyond it: alone
    # it is decided. Together with (0, 1) there are three: that one, and two of (0, 1), which is decided first.
    first = [0, 1, 2, 3, 4.4], [4.6, 6, 7, 8, 9]
    second = [5.0, 0, 1, 2, 3], [4.0, 6, 7, 8, 9]
    statistics = []
    for pair in (first, second):
        pooled = np.concatenate(pair)
        deals = [(pooled.sum() - 2 * pooled[list(chosen)].sum()) / 5 for chosen in combinations(range(10), 5)][:126]
        statistics.append(np.abs(deals) / (4 * pooled.var() / 9) ** 0.5)
    assert (statistics[1] > statistics[1][0] + 1e-9).sum() == 1
    assert (np.maximum(*statistics) > statistics[1][0] + 1e-9).sum() == 3
    comparisons = [("0", "1"), ("2", "3")]
    assert decided(run(np.array([second]), alpha=2.1 / 126)) == {("0", "1")}
    assert decided(run(np.array([[*first, *second]]), comparisons=comparisons, alpha=2.1 / 126)) == set(comparisons)
    # Beside a first pair that has the same two dealings beyond (2, 3), but was not itself seen among them, it stands.
    mixed = [0, 1, 2, 6, 4.4], [4.6, 3, 7, 8, 9]
    assert not decided(run(np.array([[*mixed, *second]]), comparisons=comparisons, alpha=2.1 / 126))


# -------------------------------------------------------------------------------------------------------- symmetries


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 11)], ids=["enumerated, then random", "random"])
def test_shift_scale_and_sides_change_nothing(shape):
    scores = np.random.default_rng(3).standard_normal(shape)
    scores[:, -1] += 2
    before = run(scores, permutations=1000)
    assert 0 < len(decided(before)) < len(before.decisions)
    assert run(1e6 + 1e3 * scores, permutations=1000).decisions == before.decisions
    other = {"larger": "smaller", "smaller": "larger", "undecided": "undecided"}
    for pair, one in run(-scores, permutations=1000).decisions.items():
        assert (one.decision, one.groups) == (other[before.decisions[pair].decision], before.decisions[pair].groups)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
def test_equal_scores_are_undecided(value):
    comparator = run(np.full((5, 3, 5), value))
    assert not decided(comparator)
    assert comparator.groups == 5


def test_rounding_is_no_difference():
    # 0.1 + 0.2 is not 0.3: ten times one number, in two ways of adding.
    assert not decided(run(np.array([[[0.1 + 0.2] * 5, [0.3] * 5]] * 2)))


def test_ties_do_not_cross():
    # Left has no 0.7: there are comb(6, 5) = 6 ways to give it five of the six 0.1, and as many to give them to right.
    # All twelve have the same statistic, but for rounding: 12/252 must fit into alpha, or none is decided.
    scores = np.array([[[0.1, 0.1, 0.1, 0.1, 0.1], [0.1, 0.7, 0.7, 0.7, 0.7]]])
    assert not decided(run(scores, alpha=11.9 / 252))
    assert decided(run(scores, alpha=12.1 / 252))


# -------------------------------------------------------------------------------------------------------- the level


@pytest.mark.parametrize("tied", [False, True])
def test_level_is_exact_over_all_dealings(tied):
    """Two arms that do not differ: every dealing is as likely, so the share that is decided is the error itself."""
    pool = np.array([[0, 0, 1, 1, 2, 2, 3, 3]] * 2) / 10 if tied else np.random.default_rng(4).lognormal(size=(2, 8))
    deals = [[*chosen, *(i for i in range(8) if i not in chosen)] for chosen in combinations(range(8), 4)]
    count = 0
    for first, second in product(deals, deals):
        count += bool(decided(run(np.stack([pool[0][first], pool[1][second]]).reshape(2, 2, 4))))
    # Of 70^2 = 4,900 dealings alpha allows 245; mirrored ones fall together: 244 where none is tied. Tied, in tenths:
    # one of 70 has left's smallest sum 2, 4 have 3, 9 have 4 and 12 have 5. Sums of both blocks, and their mirror
    # images: 2 (1 + 2 * 4 + (2 * 9 + 4 * 4)) = 86 are at most 6; with 7 they were 86 + 2 (2 * 12 + 2 * 4 * 9) = 278.
    assert count == (86 if tied else 244)


@pytest.mark.parametrize("arms", [2, 4])
def test_level(arms):
    # Smaller than the default design, with every stage of it: 70, 4,900, then random tuples.
    share, spread = error(normal, (0.0,) * arms, looks=3, group=4, repetitions=12_000, permutations=500)
    assert share <= 0.05 + 2 * spread
    assert share >= 0.03  # a test that never decides would pass the line above


@pytest.mark.slow
@pytest.mark.parametrize("draw", [normal, exponential, bimodal])
@pytest.mark.parametrize("arms", [2, 4])
def test_level_of_the_default_design(arms, draw):
    # Four bimodal arms err a little more than alpha (0.0528 in 35,000 repetitions): 12,000 cannot tell that from 0.05.
    share, spread = error(draw, (0.0,) * arms, looks=5, group=5, repetitions=12_000)
    assert share <= 0.05 + 2 * spread


def test_level_where_some_arms_differ():
    share, spread = error(normal, (0.0, 0.0, 1.0, 1.0, 3.0), looks=3, group=4, repetitions=4000, permutations=500)
    assert share <= 0.05 + 2 * spread


def test_level_where_a_design_turns_random(monkeypatch):
    # The whole level of the first look is enumerated, that of the second comes from 200 random tuples.
    monkeypatch.setattr(sequential, "MOST_ENUMERATED", 252)
    share, spread = error(normal, (0.0, 0.0), looks=2, group=5, repetitions=12_000, permutations=200)
    assert share <= 0.05 + 2 * spread


def test_power():
    rng = np.random.default_rng(5)
    done = [run(rng.standard_normal((5, 2, 5)) + np.array([[1.5], [0]])) for _ in range(300)]
    assert np.mean([one.decisions["0", "1"].decision == "larger" for one in done]) > 0.9
    assert np.mean([one.groups for one in done]) < 2.5


def test_one_look_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(6)
    seen = set()
    for repetition in range(60):
        scores = rng.standard_normal((1, 2, 5)) + np.array([[repetition % 3], [0]])
        p = stats.permutation_test(
            tuple(scores[0]), lambda x, y, axis: x.mean(axis) - y.mean(axis), vectorized=True, n_resamples=np.inf
        ).pvalue
        seen.add(p <= 0.05)
        assert bool(decided(run(scores))) == (p <= 0.05)
    assert seen == {True, False}


# -------------------------------------------------------------------------------------------------- state and errors


def test_state_survives_json_and_goes_on_alike():
    scores = np.random.default_rng(8).standard_normal((5, 3, 5)) + np.array([[0], [0.5], [2]])
    whole = run(scores)
    assert whole.groups > 3
    stopped = SequentialComparator(["0", "1", "2"])
    for look in range(3):
        stopped.update({arm: scores[look, int(arm)] for arm in stopped.needs})
    resumed = SequentialComparator(["0", "1", "2"])
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert (resumed.groups, resumed.needs, resumed.decisions) == (3, stopped.needs, stopped.decisions)
    while resumed.needs:
        resumed.update({arm: scores[resumed.groups, int(arm)] for arm in resumed.needs})
    assert resumed.decisions == whole.decisions
    assert resumed.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match=r"alpha is 0\.05 in the state and 0\.01 here"):
        SequentialComparator(["0", "1", "2"], alpha=0.01).load_state_dict(stopped.state_dict())


def test_scores_are_checked():
    comparator = SequentialComparator(["a", "b"], group=4, max_groups=1)
    good = [1.0, 2, 3, 4]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"scores\['b'\]\[2\] is {bad}: decide before"):
            comparator.update({"a": good, "b": [1.0, 2, bad, 4]})
    with pytest.raises(ValueError, match=r"scores\['a'\] holds 3 scores: give 4"):
        comparator.update({"a": good[:3], "b": good})
    with pytest.raises(ValueError, match=r"scores are of \['a'\]: this group is made of \['a', 'b'\]"):
        comparator.update({"a": good})
    assert comparator.groups == 0  # a refused group leaves no trace
    comparator.update({"a": good, "b": good})
    with pytest.raises(ValueError, match="finished"):
        comparator.update({"a": good, "b": good})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ["a"]}, "arms is"),
        ({"arms": ["a", "a"]}, "arms is"),
        ({"comparisons": [("a", "c")]}, "comparisons has"),
        ({"comparisons": [("a", "b"), ("b", "a")]}, "none twice"),
        ({"comparisons": []}, "at least one"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"max_groups": 0}, "max_groups is 0"),
        ({"permutations": 99}, "permutations is 99: give at least max_groups / alpha, 100"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        SequentialComparator(**{"arms": ["a", "b"], **settings})


@pytest.mark.parametrize(("group", "max_groups"), [(3, 1), (2, 2)])  # 2/20 and 2/36 are above 0.05
def test_too_few_scores_warn_and_decide_nothing(group, max_groups):
    with pytest.warns(UserWarning, match=r"so few scores cannot decide anything at alpha=0\.05"):
        comparator = SequentialComparator(["a", "b"], group=group, max_groups=max_groups)
    while comparator.needs:
        comparator.update({"a": range(group), "b": range(100, 100 + group)})
    assert not decided(comparator)
