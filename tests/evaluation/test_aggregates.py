"""Aggregates by hand and beside rliable; what bootstrap intervals cover."""

from functools import partial

import numpy as np
import pytest

from palaestra.evaluation.aggregates import (
    bootstrap,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    sample_efficiency,
)
from palaestra.runs import queries

LEFT = np.sin(np.arange(40.0) ** 2).reshape(10, 4)
RIGHT = np.cos(3 * np.arange(32.0) ** 2).reshape(8, 4)
THRESHOLDS = np.array([-0.5, 0.0, 0.5])


def test_by_hand():
    # Eight scores lose two at each end: the mean of 2, 3, 4, 5.
    assert interquartile_mean([9.0, 1, 5, 3, 2, 4, 0, 100]) == 3.5
    assert interquartile_mean([[9.0, 1, 5, 3], [2, 4, 0, 100]]) == 3.5
    assert interquartile_mean([1.0, 2, 6]) == 3.0  # floor(3 / 4) = 0: nothing is lost
    assert optimality_gap([0.5, 1.0, 3.0, -1.0]) == pytest.approx(2.5 / 4)
    assert optimality_gap([0.5, 1.0], target=2.0) == 1.25
    # 1 beats 0 and ties 1; 3 beats both: 3.5 of 4.
    assert probability_of_improvement([1.0, 3.0], [0.0, 1.0]) == 3.5 / 4
    # A second task in which left always loses: the mean over tasks.
    assert probability_of_improvement([[1.0, 0], [3, 0]], [[0.0, 9], [1, 9]]) == 3.5 / 8
    np.testing.assert_array_equal(performance_profile([0.0, 1, 2, 3], [-1.0, 1, 3]), [1, 0.5, 0])
    curves = np.array([[0.0, 10], [1, 20], [2, 30], [90, 40]])[:, None]
    np.testing.assert_array_equal(sample_efficiency(curves), [1.5, 25])


def test_symmetries():
    assert probability_of_improvement(LEFT, RIGHT) == pytest.approx(1 - probability_of_improvement(RIGHT, LEFT))
    assert probability_of_improvement(LEFT, LEFT) == 0.5
    assert interquartile_mean(2 * LEFT + 1) == pytest.approx(2 * interquartile_mean(LEFT) + 1)


@pytest.mark.parametrize("count", range(1, 12))
def test_interquartile_mean_is_that_of_runs(count):
    values = np.random.default_rng(count).standard_normal(count)
    assert float(interquartile_mean(values)) == pytest.approx(queries.interquartile_mean(values), rel=1e-14)


def test_nothing_vanishes():
    for values in ([], [1.0, float("nan"), 2, 3, 4]):
        assert np.isnan(interquartile_mean(values))
        assert np.isnan(queries.interquartile_mean(values))
        assert np.isnan(optimality_gap(values))
    assert np.isnan(performance_profile([0.0, np.nan], [1.0])).all()
    assert np.isnan(probability_of_improvement([0.0, np.nan], [1.0]))


STATISTICS = [
    interquartile_mean,
    optimality_gap,
    partial(performance_profile, thresholds=THRESHOLDS),
    lambda scores: probability_of_improvement(scores, RIGHT),
]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_leading_axes_are_kept(statistic):
    stacked = statistic(np.stack([LEFT, LEFT[::-1] / 2]))
    np.testing.assert_allclose(stacked, np.stack([statistic(LEFT), statistic(LEFT / 2)]), rtol=1e-14)


# What rliable 1.2.0 gives for LEFT and RIGHT: the number, and its interval from 50,000 repetitions (profile: 20,000).
# The interval's error at 2,000 repetitions is some 0.01; discrete statistics jump by 1/40.
PINNED = [
    (interquartile_mean, (LEFT,), -0.19368668, -0.45110967, 0.14632903),
    (optimality_gap, (LEFT,), 1.10083842, 0.89022543, 1.305653),
    (probability_of_improvement, (LEFT, RIGHT), 0.484375, 0.346875, 0.621875),
    (
        partial(performance_profile, thresholds=THRESHOLDS),
        (LEFT,),
        [0.625, 0.375, 0.225],
        [0.475, 0.225, 0.1],
        [0.775, 0.525, 0.35],
    ),
]


