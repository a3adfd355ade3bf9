"""Links of a preference. By hand: of `chosen` log 9 and `rejected` log 3 sigma is 9/10 and 3/4, of their gap 3/4."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from palaestra.functional import preferences
from palaestra.functional.preferences import (
    aot,
    apo_down,
    apo_zero,
    bco,
    bradley_terry,
    contrastive,
    exo,
    hinge,
    kto,
    listwise,
    log1mexp,
    logistic,
    nca,
    odds_ratio,
    robust,
    simpo,
    sppo,
    squared,
)

log, LOG3 = math.log, math.log(3)
NATS = st.floats(-30, 30)


def doubles(*numbers):
    return tensor(numbers, dtype=torch.float64)


def of(link, chosen=2 * LOG3, rejected=LOG3, **options):
    return link(doubles(chosen), doubles(rejected), **options).item()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (of(logistic, beta=1.0), log(4 / 3)),  # -log 3/4
        (of(logistic, 6 * LOG3, 4 * LOG3, beta=0.5), log(4 / 3)),
        (of(logistic, beta=1.0, smoothing=0.25), 0.75 * log(4 / 3) + 0.25 * log(4)),  # -3/4 log 3/4 - 1/4 log 1/4
        (of(robust, beta=1.0, flip_rate=0.25), (0.75 * log(4 / 3) - 0.25 * log(4)) / 0.5),
        (of(hinge, beta=0.5), 1 - 0.5 * LOG3),
        (of(hinge, beta=1.0), 0.0),  # a gap of 1.0986 is above the margin
        (of(hinge, beta=1.0, margin=2.0), 2 - LOG3),
        (of(squared, tau=0.25), (LOG3 - 2) ** 2),
        (of(simpo, beta=2.0, margin=LOG3), log(4 / 3)),  # 2 log 3 - log 3
        (of(odds_ratio, log(3 / 4), log(1 / 2)), log(4 / 3)),  # odds of 3 and of 1
        (of(bco, beta=1.0), log(10 / 9) + log(4)),  # -log 9/10 - log(1 - 3/4)
        (of(bco, beta=1.0, baseline=LOG3), log(4 / 3) + log(2)),  # log 9 - log 3 and log 3 - log 3
        (of(nca, beta=1.0), log(10 / 9) + 0.5 * log(10) + 0.5 * log(4)),
        (of(exo, beta=1.0, smoothing=0.1), 0.75 * log(0.75 / 0.9) + 0.25 * log(0.25 / 0.1)),
        (of(sppo, beta=0.5), (2 * LOG3 - 1) ** 2 + (LOG3 + 1) ** 2),
        (of(apo_zero, beta=1.0), 1 - 0.9 + 0.75),
        (of(apo_down, beta=1.0), 0.9 + 1 - 0.75),
        (of(contrastive, 3.0, 1.0, reward_gap=doubles(2.0), beta=0.5), -(2 - 0.25 * 2) * 2),
        (of(bradley_terry), log(4 / 3)),
        (of(bradley_terry, margin=LOG3, centring=0.01), log(2) + 0.01 * (3 * LOG3) ** 2),
        (of(bradley_terry, smoothing=0.25), 0.75 * log(4 / 3) + 0.25 * log(4)),
    ],
)
def test_by_hand(found, expected):
    assert found == pytest.approx(expected, abs=1e-12)


def test_kto_by_hand():
    # log 9 - log 3 = log 3: 1 - 3/4 where desirable, 1 - sigma(-log 3) = 3/4 elsewhere
    rows, kind = doubles(2 * LOG3, 2 * LOG3), tensor([True, False])
    baseline = tensor(LOG3, dtype=torch.float64)
    assert kto(rows, kind, baseline, beta=1.0).tolist() == pytest.approx([0.25, 0.75], abs=1e-12)
    # the baseline is in nats: (3 log 3 - log 3) / 2 = log 3
    assert kto(1.5 * rows, kind, baseline, beta=0.5).tolist() == pytest.approx([0.25, 0.75], abs=1e-12)
    found = kto(rows, kind, baseline, beta=1.0, desirable_weight=0.1, undesirable_weight=4 / 3)
    assert found.tolist() == pytest.approx([0.025, 1.0], abs=1e-12)


def test_aot_sorts_across_the_batch():
    # sorted: 0, log 3 against -log 3, 0, a gap of log 3 each; as pairs they were log 9 and 0
    assert aot(doubles(LOG3, 0.0), doubles(-LOG3, 0.0), beta=1.0).tolist() == pytest.approx([log(4 / 3)] * 2, abs=1e-12)
    chosen, rejected = doubles(1.0, 2.0, 5.0), doubles(-1.0, 0.0, 3.0)
    assert torch.equal(aot(chosen, rejected), logistic(chosen, rejected))  # in order already
    assert torch.equal(aot(chosen[[2, 0, 1]], rejected[[1, 2, 0]]), logistic(chosen, rejected))


def test_listwise_is_the_mean_over_all_pairs():
    # log 9, log 3, 0: gaps of log 3, log 9, log 3
    expected = (2 * log(4 / 3) + log(10 / 9)) / 3
    assert listwise(doubles([2 * LOG3, LOG3, 0.0])).tolist() == pytest.approx([expected], abs=1e-12)
    score = doubles([1.0, 2.0], [3.0, -1.0])
    assert torch.equal(listwise(score), bradley_terry(score[:, 0], score[:, 1]))


# ---------------------------------------------------------------------------------------------------------- identities


@given(NATS, NATS, st.floats(0.0, 0.49), st.floats(0.01, 2.0))
def test_smoothing_and_its_inverse(chosen, rejected, flipped, beta):
    right, wrong = of(logistic, chosen, rejected, beta=beta), of(logistic, rejected, chosen, beta=beta)
    found = of(logistic, chosen, rejected, beta=beta, smoothing=flipped)
    assert found == pytest.approx((1 - flipped) * right + flipped * wrong, rel=1e-9, abs=1e-9)
    # rDPO's promise: its mean over flipped labels is the loss of true ones
    found = [of(robust, *pair, beta=beta, flip_rate=flipped) for pair in ((chosen, rejected), (rejected, chosen))]
    assert (1 - flipped) * found[0] + flipped * found[1] == pytest.approx(right, rel=1e-7, abs=1e-7)


def slope(link, gap):
    """The derivative by the gap, half of which is the chosen's."""
    gap = doubles(gap).requires_grad_()
    return torch.autograd.grad(link(gap / 2, -gap / 2).sum(), gap)[0].item()


