"""What every algorithm and method must keep: whoever is listed is tried here, on small random worlds.

A method with arguments that have no default, or whose defaults take long, goes into `ARGUMENTS`. Nothing else is to be
done for a new one.
"""

import copy
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from palaestra.algorithm import AfterUpdate, Term, add_term, changed_parts, replace_term
from palaestra.expression import catalogue, parse
from palaestra.learner import Learner
from tests.parts import meta
from tests.parts.texts import BASES as TEXTUAL
from tests.parts.texts import NEEDS_MODELS, host
from tests.parts.worlds import WORLDS, batches, fits, small, spec
from tests.rotation import rotating

# The methods with an expert clone it from a dataset first.
ARGUMENTS = dict.fromkeys(("rlif", "rlif-random", "hg-dagger"), "(fit_updates=2)")
MAIN = tuple(WORLDS)[:2]


@cache
def world_of(expression):
    """The first of the two main worlds that an expression fits, or any other; None if there is none."""
    return next((world for world in (*MAIN, *WORLDS) if fits(expression, world)), None)


def changed(base, method):
    return f"{small(base)}+{method}{ARGUMENTS.get(method, '')}"


@cache
def hosts(method):
    """The bases that a method fits and changes: cql-discrete, for one, is double already."""
    fitting = [base for base in catalogue("algorithms") if world_of(changed(base, method))]
    return [base for base in fitting if changed_parts(parse(small(base)), parse(changed(base, method)))]


def expressions():
    """Every base, and every method on the first and the last base that it fits."""
    found = [small(base) for base in catalogue("algorithms") if world_of(small(base))]
    for method in catalogue("methods"):
        found += [changed(base, method) for base in dict.fromkeys(hosts(method)[:1] + hosts(method)[-1:])]
    return found


EXPRESSIONS = expressions()
EVERYWHERE = [(e, world) for e in EXPRESSIONS for world in WORLDS if world in MAIN or "+" not in e if fits(e, world)]
each_expression = pytest.mark.parametrize("expression", rotating(EXPRESSIONS))
each_expression_everywhere = pytest.mark.parametrize(("expression", "world"), rotating(EVERYWHERE))


def learner(expression, seed=0, **settings):
    return Learner(parse(expression), spec(world_of(expression)), (seed,), **settings)


def updated(learner, expression, numbers, **settings):
    found = [learner.update(batches(expression, world_of(expression))[n], **settings) for n in numbers]
    return found[-1]


def differing(one, other):
    """The names of the parameters and buffers that two learners do not share bit for bit."""
    left, right = one.nets.state_dict(), other.nets.state_dict()
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


# ------------------------------------------------------------------------------------------------------ who is tried


@pytest.mark.parametrize("base", list(catalogue("algorithms")))
def test_every_base_fits_a_world(base):
    assert world_of(small(base)) or base in TEXTUAL, (
        f"{base} fits none of {', '.join(WORLDS)}: add a world to tests/parts/worlds.py"
    )


@pytest.mark.parametrize("method", list(catalogue("methods")))
def test_every_method_fits_a_base_and_changes_it(method):
    fits_one = hosts(method) or method in NEEDS_MODELS or host(method)
    assert fits_one, f"{method} fits no base, or changes none; if it needs arguments, put them into ARGUMENTS"


# --------------------------------------------------------------------------------------------------------- contracts


@each_expression
def test_written_and_read(expression):
    algorithm = parse(expression)
    assert parse(str(algorithm)) == algorithm
    assert str(parse(str(algorithm))) == str(algorithm)


@each_expression_everywhere
def test_terms_never_look_at_a_number(expression, world):
    algorithm = parse(expression)
    rows = meta.run(algorithm, spec(world), batches(expression, world)[0])
    assert len(rows) == sum(len(loss.terms) for loss in algorithm.losses.values())


