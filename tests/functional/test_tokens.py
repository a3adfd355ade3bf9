"""Columns of tokens, by hand and against loops over one answer's tokens; `x` marks a token that does not count."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from palaestra.functional.returns import generalised_advantage
from palaestra.functional.tokens import (
    at_last,
    cispo,
    clipped_surrogate,
    discounted_future,
    discounted_to_go,
    macro_advantage,
    macro_ids,
    macro_mean,
    macro_sum,
    macros_from,
    masked_mean,
    masked_whitened,
    overlong_penalty,
    running_mean,
    sequence_log_ratio,
    token_advantage,
    truncated_ratio,
)

NAN = math.nan


def doubles(*numbers):
    return tensor(numbers, dtype=torch.float64)


def bools(*rows):
    return tensor([[entry == "." for entry in row] for row in rows])


MASK = bools("..x.", ".xxx", "xxxx")
VALUES = doubles([1.0, 2.0, NAN, 6.0], [5.0, NAN, NAN, NAN], [NAN, NAN, NAN, NAN])


def test_means():
    assert masked_mean(VALUES, MASK).item() == (1 + 2 + 6 + 5) / 4
    assert masked_mean(VALUES, MASK, dim=1).tolist() == [3.0, 5.0, 0.0]
    assert masked_mean(VALUES[2:], MASK[2:]).item() == 0.0


def test_whitening():
    # 1, 2, 6, 5: mean 3.5, squares 6.25 + 2.25 + 6.25 + 2.25 = 17, a biased variance of 4.25
    found = masked_whitened(VALUES, MASK)
    scale = 1 / math.sqrt(4.25 + 1e-8)
    assert found[0].tolist() == pytest.approx([-2.5 * scale, -1.5 * scale, 0.0, 2.5 * scale], abs=1e-12)
    assert found[1:].flatten().tolist() == pytest.approx([1.5 * scale] + [0.0] * 7, abs=1e-12)


def test_at_last():
    assert at_last(MASK, doubles(7.0, 8.0, 9.0)).tolist() == [[0, 0, 0, 7], [8, 0, 0, 0], [0, 0, 0, 0]]
    assert at_last(bools("x.x.x"), doubles(3.0)).tolist() == [[0, 0, 0, 3, 0]]


# ---------------------------------------------------------------------------------------------------------- advantages


def test_token_advantage_by_hand():
    """Rewards 1, 2, 4 and values 3, 5, 7 of the tokens that count, gamma and lambda 1/2."""
    reward, value = doubles([1.0, NAN, 2.0, 4.0, NAN]), doubles([3.0, NAN, 5.0, 7.0, NAN])
    found = token_advantage(reward, value, bools(".x..x"), 0.5, 0.5)
    last = 4 - 7.0  # nothing behind it
    middle = (2 + 0.5 * 7 - 5) + 0.25 * last  # 0.5 - 0.75
    first = (1 + 0.5 * 5 - 3) + 0.25 * middle
    assert found.tolist() == [[first, 0.0, middle, last, 0.0]]


def random_columns(seed, rows=4, tokens=9):
    rng = torch.Generator().manual_seed(seed)
    reward, value = (torch.randn(rows, tokens, generator=rng, dtype=torch.float64) for _ in range(2))
    return reward, value, torch.rand(rows, tokens, generator=rng) < 0.6


@pytest.mark.parametrize("seed", range(3))
def test_without_discount_it_is_what_is_still_paid_less_the_value(seed):
    reward, value, mask = random_columns(seed)
    paid = (reward * mask).flip(1).cumsum(1).flip(1)
    found = token_advantage(reward, value, mask, 1.0, 1.0)
    assert torch.allclose(found, (paid - value) * mask, atol=1e-12)
    assert torch.allclose(discounted_to_go(reward, mask), paid * mask, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_macros_of_one_token_are_the_advantages_of_tokens_to_the_bit(seed):
    """An answer's tokens alone, without its gaps, as one environment's steps that end in a terminal state."""
    reward, value, mask = random_columns(seed)
    found = macro_advantage(reward, value, macro_ids(mask, 1), mask, 0.9, 0.8)
    for row in range(len(mask)):
        paid, worth = reward[row][mask[row], None], value[row][mask[row], None]
        ends = torch.arange(len(paid))[:, None] == len(paid) - 1
        expected = generalised_advantage(paid, worth, worth.roll(-1, 0), ends, torch.zeros_like(ends), 0.9, 0.8)
        assert torch.equal(found[row][mask[row]], expected[:, 0])
        assert (found[row][~mask[row]] == 0).all()


def test_macro_ids():
    assert macro_ids(bools("x..x...."), 2).masked_fill(~bools("x..x...."), -1).tolist() == [[-1, 0, 0, -1, 1, 1, 2, 2]]
    assert macro_ids(bools("....."), 1).tolist() == [[0, 1, 2, 3, 4]]
    assert macro_ids(bools("....."), 5).tolist() == macro_ids(bools("....."), 99).tolist() == [[0] * 5]
    ids = macro_ids(bools("xx.", "xxx"), 2)
    assert (ids >= 0).all()  # places to scatter to, all of them
    assert ids.dtype == torch.int64


def test_macros_from_where_they_begin():
    mask, begins = bools("x..x...x"), bools("..x.x..x")
    # of the tokens at 1, 2, 4, 5 and 6 those at 1, 5 and 6 begin one; what is said of the others does not count
    assert macros_from(begins, mask)[mask].tolist() == [0, 0, 0, 1, 2]
    assert macros_from(bools("xxxxxxxx"), mask)[mask].tolist() == [0] * 5
    place = mask.cumsum(1) - 1
    assert macros_from(place % 2 == 0, mask)[mask].tolist() == macro_ids(mask, 2)[mask].tolist()


def test_macro_advantage_by_hand():
    """Macros (1, 2) and (4) with a token of a tool between: rewards 3 and 4, values (3 + 5) / 2 and 7."""
    reward, value = doubles([1.0, NAN, 2.0, 4.0, NAN]), doubles([3.0, NAN, 5.0, 7.0, NAN])
    mask = bools(".x..x")
    macro = macro_ids(mask, 2)
    last = 4 - 7.0
    first = (3 + 0.5 * 7 - 4) + 0.25 * last
    assert macro_advantage(reward, value, macro, mask, 0.5, 0.5).tolist() == [[first, 0.0, first, last, 0.0]]
    assert macro_mean(value, macro, mask).tolist() == [[4.0, 0.0, 4.0, 7.0, 0.0]]
    assert macro_sum(reward, macro, mask).tolist() == [[3.0, 0.0, 3.0, 4.0, 0.0]]


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.7, 1.0]))
def test_macro_advantage_is_the_loop(seed, length, gamma, lam):
    reward, value, mask = random_columns(seed)
    found = macro_advantage(reward, value, macro_ids(mask, length), mask, gamma, lam)
    for row in range(len(mask)):
        tokens = mask[row].nonzero()[:, 0].tolist()
        macros = [tokens[i : i + length] for i in range(0, len(tokens), length)]
        following, next_worth = 0.0, 0.0
        for macro in reversed(macros):
            worth = value[row, macro].mean().item()
            following = reward[row, macro].sum().item() + gamma * next_worth - worth + gamma * lam * following
            next_worth = worth
            assert found[row, macro].tolist() == pytest.approx([following] * len(macro), abs=1e-9)


@pytest.mark.parametrize("length", [1, 3, 9])
def test_without_discount_macros_and_tokens_differ_by_values_alone(length):
    reward, value, mask = random_columns(5)
    macro = macro_ids(mask, length)
    paid = macro_advantage(reward, value, macro, mask, 1.0, 1.0) + macro_mean(value, macro, mask)
    expected = discounted_to_go(reward, mask)
    for row in range(len(mask)):
        tokens = mask[row].nonzero()[:, 0].tolist()
        for i, token in enumerate(tokens):
            assert paid[row, token].item() == pytest.approx(expected[row, tokens[i - i % length]].item(), abs=1e-12)


def test_discounted_to_go_skips_gaps():
    found = discounted_to_go(doubles([1.0, NAN, 2.0, 4.0]), bools(".x.."), 0.5)
    assert found.tolist() == [[1 + 0.5 * (2 + 0.5 * 4), 0.0, 2 + 0.5 * 4, 4.0]]


def test_discounted_future():
    # sums 1 + 2/2 + 4/4 = 3, 2 + 4/2 = 4, 4, of mean 11/3
    loss = doubles([1.0, 2.0, NAN, 4.0], [0.0, 0.0, 0.0, 0.0])
    found = discounted_future(loss, bools("..x.", "...."), 0.5)
    assert found[0].tolist() == pytest.approx([9 / 11, 12 / 11, 0.0, 12 / 11], abs=1e-12)
    assert found[1].tolist() == [0.0] * 4
    # with gamma 1 the rest of the answer, falling from its first token on
    assert discounted_future(doubles([2.0, 2.0, 2.0]), bools("..."), 1.0).tolist() == [[1.5, 1.0, 0.5]]


@pytest.mark.parametrize("gamma", [0.1, 0.95, 1.0])
def test_the_weights_of_an_answer_have_mean_one(gamma):
    loss, _, mask = random_columns(2)
    mask[:, 0] = True
    weight = discounted_future(loss.abs(), mask, gamma)
    assert torch.allclose(masked_mean(weight, mask, dim=1), torch.ones(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(discounted_future(7 * loss.abs(), mask, gamma), weight, atol=1e-12)
    leaf = loss.abs().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: discounted_future(x, mask, gamma), leaf)


def test_overlong_penalty():
    found = overlong_penalty(tensor([0, 16, 18, 19, 20, 21, 1000]), limit=20, cache=4)
    assert found.tolist() == [0.0, 0.0, -0.5, -0.75, -1.0, -1.0, -1.0]


# -------------------------------------------------------------------------------------------------------------- ratios

LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("ratio", "advantage", "options", "expected"),
    [
        (1.1, 2.0, {}, -2.2),
        (2.0, 1.0, {}, -1.2),  # a good action: no further than 1 + high
        (0.5, 1.0, {}, -0.5),
        (0.5, -1.0, {}, 0.8),  # a bad one: no further than 1 - low
        (2.0, -1.0, {}, 2.0),
        (2.0, 1.0, {"high": 0.28}, -1.28),
        (0.5, -1.0, {"low": 0.4, "high": 0.1}, 0.6),
        (9.0, -2.0, {}, 18.0),
        (9.0, -2.0, {"bound": 3.0}, 6.0),  # the dual clip
        (9.0, 2.0, {"bound": 3.0}, -2.4),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, options, expected):
    found = clipped_surrogate(doubles(math.log(ratio)), doubles(advantage), **options)
    assert found.item() == pytest.approx(expected, abs=1e-12)


@given(st.floats(-4, 4), st.floats(-3, 3))
def test_the_bound_is_the_dual_clip(log_ratio, advantage):
    """Ye et al. (2020): where A < 0 the smaller of the clipped loss and `-c A`; else the clipped loss."""
    plain, held = (
        clipped_surrogate(doubles(log_ratio), doubles(advantage), **options).item() for options in ({}, {"bound": 3.0})
    )
    assert held == pytest.approx(min(plain, -3.0 * advantage) if advantage < 0 else plain, abs=1e-12)


def test_at_a_ratio_of_one_the_gradient_is_that_of_reinforce():
    log_ratio = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    advantage = doubles([1.5], [-0.5])
    gradient = torch.autograd.grad(clipped_surrogate(log_ratio, advantage).sum(), log_ratio)[0]
    assert torch.equal(gradient, -advantage.expand(2, 3))


def test_a_clipped_token_has_no_gradient():
    log_ratio = doubles(1.0, -1.0, 1.0, -1.0).requires_grad_()
    advantage = doubles(1.0, 1.0, -1.0, -1.0)
    gradient = torch.autograd.grad(clipped_surrogate(log_ratio, advantage).sum(), log_ratio)[0]
    assert gradient.tolist() == pytest.approx([0.0, -math.exp(-1), math.e, 0.0], abs=1e-12)


def test_far_ratios_in_float32():
    log_ratio = tensor([500.0, 500.0, -500.0, -500.0], requires_grad=True)
    rows = clipped_surrogate(log_ratio, tensor([1.0, -1.0, 1.0, -1.0]))
    assert rows.tolist() == pytest.approx([-1.2, math.exp(20), 0.0, 0.8], rel=1e-5)
    assert torch.autograd.grad(rows.sum(), log_ratio)[0].tolist() == [0.0] * 4


def test_truncated_ratio():
    log_ratio = doubles(-LOG2, LOG2, 3 * LOG2).requires_grad_()
    ratio = truncated_ratio(log_ratio, 3.0)
    assert ratio.tolist() == pytest.approx([0.5, 2.0, 3.0], abs=1e-12)
    gradient = torch.autograd.grad(ratio.sum(), log_ratio)[0]
    assert gradient.tolist() == pytest.approx([0.5, 2.0, 0.0], abs=1e-12)


def test_sequence_log_ratio():
    found = sequence_log_ratio(VALUES, MASK)
    assert found.tolist() == [[3.0, 3.0, 0.0, 3.0], [5.0, 0.0, 0.0, 0.0], [0.0] * 4]


def test_gradients_of_the_sequence_ratio_add_up_to_those_of_tokens():
    """GSPO of one advantage an answer equals its token form: the answer's ratio times each token's own score."""
    log_ratio, _, mask = random_columns(7)
    mask[:, 0] = True
    log_ratio = (0.1 * log_ratio).requires_grad_()
    share = mask / mask.sum(1, keepdim=True) / len(mask)
    advantage = doubles([1.0], [-2.0], [0.5], [3.0])
    mean = sequence_log_ratio(log_ratio, mask)
    token = mean.detach() + log_ratio - log_ratio.detach()
    found, expected = (
        torch.autograd.grad((share * clipped_surrogate(x, advantage)).sum(), log_ratio, retain_graph=True)[0]
        for x in (mean, token)
    )
    assert found.abs().max() > 1e-3
    assert torch.allclose(found, expected, atol=1e-12)


def test_cispo():
    # ratios 1/2, 2, 8 under a cap of 3: weights 1/2, 2, 3
    logp = doubles(-1.0, -2.0, -0.5).requires_grad_()
    log_ratio, advantage = doubles(-LOG2, LOG2, 3 * LOG2), doubles(1.0, 1.0, -2.0)
    rows = cispo(logp, log_ratio + logp - logp.detach(), advantage, cap=3.0)
    assert rows.tolist() == pytest.approx([0.5, 4.0, -3.0], abs=1e-12)
    gradient = torch.autograd.grad(rows.sum(), logp)[0]
    assert gradient.tolist() == pytest.approx([-0.5, -2.0, 6.0], abs=1e-12)  # the ratio itself has none


def test_gradcheck():
    log_ratio = torch.linspace(-1.1, 1.3, 8, dtype=torch.float64).view(2, 4).requires_grad_()
    advantage, mask = doubles([1.0], [-2.0]), bools("..x.", "x...")
    for loss in (
        lambda x: clipped_surrogate(x, advantage),
        lambda x: clipped_surrogate(x, -advantage, bound=1.5),
        lambda x: clipped_surrogate(sequence_log_ratio(x, mask), advantage),
        lambda x: truncated_ratio(macro_sum(x, macro_ids(mask, 2), mask), 2.0),
        lambda x: cispo(x, advantage.expand(2, 4), advantage, 3.0),
    ):
        assert torch.autograd.gradcheck(loss, log_ratio)


# ------------------------------------------------------------------------------------------------------ rows and stacks

CASES = {
    "masked_mean": lambda r, v, m: masked_mean(r, m),
    "answer_mean": lambda r, v, m: masked_mean(r, m, dim=1),
    "masked_whitened": lambda r, v, m: masked_whitened(r, m),
    "at_last": lambda r, v, m: at_last(m, r[:, 0]),
    "token_advantage": lambda r, v, m: token_advantage(r, v, m, 0.9, 0.8),
    "macro_advantage": lambda r, v, m: macro_advantage(r, v, macro_ids(m, 3), m, 0.9, 0.8),
    "macro_sum": lambda r, v, m: macro_sum(r, macro_ids(m, 3), m),
    "macros_from": lambda r, v, m: macros_from(v > 0, m),
    "macro_mean": lambda r, v, m: macro_mean(r, macro_ids(m, 3), m),
    "discounted_to_go": lambda r, v, m: discounted_to_go(r, m, 0.9),
    "discounted_future": lambda r, v, m: discounted_future(r.abs(), m),
    "overlong_penalty": lambda r, v, m: overlong_penalty(m.sum(1), 8, 4),
    "clipped_surrogate": lambda r, v, m: clipped_surrogate(sequence_log_ratio(r, m), v),
    "cispo": lambda r, v, m: cispo(r, v, v, 2.0),
}


@pytest.mark.parametrize("name", CASES)
def test_stacked_and_on_the_meta_device(name):
    function = CASES[name]
    columns = [torch.stack(pair) for pair in zip(random_columns(0), random_columns(1), strict=True)]
    alone = torch.stack([function(*(column[i] for column in columns)) for i in range(2)])
    torch.testing.assert_close(torch.vmap(function)(*columns), alone)
    meta = function(*(column[0].to("meta") for column in columns))
    assert (meta.shape, meta.dtype) == (alone[0].shape, alone.dtype)


def test_rows_do_not_mix():
    reward, value, mask = random_columns(3)
    together = token_advantage(reward, value, mask, 0.9, 0.8)
    for row in range(len(mask)):
        alone = token_advantage(*(column[row : row + 1] for column in (reward, value, mask)), 0.9, 0.8)
        assert torch.equal(together[row : row + 1], alone)


def test_the_mean_so_far():
    values, mask = doubles([NAN, 2.0, 4.0, NAN, 9.0]), bools("x..x.")
    assert running_mean(values, mask).tolist() == [[0.0, 2.0, 3.0, 0.0, 5.0]]  # (2 + 4) / 2, (2 + 4 + 9) / 3