@pytest.mark.parametrize(
    ("link", "least"),
    [
        (lambda c, r: squared(c, r, tau=0.2), 2.5),  # 1 / (2 tau)
        (lambda c, r: contrastive(c, r, doubles(1.5), beta=0.5), 3.0),  # reward_gap / beta
        (lambda c, r: logistic(c, r, beta=0.5, smoothing=0.1), log(9) / 0.5),  # logit(1 - smoothing) / beta
        (lambda c, r: exo(c, r, beta=0.5, smoothing=0.1), log(9) / 0.5),
    ],
)
def test_where_they_are_least(link, least):
    assert slope(link, least) == pytest.approx(0.0, abs=1e-12)
    assert slope(link, least - 0.1) < -1e-3
    assert slope(link, least + 0.1) > 1e-3


def test_exo_is_zero_at_its_target_and_positive_elsewhere():
    assert of(exo, log(9), 0.0, beta=1.0, smoothing=0.1) == pytest.approx(0.0, abs=1e-12)
    assert all(of(exo, gap, 0.0, beta=1.0, smoothing=0.1) > 0.05 for gap in (-3.0, 0.0, 1.0, 4.0))


def test_nca_holds_the_chosen_reward_at_log_two():
    chosen = doubles(log(2) / 0.1, 5.0, 9.0).requires_grad_()
    gradient = torch.autograd.grad(nca(chosen, doubles(-3.0, -3.0, -3.0)).sum(), chosen)[0]
    assert gradient.sign().tolist()[1:] == [-1.0, 1.0]
    assert gradient[0].item() == pytest.approx(0.0, abs=1e-12)


