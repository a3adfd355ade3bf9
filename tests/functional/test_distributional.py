"""Projections and quantile losses, against numbers worked out by hand and loops as the papers write them."""

import math

import pytest
import torch
from torch import tensor

from palaestra.functional.distributional import atoms, categorical_projection, quantile_huber
from palaestra.functional.targets import huber


def doubles(*numbers):
    return tensor(numbers, dtype=torch.float64)


SUPPORT = doubles(-1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.25, [0.0, 0.75, 0.25]),
        (-0.6, [0.6, 0.4, 0.0]),
        (-1.0, [1.0, 0.0, 0.0]),  # on an atom: all of its mass is there, at the ends and between them
        (0.0, [0.0, 1.0, 0.0]),
        (1.0, [0.0, 0.0, 1.0]),
        (-7.0, [1.0, 0.0, 0.0]),  # beyond the ends
        (1.01, [0.0, 0.0, 1.0]),
    ],
)
def test_one_value(value, expected):
    found = categorical_projection(doubles([value]), doubles([1.0]), SUPPORT)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_several_values_on_one_atom_add_up():
    # 0.25 and 0.5 give 0.5 * 0.75 + 0.25 * 0.5 to the atom 0; -0.5 gives half of its 0.25 to it, too
    found = categorical_projection(doubles([0.25, 0.5, -0.5]), doubles([0.5, 0.25, 0.25]), SUPPORT)
    assert found[0].tolist() == pytest.approx([0.125, 0.375 + 0.125 + 0.125, 0.125 + 0.125], abs=1e-12)


def looped(values, probs, support):
    """Bellemare et al. 2017, algorithm 1, with the mass that it loses where l == u."""
    low, high, gap = support[0], support[-1], support[1] - support[0]
    m = [0.0] * len(support)
    for y, p in zip(values, probs, strict=True):
        b = (min(max(y, low), high) - low) / gap
        lower, upper = math.floor(b), math.ceil(b)
        m[lower] += p * (upper - b) + (p if lower == upper else 0.0)
        m[upper] += p * (b - lower)
    return m


@pytest.mark.parametrize("size", [2, 5, 51])
def test_projection_is_the_loop_and_the_clamp_form(size):
    rng = torch.Generator().manual_seed(size)
    support = atoms(-2.0, 2.0, torch.empty(size, dtype=torch.float64))  # distances with exact numbers for 2 and 5
    values = torch.randn(20, 7, generator=rng, dtype=torch.float64) * 2
    values[:5, :3] = doubles(-2.0, 0.0 if size != 2 else 2.0, 2.0)  # exactly on atoms
    probs = torch.rand(20, 7, generator=rng, dtype=torch.float64).softmax(-1)
    found = categorical_projection(values, probs, support)
    for row, y, p in zip(found, values, probs, strict=True):
        assert row.tolist() == pytest.approx(looped(y.tolist(), p.tolist(), support.tolist()), abs=1e-9)
    near = 1 - (values.clamp(-2, 2)[:, None, :] - support[:, None]).abs() / (support[1] - support[0])
    torch.testing.assert_close(found, (near.clamp(0, 1) * probs[:, None, :]).sum(-1))
    torch.testing.assert_close(found.sum(-1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mass_and_mean_stay_within_the_support(dtype):
    rng = torch.Generator().manual_seed(0)
    support = atoms(-100.0, 100.0, torch.empty(101, dtype=dtype))
    values = (torch.rand(64, 101, generator=rng, dtype=torch.float64) * 200 - 100).to(dtype)
    probs = torch.randn(64, 101, generator=rng, dtype=torch.float64).to(dtype).softmax(-1)
    found = categorical_projection(values, probs, support)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(64, dtype=dtype))
    torch.testing.assert_close(found @ support, (values * probs).sum(-1), atol=1e-3, rtol=1e-5)


def test_a_support_is_projected_on_itself():
    support = atoms(-100.0, 100.0, torch.empty(101))
    probs = torch.rand(3, 101, generator=torch.Generator().manual_seed(0)).softmax(-1)
    torch.testing.assert_close(categorical_projection(support.expand(3, -1), probs, support), probs)


def test_quantile_huber():
    # tau 1/4 and 3/4. u = (0.5, 3) - 0 and (0.5, 3) - 1 = (0.5, 3), (-0.5, 2); Huber: (1/8, 5/2), (1/8, 3/2)
    # i=0: (1/4 * 1/8 + 1/4 * 5/2) / 2; i=1: (|3/4 - 1| * 1/8 + 3/4 * 3/2) / 2
    expected = (0.25 * 0.125 + 0.25 * 2.5) / 2 + (0.25 * 0.125 + 0.75 * 1.5) / 2
    rows = quantile_huber(doubles([0.0, 1.0], [0.5, 3.0]), doubles([0.5, 3.0], [0.5, 3.0]))
    # the second row predicts its target: u = (0, 2.5), (-2.5, 0), Huber 2
    assert rows.tolist() == pytest.approx([expected, (0.25 * 2) / 2 + (0.25 * 2) / 2], abs=1e-12)


@pytest.mark.parametrize("width", [0.1, 1.0, 3.0])
def test_quantile_huber_is_the_double_loop(width):
    rng = torch.Generator().manual_seed(1)
    prediction, target = (torch.randn(4, n, generator=rng, dtype=torch.float64) for n in (5, 7))
    rows = quantile_huber(prediction, target, width)
    for row, p, t in zip(rows.tolist(), prediction.tolist(), target.tolist(), strict=True):
        total = 0.0
        for i, theta in enumerate(p):
            for y in t:
                u = y - theta
                loss = u * u / 2 if abs(u) <= width else width * (abs(u) - width / 2)
                total += abs((i + 0.5) / 5 - (u < 0)) * loss / width / 7
        assert row == pytest.approx(total, abs=1e-12)


def test_one_quantile_is_half_of_huber():
    prediction, target = doubles(0.5, -3.0), doubles(1.0, 2.0)
    rows = quantile_huber(prediction[:, None], target[:, None])
    assert rows.tolist() == (huber(prediction, target) / 2).tolist()


def test_the_quantiles_of_a_bimodal_target_are_found():
    """Thirty of a hundred values near -2, seventy near 3: seven quantiles of tau 1/14, 3/14, ..."""
    values = torch.cat((torch.linspace(-2.5, -1.5, 30), torch.linspace(2.0, 4.0, 70))).double()[None]
    prediction = torch.zeros(1, 7, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([prediction], lr=0.05)
    for step in range(1_500):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 1_500)
        optimiser.zero_grad()
        quantile_huber(prediction, values, width=0.01).sum().backward()
        optimiser.step()
    tau = (torch.arange(7, dtype=torch.float64) + 0.5) / 7
    expected = torch.quantile(values[0], tau)
    assert (expected[:2] < -1.5).all()
    assert (expected[2:] > 2.0).all()
    torch.testing.assert_close(prediction.detach()[0], expected, atol=0.05, rtol=0.0)
