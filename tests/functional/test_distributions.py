"""Densities, masks and draws."""

import math

import pytest
import torch
from torch import tensor
from torch.distributions import TanhTransform, TransformedDistribution

from palaestra.functional.distributions import Categorical, Normal, categorical_sample, only_allowed, tanh_normal


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.7, 0.3), (-1.2, 0.8)])
def test_tanh_normal_integrates_to_one(mean, std):
    cells = 400_000
    action = (torch.arange(cells, dtype=torch.float64) + 0.5) * 2 / cells - 1
    noise = ((action.atanh() - mean) / std)[:, None]
    drawn, log_prob = tanh_normal(torch.full_like(noise, mean), torch.full_like(noise, math.log(std)), noise)
    assert torch.allclose(drawn[:, 0], action, atol=1e-12)
    assert (log_prob.exp() * 2 / cells).sum().item() == pytest.approx(1.0, abs=1e-6)


def test_tanh_normal_is_pytorchs():
    mean, log_std, noise = (torch.randn(50, 3, dtype=torch.float64, generator=rng(i)) for i in range(3))
    action, log_prob = tanh_normal(mean, log_std, noise)
    reference = TransformedDistribution(torch.distributions.Normal(mean, log_std.exp()), [TanhTransform()])
    assert torch.allclose(action, (mean + log_std.exp() * noise).tanh(), atol=1e-14)
    inside = (action.abs() < 0.999).all(1)  # atanh of the reference loses digits near the bounds
    assert inside.sum() > 20
    assert torch.allclose(log_prob[inside], reference.log_prob(action).sum(1)[inside], atol=1e-9)


@pytest.mark.parametrize("far", [30.0, -30.0, 1e4])
def test_tanh_normal_stays_finite_at_saturation(far):
    mean = torch.full((4, 2), far, requires_grad=True)
    log_std = torch.full((4, 2), -20.0, requires_grad=True)
    action, log_prob = tanh_normal(mean, log_std, torch.randn(4, 2, generator=rng()))
    assert (action == math.copysign(1.0, far)).all()
    assert log_prob.isfinite().all()
    for gradient in torch.autograd.grad(log_prob.sum(), (mean, log_std)):
        assert gradient.isfinite().all()


def test_only_allowed():
    values = tensor([[1.0, 2.0, 3.0]])
    assert only_allowed(values, None) is values
    masked = only_allowed(values, tensor([[True, False, True]]))
    assert masked[0, [0, 2]].tolist() == [1.0, 3.0]
    assert masked[0, 1] < -1e30
    probability = masked.softmax(-1)
    assert probability[0, 1] == 0
    assert (probability * masked).sum().isfinite()  # 0 * -inf would be NaN
    assert torch.equal(only_allowed(values, tensor([[1.0, 0.0, 1.0]])), masked)  # masks may be numbers


def test_categorical_sample_frequencies():
    p = tensor([0.1, 0.2, 0.7])
    n = 30_000
    drawn = categorical_sample((p.log() + 5.0).expand(n, 3), rng())
    deviation = (torch.bincount(drawn, minlength=3) / n - p).abs()
    assert (deviation < 4 * (p * (1 - p) / n).sqrt()).all()


def test_categorical_sample_never_draws_what_is_not_allowed():
    logits = only_allowed(torch.zeros(20_000, 4), tensor([True, False, True, False]))
    assert set(categorical_sample(logits, rng()).tolist()) == {0, 2}


def test_categorical_sample_without_a_generator_is_the_mode():
    assert categorical_sample(tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]]), None).tolist() == [1, 0]


def test_normal_by_hand():
    one = Normal(tensor([[0.5, -1.0]]), tensor([[math.log(2.0), 0.0]]))
    expected = -0.5 * (0.25**2 + 3.0**2) - math.log(2.0) - math.log(2 * math.pi)
    assert one.log_prob(tensor([[1.0, 2.0]])).tolist() == pytest.approx([expected], abs=1e-6)
    entropy = math.log(2.0) + 1 + math.log(2 * math.pi)
    assert one.entropy().tolist() == pytest.approx([entropy], abs=1e-6)
    assert one.sample(None) is one.mean


@pytest.mark.parametrize("shape", [(7,), (5, 7)])
def test_distributions_are_pytorchs(shape):
    """Of rows [B], and of steps of rows [B, T]."""
    mean, log_std, action = (torch.randn(*shape, 3, dtype=torch.float64, generator=rng(i)) for i in range(3))
    ours, theirs = Normal(mean, log_std), torch.distributions.Normal(mean, log_std.exp())
    assert torch.allclose(ours.log_prob(action), theirs.log_prob(action).sum(-1), atol=1e-12)
    assert torch.allclose(ours.entropy(), theirs.entropy().sum(-1), atol=1e-12)
    ours, theirs = Categorical(mean.log_softmax(-1)), torch.distributions.Categorical(logits=mean)
    chosen = torch.randint(3, shape, generator=rng())
    assert torch.allclose(ours.log_prob(chosen), theirs.log_prob(chosen), atol=1e-12)
    assert torch.allclose(ours.entropy(), theirs.entropy(), atol=1e-12)
    assert ours.sample(rng()).shape == shape
    assert torch.equal(ours.sample(None), mean.argmax(-1))


def test_normal_sample_moments():
    n = 40_000
    drawn = Normal(torch.full((n, 2), 3.0), tensor([0.0, math.log(0.5)]).expand(n, 2)).sample(rng())
    assert (drawn.mean(0) - 3.0).abs().max() < 4 / n**0.5
    assert drawn.std(0).tolist() == pytest.approx([1.0, 0.5], rel=4 / (2 * n) ** 0.5)


def test_categorical_by_hand():
    p = tensor([[0.5, 0.25, 0.25]])
    one = Categorical(p.log())
    assert one.log_prob(tensor([1])).tolist() == pytest.approx([math.log(0.25)], abs=1e-6)
    assert one.entropy().tolist() == pytest.approx([1.5 * math.log(2.0)], abs=1e-6)


def test_what_is_not_allowed_adds_no_entropy():
    logits = torch.zeros(1, 3, requires_grad=True)
    entropy = Categorical(only_allowed(logits, tensor([[True, False, True]])).log_softmax(-1)).entropy()
    assert entropy.tolist() == pytest.approx([math.log(2.0)], abs=1e-6)
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[0, 1] == 0
