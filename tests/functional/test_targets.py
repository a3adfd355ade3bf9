"""Bellman targets, discounted sums and regressions, against numbers worked out by hand."""

import pytest
import torch
from torch import tensor

from palaestra.functional.targets import bellman, discounted_sum, huber, squared

NO, YES = tensor([False]), tensor([True])


def doubles(*numbers):
    return tensor(numbers, dtype=torch.float64)


def test_discounted_sum():
    # 1 + 0.5 * 2 + 0.25 * 4 = 3;  -8 + 0.5 * 0 + 0.25 * 16 = -4
    reward = doubles([1.0, 2.0, 4.0], [-8.0, 0.0, 16.0])
    assert discounted_sum(reward, 0.5).tolist() == [3.0, -4.0]
    assert discounted_sum(reward, 0.0).tolist() == [1.0, -8.0]
    assert discounted_sum(reward, 1.0).tolist() == [7.0, 8.0]


@pytest.mark.parametrize(("terminated", "expected"), [(NO, 1.0 + 0.9 * 10.0), (YES, 1.0)])
def test_one_step(terminated, expected):
    assert bellman(doubles(1.0), terminated, doubles(10.0), 0.9).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("reward", "steps", "terminated", "expected"),
    [
        ([1.0, 2.0, 4.0], 3, NO, 1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 16),
        ([1.0, 2.0, 0.0], 2, NO, 1 + 0.5 * 2 + 0.25 * 16),  # cut short by a truncation: gamma to the steps taken
        ([1.0, 2.0, 0.0], 2, YES, 1 + 0.5 * 2),
        ([1.0, 0.0, 0.0], 1, NO, 1 + 0.5 * 16),
    ],
)
def test_n_steps(reward, steps, terminated, expected):
    assert bellman(doubles(reward), terminated, doubles(16.0), 0.5, tensor([steps])).tolist() == [expected]


def test_rows_do_not_mix():
    terminated = tensor([False, True, False])
    target = bellman(doubles(1.0, 2.0, 3.0), terminated, doubles(4.0, 8.0, 16.0), 0.5)
    assert target.tolist() == [3.0, 2.0, 11.0]


def test_n_steps_keep_their_precision():
    reward, value = doubles([0.1, 0.2, 0.3]), doubles(7.0)
    expected = 0.1 + 0.99 * 0.2 + 0.99**2 * 0.3 + 0.99**3 * 7.0
    assert bellman(reward, NO, value, 0.99, tensor([3])).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_limits_of_gamma(gamma):
    assert bellman(doubles(2.0), NO, doubles(3.0), gamma).tolist() == [2.0 + gamma * 3.0]


def test_a_terminal_value_never_matters():
    lowest = tensor([torch.finfo(torch.float64).min / 4], dtype=torch.float64)  # what no allowed action leaves
    assert bellman(doubles(1.0), YES, lowest, 0.99).tolist() == [1.0]
    assert bellman(doubles([1.0, 0.0]), YES, lowest, 0.99, tensor([1])).tolist() == [1.0]


def test_huber():
    # within the width gap^2 / 2, beyond it width * (|gap| - width / 2)
    prediction, target = doubles(0.5, -1.0, 3.0, -3.0), doubles(0.0, 0.0, 0.0, 0.0)
    assert huber(prediction, target).tolist() == [0.125, 0.5, 2.5, 2.5]
    assert huber(prediction, target, width=2.0).tolist() == [0.125, 0.5, 4.0, 4.0]
    assert torch.equal(huber(prediction, target, width=1e6), prediction.square() / 2)


def test_ensembles_are_added_up():
    prediction, target = doubles([1.0, 5.0], [2.0, 3.0]), doubles(0.0, 3.0)
    assert squared(prediction, target).tolist() == [1.0 + 4.0, 4.0 + 0.0]
    assert huber(prediction, target).tolist() == [0.5 + 1.5, 1.5 + 0.0]
    assert squared(prediction[0], target).tolist() == [1.0, 4.0]


def test_values_of_a_distribution():
    value = doubles([16.0, 0.0, -16.0], [8.0, 8.0, 8.0])
    target = bellman(doubles(1.0, 2.0), tensor([False, True]), value, 0.5)
    assert target.tolist() == [[9.0, 1.0, -7.0], [2.0, 2.0, 2.0]]
    rows = doubles([1.0, 2.0, 0.0], [4.0, 0.0, 0.0])
    target = bellman(rows, NO, value, 0.5, tensor([2, 1]))  # 1 + 0.5 * 2 + 0.25 * z;  4 + 0.5 * z
    assert target.tolist() == [[6.0, 2.0, -2.0], [8.0, 8.0, 8.0]]
