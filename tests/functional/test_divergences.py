"""Divergences, exact on four symbols."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from palaestra.functional.divergences import (
    LARGEST_REWARD,
    exact_kl,
    forward_chi_squared_reward,
    forward_kl_reward,
    jensen_shannon_reward,
    k1,
    k2,
    k3,
    k3_with_k2_gradient,
    reverse_chi_squared_reward,
    reverse_kl_reward,
    total_variation_reward,
)

LOGITS = tensor([0.3, -1.2, 0.9, 0.1], dtype=torch.float64)  # the policy's
TARGET = tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def policy():
    logits = LOGITS.clone().requires_grad_()
    return logits, logits.log_softmax(0)


def gradient(value, logits):
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def test_estimators_by_hand():
    # l = log 2: log 2, (log 2)^2 / 2, 1/2 - 1 + log 2;  l = -log 2: 2 - 1 - log 2
    ratio = tensor([math.log(2), -math.log(2), 0.0], dtype=torch.float64)
    assert k1(ratio).tolist() == ratio.tolist()
    assert k2(ratio).tolist() == pytest.approx([math.log(2) ** 2 / 2] * 2 + [0.0], abs=1e-12)
    assert k3(ratio).tolist() == pytest.approx([math.log(2) - 0.5, 1 - math.log(2), 0.0], abs=1e-12)


def test_exact_kl_by_hand():
    # (1/2, 1/2) and (1/4, 3/4): log 2 / 2 + log(2/3) / 2;  logits may be shifted
    p, q = tensor([0.5, 0.5]).double().log() + 3, tensor([0.25, 0.75]).double().log() - 7
    assert exact_kl(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-12)
    assert exact_kl(p, p + 1).item() == pytest.approx(0.0, abs=1e-12)
    table = torch.stack([p, q]).expand(3, 2, 2)
    assert exact_kl(table, table.flip(1)).shape == (3, 2)


def test_exact_kl_passes_over_what_neither_allows():
    barred = tensor([-1e32], dtype=torch.float64)
    p, q = torch.cat([LOGITS, barred]), torch.cat([TARGET.log(), barred])
    assert exact_kl(p, q).item() == pytest.approx(exact_kl(LOGITS, TARGET.log()).item(), abs=1e-12)
    assert torch.autograd.gradcheck(exact_kl, (LOGITS.clone().requires_grad_(), TARGET.log().requires_grad_()))


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    logp, log_target = LOGITS.log_softmax(0), TARGET.log()
    exact = exact_kl(logp, log_target).item()
    mean = {k: (logp.exp() * k(logp - log_target)).sum().item() for k in (k1, k2, k3, k3_with_k2_gradient)}
    assert mean[k1] == pytest.approx(exact, abs=1e-12)
    assert mean[k3] == mean[k3_with_k2_gradient] == pytest.approx(exact, abs=1e-12)
    assert abs(mean[k2] - exact) > 0.01


def test_gradients_on_average():
    """Of samples that do not move: k1 zero, k2 and the straight-through one KL(pi || ref), k3 KL(ref || pi)."""
    logits, logp = policy()
    log_target = TARGET.log()
    drawn = logp.detach().exp()
    found = {k: gradient((drawn * k(logp - log_target)).sum(), logits) for k in (k1, k2, k3, k3_with_k2_gradient)}
    reverse, forward = (gradient(exact_kl(*pair), logits) for pair in ((logp, log_target), (log_target, logp)))
    assert (reverse - forward).abs().max() > 0.01
    assert torch.allclose(found[k1], torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found[k2], reverse, atol=1e-12)
    assert torch.equal(found[k3_with_k2_gradient], found[k2])
    assert torch.allclose(found[k3], forward, atol=1e-12)


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_gradcheck(estimator):
    ratio = torch.linspace(-3, 3, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(estimator, ratio)


@given(st.floats(-80, 80, width=32))
def test_k3_is_never_negative(number):
    for dtype in (torch.float32, torch.float64):
        ratio = tensor(number, dtype=dtype)
        assert k3(ratio) >= 0
        assert torch.equal(k3_with_k2_gradient(ratio), k3(ratio))


# ------------------------------------------------------------------------------------------------------------- rewards

TWICE = tensor([math.log(2), -math.log(2), 0.0], dtype=torch.float64)  # t = 2, 1/2, 1


def kl(p, q):
    return (p * (p / q).log()).sum()


def twice_jensen_shannon(pi, p):
    return kl(pi, 0.5 * (pi + p)) + kl(p, 0.5 * (pi + p))


REWARDS = [  # -f'(2), -f'(1/2), -f'(1), and the divergence that it is of
    (forward_kl_reward, (0.5, 2.0, 1.0), lambda pi, p: kl(p, pi)),
    (reverse_kl_reward, (-math.log(2) - 1, math.log(2) - 1, -1.0), kl),
    (jensen_shannon_reward, (-math.log(4 / 3), -math.log(2 / 3), 0.0), twice_jensen_shannon),
    (total_variation_reward, (-0.5, 0.5, 0.0), lambda pi, p: 0.5 * (pi - p).abs().sum()),
    (forward_chi_squared_reward, (-0.75, 3.0, 0.0), lambda pi, p: ((p - pi) ** 2 / pi).sum()),
    (reverse_chi_squared_reward, (-2.0, 1.0, 0.0), lambda pi, p: ((pi - p) ** 2 / p).sum()),
]


@pytest.mark.parametrize(("reward", "expected", "divergence"), REWARDS)
def test_rewards(reward, expected, divergence):
    assert reward(TWICE).tolist() == pytest.approx(list(expected), abs=1e-12)
    logits, logp = policy()
    drawn = logp.detach().exp()
    surrogate = -(drawn * reward(logp.detach() - TARGET.log()) * logp).sum()  # the loss of REINFORCE, exactly
    assert torch.allclose(gradient(surrogate, logits), gradient(divergence(logp.exp(), TARGET), logits), atol=1e-12)


@pytest.mark.parametrize(
    ("reward", "most", "least"),
    [
        (forward_kl_reward, LARGEST_REWARD, 0.0),
        (reverse_kl_reward, LARGEST_REWARD, -LARGEST_REWARD),
        (jensen_shannon_reward, LARGEST_REWARD, -math.log(2)),
        (total_variation_reward, 0.5, -0.5),
        (forward_chi_squared_reward, LARGEST_REWARD, -1.0),
        (reverse_chi_squared_reward, 2.0, -LARGEST_REWARD),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rewards_are_held_and_never_rise(reward, most, least, dtype):
    found = reward(tensor([-math.inf, -1e4, -1.0, 0.0, 1.0, 1e4, math.inf], dtype=dtype))
    assert (found.diff() <= 0).all()  # f is convex: more likely than the target is never better
    assert found[[0, 1]].tolist() == [most, most]
    assert found[[-2, -1]].tolist() == pytest.approx([least, least], rel=1e-6)


@pytest.mark.parametrize("function", [k1, k2, k3, k3_with_k2_gradient, *(row[0] for row in REWARDS)])
def test_stacked_and_on_the_meta_device(function):
    rows = torch.stack([TWICE, -2 * TWICE])
    assert torch.equal(torch.vmap(function)(rows), torch.stack([function(row) for row in rows]))
    assert function(rows.to("meta")).shape == rows.shape


def test_exact_kl_stacked():
    p, q = torch.stack([LOGITS, -LOGITS]), torch.stack([TARGET.log(), LOGITS])
    torch.testing.assert_close(torch.vmap(exact_kl)(p, q), exact_kl(p, q))
    assert exact_kl(p.to("meta"), q.to("meta")).shape == (2,)
