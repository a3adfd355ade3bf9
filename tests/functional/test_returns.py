"""Generalised advantages by hand, in float64; time comes first."""

import pytest
import torch
from torch import tensor

from palaestra.functional.returns import discounted_so_far, generalised_advantage

G, L = 0.5, 0.75  # exact in binary
REWARD = [1.0, 2.0, 3.0, 4.0]
VALUE = [0.5, 1.5, 2.5, 3.5]
NEXT = [1.5, 2.5, 7.0, 5.0]  # at step 2, where the episode ends, of the final observation
LAST = [False, False, True, False]
NEVER = [False] * 4


def advantage(terminated, truncated, gamma=G, lam=L, next_value=NEXT):
    numbers = (tensor(x, dtype=torch.float64)[:, None] for x in (REWARD, VALUE, next_value))
    flags = (tensor(x)[:, None] for x in (terminated, truncated))
    return generalised_advantage(*numbers, *flags, gamma, lam)[:, 0].tolist()


def test_nothing_ends():
    d0, d1, d2, d3 = 1 + G * 1.5 - 0.5, 2 + G * 2.5 - 1.5, 3 + G * 7.0 - 2.5, 4 + G * 5.0 - 3.5
    k = G * L
    expected = [d0 + k * (d1 + k * (d2 + k * d3)), d1 + k * (d2 + k * d3), d2 + k * d3, d3]
    assert advantage(NEVER, NEVER) == pytest.approx(expected, abs=1e-12)


def test_termination_cuts_and_does_not_bootstrap():
    d0, d1, d2, d3 = 1 + G * 1.5 - 0.5, 2 + G * 2.5 - 1.5, 3 - 2.5, 4 + G * 5.0 - 3.5
    k = G * L
    expected = [d0 + k * (d1 + k * d2), d1 + k * d2, d2, d3]
    assert advantage(LAST, NEVER) == pytest.approx(expected, abs=1e-12)
    assert advantage(LAST, NEVER, next_value=[1.5, 2.5, 1e9, 5.0]) == pytest.approx(expected, abs=1e-12)


def test_truncation_cuts_and_bootstraps():
    d0, d1, d2, d3 = 1 + G * 1.5 - 0.5, 2 + G * 2.5 - 1.5, 3 + G * 7.0 - 2.5, 4 + G * 5.0 - 3.5
    k = G * L
    expected = [d0 + k * (d1 + k * d2), d1 + k * d2, d2, d3]
    assert advantage(NEVER, LAST) == pytest.approx(expected, abs=1e-12)


def test_both_flags_are_a_termination():
    assert advantage(LAST, LAST) == advantage(LAST, NEVER)


def test_lambda_zero_is_the_one_step_error():
    expected = [r + G * n * (not end) - v for r, n, v, end in zip(REWARD, NEXT, VALUE, LAST, strict=True)]
    assert advantage(LAST, NEVER, lam=0.0) == pytest.approx(expected, abs=1e-12)


def test_lambda_one_is_the_return_less_the_value():
    # telescoping needs next_value[t] == value[t + 1] within an episode, as NEXT has it
    returns = [1 + G * (2 + G * (3 + G * 7.0)), 2 + G * (3 + G * 7.0), 3 + G * 7.0, 4 + G * 5.0]
    expected = [g - v for g, v in zip(returns, VALUE, strict=True)]
    assert advantage(NEVER, LAST, lam=1.0) == pytest.approx(expected, abs=1e-12)


def test_environments_do_not_mix():
    g = torch.Generator().manual_seed(0)
    numbers = [torch.randn(6, 3, dtype=torch.float64, generator=g) for _ in range(3)]
    flags = [torch.rand(6, 3, generator=g) < 0.3 for _ in range(2)]
    together = generalised_advantage(*numbers, *flags, G, L)
    for n in range(3):
        alone = generalised_advantage(*(x[:, n : n + 1] for x in (*numbers, *flags)), G, L)
        assert torch.equal(together[:, n : n + 1], alone)
    ends = (flags[0] | flags[1])[:, 0].tolist()
    deltas = (numbers[0] + G * numbers[2] * ~flags[0] - numbers[1])[:, 0].tolist()
    expected = [
        sum((G * L) ** (k - t) * deltas[k] for k in range(t, 6) if not any(ends[t:k])) for t in range(len(deltas))
    ]
    assert together[:, 0].tolist() == pytest.approx(expected, abs=1e-12)


def test_float64_keeps_its_precision():
    d2, d3 = 3 + 0.9 * 7.0 - 2.5, 4 + 0.9 * 5.0 - 3.5
    assert advantage(NEVER, NEVER, 0.9, 0.8)[2:] == pytest.approx([d2 + 0.9 * 0.8 * d3, d3], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_advantage_and_value_are_the_lambda_return(seed):
    """`(1 - lam) sum_n lam^(n-1) G^(n)`, every n-step return written out, its last one with all the weight left."""
    g = torch.Generator().manual_seed(seed)
    steps, gamma, lam = 8, 0.9, 0.7
    reward, value, after = (torch.randn(steps, 1, dtype=torch.float64, generator=g) for _ in range(3))
    terminated, truncated = (torch.rand(steps, 1, generator=g) < 0.25 for _ in range(2))
    done = (terminated | truncated)[:, 0].tolist()
    for t in range(steps - 1):  # within an episode the observation after a step is the next one's
        if not done[t]:
            after[t] = value[t + 1]
    found = generalised_advantage(reward, value, after, terminated, truncated, gamma, lam) + value
    for t in range(steps):
        last = next((k for k in range(t, steps) if done[k]), steps - 1)
        returns = [
            sum(gamma ** (k - t) * reward[k].item() for k in range(t, end + 1))
            + gamma ** (end - t + 1) * after[end].item() * (not terminated[end])
            for end in range(t, last + 1)
        ]
        *inner, whole = returns
        expected = sum((1 - lam) * lam**n * each for n, each in enumerate(inner)) + lam ** len(inner) * whole
        assert found[t].item() == pytest.approx(expected, abs=1e-12)


def test_discounted_so_far():
    reward = tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], dtype=torch.float64)
    first = tensor([[False, True], [False, False], [True, False]])
    before = tensor([8.0, 8.0], dtype=torch.float64)
    found = discounted_so_far(reward, first, before, 0.5)
    assert found[:, 0].tolist() == [1 + 4.0, 2 + 2.5, 3.0]
    assert found[:, 1].tolist() == [1.0, 2.5, 3 + 1.25]
    halves = [discounted_so_far(reward[:2], first[:2], before, 0.5)]
    halves.append(discounted_so_far(reward[2:], first[2:], halves[0][-1], 0.5))
    assert torch.equal(torch.cat(halves), found)
