"""Macro actions by hand, where they begin, and that those of one token are no change at all."""

from functools import partial

import pytest
import torch
from torch import tensor

from palaestra.algorithm import Unfit, changed_parts
from palaestra.algorithms.grpo import grpo
from palaestra.algorithms.ppo_lm import ppo_lm, surrogate
from palaestra.learner import generator
from palaestra.methods.language.ma_rlhf import (
    divided,
    ma_rlhf,
    ma_rlhf_macro_ratios,
    ma_rlhf_perplexity,
    ma_rlhf_random,
    macro_credit,
    of_macros,
    randomly,
    regularly,
    surprisingly,
)
from tests.parts.texts import batches, run_of

BASE = ppo_lm(prompts=6, longest=6, lr=1e-3, epochs=2, minibatches=2)


def bools(text):
    return tensor([[letter == "x" for letter in text]])


def macros(mask, begins, **columns):
    """The macros of the tokens that count."""
    given = divided({}, {"answer": mask, **columns}, generator(0, "test"), begins)
    return [row[own].tolist() for row, own in zip(given["macro"], mask, strict=True)]


def same(one, other, rounds=2):
    """Whether two algorithms learn the same networks, bit for bit."""
    learnt = []
    for algorithm in (one, other):
        run = run_of(algorithm, reward={"length": lambda rows, answers: [float(len(answer)) for answer in answers]})
        for _ in range(rounds):
            run.advance()
        learnt.append(run.learner.nets.state_dict())
    return all(torch.equal(learnt[0][name], learnt[1][name]) for name in learnt[0])


# ------------------------------------------------------------------------------------------------ where macros begin


def test_after_so_many_tokens_and_before_the_last():
    three = partial(regularly, length=3)
    assert macros(bools("..xxxxx."), three) == [[0, 0, 0, 1, 2]]
    assert macros(bools("..xxxx.."), three) == [[0, 0, 0, 1]]  # the last begins one anyway
    assert macros(bools(".xx..xx."), three) == [[0, 0, 0, 1]]  # a gap is no token
    assert macros(bools(".x"), three) == [[0]]
    assert macros(bools("xxxxx"), partial(regularly, length=9)) == [[0, 0, 0, 0, 1]]  # a bandit, and its end


def test_a_bag_of_lengths_is_emptied_and_then_comes_one_more():
    mask = torch.ones(200, 9, dtype=torch.bool)
    found = macros(mask, partial(randomly, lengths=(1, 2), repeats=2))
    sizes = [[row.count(macro) for macro in range(row[-1] + 1)] for row in found]
    assert all(sorted(size[:4]) == [1, 1, 2, 2] for size in sizes)  # 6 tokens
    assert all(size[4:] == [2, 1] for size in sizes)  # what is left over, and the last
    assert len({tuple(size) for size in sizes}) == 6  # 4 over 2: every order there is


def test_where_a_token_is_less_likely_than_the_one_before():
    logp = tensor([[-9.0, -2.0, -1.0, -3.0, -3.0, -4.0, -1.0, 0.0]])
    # -1 after -2 goes on, -3 after -1 begins one, an equal one goes on, -4 begins one, -1 goes on as the last would
    assert macros(bools(".xxxxxx."), surprisingly, reference_logp=logp) == [[0, 0, 1, 1, 2, 3]]
    # the first begins one however much likelier it is than the prompt's last token
    assert macros(bools("..xxxx.."), surprisingly, reference_logp=logp) == [[0, 1, 1, 2]]


# ------------------------------------------------------------------------------------------------------------- credit


