"""Shares sum to one, and an update in any number of pieces is the same update."""

from dataclasses import replace

import pytest
import torch
from torch import nn, tensor

from palaestra.algorithm import Algorithm, Buffer, Loss, Schedule, Term
from palaestra.algorithms.sac import sac
from palaestra.batch import Space, Spec, constant_length, each_answer, each_row, each_token, number_of_rows, pieces
from palaestra.data.layouts import transition
from palaestra.learner import Learner
from palaestra.rollout.collect import step

MASK = tensor([[1, 0, 0], [1, 1, 1]]).bool()  # an answer of one token, and one of three


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("share", [each_row, each_token("answer"), each_answer("answer"), constant_length("answer", 5)])
def test_shares_sum_to_one(share, rows):
    batch = {"weight": torch.rand(rows, dtype=torch.float64, generator=rng()), "answer": torch.ones(rows, 5).bool()}
    assert share(batch).sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("share", [each_token("answer"), each_answer("answer")])
def test_shares_of_answers_of_any_length_sum_to_one(share):
    mask = torch.rand(20, 9, generator=rng()) < 0.4
    mask[:, 0] = True
    shares = share({"weight": torch.ones(20, dtype=torch.float64), "answer": mask})
    assert shares.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (shares[~mask] == 0).all()


def test_what_the_unit_is():
    # tokens [8] and [2, 4, 6]: their mean is 5, the mean of the answers' means is (8 + 4) / 2, a length of 4 is 20 / 8
    rows = tensor([[8.0, 99.0, 99.0], [2.0, 4.0, 6.0]])
    batch = {"answer": MASK, "weight": torch.ones(2)}
    assert (each_token("answer")(batch) * rows).sum() == 5.0
    assert (each_answer("answer")(batch) * rows).sum() == 6.0
    assert (constant_length("answer", 4)(batch) * rows).sum() == 2.5


def test_an_answer_without_tokens_counts_nothing():
    batch = {"answer": tensor([[False, False], [True, True]]), "weight": torch.ones(2)}
    assert each_answer("answer")(batch).tolist() == [[0.0, 0.0], [0.25, 0.25]]
    assert each_token("answer")(batch).tolist() == [[0.0, 0.0], [0.5, 0.5]]
    assert each_token("answer")({**batch, "answer": torch.zeros(2, 2).bool()}).sum() == 0.0


@pytest.mark.parametrize(("rows", "count", "sizes"), [(8, 4, [2, 2, 2, 2]), (5, 2, [3, 2]), (3, 8, [1, 1, 1])])
def test_pieces_are_the_batch(rows, count, sizes):
    batch = {"obs": {"a": torch.arange(rows), "b": torch.rand(rows, 2)}, "updates": tensor(7), "x": torch.rand(rows)}
    parts = pieces(batch, count)
    assert [number_of_rows(part) for part in parts] == sizes
    assert torch.equal(torch.cat([part["obs"]["a"] for part in parts]), batch["obs"]["a"])
    assert torch.equal(torch.cat([part["obs"]["b"] for part in parts]), batch["obs"]["b"])
    assert all(part["updates"] == 7 for part in parts)


def toy(*terms, trains=("net",), **of_loss):
    """An algorithm whose only network is linear, 3 -> 1, without bias."""
    named = {f"term{number}": term for number, term in enumerate(terms)}
    streams = {term.stream for term in terms}
    return Algorithm(
        networks={"net": lambda spec, nets: nn.Linear(3, 1, bias=False)},
        policy=lambda nets, obs, memory, rng: (nets["net"](obs), {}, memory),
        buffers={stream: Buffer(transition) for stream in streams},
        losses={"toy": Loss(named, trains, **of_loss)},
        schedule=Schedule(),
        collect=step,
        evaluation=(),
    )


def squares(nets, b):
    return nets["net"](b["obs"]).squeeze(-1).square()


