"""Numbers that change with the clock."""

import pytest
import torch

from palaestra.algorithm import Clock
from palaestra.functional.schedules import linear, number


def clock(env_steps=0, updates=0):
    clock = Clock()
    clock.env_steps.fill_(env_steps)
    clock.updates.fill_(updates)
    return clock


@pytest.mark.parametrize(
    ("begin", "end"), [(1.0, 0.25), (0.25, 1.0), (2.0, 2.0)], ids=["falling", "rising", "constant"]
)
@pytest.mark.parametrize(("at", "part"), [(0, 0.0), (25, 0.25), (50, 0.5), (100, 1.0), (10**9, 1.0)])
@pytest.mark.parametrize("of", ["env_steps", "updates"])
def test_linear(begin, end, at, part, of):
    value = linear(begin, end, 100, of=of)
    now = value(clock(**{of: at}))
    assert isinstance(now, torch.Tensor)
    assert now.shape == ()
    assert now.item() == pytest.approx(begin + part * (end - begin), abs=1e-6)


def test_linear_reads_one_counter():
    assert linear(1.0, 0.0, 10)(clock(updates=10)).item() == 1.0
    assert linear(1.0, 0.0, 10, of="updates")(clock(env_steps=10)).item() == 1.0


def test_number():
    assert number(0.5, None) == 0.5
    assert number(linear(1.0, 0.0, 10), clock(env_steps=5)).item() == 0.5