def test_contrastive_is_squared_for_a_constant_reward_gap():
    """CoPG with a gap of 1/2 is `beta / 2` times IPO, and a constant."""
    chosen, rejected = doubles(0.3, -2.0, 7.0), doubles(1.0, 4.0, -0.5)
    left = contrastive(chosen, rejected, torch.full_like(chosen, 0.5), beta=0.3)
    right = 0.15 * squared(chosen, rejected, tau=0.3)
    assert torch.allclose((left - right).diff(), torch.zeros(2, dtype=torch.float64), atol=1e-12)


LOGITS, REWARD = doubles(0.3, -0.7, 0.1), doubles(2.5, 2.0, 1.0)
REFERENCE = doubles(0.2, 0.5, 0.3).log()


def all_pairs(logits, weight, beta):
    """CoPG's loss over all pairs of three answers, weighted by how likely `weight` draws them independently."""
    ratio = logits.log_softmax(0) - REFERENCE
    i, j = torch.cartesian_prod(torch.arange(3), torch.arange(3)).unbind(1)
    return (weight[i] * weight[j] * contrastive(ratio[i], ratio[j], REWARD[i] - REWARD[j], beta)).sum()


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_contrastive_gradient_is_the_policy_gradient(beta):
    """Of pairs drawn from the policy: minus twice that of `E[R] - beta KL(pi || ref)`, taken exactly."""
    logits = LOGITS.clone().requires_grad_()
    found = torch.autograd.grad(all_pairs(logits, logits.softmax(0).detach(), beta), logits)[0]
    objective = (logits.softmax(0) * (REWARD - beta * (logits.log_softmax(0) - REFERENCE))).sum()
    expected = -2 * torch.autograd.grad(objective, logits)[0]
    assert torch.allclose(found, expected, atol=1e-12)


def test_contrastive_gradient_of_one_pair():
    """The card's `g`: (R_beta(y) - R_beta(y')) grad(log pi(y) - log pi(y')), with R_beta = R - beta log-ratio."""
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    ratio = logp - REFERENCE
    found = torch.autograd.grad(contrastive(ratio[0], ratio[2], REWARD[0] - REWARD[2], 0.5), logits, retain_graph=True)
    regularised = (REWARD - 0.5 * ratio).detach()
    (direction,) = torch.autograd.grad(logp[0] - logp[2], logits)
    assert torch.allclose(found[0], -(regularised[0] - regularised[2]) * direction, atol=1e-12)


@pytest.mark.parametrize("drawn", [(0.1, 0.2, 0.7), (0.6, 0.3, 0.1)])
def test_contrastive_rests_at_the_optimum_whoever_draws(drawn):
    optimum = (REFERENCE + REWARD / 0.5).requires_grad_()  # pi_ref exp(R / beta) / Z
    gradient = torch.autograd.grad(all_pairs(optimum, doubles(*drawn), 0.5), optimum)[0]
    assert gradient.abs().max() < 1e-12
    elsewhere = LOGITS.clone().requires_grad_()
    assert torch.autograd.grad(all_pairs(elsewhere, doubles(*drawn), 0.5), elsewhere)[0].abs().max() > 1e-2


# ------------------------------------------------------------------------------------------------------------ numerics