@pytest.mark.parametrize(("statistic", "samples", "estimate", "low", "high"), PINNED)
def test_pinned_numbers_of_rliable(statistic, samples, estimate, low, high):
    interval = bootstrap(statistic, *samples, repetitions=20_000, rng=np.random.default_rng(0))
    np.testing.assert_allclose(interval.estimate, estimate, atol=1e-8)
    np.testing.assert_allclose(interval.low, low, atol=0.0251)
    np.testing.assert_allclose(interval.high, high, atol=0.0251)


def test_beside_rliable():
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    for ours, theirs, samples in (
        (interquartile_mean, metrics.aggregate_iqm, (LEFT,)),
        (optimality_gap, metrics.aggregate_optimality_gap, (LEFT,)),
        (probability_of_improvement, metrics.probability_of_improvement, (LEFT, RIGHT)),
    ):
        given = samples[0] if len(samples) == 1 else samples
        point, interval = library.get_interval_estimates(
            {"a": given}, lambda *scores, theirs=theirs: np.array([theirs(*scores)]), reps=5000
        )
        found = bootstrap(ours, *samples, repetitions=5000, rng=np.random.default_rng(0))
        np.testing.assert_allclose(found.estimate, point["a"][0], rtol=1e-12)
        np.testing.assert_allclose([found.low, found.high], interval["a"][:, 0], atol=0.03)


def test_coverage():
    """400 data sets of 15 runs on 3 tasks with means 0, 1, 2: how often the interval holds the true number."""
    rng = np.random.default_rng(1)
    truth = interquartile_mean(rng.standard_normal((400_000, 3)) + np.arange(3))
    held = 0
    for _ in range(400):
        scores = rng.standard_normal((15, 3)) + np.arange(3)
        interval = bootstrap(interquartile_mean, scores, repetitions=500, rng=rng)
        held += interval.low <= truth <= interval.high
    assert 0.90 <= held / 400 <= 0.98


def test_tasks_are_resampled_by_themselves():
    # Each task has one score in all its runs: whatever is drawn, nothing changes.
    interval = bootstrap(interquartile_mean, np.tile([1.0, 5, 9, 20], (6, 1)), rng=np.random.default_rng(0))
    assert interval.low == interval.high == interval.estimate == 7.0
    # Were runs drawn whole, left and right would be too.
    same = np.tile([[0.0], [1.0]], (5, 3))
    interval = bootstrap(lambda a, b: (a - b).mean((-2, -1)), same, same, rng=np.random.default_rng(0))
    assert interval.low < 0 < interval.high


def test_curves_are_resampled_whole_and_in_pieces(monkeypatch):
    curves = np.random.default_rng(2).standard_normal((6, 2, 1)) + np.zeros(4)  # flat: every point is alike
    one = bootstrap(sample_efficiency, curves, repetitions=50, rng=np.random.default_rng(0))
    assert one.estimate.shape == one.low.shape == (4,)
    assert len(set(one.low.round(12))) == 1
    assert one.low[0] < one.estimate[0] < one.high[0]
    monkeypatch.setattr("palaestra.evaluation.aggregates.AT_ONCE", 100)
    pieces = bootstrap(sample_efficiency, curves, repetitions=50, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(one.high, pieces.high)


def test_errors():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="confidence is 95"):
        bootstrap(interquartile_mean, LEFT, confidence=95, rng=rng)
    with pytest.raises(ValueError, match=r"samples\[1\] has shape \(0, 4\): give at least one run"):
        bootstrap(probability_of_improvement, LEFT, LEFT[:0], rng=rng)
    with pytest.raises(ValueError, match="one number"):
        interquartile_mean(3.0)
    with pytest.raises(ValueError, match=r"give \[runs, tasks, points\]"):
        sample_efficiency(LEFT)
