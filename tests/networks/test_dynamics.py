"""Models of steps, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from palaestra.batch import Space, Spec
from palaestra.networks.dynamics import (
    FARTHEST,
    GaussianDynamics,
    fitted_dynamics,
    gaussian_dynamics,
    negative_log_likelihood,
)
from palaestra.networks.fitting import drawing_from

SPEC = Spec(Space((3,)), Space((2,)))


def model(seed: int = 0, members: int = 3) -> GaussianDynamics:
    with drawing_from(Generator().manual_seed(seed)):
        return GaussianDynamics(3, 2, members, (16, 16))


def steps(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Two numbers move by what is done to them, a third is always the same."""
    rng = Generator().manual_seed(seed)
    obs = torch.cat((2 * torch.randn(rows, 2, generator=rng), torch.full((rows, 1), 7.0)), -1)
    action = 2 * torch.rand(rows, 2, generator=rng) - 1
    reached = obs + torch.cat((0.5 * action, torch.zeros(rows, 1)), -1)
    return {"obs": obs, "action": action, "reached": reached}


def test_what_is_not_measured_stays_where_it_is() -> None:
    rows = steps(5, 0)
    dynamics = model()
    assert torch.equal(dynamics(rows["obs"], rows["action"]), rows["obs"])
    assert torch.equal(dynamics.sample(rows["obs"], rows["action"], Generator()), rows["obs"])


def test_a_step_by_hand() -> None:
    dynamics = model(members=2)
    rows = {
        "obs": torch.tensor([[0.0, 0.0, 7.0], [2.0, 4.0, 7.0]]),
        "action": torch.zeros(2, 2),
        "reached": torch.tensor([[1.0, 0.0, 7.0], [5.0, 4.0, 7.0]]),
    }
    dynamics.measure(rows["obs"], rows["action"], rows["reached"])
    # the pairs' means are 1 and 2 with deviations 1 and 2; what does not vary is only moved. Changes are 1 and 3.
    assert dynamics.pair_mean.tolist() == [1, 2, 7, 0, 0]
    assert dynamics.pair_std.tolist() == [1, 2, 1, 1, 1]
    assert dynamics.change_mean.tolist() == [2, 0, 0]
    assert dynamics.change_std.tolist() == [1, 0, 0]
    with torch.no_grad():
        for weight in dynamics.mlp.weights:
            weight.zero_()
        dynamics.mlp.biases[-1].zero_()
        dynamics.mlp.biases[-1][:, 0, 0] = torch.tensor([1.0, 2.0])  # what each member says of the first number
    assert dynamics(rows["obs"], rows["action"])[0].tolist() == [3.5, 0.0, 7.0]  # 0 + 2 + 1 (1 + 2) / 2
    # standardised changes are -1 and 1, and 0 of the others; members say 1 and 2; -log N(x; m, 1) is (x - m)^2 / 2 + c
    constant = 2 * 3 * 0.9189385
    expected = [constant + (4 + 9) / 2, constant + (0 + 1) / 2]
    assert negative_log_likelihood(dynamics, rows).tolist() == pytest.approx(expected, rel=1e-5)


def test_draws_come_from_all_members_with_their_own_deviation() -> None:
    dynamics = model(members=2)
    dynamics.measure(torch.zeros(2, 3), torch.zeros(2, 2), torch.tensor([[1.0] * 3, [-1.0] * 3]))
    with torch.no_grad():
        for weight in dynamics.mlp.weights:
            weight.zero_()
        dynamics.mlp.biases[-1][0] = torch.tensor([5.0] * 3 + [-9.0] * 3)  # the deviation is cut off at e^-5
        dynamics.mlp.biases[-1][1] = torch.tensor([-5.0] * 3 + [0.0] * 3)
    drawn = dynamics.sample(torch.zeros(4_000, 3), torch.zeros(4_000, 2), Generator().manual_seed(0))
    of_first = drawn[:, 0] > 0
    assert of_first.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert (drawn > 0).all(1).equal(of_first)  # a row is one member's
    assert drawn[of_first].std().item() == pytest.approx(2.71828**-5, rel=0.1)
    assert drawn[~of_first].std().item() == pytest.approx(1.0, rel=0.1)


def test_backwards_undoes_forwards() -> None:
    train, held_out = steps(2_000, 0), steps(200, 1)
    rng = Generator().manual_seed(0)
    forward = fitted_dynamics(model(0), train, held_out, rng, updates=1_000)
    turned = [{**rows, "obs": rows["reached"], "reached": rows["obs"]} for rows in (train, held_out)]
    reverse = fitted_dynamics(model(1), *turned, rng, updates=1_000)
    before = reverse(held_out["reached"], held_out["action"])
    assert (before - held_out["obs"]).abs().max() < 0.1 < (held_out["reached"] - held_out["obs"]).abs().max()
    assert (forward(before, held_out["action"]) - held_out["reached"]).abs().max() < 0.1
    assert torch.equal(before[:, 2], held_out["obs"][:, 2])
    far = forward(held_out["obs"] + 1e6, held_out["action"]) - (held_out["obs"] + 1e6)
    assert (far.abs() <= FARTHEST * forward.change_std + 1).all()
    assert not any(parameter.requires_grad for parameter in forward.parameters())


def test_what_it_does_not_fit() -> None:
    for obs in (Space((3, 3)), Space((3,), torch.uint8), Space((), torch.int64, (4,)), {"a": Space((3,))}):
        with pytest.raises(ValueError, match="vectors of numbers"):
            gaussian_dynamics()(Spec(obs, Space((2,))), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="continuous"):
        gaussian_dynamics()(Spec(Space((3,)), Space((), torch.int64, (4,))), None)  # type: ignore[arg-type]