@pytest.mark.parametrize("a", [-1e-9, -0.1, -log(2), -1.0, -20.0, -700.0])
def test_log1mexp(a):
    assert log1mexp(doubles(a)).item() == pytest.approx(log(-math.expm1(a)), rel=1e-12, abs=1e-16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odds_of_certain_answers_are_finite(dtype):
    a = tensor([0.0, -1e-30, -1e-9, -1e30], dtype=dtype, requires_grad=True)
    rows = log1mexp(a)
    assert rows.isfinite().all()
    assert torch.autograd.grad(rows.sum(), a)[0].isfinite().all()
    pair = odds_ratio(a[[0, 3]], a[[3, 0]])
    assert pair[0] < 1e-6  # certain against impossible
    assert pair[1] > 1e6
    assert torch.autograd.grad(pair.sum(), a)[0].isfinite().all()


PAIRED = [logistic, robust, hinge, squared, simpo, bco, nca, exo, sppo, apo_zero, apo_down, aot, bradley_terry]


@pytest.mark.parametrize("link", PAIRED)
def test_far_gaps_in_float32(link):
    chosen, rejected = tensor([1e4, -1e4], requires_grad=True), tensor([-1e4, 1e4], requires_grad=True)
    rows = link(chosen, rejected)
    gradients = torch.autograd.grad(rows.sum(), (chosen, rejected))
    assert all(x.isfinite().all() for x in (rows, *gradients))
    assert link is robust or (rows >= 0).all()  # rDPO has no lower bound


GENERATOR = torch.Generator().manual_seed(0)
CHOSEN, REJECTED = (torch.randn(2, 5, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
DELTA, DESIRABLE = CHOSEN * 3 - 1, tensor([[True, False, False, True, True]] * 2)
CASES = {link.__name__: (link, (CHOSEN, REJECTED)) for link in PAIRED} | {
    "odds_ratio": (odds_ratio, (-CHOSEN.abs() - 0.1, -REJECTED.abs() - 0.1)),
    "contrastive": (contrastive, (CHOSEN, REJECTED, DELTA)),
    "kto": (lambda ratio, kind: kto(ratio, kind, ratio.detach().mean().clamp(min=0.0)), (CHOSEN, DESIRABLE)),
    "listwise": (listwise, (torch.stack([CHOSEN, REJECTED, DELTA], -1),)),
    "log1mexp": (log1mexp, (-CHOSEN.abs() - 0.1,)),
}


def test_every_link_is_among_the_cases():
    public = {name for name, value in vars(preferences).items() if callable(value) and name[0].islower()}
    assert {name for name in public if vars(preferences)[name].__module__ == preferences.__name__} == set(CASES)


@pytest.mark.parametrize("name", [name for name in CASES if name != "kto"])  # a detached baseline is not differentiated
def test_gradients(name):
    link, columns = CASES[name]
    assert torch.autograd.gradcheck(link, [column[0].clone().requires_grad_() for column in columns])


def test_kto_gradient_and_its_baseline():
    baseline = tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: kto(x, DESIRABLE[0], baseline, 0.7, 1.1, 1.3), CHOSEN[0].clone().requires_grad_()
    )


@pytest.mark.parametrize("name", CASES)
def test_stacked_and_on_the_meta_device(name):
    link, columns = CASES[name]
    alone = torch.stack([link(*(column[i] for column in columns)) for i in range(2)])
    torch.testing.assert_close(torch.vmap(link)(*columns), alone)
    assert alone.dtype == torch.float64
    meta = [column[0].to("meta") for column in columns]
    assert link(*meta).shape == (5,)


@pytest.mark.parametrize("link", [logistic, robust, hinge, squared, bco, nca, exo, sppo, apo_zero, apo_down, simpo])
def test_a_sharpness_of_every_pair(link):
    name = "tau" if link is squared else "beta"
    sharpness = doubles(0.1, 0.2, 0.5, 1.0, 2.0)
    together = link(CHOSEN[0], REJECTED[0], **{name: sharpness})
    for row, chosen, rejected, number in zip(together, CHOSEN[0], REJECTED[0], sharpness, strict=True):
        assert row.item() == pytest.approx(of(link, chosen.item(), rejected.item(), **{name: number.item()}), rel=1e-12)
