"""Curves to numbers, by hand."""

import numpy as np
import pytest

from palaestra.evaluation.measures import MEASURES, auc, best, final, interpolated


def test_by_hand():
    # Trapezoids: (0 + 2) / 2 * 1 + (2 + 1) / 2 * 3 = 5.5 over a width of 4.
    curve = [0, 1, 4], [0.0, 2, 1]
    assert auc(*curve) == 5.5 / 4
    assert final(*curve) == 1
    assert best(*curve) == 2
    assert {name: measure([7], [3.0]) for name, measure in MEASURES.items()} == {"auc": 3, "final": 3, "best": 3}


def test_auc_of_a_constant_is_it_wherever_it_was_measured():
    assert auc([1, 2, 50, 51], [4.0] * 4) == pytest.approx(4)
    assert auc([0, 10, 20], [0.0, 1, 5]) == pytest.approx(auc([0, 1000, 2000], [0.0, 1, 5]))  # the unit of steps


def test_interpolated():
    found = interpolated([10, 20], [0.0, 5], [5, 10, 12, 20, 21])
    np.testing.assert_array_equal(found, [np.nan, 0, 1, 5, np.nan])


@pytest.mark.parametrize("measure", [*MEASURES.values(), lambda steps, values: interpolated(steps, values, [0])])
@pytest.mark.parametrize(
    ("steps", "values", "message"),
    [
        ([0, 1], [0.0, float("nan")], "values are NaN at step 1: leave out"),
        ([0, 0], [0.0, 1], "do not increase"),
        ([1, 0], [0.0, 1], "do not increase"),
        ([], [], "at least one"),
        ([0, 1], [0.0], r"shape \(2,\), values \(1,\)"),
    ],
)
def test_refused(measure, steps, values, message):
    with pytest.raises(ValueError, match=message):
        measure(steps, values)
