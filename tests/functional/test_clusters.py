"""Groups of numbers, against every way to cut the sorted numbers into runs."""

from itertools import combinations, pairwise

import pytest
import torch

from palaestra.functional.clusters import clusters


def error(groups):
    return sum(float((group - group.mean()).square().sum()) for group in groups)


def least(values, number):
    ordered = values.sort().values
    ways = combinations(range(1, len(values)), number - 1)
    return min(error(ordered.tensor_split(way)) for way in ways)


def test_by_hand():
    values = torch.tensor([9.0, 0.0, 5.0, 0.2, 5.1, 0.1])
    assert clusters(values, 3).tolist() == [2, 0, 1, 0, 1, 0]
    assert clusters(values, 2).tolist() == [1, 0, 1, 0, 1, 0]
    assert clusters(values, 1).tolist() == [0] * 6


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
def test_no_way_is_better(number):
    rng = torch.Generator().manual_seed(number)
    values = torch.randn(9, generator=rng, dtype=torch.float64) * 3 + 1_000
    own = clusters(values, number)
    assert own.unique().tolist() == list(range(number))
    groups = [values[own == group] for group in range(number)]
    assert error(groups) == pytest.approx(least(values, number), rel=1e-9)
    assert all(low.max() < high.min() for low, high in pairwise(groups))


def test_equal_numbers_are_together_and_no_group_is_empty():
    assert clusters(torch.tensor([1.0, 0.0, 1.0, 0.0]), 6).tolist() == [1, 0, 1, 0]
    assert clusters(torch.full((5,), 0.3), 4).tolist() == [0] * 5
    # 90 zeros are one number: the two groups that are left divide 1 and 2
    assert clusters(torch.tensor([0.0] * 90 + [1.0, 2.0]), 3).tolist() == [0] * 90 + [1, 2]