def gradient(algorithm, batches, split):
    learner = Learner(algorithm, Spec(Space((3,)), Space((1,))), seeds=(3,))
    metrics, _ = learner.update(batches, split=split)
    return learner.nets["net"].weight.grad[0], metrics["loss/toy"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("split", [1, 2, 4, 16])
@pytest.mark.parametrize("share", [each_token("answer"), each_answer("answer"), constant_length("answer", 5)])
def test_a_loss_of_tokens_by_hand_in_any_number_of_pieces(share, split):
    batch = {
        "obs": torch.randn(9, 5, 3, generator=rng(1)),
        "answer": torch.rand(9, 5, generator=rng(2)) < 0.5,
        "weight": torch.rand(9, generator=rng(3)),
    }
    found, loss = gradient(toy(Term(squares, share=share)), {"replay": batch}, split)
    weight = Learner(toy(Term(squares)), Spec(Space((3,)), Space((1,))), seeds=(3,)).nets["net"].weight[0].detach()
    unit = share(batch) * batch["weight"][:, None]
    value = batch["obs"] @ weight
    assert loss.item() == pytest.approx((unit * value.square()).sum().item(), abs=1e-12)
    assert torch.allclose(found, ((unit * 2 * value)[..., None] * batch["obs"]).sum((0, 1)), atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_coefficients_and_weights_are_factors():
    batch = {"obs": torch.randn(8, 3, generator=rng()), "weight": torch.ones(8)}
    one, _ = gradient(toy(Term(squares)), {"replay": batch}, 1)
    two, _ = gradient(toy(Term(squares, coefficient=2.0)), {"replay": batch}, 1)
    both, _ = gradient(toy(Term(squares, coefficient=2.0), Term(squares)), {"replay": batch}, 1)
    scheduled = Term(squares, coefficient=lambda clock: 2.0 * clock.updates)
    later, _ = gradient(toy(scheduled), {"replay": batch}, 4)
    heavy, _ = gradient(toy(Term(squares)), {"replay": {**batch, "weight": torch.full((8,), 2.0)}}, 2)
    for other, factor in ((two, 2), (both, 3), (later, 2), (heavy, 2)):
        assert torch.allclose(other, factor * one, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_a_row_of_weight_zero_is_not_there():
    obs = torch.randn(8, 3, generator=rng())
    silent = {"obs": obs.clone(), "weight": tensor([1.0] * 6 + [0.0] * 2)}
    loud = {"obs": torch.cat((obs[:6], 1e6 * obs[6:])), "weight": silent["weight"]}
    assert torch.equal(gradient(toy(Term(squares)), {"replay": silent}, 1)[0],
                       gradient(toy(Term(squares)), {"replay": loud}, 1)[0])  # fmt: skip


def centred(nets, b):
    value = nets["net"](b["obs"]).squeeze(-1)
    return (value - value.mean()).square()


@pytest.mark.usefixtures("float64")
def test_rows_that_interact_are_never_split():
    batch = {"obs": torch.randn(8, 3, generator=rng()), "weight": torch.ones(8)}
    whole, apart = toy(Term(centred, across_rows=True)), toy(Term(centred))
    right, _ = gradient(whole, {"replay": batch}, 1)
    assert torch.equal(gradient(whole, {"replay": batch}, 4)[0], right)
    assert not torch.allclose(gradient(apart, {"replay": batch}, 4)[0], right, atol=1e-3)  # what the flag prevents


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rows", [(8, 8), (8, 4), (6, 8), (2, 8)])
def test_two_streams_in_any_number_of_pieces(rows):
    algorithm = toy(Term(squares, stream="one"), Term(squares, stream="two", coefficient=0.5))
    batches = {
        stream: {"obs": torch.randn(n, 3, generator=rng(n + i)), "weight": torch.ones(n)}
        for i, (stream, n) in enumerate(zip(("one", "two"), rows, strict=True))
    }
    right, loss = gradient(algorithm, batches, 1)
    for split in (2, 4):
        found, again = gradient(algorithm, batches, split)
        assert torch.allclose(found, right, atol=1e-12)
        assert again.item() == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.usefixtures("float64")
def test_sac_in_pieces():
    spec = Spec(Space((3,)), Space((2,)))
    algorithm = sac(hidden=(16, 16))
    learners = {split: Learner(algorithm, spec) for split in (1, 2, 4)}
    for update in range(3):
        g = rng(update)
        batch = {
            "obs": torch.randn(14, 3, generator=g),
            "next_obs": torch.randn(14, 3, generator=g),
            "action": torch.rand(14, 2, generator=g) * 2 - 1,
            "reward": torch.randn(14, generator=g),
            "terminated": torch.rand(14, generator=g) < 0.3,
        }
        results = {split: learner.update({"replay": batch}, split=split) for split, learner in learners.items()}
    metrics, columns = results[1]
    for split in (2, 4):
        for name, value in learners[1].nets.state_dict().items():
            assert torch.allclose(value, learners[split].nets.state_dict()[name], atol=1e-10), name
        assert results[split][0].keys() == metrics.keys()
        for name in metrics:
            assert results[split][0][name].item() == pytest.approx(metrics[name].item(), abs=1e-10)
        for name, column in columns["replay"].items():
            assert torch.allclose(results[split][1]["replay"][name], column, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("split", [1, 4])
def test_the_norm_that_is_clipped_is_of_the_whole(split):
    batch = {"obs": torch.randn(8, 3, generator=rng()), "weight": torch.ones(8)}
    free, _ = gradient(toy(Term(squares)), {"replay": batch}, split)
    clipped, _ = gradient(toy(Term(squares), clip_norm=0.01), {"replay": batch}, split)
    assert free.norm() > 0.02
    assert torch.allclose(clipped, free * 0.01 / free.norm(), rtol=1e-4)


def test_a_learning_rate_may_be_a_schedule():
    batch = {"obs": torch.randn(8, 3, generator=rng()), "weight": torch.ones(8)}
    algorithm = toy(Term(squares), lr=1e-2)
    scheduled = replace(
        algorithm, losses={"toy": replace(algorithm.losses["toy"], lr=lambda clock: 1e-2 * (clock.updates <= 2))}
    )
    learners = [Learner(a, Spec(Space((3,)), Space((1,)))) for a in (algorithm, scheduled)]
    for _ in range(2):
        for learner in learners:
            learner.update({"replay": batch})
    assert torch.allclose(*(learner.nets["net"].weight for learner in learners), atol=1e-7)
    before = learners[1].nets["net"].weight.clone()
    learners[1].update({"replay": batch})
    assert torch.equal(learners[1].nets["net"].weight, before)