def test_credit_by_hand():
    """Two macros of two tokens and the last: values 1, 3 | 2, 6 | 5 and their means 2, 4, 5; the score is 10.

    Rewards of the divergence are -0.5 (log pi - log pi_ref) = 1, 0 | 0, -1 | 0. With gamma = lam = 0.5:
    delta = (1 + 0.5 * 4 - 2, -1 + 0.5 * 5 - 4, 10 - 5) = (1, -2.5, 5), A = (0.6875, -1.25, 5) and G = A + (2, 4, 5).
    """
    control = torch.nn.Module()
    control.coefficient = tensor(0.5)
    columns = {
        "answer": bools(".xxxxx."),
        "old_logp": tensor([[7.0, -2.0, 0.0, 0.0, 2.0, 0.0, 7.0]]),
        "reference_logp": torch.zeros(1, 7),
        "old_value": tensor([[7.0, 1.0, 3.0, 2.0, 6.0, 5.0, 7.0]]),
        "reward": tensor([10.0]),
    }
    columns = divided({}, columns, generator(0, "test"), partial(regularly, length=2))
    given = macro_credit({"kl_control": control}, columns, gamma=0.5, lam=0.5)
    assert given["lambda_return"].tolist() == [[0.0, 2.6875, 2.6875, 2.75, 2.75, 10.0, 0.0]]
    advantage = tensor([0.6875, 0.6875, -1.25, -1.25, 5.0])
    whitened = (advantage - advantage.mean()) / advantage.std(correction=0)
    torch.testing.assert_close(given["advantage"], torch.cat([tensor([0.0]), whitened, tensor([0.0])])[None])


def test_the_ratio_of_a_macro_by_hand():
    """Log-ratios log 1.1, log 1.2 | log 0.5: macro ratios 1.32, clipped at 1.2 where A = 1, and 0.5 where A = -1.

    Rows -1.2 / 2 each and, clipped at 0.8 from below, 0.8. Tokens by themselves: -1.1, -1.2 and 0.8.
    """
    b = {
        "answer": bools("xxx"),
        "macro": tensor([[0, 0, 1]]),
        "logp": tensor([[1.1, 1.2, 0.5]]).log().requires_grad_(),
        "old_logp": torch.zeros(1, 3),
        "sampled_logp": torch.zeros(1, 3),
        "advantage": tensor([[1.0, 1.0, -1.0]]),
    }
    term = partial(surrogate, low=0.2, high=0.2)
    rows, told = of_macros({}, b, term)
    torch.testing.assert_close(rows, tensor([[-0.6, -0.6, 0.8]]))
    assert told["clipped"].tolist() == [1.0]
    torch.testing.assert_close(term({}, b)[0], tensor([[-1.1, -1.2, 0.8]]))
    inside = {**b, "logp": tensor([[1.1, 1.05, 0.9]]).log().requires_grad_()}
    of_macros({}, inside, term)[0].sum().backward()
    # of -1.155: d / d logp of each of its two tokens is -1.155, as of any one token whose ratio that is; then 0.9
    torch.testing.assert_close(inside["logp"].grad, tensor([[-1.155, -1.155, 0.9]]))


# ---------------------------------------------------------------------------------------------------- whole algorithms


def test_macros_of_one_token_are_the_base_bit_for_bit():
    assert same(BASE, ma_rlhf(BASE, length=1))
    assert same(BASE, ma_rlhf_random(BASE, lengths=(1,), repeats=6))
    assert not same(BASE, ma_rlhf(BASE, length=2))


def test_a_macro_ratio_of_one_token_is_a_tokens():
    run = run_of(ma_rlhf_macro_ratios(BASE, length=1))
    run.advance()
    b = batches(run)["rollout"]
    b["logp"] = b["old_logp"] + 0.5 * torch.randn(b["ids"].shape, generator=generator(0, "test"))
    term = run.algorithm.losses["policy"].terms["surrogate"].value
    for found, plain in zip(
        *(t(run.learner.nets, b)[0][b["answer"]] for t in (term, term.keywords["term"])), strict=True
    ):
        assert found.item() == pytest.approx(plain.item(), abs=1e-5)


@pytest.mark.parametrize("method", [ma_rlhf, ma_rlhf_random, ma_rlhf_perplexity, ma_rlhf_macro_ratios])
def test_each_learns(method):
    changed = method(BASE)
    assert changed_parts(BASE, changed)[:2] == ("transforms", "advantage")
    run = run_of(changed)
    batch = batches(run)["rollout"]
    assert batch["macro"].shape == batch["ids"].shape
    run.advance()
    run.learner.check_finite()


def test_what_does_not_fit():
    with pytest.raises(Unfit, match="right behind"):
        ma_rlhf(grpo())
    with pytest.raises(Unfit, match="right behind"):
        ma_rlhf(ma_rlhf(BASE))
    with pytest.raises(ValueError, match="length is 0"):
        ma_rlhf(BASE, length=0)
    for lengths in ((), (3, 0)):
        with pytest.raises(ValueError, match="lengths is 0"):
            ma_rlhf_random(BASE, lengths=lengths)