@each_expression_everywhere
def test_gradients(expression, world):
    """They are finite, and there for what is trained, and only for that."""
    algorithm = parse(expression)
    names = list(algorithm.losses)
    for count in range(1, len(names) + 1):
        losses = {name: algorithm.losses[name] for name in names[:count]}
        after = tuple(each for each in algorithm.after_update if each.follows in losses)
        trained = {net for loss in losses.values() for net in loss.trains}
        one = Learner(replace(algorithm, losses=losses, after_update=after), spec(world))
        stepped = set()
        for update in range(10):  # some losses do not step in every update
            metrics, _ = one.update(batches(expression, world)[update % 4])
            stepped |= set(metrics)
            if all(f"loss/{name}" in stepped for name in losses):
                break
        assert all(f"loss/{name}" in stepped for name in losses)
        assert all(value.isfinite().all() for value in metrics.values())
        for name, parameter in one.nets.named_parameters():
            if name.split(".")[0] in trained:
                assert parameter.grad is not None, f"{name} is trained and has no gradient"
                assert parameter.grad.isfinite().all(), name
                assert parameter.isfinite().all(), name
            else:
                assert parameter.grad is None, f"{name} is not trained by {', '.join(losses)} and has a gradient"


@each_expression
def test_what_is_not_trained_asks_for_no_gradient(expression):
    one = learner(expression)
    trained = {net for loss in one.algorithm.losses.values() for net in loss.trains}
    for _ in range(2):
        for name, net in one.nets.items():
            assert all(p.requires_grad == (name in trained) for p in net.parameters()), name
        updated(one, expression, [0, 1])


@each_expression
def test_a_learner_goes_on_from_its_state(expression):
    one, other = learner(expression), learner(expression, seed=1)
    updated(one, expression, [0, 1, 2])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert not differing(one, other)
    for n in (3, 0, 1):
        metrics, columns = updated(one, expression, [n])
        again, columns_again = updated(other, expression, [n])
        assert all(torch.equal(metrics[name], again[name]) for name in metrics)
        for stream in columns:
            assert all(torch.equal(columns[stream][name], columns_again[stream][name]) for name in columns[stream])
    assert not differing(one, other)


@each_expression
def test_seeds(expression):
    one, same, other = (learner(expression, seed) for seed in (5, 5, 6))
    for each in (one, same, other):
        updated(each, expression, [0, 1, 2, 3])
    assert not differing(one, same)
    changed = differing(one, other)
    trained = {net for loss in one.algorithm.losses.values() for net in loss.trains}
    assert all(any(name.startswith(f"{net}.") for name in changed) for net in trained)


@each_expression
def test_an_update_in_pieces(expression):
    whole, parts = learner(expression), learner(expression)
    for n in range(2):
        metrics, _ = updated(whole, expression, [n])
        again, _ = updated(parts, expression, [n], split=4)
        for name in metrics:
            assert again[name].item() == pytest.approx(metrics[name].item(), rel=1e-4, abs=1e-5), name
        for (name, left), right in zip(whole.nets.named_parameters(), parts.nets.parameters(), strict=True):
            if left.grad is not None:
                gap, size = (left.grad - right.grad).norm(), left.grad.norm()
                assert gap <= 1e-4 * size + 1e-6, name


FAST = small("sac")


