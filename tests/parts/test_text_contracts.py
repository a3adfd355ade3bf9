"""What every base of language models must keep; `test_contracts.py` has those of the others."""

import copy

import pytest
import torch

from palaestra.expression import catalogue, parse
from tests.parts.texts import BASES, NEEDS_MODELS, batches, begin, host, run_of, textual
from tests.parts.worlds import small
from tests.rotation import rotating

# Every base, and every method of language models on the first base that it fits; of these a part at a time.
HOSTED = [written for method in catalogue("methods") if method not in NEEDS_MODELS and (written := host(method))]
each_base = pytest.mark.parametrize("base", BASES)
each_expression = pytest.mark.parametrize("expression", [*map(textual, BASES), *rotating(HOSTED, few=0)])


def parameters(run):
    return {name: tensor.clone() for name, tensor in run.learner.nets.state_dict().items()}


def gradients(expression, given, split):
    """Of the first update, of each parameter that a loss trains."""
    run = begun(expression)
    run.learner.update(given, split=split)
    return {name: p.grad for name, p in run.learner.nets.named_parameters() if p.grad is not None}


def rewarded(rows, answers):
    """Something to learn from, for a model that gets nothing right."""
    return [float(len(answer)) + answer.count("1") for answer in answers]


def begun(expression, **given):
    """A run whose algorithm collects, if it does, answers that are not all worth the same."""
    return run_of(expression, reward={"length": rewarded}, **given)


@each_expression
def test_written_and_read(expression):
    algorithm = parse(expression)
    assert parse(str(algorithm)) == algorithm


@each_expression
def test_an_update_in_pieces_has_one_gradient(expression):
    given = batches(begun(expression))
    whole = gradients(expression, given, 1)
    assert all(gradient.isfinite().all() for gradient in whole.values())
    if "+" not in expression:  # a method may find nothing to learn from in so few answers
        assert sum(float(gradient.abs().sum()) for gradient in whole.values()) > 0
    for split in (2, 4):
        for name, gradient in gradients(expression, given, split).items():
            torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-4)


@each_base
def test_shares_sum_to_one(base):
    run = begun(textual(base))
    given = batches(run)
    for loss in run.algorithm.losses.values():
        for term in loss.terms.values():
            batch = {"weight": torch.ones(len(given[term.stream]["ids"])), **given[term.stream]}
            total = float(term.share(batch).sum())
            if base == "dr-grpo":  # divides by the longest answer there may be
                assert 0 < total <= 1
            else:
                assert total == pytest.approx(1)


@each_expression
def test_padding_counts_for_nothing(expression):
    """Longer padding, and other tokens in it, change neither the loss nor a gradient."""
    given = batches(begun(expression))
    wide = {}
    for stream, batch in given.items():
        tokens = [name for name, value in batch.items() if value.shape == batch["ids"].shape]
        wide[stream] = {
            name: torch.nn.functional.pad(value, (0, 3), value=5 if name == "ids" else 0) if name in tokens else value
            for name, value in batch.items()
        }
    whole = gradients(expression, given, 1)
    for name, gradient in gradients(expression, wide, 1).items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-4)


@each_expression
def test_a_run_that_was_stopped_goes_on_exactly(expression):
    whole, first, second = (begun(expression) for _ in range(3))
    for _ in range(3):
        whole.advance()
    first.advance()
    second.load_state_dict(copy.deepcopy(first.state_dict()), {})
    for _ in range(2):
        second.advance()
    left, right = parameters(whole), parameters(second)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert whole.count == second.count == 3
    assert whole.evaluate() == second.evaluate()
    assert (whole.told, int(whole.tokens)) == (second.told, int(second.tokens))


@each_base
def test_seeds_differ_and_one_seed_does_not(base):
    first, again, other = begun(textual(base)), begun(textual(base)), begun(textual(base), seed=1)
    for run in (first, again, other):
        run.advance()
    left, right, far = parameters(first), parameters(again), parameters(other)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert any(not torch.equal(left[name], far[name]) for name in left)


@each_base
def test_what_it_began_as_stays_as_it_is(base):
    before = {name: tensor.clone() for name, tensor in begin().model.state_dict().items()}
    run = run_of(small(base, prompts=4, answers=2, longest=5, batch_size=4, lr=0.1), reward={"length": rewarded})
    run.advance()
    run.advance()
    assert all(torch.equal(tensor, before[name]) for name, tensor in begin().model.state_dict().items())


@each_base
def test_the_first_ratio_is_one(base):
    """What was sampled, computed again by the pass that learns: nothing is clipped, nothing has drifted."""
    run = begun(textual(base))
    if run.clock == "updates":
        pytest.skip("it samples nothing")
    run._update(batches(run))
    assert float(run.metrics["rollout/clipped"].max()) == 0
    assert float(run.metrics["rollout/drift"].abs().max()) < 1e-6
    assert float(run.metrics["rollout/mismatch"].max()) < 1e-5
