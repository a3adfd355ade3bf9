"""TD3+BC: its actor's rows by hand, and TD3 where cloning counts for nothing."""

import pytest
import torch
from torch import Tensor

from palaestra.algorithms.td3_bc import td3_bc, value_and_cloning


class Critic:
    def __call__(self, obs: Tensor, action: Tensor, first: int) -> Tensor:
        assert first == 1
        return (2.0 * action.sum(-1)).unsqueeze(0)


def rows(improvement: float) -> tuple[Tensor, Tensor]:
    shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    nets = {"actor": lambda obs: obs + shift, "critic": Critic()}
    batch = {
        "obs": torch.tensor([[0.5, 0.0], [-0.25, 0.25], [0.5, 0.5]], dtype=torch.float64),
        "action": torch.tensor([[0.5, 1.0], [-0.25, 0.25], [0.0, 0.5]], dtype=torch.float64),
    }
    return value_and_cloning(nets, batch, improvement), shift  # type: ignore[arg-type]


def test_rows_by_hand():
    # Q = 1, 0, 2: mean |Q| = 1, so lambda = 2.5; squared distances over the two entries: 1/2, 0, 0.25/2
    value, _ = rows(2.5)
    assert value.tolist() == [0.5 - 2.5, 0.0, 0.125 - 5.0]


def test_the_scale_has_no_gradient():
    value, shift = rows(2.5)
    (gradient,) = torch.autograd.grad(value.sum(), shift)
    # of the distance, 2 (p - a) / 2 summed over rows: 0 + 0 + 0.5 and -1 + 0 + 0; of the value, -2.5 * 2 * 3
    assert gradient.tolist() == [0.5 - 15.0, -1.0 - 15.0]


def test_what_it_refuses():
    with pytest.raises(ValueError, match="improvement is 0"):
        td3_bc(improvement=0.0)