@pytest.mark.parametrize(
    "expression", [pytest.param(e, marks=[] if e == FAST else [pytest.mark.slow]) for e in EXPRESSIONS]
)
def test_compiled_is_eager(expression, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    eager, compiled = learner(expression), learner(expression, compile=True)
    for n in range(2):
        metrics, columns = updated(eager, expression, [n])
        again, columns_again = updated(compiled, expression, [n])
        for name in metrics:
            assert again[name].item() == pytest.approx(metrics[name].item(), rel=1e-4, abs=1e-5), name
        assert {s: list(c) for s, c in columns.items()} == {s: list(c) for s, c in columns_again.items()}
        for (name, left), right in zip(eager.nets.named_parameters(), compiled.nets.parameters(), strict=True):
            if left.grad is not None:
                assert (left.grad - right.grad).norm() <= 1e-4 * left.grad.norm() + 1e-6, name


def test_a_compiled_loss_and_its_gradient_are_one_graph(monkeypatch):
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch._dynamo.reset()
    compiled = learner(FAST, compile=True)
    for n in range(3):
        updated(compiled, FAST, [n])
    assert counter.frame_count == len(compiled.algorithm.losses)  # a break at the gradient would make two of each
    assert not torch._dynamo.config.trace_autograd_ops  # of everybody else's graphs


@each_expression
def test_two_builds_share_no_memory(expression):
    algorithm = parse(expression)
    one, other = (Learner(algorithm, spec(world_of(expression))) for _ in range(2))
    places = [{t.data_ptr() for t in each.nets.state_dict().values() if t.numel()} for each in (one, other)]
    assert not places[0] & places[1]
    assert len(places[0]) == sum(t.numel() > 0 for t in one.nets.state_dict().values())  # nor two networks of one
    updated(one, expression, [0, 1])
    fresh = Learner(algorithm, spec(world_of(expression)))
    assert not differing(other, fresh)  # nor any state of the algorithm's own


# ------------------------------------------------------------------------------------- that the contracts can be broken


def item(rows):
    return rows * rows.mean().item()


def branch(rows):
    return rows if rows.mean() > 0 else -rows


def numpy(rows):
    return rows * torch.from_numpy(rows.detach().numpy())


def boolean(rows):
    return rows + rows[rows > 0].mean()


def count(rows):
    return rows * len(rows.nonzero())


def captured(rows):
    return rows * torch.ones(len(rows))


def reduced(rows):
    return rows.mean()


def unsqueezed(rows):
    return rows[None]


def undeclared(rows):
    return rows, {"surprise": rows}


def planted(nets, b, mistake):
    return mistake(nets["critic"](b["obs"]).amax(-1))


@pytest.mark.parametrize("mistake", [item, branch, numpy, boolean, count, captured, reduced, unsqueezed, undeclared])
def test_a_planted_mistake_is_found(mistake):
    expression = small("dqn")
    term = Term(partial(planted, mistake=lambda rows: rows))
    batch = batches(expression, "discrete")[0]
    meta.run(replace_term(parse(expression), "critic", "td", term), spec("discrete"), batch)
    term = Term(partial(planted, mistake=mistake))
    with pytest.raises((RuntimeError, TypeError, AssertionError)):
        meta.run(replace_term(parse(expression), "critic", "td", term), spec("discrete"), batch)


def test_states_of_learners_are_not_tied():
    """What one learner gave another stays the other's, though both learn on."""
    one, other, copied = learner(FAST), learner(FAST), learner(FAST)
    updated(one, FAST, [0, 1, 2])
    copied.load_state_dict(copy.deepcopy(one.state_dict()))
    other.load_state_dict(one.state_dict())
    updated(one, FAST, [0, 1, 2])
    updated(copied, FAST, [3, 0])
    updated(other, FAST, [3, 0])
    assert not differing(other, copied)


def test_a_term_after_the_others_reads_what_they_gave():
    algorithm = add_term(parse(FAST), "actor", "echo", Term(lambda nets, b: b["error"], needs=("error",)))
    one = Learner(algorithm, spec("continuous"))
    metrics, columns = one.update(batches(FAST, "continuous")[0])
    assert metrics["loss/actor/echo"].item() == pytest.approx(columns["replay"]["error"].mean().item(), rel=1e-6)


def test_what_follows_a_loss_runs_when_it_stepped():
    seen = []
    after = AfterUpdate(lambda nets, batch, optimisers: seen.append(int(nets.clock.updates)), follows="actor")
    algorithm = parse("td3(hidden=(8,), policy_delay=3)")
    one = Learner(replace(algorithm, after_update=(after,)), spec("continuous"))
    for n in range(7):
        one.update(batches(FAST, "continuous")[n % 4])
    assert seen == [3, 6]
