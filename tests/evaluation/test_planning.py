"""How many seeds: the table agrees with the comparator, and moves where it should."""

import numpy as np
import pytest

from palaestra.evaluation.planning import seeds_needed


def test_rows():
    rows = seeds_needed(1.5, 1.0, group=(3, 5, 8), repetitions=200)
    assert [row["group"] for row in rows] == [3, 5, 8]
    assert [row["most_seeds"] for row in rows] == [15, 25, 40]
    assert all(row["group"] <= row["expected_seeds"] <= row["most_seeds"] for row in rows)
    powers = [row["power"] for row in rows]
    assert powers == sorted(powers)
    assert powers[1] > 0.9
    assert all(row["enough"] == (row["power"] >= 0.8) for row in rows)
    assert rows[0]["standard_error"] <= 0.5 / 200**0.5


def test_only_the_ratio_counts():
    one = seeds_needed(1.0, 1.0, group=5, repetitions=50)
    assert seeds_needed(-20.0, 20.0, group=5, repetitions=50) == one


def test_a_smaller_difference_needs_more():
    small, large = (seeds_needed(difference, 1.0, group=5, repetitions=200)[0] for difference in (0.5, 2.0))
    assert small["power"] < large["power"]
    assert small["expected_seeds"] > large["expected_seeds"]


def test_power_of_one_look_is_that_of_the_permutation_test():
    # One look, 5 a group, 1.5 sd: the two-sided t test at 0.05 has power 0.55 (noncentral t, 8 degrees of freedom,
    # noncentrality 1.5 sqrt(5 / 2)); the permutation test at 12/252 = 0.048 is within 0.05 of it.
    row = seeds_needed(1.5, 1.0, group=5, max_groups=1, repetitions=2000)[0]
    assert row["expected_seeds"] == 5
    assert row["power"] == pytest.approx(0.55, abs=0.05 + 2 * 0.5 / np.sqrt(2000))


def test_more_arms_are_harder():
    two, four = (seeds_needed(1.0, 1.0, group=4, max_groups=3, arms=arms, repetitions=200)[0] for arms in (2, 4))
    assert four["power"] < two["power"]


def test_refused():
    for difference, sd in ((0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="difference that is not 0"):
            seeds_needed(difference, sd)
    with pytest.raises(ValueError, match="power is 80"):
        seeds_needed(1.0, 1.0, power=80)
