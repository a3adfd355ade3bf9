"""Rewards of groups, against numbers by hand and loops over each group by itself."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from palaestra.functional.groups import (
    batch_standardised,
    centred,
    group_mean,
    group_size,
    group_spread,
    group_std,
    leave_one_out,
    length_weighted_baseline,
    passing,
    rank,
    standardised,
)

# 7: rewards 1, 3, of mean 2 and std sqrt(2); -2: 4, 2, of mean 3 and std sqrt(2); 100: 10 by itself
REWARD = tensor([1.0, 4.0, 3.0, 2.0, 10.0], dtype=torch.float64)
GROUP = tensor([7, -2, 7, -2, 100])
LENGTH = tensor([1, 2, 3, 6, 5])
NOISE = tensor([0.1, -0.3, 0.2, 0.5, 0.4], dtype=torch.float64)
ROOT = math.sqrt(2)


def test_by_hand():
    assert group_size(GROUP).tolist() == [2, 2, 2, 2, 1]
    assert group_mean(REWARD, GROUP).tolist() == [2, 3, 2, 3, 10]
    assert group_std(REWARD, GROUP).tolist() == pytest.approx([ROOT, ROOT, ROOT, ROOT, 1.0], abs=1e-12)
    assert group_spread(REWARD, GROUP).tolist() == [3 - 1, 4 - 2, 3 - 1, 4 - 2, 0]
    assert centred(REWARD, GROUP).tolist() == [-1, 1, 1, -1, 0]
    assert leave_one_out(REWARD, GROUP).tolist() == [1 - 3, 4 - 2, 3 - 1, 2 - 4, 0]
    found = standardised(REWARD, GROUP, eps=0.5)
    assert found.tolist() == pytest.approx([x / (ROOT + 0.5) for x in (-1, 1, 1, -1)] + [0.0], abs=1e-12)
    # of the batch: mean 4, squares 9 + 0 + 1 + 4 + 36 = 50, a variance of 50 / 4
    found = batch_standardised(REWARD, GROUP, eps=0.0)
    assert found.tolist() == pytest.approx([x / math.sqrt(12.5) for x in (-1, 1, 1, -1, 0)], abs=1e-12)
    # (1 * 1 + 3 * 3) / 4 and (2 * 4 + 6 * 2) / 8
    assert length_weighted_baseline(REWARD, GROUP, LENGTH).tolist() == [2.5, 2.5, 2.5, 2.5, 10]
    assert passing(REWARD, GROUP, 2.0).tolist() == [0.5, 0.5, 0.5, 0.5, 1.0]  # 2 is not above 2
    assert rank(REWARD, GROUP, NOISE).tolist() == [1, 0, 0, 1, 0]


def test_ties_are_broken_by_the_noise():
    reward = tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    group = tensor([3, 3, 3, 3, 5])
    assert rank(reward, group, tensor([0.1, 0.3, 0.9, 0.2, 0.0])).tolist() == [2, 0, 3, 1, 0]
    assert rank(reward, group, tensor([0.3, 0.1, 0.9, 0.2, 0.0])).tolist() == [0, 2, 3, 1, 0]


def test_a_group_of_one():
    reward, group = tensor([5.0]), tensor([3])
    assert group_std(reward, group).tolist() == [1.0]
    for advantage in (centred, leave_one_out, standardised, batch_standardised):
        assert advantage(reward, group).tolist() == [0.0]


def test_equal_rewards_have_no_spread_whatever_their_mean_is_rounded_to():
    reward = torch.full((3,), 0.9)
    assert centred(reward, tensor([0, 0, 0])).any()  # 0.9 + 0.9 + 0.9 is not three times 0.9
    assert group_spread(-reward, tensor([0, 0, 0])).tolist() == [0.0] * 3


def test_equal_rewards_get_no_advantage():
    reward, group = torch.full((8,), 1.0), tensor([0, 0, 0, 0, 1, 1, 1, 1])
    for advantage in (centred, leave_one_out, standardised, batch_standardised):
        assert advantage(reward, group).tolist() == [0.0] * 8


rows = st.lists(
    st.tuples(st.integers(-40, 40).map(lambda x: x / 8), st.sampled_from([-(2**40), 0, 3, 10**12]), st.integers(1, 9)),
    min_size=1,
    max_size=14,
)


@given(rows, st.randoms(use_true_random=False))
def test_each_group_by_itself(drawn, random):
    reward, group, length = (list(column) for column in zip(*drawn, strict=True))
    noise = random.sample(range(100), len(reward))
    r, g, n, z = tensor(reward).double(), tensor(group), tensor(length), tensor(noise).double()
    found = {
        "mean": group_mean(r, g),
        "std": group_std(r, g),
        "others": leave_one_out(r, g),
        "baseline": length_weighted_baseline(r, g, n),
        "passing": passing(r, g, 0.5),
        "rank": rank(r, g, z),
    }
    for i in range(len(reward)):
        mates = [j for j in range(len(reward)) if group[j] == group[i]]
        others = [reward[j] for j in mates if j != i]
        expected = {
            "mean": statistics.mean(reward[j] for j in mates),
            "std": statistics.stdev(reward[j] for j in mates) if others else 1.0,
            "others": reward[i] - statistics.mean(others) if others else 0.0,
            "baseline": sum(length[j] * reward[j] for j in mates) / sum(length[j] for j in mates),
            "passing": sum(reward[j] > 0.5 for j in mates) / len(mates),
            "rank": sum((reward[j], noise[j]) > (reward[i], noise[i]) for j in mates),
        }
        assert {name: column[i].item() for name, column in found.items()} == pytest.approx(expected, abs=1e-9)
    total = torch.zeros(len(reward)).double().index_add(0, torch.unique(g, return_inverse=True)[1], found["others"])
    assert total.abs().max() < 1e-9  # leave-one-out advantages of a group add up to nothing


CASES = {
    "group_mean": lambda r, g, n: group_mean(r, g),
    "group_std": lambda r, g, n: group_std(r, g),
    "group_size": lambda r, g, n: group_size(g),
    "centred": lambda r, g, n: centred(r, g),
    "leave_one_out": lambda r, g, n: leave_one_out(r, g),
    "standardised": lambda r, g, n: standardised(r, g),
    "batch_standardised": lambda r, g, n: batch_standardised(r, g),
    "length_weighted_baseline": lambda r, g, n: length_weighted_baseline(r, g, n.exp()),
    "passing": lambda r, g, n: passing(r, g, 2.5),
    "group_spread": lambda r, g, n: group_spread(r, g),
    "rank": rank,
}


@pytest.mark.parametrize("name", CASES)
def test_stacked_and_on_the_meta_device(name):
    function = CASES[name]
    columns = [torch.stack([column, column.flip(0)]) for column in (REWARD, GROUP, NOISE)]
    columns[1][1, :2] = 100
    alone = torch.stack([function(*(column[i] for column in columns)) for i in range(2)])
    torch.testing.assert_close(torch.vmap(function)(*columns), alone)
    meta = function(*(column[0].to("meta") for column in columns))
    assert (meta.shape, meta.dtype) == (alone[0].shape, alone.dtype)


def test_traced_whole():
    compiled = torch.compile(rank, backend="eager", fullgraph=True)
    assert compiled(REWARD, GROUP, NOISE).tolist() == rank(REWARD, GROUP, NOISE).tolist()
