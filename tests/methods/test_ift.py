"""IFT: the numbers of a token's weight by hand; what is read; nothing that comes later leaks; neutral it is SFT."""

import math
from dataclasses import replace

import pytest
import torch

from palaestra.algorithms.dpo import dpo
from palaestra.algorithms.sft import sft
from palaestra.batch import each_answer
from palaestra.expression import parse
from palaestra.methods.language.ift import blended, guessed, ift, ift_detached, responsible, responsible_detached
from palaestra.networks.language import LanguageModel
from tests.parts.texts import batches, begin, run_of, textual

BASE = textual("sft")


def parameters(run):
    return {name: tensor.clone() for name, tensor in run.learner.nets.state_dict().items()}


def learnt(algorithm, updates=3, **given):
    run = run_of(algorithm, **given)
    for _ in range(updates):
        run.advance()
    return parameters(run)


def first_batch():
    return batches(run_of(BASE))["demonstrations"]


# ------------------------------------------------------------------------------------------------- numbers by hand


def test_early_tokens_answer_for_later_ones():
    # losses 1, 2, 4 and gamma 1/2: sums 1 + 2/2 + 4/4 = 3, 2 + 4/2 = 4, 4; of mean 11/3; the first token is a prompt's
    loss = torch.tensor([[9.0, 1.0, 2.0, 4.0]], dtype=torch.float64, requires_grad=True)
    b = {"logp": -loss, "answer": torch.tensor([[False, True, True, True]])}
    expected = [0.0, 1 * 9 / 11, 2 * 12 / 11, 4 * 12 / 11]
    assert responsible({}, b, gamma=0.5)[0].tolist() == pytest.approx(expected)
    assert responsible_detached({}, b, gamma=0.5)[0].tolist() == pytest.approx(expected)

    # F = (l1 + l2/2 + l3/4, l2 + l3/2, l3), S = sum F = l1 + 3/2 l2 + 7/4 l3 = 11, total = 3 sum(F l) / S = 3 * 27 / 11
    # d sum(F l) / d l1 = 2 l1 + l2/2 + l3/4 = 4, so d total / d l1 = 3 (4 * 11 - 27 * 1) / 121; detached: the weight
    responsible({}, b, gamma=0.5).sum().backward()
    assert loss.grad[0, 1].item() == pytest.approx(3 * (4 * 11 - 27) / 121)
    loss.grad = None
    responsible_detached({}, b, gamma=0.5).sum().backward()
    assert loss.grad[0].tolist() == pytest.approx([0.0, 9 / 11, 12 / 11, 12 / 11])


def test_embeddings_are_blended():
    table = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, -2.0]])
    ids, predicted = torch.tensor([[1, 1]]), torch.tensor([[1, 2]])
    found = blended(lambda tokens: table[tokens], ids, predicted, 0.25)
    assert found.tolist() == [[[1.0, 2.0], [1.5, 1.0]]]  # 1 + (3 - 1) / 4, 2 + (-2 - 2) / 4


# ---------------------------------------------------------------------------------------------- what is read


def test_what_is_predicted_stands_where_the_token_is_read():
    run = run_of(ift(parse(BASE)))
    b, nets = first_batch(), run.learner.nets
    predicted = guessed(nets, b, None)["predicted"]
    assert torch.equal(predicted[~b["answer"]], b["ids"][~b["answer"]])
    assert (predicted != b["ids"]).any()
    for row, place in b["answer"].nonzero().tolist():
        with torch.no_grad():
            said = nets["policy"].model(input_ids=b["ids"][row : row + 1, :place]).logits[0, -1]
        assert predicted[row, place] == said.argmax()


