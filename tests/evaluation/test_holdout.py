"""The reusable holdout: the papers' experiment, its budget, its log, and what a selection says about its winner."""

import json

import numpy as np
import pytest

from palaestra.evaluation.holdout import Answer, ReusableHoldout, select

UNITS, FEATURES, SHIFT = 2000, 2000, 6


def holdout(units=400, **settings):
    return ReusableHoldout(units, rng=np.random.default_rng(0), **settings)


def sample(rng, signal):
    """Labels of -1 and 1 and normal features, the first 20 of them shifted by the label where there is a signal."""
    labels = rng.choice([-1.0, 1.0], UNITS)
    features = rng.standard_normal((UNITS, FEATURES), dtype=np.float32)
    if signal:
        features[:, :20] += SHIFT / UNITS**0.5 * labels[:, None]
    return np.sign(features) * labels[:, None], labels  # whether a feature's sign is the label's, as -1 and 1


def reported_and_fresh(rng, signal, protected):
    """Pick features that agree with the labels in both samples; the accuracy that is reported, and that of new data."""
    (seen, _), (hidden, _), (fresh, _) = (sample(rng, signal) for _ in range(3))
    guard = ReusableHoldout(UNITS, low=-1, high=1, rng=rng)

    def asked(name, development, held_out):
        return guard.ask(name, development, held_out) if protected else held_out.mean()

    first = seen.mean(axis=0)
    second = np.array([asked(f"feature {i}", seen[:, i], hidden[:, i]) for i in range(FEATURES)])
    kept = (first * second > 0) & (np.minimum(abs(first), abs(second)) > UNITS**-0.5)
    signs = np.where(kept, np.sign(first), 0)
    right = [np.sign(agreement @ signs) for agreement in (seen, hidden, fresh)]  # a vote of the kept features' signs
    return (asked("the classifier", right[0], right[1]) + 1) / 2, (right[2].mean() + 1) / 2


@pytest.mark.parametrize("signal", [False, True])
def test_what_is_reported_holds_on_fresh_data(signal):
    results = {}
    for protected in (False, True):
        rng = np.random.default_rng(1)
        results[protected] = np.mean([reported_and_fresh(rng, signal, protected) for _ in range(4)], axis=0)
    (naive, naive_fresh), (told, told_fresh) = results[False], results[True]
    assert naive - naive_fresh > 0.05  # the danger is real
    assert abs(told - told_fresh) < (naive - naive_fresh) / 5
    if signal:  # the price: a predictor that is a little worse, but better than chance
        assert 0.51 < told_fresh < naive_fresh


def test_selection_is_honest_about_its_winner():
    """200 candidates, none better than another: the best of the held-out means is too high, the estimate is not."""
    rng = np.random.default_rng(2)
    naive, honest = [], []
    for _ in range(150):
        scores = rng.integers(0, 2, size=(2, 200, 400)).astype(float)
        guard = ReusableHoldout(400, rng=rng)
        chosen = select({str(i): (scores[0, i], scores[1, i]) for i in range(200)}, guard)
        naive.append(scores[1].mean(axis=1).max() - 0.5)
        honest.append(chosen.estimate - 0.5)
        assert chosen.answers[chosen.winner] == max(chosen.answers.values())
        assert len(chosen.log) == 201
    assert np.mean(naive) > 0.05
    assert abs(np.mean(honest)) < np.mean(naive) / 5
    assert np.std(honest) == pytest.approx(chosen.standard_error, rel=0.2)


def test_a_better_candidate_wins():
    rng = np.random.default_rng(3)
    odds = {"good": 0.7, "overfitted": 0.5, "poor": 0.3}
    candidates = {name: tuple((rng.random((2, 1000)) < p).astype(float)) for name, p in odds.items()}
    candidates["overfitted"] = (np.ones(1000), candidates["overfitted"][1])
    chosen = select(candidates, holdout(1000))
    assert chosen.winner == "good"
    assert chosen.answers["overfitted"] == pytest.approx(0.5, abs=0.1)  # not the 1.0 of the development units
    assert chosen.estimate == pytest.approx(0.7, abs=0.1)


def test_answers_by_hand():
    guard = holdout(reserved=100, noise=0.0, threshold=0.1, budget=2)
    # 300 units to ask, of which 150 score 1; 100 to measure, of which 75 do.
    half, most = np.zeros(400), np.ones(400)
    half[150:300] = 1
    most[300:325] = 0
    assert guard.ask("close", [0.5, 0.6], half) == 0.55  # 0.05 apart: the development units'
    assert guard.ask("far", [0.0], half) == 0.5
    assert guard.ask("far", [0.0], most) == 0.5  # the same answer by the same name, at no cost
    assert guard.measure("again", most) == 0.75
    assert guard.log == [
        Answer("close", 0.55, "development", 2),
        Answer("far", 0.5, "held-out", 1),
        Answer("again", 0.75, "held-out", 0),
    ]
    with pytest.raises(ValueError, match="budget of answers from the held-out units is spent"):
        guard.ask("one more", [0.5], half)
    assert guard.ask("close", [0.5], half) == 0.55


def test_state_survives_json():
    scores = np.repeat([0.0, 1.0], 200)
    one, other = holdout(), ReusableHoldout(400, rng=np.random.default_rng(9))
    one.ask("first", [0.9], scores)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert (other.left, other.log) == (39, one.log)
    assert other.ask("first", [0.9], scores) == one.log[0].value
    assert other.ask("second", [0.9], scores) == one.ask("second", [0.9], scores)


def test_few_units_warn():
    with pytest.warns(UserWarning, match="199 held-out units are few.*prefer fresh seeds"):
        holdout(199)


def test_refused():
    guard = holdout()
    with pytest.raises(ValueError, match=r"give one score for each of the 400 held-out units"):
        guard.ask("a", [0.5], [0.5])
    for bad in (2.0, float("nan")):
        with pytest.raises(ValueError, match=r"are not all in \[0\.0, 1\.0\]"):
            guard.ask("a", [bad], [0.5] * 400)
    with pytest.raises(ValueError, match="at least one score"):
        guard.ask("a", [], [0.5] * 400)
    with pytest.raises(ValueError, match="candidates is empty"):
        select({}, guard)
    with pytest.raises(ValueError, match="low < high"):
        holdout(low=1.0)
    with pytest.raises(ValueError, match="leave some of the 400 units"):
        holdout(reserved=400)
    with pytest.raises(ValueError, match="reserved is 0"):
        holdout(reserved=0).measure("a", [0.5] * 400)
    assert guard.log == []
