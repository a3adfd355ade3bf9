"""Networks that are fitted to a dataset before a run begins."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, nn

from palaestra.faults import NotFinite
from palaestra.networks.fitting import by_episode, drawing_from, fitted


def squared_error(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (module(batch["x"]) - batch["y"]).square().mean(-1)


def line(rows: int, rng: Generator) -> dict[str, torch.Tensor]:
    x = torch.randn(rows, 1, generator=rng)
    return {"x": x, "y": 3 * x - 2}


def model(seed: int) -> nn.Module:
    with drawing_from(Generator().manual_seed(seed)):
        return nn.Linear(1, 1)


def test_fits_a_line_and_draws_from_its_own_stream_alone() -> None:
    rng = Generator().manual_seed(0)
    train, held_out = line(200, rng), line(50, rng)
    before = torch.random.get_rng_state()
    one, two = (fitted(model(3), squared_error, train, held_out, Generator().manual_seed(5), lr=0.05) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(model(3).weight, model(4).weight)
    assert one.weight.item() == pytest.approx(3, abs=1e-2)
    assert one.bias.item() == pytest.approx(-2, abs=1e-2)
    assert not one.weight.requires_grad


def test_keeps_what_did_best_on_held_out_rows() -> None:
    rng = Generator().manual_seed(0)
    train, held_out = line(200, rng), line(50, rng)
    held_out["y"] = -held_out["y"]  # each update makes it worse there: after the first look nothing is better
    short = fitted(model(0), squared_error, train, held_out, Generator().manual_seed(1), check_every=1, patience=3)
    once = fitted(model(0), squared_error, train, held_out, Generator().manual_seed(1), check_every=1, updates=1)
    assert torch.equal(short.weight, once.weight)


def test_rows_are_needed_on_both_sides() -> None:
    rng = Generator().manual_seed(0)
    with pytest.raises(ValueError, match="200 rows and judged on 0"):
        fitted(model(0), squared_error, line(200, rng), line(0, rng), rng)


def test_a_loss_that_is_not_finite_is_told() -> None:
    rng = Generator().manual_seed(0)
    train, held_out = line(200, rng), line(50, rng)
    train["y"][3] = torch.nan
    with pytest.raises(NotFinite, match="is nan after 100 updates"):
        fitted(model(0), squared_error, train, held_out, rng)


@pytest.mark.parametrize(("lengths", "expected"), [((3, 2, 4, 1), 1), ((5,), None)])
def test_whole_episodes_are_held_out(lengths: tuple[int, ...], expected: int | None) -> None:
    first = torch.cat([torch.arange(n + 1) == 0 for n in lengths])
    valid = torch.cat([torch.arange(n + 1) < n for n in lengths])
    kept, out = by_episode({"first": first, "valid": valid}, 0.1, Generator().manual_seed(0))
    assert sorted([*kept.tolist(), *out.tolist()]) == valid.nonzero()[:, 0].tolist()
    assert len(kept)
    assert len(out)
    if expected:
        number = first.long().cumsum(0) - 1
        assert len(set(number[out].tolist())) == expected
        assert not set(number[out].tolist()) & set(number[kept].tolist())
