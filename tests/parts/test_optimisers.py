"""Our Adam is PyTorch's, to the last bit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from palaestra.algorithm import Loss, Term
from palaestra.algorithms.dqn import dqn
from palaestra.batch import Space, Spec
from palaestra.learner import Learner
from palaestra.networks.encoders import Convolutional
from palaestra.optimisers import FusedAdam


def parameters() -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in ((3, 4), (5,), ())]


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)])
def test_equals_pytorchs_adam_through_missing_gradients_and_reloads(lr):
    left, right = parameters(), parameters()
    theirs = torch.optim.Adam(left, lr=float(lr), fused=True)
    ours = FusedAdam(right, lr)
    rng = torch.Generator().manual_seed(1)
    for step in range(8):
        for p, q in zip(left, right, strict=True):
            p.grad = torch.randn(p.shape, generator=rng)
            q.grad = p.grad.clone()
        if step == 3:
            left[1].grad = right[1].grad = None
        if step == 5:
            reloaded = FusedAdam(right, 0.5)
            reloaded.load_state_dict(ours.state_dict())
            ours = reloaded
        theirs.step()
        ours.step()
        for p, q in zip(left, right, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6 if torch.is_tensor(lr) else 0.0, atol=0.0)
    steps = [optimiser.state_dict()["state"][1]["step"].item() for optimiser in (theirs, ours)]
    assert steps == [7.0, 7.0]


def test_a_scheduled_rate_is_read_at_every_step():
    (weight,) = [nn.Parameter(torch.tensor([1.0]))]
    lr = torch.tensor(0.1)
    optimiser = FusedAdam([weight], lr)
    weight.grad = torch.ones(1)
    optimiser.step()
    assert weight.item() == pytest.approx(0.9, abs=1e-6)  # Adam's first step is the rate, whatever the gradient
    optimiser.param_groups[0]["lr"].fill_(0.0)
    optimiser.step()
    assert weight.item() == pytest.approx(0.9, abs=1e-6)


def test_a_gradient_in_another_memory_order():
    """A fused step runs through memory: convolutions over channels-last images give another order."""
    image = Space((8, 8, 3), torch.uint8)
    rng = torch.Generator().manual_seed(0)
    obs = torch.randint(256, (4, 8, 8, 3), generator=rng, dtype=torch.uint8)
    terms = {"square": Term(lambda nets, b: nets["net"](b["obs"]).square().sum(1))}

    def moved(optimiser):
        algorithm = replace(
            dqn(),
            networks={"net": lambda spec, nets: Convolutional(spec.obs, 4)},
            losses={"loss": Loss(terms, ("net",), optimiser=optimiser, lr=0.1)},
            after_update=(),
        )
        learner = Learner(algorithm, Spec(image, Space((), torch.int64, (2,))))
        learner.update({"replay": {"obs": obs}})
        return [p.detach() for p in learner.nets["net"].parameters()]

    plain = moved(lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, foreach=False, fused=False))
    for one, other in zip(plain, moved(FusedAdam), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