def test_an_embedding_that_is_read_in_its_place_says_the_same():
    model, ids = LanguageModel(begin().model), first_batch()["ids"]
    for asked in ({}, {"temperature": 0.5, "entropy": True}):
        plain, read = model(ids, **asked), model(ids, embedded=lambda embedding: embedding(ids), **asked)
        assert all(torch.equal(plain[name], read[name]) for name in plain)
    other = model(ids, embedded=lambda embedding: embedding(ids.flip(1)))["logp"]
    assert not torch.allclose(other, model(ids)["logp"])


def test_nothing_that_comes_later_leaks():
    """Another token at a place changes what is said of the places from it on, and of none before."""
    run = run_of(ift(parse(BASE), blend=1.0))
    nets, loss = run.learner.nets, run.algorithm.losses["policy"]
    b = first_batch()
    row, place = b["answer"].nonzero()[1].tolist()
    changed = b["ids"].clone()
    changed[row, place] = changed[row, place] % 10 + 2
    said = []
    for ids in (b["ids"], changed):
        columns = guessed(nets, {**b, "ids": ids}, None)
        with torch.no_grad():
            said.append((columns["predicted"], loss.outputs(nets, columns)["logp"]))
    for one, other in zip(*said, strict=True):
        assert torch.equal(one[row, :place], other[row, :place])
    assert said[0][1][row, place] != said[1][1][row, place]


# ------------------------------------------------------------------------------------------------- the neutral element


@pytest.mark.parametrize("method", [ift, ift_detached])
def test_neutral_it_is_sft_of_answers_that_count_the_same(method):
    base = parse(BASE)
    loss = base.losses["policy"]
    term = replace(loss.terms["imitation"], share=each_answer("answer"))
    answers = replace(base, losses={"policy": replace(loss, terms={"imitation": term})})
    plain = learnt(answers)
    neutral, weighed, mixed, tokens = (
        learnt(a) for a in (method(base, 0.0, 0.0), method(base, 0.0), method(base, gamma=0.0), base)
    )
    for name in plain:  # texts whose embeddings are read pass with their padding, those of sft without
        torch.testing.assert_close(neutral[name], plain[name], atol=1e-6, rtol=1e-5)
    for other in (weighed, mixed, tokens):
        assert any(not torch.allclose(plain[name], other[name], atol=1e-5) for name in plain)


def test_where_answers_are_as_long_neutral_is_sft():
    rows = [{"prompt": f"{a}+{a}=", "completion": str(a + a)} for a in range(10, 50)]  # two digits and the end
    plain, neutral = (learnt(a, dataset=rows) for a in (parse(BASE), ift(parse(BASE), blend=0.0, gamma=0.0)))
    changed = learnt(ift(parse(BASE), blend=0.2, gamma=0.0), dataset=rows)
    for name in plain:
        torch.testing.assert_close(neutral[name], plain[name], atol=1e-7, rtol=1e-6)
    assert any(not torch.allclose(changed[name], plain[name], atol=1e-5) for name in plain)


def test_answers_count_the_same_and_their_weights_have_mean_one():
    run = run_of(ift(parse(BASE)))
    term = run.algorithm.losses["policy"].terms["imitation"]
    b = {**first_batch(), "weight": torch.ones(4)}
    assert term.share(b).sum(1).tolist() == pytest.approx([0.25] * 4)
    loss = torch.full(b["ids"].shape, math.log(3))  # all alike, so that the mean of the weights is that of the rows
    rows = term.value({}, {**b, "logp": -loss})
    assert ((rows * b["answer"]).sum(1) / b["answer"].sum(1)).tolist() == pytest.approx([math.log(3)] * 4)


# ---------------------------------------------------------------------------------------------------- what it refuses


def test_what_it_refuses():
    with pytest.raises(ValueError, match="ift does not fit dpo"):
        ift(dpo())
    with pytest.raises(ValueError, match="ift-detached does not fit sft"):
        ift_detached(ift(sft()))
    with pytest.raises(ValueError, match="blend is 1"):
        ift(sft(), blend=1.5)
    with pytest.raises(ValueError, match="gamma is -0"):
        ift(sft(), gamma=-0.1)
