"""Algorithms as values: merging, conflicts, needs, expressions."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from palaestra import algorithm as parts
from palaestra.algorithm import (
    PARTS,
    AfterUpdate,
    Buffer,
    Call,
    Conflict,
    Loss,
    Nets,
    Schedule,
    Term,
    Transform,
    Unfit,
    UnmetNeed,
    changed_parts,
    expressed,
    gives,
    same,
)
from palaestra.algorithms.dqn import double, dqn, dueling
from palaestra.algorithms.experience import n_step, prioritised
from palaestra.algorithms.sac import sac
from palaestra.algorithms.td3 import ddpg, td3
from palaestra.batch import Space, Spec
from palaestra.data.layouts import n_steps, windows
from palaestra.data.priorities import Proportional
from palaestra.expression import catalogue, parse, read, split
from palaestra.functional.targets import huber, squared
from palaestra.learner import Learner
from palaestra.networks.critics import action_critic, copy_of
from palaestra.rollout.exploration import noisy

SPEC = Spec(Space((3,)), Space((2,)))
CHOICES = Spec(Space((3,)), Space((), torch.int64, (4,)))


def rows(nets, b, bonus=0.0):
    return b["reward"] + bonus


def policy(nets, obs, memory, rng):
    return nets["actor"](obs), {}, memory


def method(name, function):
    """A method of this name, as one in a file of its own is made."""
    function.__name__ = name
    return expressed(function)


HUBERS = method("hubers", lambda algorithm: parts.rebind(algorithm, "critic", "td", regression=huber))
SQUARES = method("squares", lambda algorithm: parts.rebind(algorithm, "critic", "td", regression=squared))
REPLACES = method("replaces", lambda algorithm: parts.replace_term(algorithm, "critic", "td", Term(rows)))
WINDOWS = method(
    "windows_of_five", lambda algorithm: parts.with_layout(algorithm, "replay", partial(windows, length=5))
)
POLICY = method("first_policy", lambda algorithm: parts.replace_policy(algorithm, policy))
OTHER_POLICY = method("second_policy", lambda algorithm: parts.replace_policy(algorithm, policy))
HASTY = method("hasty", lambda algorithm: parts.reschedule(algorithm, updates=2.0))
HASTIER = method("hastier", lambda algorithm: parts.reschedule(algorithm, updates=4.0, batch_size=8))
TASKS = method("one_tasks", lambda algorithm: parts.with_tasks(algorithm, object()))
OTHER_TASKS = method("two_tasks", lambda algorithm: parts.with_tasks(algorithm, object()))
CRITIC = method("one_critic", lambda algorithm: parts.replace_network(algorithm, "critic", action_critic(3)))
OTHER_CRITIC = method("two_critic", lambda algorithm: parts.replace_network(algorithm, "critic", action_critic(4)))


# --------------------------------------------------------------------------------------------------------- conflicts


@pytest.mark.parametrize(
    ("first", "second", "place"),
    [
        (HUBERS, SQUARES, "losses.critic.td.regression"),
        (n_step, WINDOWS, "buffers.replay.layout"),
        (POLICY, OTHER_POLICY, "policy"),
        (HASTY, HASTIER, "schedule.updates"),
        (TASKS, OTHER_TASKS, "tasks"),
        (CRITIC, OTHER_CRITIC, "networks.critic"),
        (n_step, n_step, "buffers.replay.layout"),
        (HUBERS, REPLACES, "losses.critic.td"),  # the first one's change would be lost without a word
        (REPLACES, REPLACES, "losses.critic.td"),
    ],
)
def test_two_methods_on_a_part_that_holds_one(first, second, place):
    slugs = [function.__name__.replace("_", "-") for function in (first, second)]
    with pytest.raises(Conflict, match=place) as conflict:
        second(first(td3()))
    assert all(slug in str(conflict.value) for slug in slugs)


def test_what_one_method_sets_twice_is_its_own():
    twice = method("twice", lambda algorithm: SQUARES.__wrapped__(HUBERS.__wrapped__(algorithm)))
    assert twice(td3()).losses["critic"].terms["td"].value.keywords["regression"] is squared


def test_methods_on_different_places_merge():
    both = prioritised(n_step(HUBERS(td3()), n=5))
    assert both.buffers["replay"].layout.keywords == {"n": 5}
    assert len(both.buffers["replay"].priority) == 1
    assert both.losses["critic"].terms["td"].value.keywords["regression"] is huber
    assert both == HUBERS(prioritised(n_step(td3(), n=5)))
    assert both.losses["actor"] is not None
    assert changed_parts(td3(), both) == ("buffers", "losses")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: parts.add_networks(a, actor=copy_of("critic")), "network 'actor' exists"),
        (lambda a: parts.add_loss(a, "critic", Loss({"x": Term(rows)}, ("critic",))), "loss 'critic' exists"),
        (lambda a: parts.add_term(a, "critic", "td", Term(rows)), "has a term 'td'"),
        (lambda a: parts.add_buffer(a, "replay", Buffer(n_steps)), "buffer 'replay' exists"),
    ],
)
def test_names_that_are_taken(change, named):
    with pytest.raises(Conflict, match=named):
        change(td3())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: parts.replace_network(a, "critik", copy_of("actor")), r"'critik'.*actor, critic"),
        (lambda a: parts.add_term(a, "criti", "x", Term(rows)), r"'criti'.*critic, actor"),
        (lambda a: parts.replace_term(a, "critic", "tdd", Term(rows)), r"'tdd'; there are: td"),
        (lambda a: parts.rebind(a, "critic", "td", regresion=huber), r"'regresion'; there are: .*regression"),
        (lambda a: parts.reprioritise(a, "repla", Proportional(1.0, 1.0)), r"'repla'; there are: replay"),
        (lambda a: parts.mix(a, "replay", demos=0.5), r"'demos'; there are: replay"),
        (lambda a: parts.also_after(a, AfterUpdate(rows, "critics")), r"'critics'; there are: critic, actor"),
    ],
)
def test_names_that_are_wrong(change, named):
    with pytest.raises(KeyError, match=named):
        change(td3())


# -------------------------------------------------------------------------------------------------- how parts merge


def test_terms_are_added_up_and_replaced():
    more = parts.add_term(td3(), "critic", "extra", Term(rows, coefficient=0.5))
    assert list(more.losses["critic"].terms) == ["td", "extra"]
    assert list(td3().losses["critic"].terms) == ["td"]
    other = parts.replace_term(more, "critic", "extra", Term(rows))
    assert other.losses["critic"].terms["extra"].coefficient == 1.0
    assert other.losses["critic"].terms["td"] is more.losses["critic"].terms["td"]


def test_rebind_leaves_the_rest_of_a_term():
    before = td3(gamma=0.9, target_noise=0.3).losses["critic"].terms["td"]
    changed = parts.rebind(td3(gamma=0.9, target_noise=0.3), "critic", "td", regression=huber)
    after = changed.losses["critic"].terms["td"]
    assert after.value.keywords == {**before.value.keywords, "regression": huber}
    assert after.value.func is before.value.func
    assert replace(after, value=before.value) == before
    plain = parts.add_term(td3(), "critic", "extra", Term(rows))
    term = parts.rebind(plain, "critic", "extra", bonus=2.0).losses["critic"].terms["extra"]
    assert term.value(None, {"reward": torch.ones(2)}).tolist() == [3.0, 3.0]


def test_priorities_and_transforms_are_collected_in_order():
    one, two = Proportional(1.0, 1.0), Proportional(0.5, 0.5)
    algorithm = parts.reprioritise(parts.reprioritise(td3(), "replay", one), "replay", two)
    assert algorithm.buffers["replay"].priority == (one, two)
    a, b, c = (Transform(partial(rows, bonus=n)) for n in range(3))
    algorithm = parts.prepend_transform(parts.append_transform(parts.append_transform(td3(), a), b), c)
    assert algorithm.transforms == (c, a, b)


def test_first_state_asks_the_newest_first():
    one, two = object(), object()
    assert parts.first_state(parts.first_state(td3(), one), two).initial_states == (two, one)


@pytest.mark.parametrize("part", ["exploration", "deployment"])
def test_the_newest_wrapper_is_the_outermost(part):
    def scaled(policy, factor, offset):
        def act(nets, obs, memory, rng):
            action, columns, memory = policy(nets, obs, memory, rng)
            return factor * action + offset, columns, memory

        return act

    wrap = {"exploration": parts.explore_with, "deployment": parts.deploy_with}[part]
    algorithm = wrap(replace(td3(), **{part: parts.identity}), partial(scaled, factor=2.0, offset=1.0))
    algorithm = wrap(algorithm, partial(scaled, factor=10.0, offset=0.0))
    act = getattr(algorithm, part)(lambda nets, obs, memory, rng: (obs, {}, memory))
    assert act(None, torch.tensor([3.0]), None, None)[0].tolist() == [70.0]  # 10 (2 * 3 + 1)


def test_collect_with_wraps():
    algorithm = replace(td3(), collect=lambda *args: ["step"])
    for name in ("inner", "outer"):
        algorithm = parts.collect_with(algorithm, lambda collect, name=name: lambda *args: [name, *collect(*args)])
    assert algorithm.collect() == ["outer", "inner", "step"]


def test_reward_is_replaced_when_rows_are_drawn():
    algorithm = parts.with_reward(td3(hidden=(4,)), lambda nets, batch, rng: batch["obs"][:, 0])
    (transform,) = algorithm.transforms
    batch = {"obs": torch.tensor([[2.0], [3.0]]), "reward": torch.zeros(2)}
    assert transform.fn(None, batch, None)["reward"].tolist() == [2.0, 3.0]
    assert batch["reward"].tolist() == [0.0, 0.0]


def test_mixed_shares():
    algorithm = parts.add_buffer(parts.add_buffer(td3(), "demos", Buffer(n_steps)), "help", Buffer(n_steps))
    algorithm = parts.mix(parts.mix(algorithm, "replay", demos=0.5), "replay", help=0.25)
    assert algorithm.buffers["replay"].shares == {"demos": 0.5, "help": 0.25}
    for wrong in ({"demos": 1.0}, {"demos": -0.1}, {"replay": 0.5}, {"demos": 0.5, "help": 0.5}):
        with pytest.raises(ValueError, match="shares"):
            parts.mix(td3_with_demos(), "replay", **wrong)


def td3_with_demos():
    return parts.add_buffer(parts.add_buffer(td3(), "demos", Buffer(n_steps)), "help", Buffer(n_steps))


def test_a_moment_that_there_is_not():
    with pytest.raises(ValueError, match="'updates'; it must be"):
        Transform(rows, moment="updates")


# ------------------------------------------------------------------------------------------------------------- needs


@gives("a_test_column")
def supplied(nets, obs, memory, rng):
    return nets["actor"](obs), {"a_test_column": obs[:, 0]}, memory


def needing(algorithm, **of_term):
    return parts.add_term(algorithm, "critic", "extra", Term(rows, **of_term))


def test_an_unmet_need_names_the_column_and_who_could_give_it():
    algorithm = needing(td3(), needs=("a_test_column",))
    with pytest.raises(UnmetNeed, match=r"term 'extra' of loss 'critic' needs column 'a_test_column'") as error:
        algorithm.check()
    assert f"{__name__}.supplied" in str(error.value)
    with pytest.raises(UnmetNeed):
        Learner(algorithm, SPEC)
    parts.replace_policy(algorithm, supplied).check()


def test_nobody_could_give_it():
    with pytest.raises(UnmetNeed, match=r"'unheard_of' could come from: no part that is loaded"):
        needing(td3(), needs=("unheard_of",)).check()


def test_an_exploration_gives_columns_wherever_it_stands():
    @gives("a_test_column")
    def intervened(policy):
        return lambda *args: policy(*args)

    algorithm = parts.explore_with(needing(td3(), needs=("a_test_column",)), intervened)
    algorithm.check()
    parts.explore_with(algorithm, partial(noisy, scale=0.1)).check()


def test_needs_are_met_by_layouts_transforms_and_earlier_losses():
    n_step(needing(td3(), needs=("steps",))).check()
    with pytest.raises(UnmetNeed):
        needing(td3(), needs=("steps",)).check()
    transform = Transform(rows, gives=("bonus",))
    parts.append_transform(needing(td3(), needs=("bonus",)), transform).check()
    with pytest.raises(UnmetNeed, match="transform 0 needs column 'novelty'"):
        parts.append_transform(td3(), Transform(rows, needs=("novelty",))).check()
    later = parts.add_term(td3(), "actor", "extra", Term(rows, needs=("error",)))
    later.check()
    with pytest.raises(UnmetNeed):  # the critic's loss comes before the actor's
        needing(parts.add_term(td3(), "actor", "x", Term(rows, gives=("late",))), needs=("late",)).check()


@pytest.mark.parametrize(
    ("algorithm", "error", "named"),
    [
        (needing(td3(), noise=("latent",)), UnmetNeed, "'latent'"),
        (needing(td3(), stream="demos"), KeyError, "'demos'; there are: replay"),
        (
            parts.add_loss(td3(), "model", Loss({"x": Term(rows)}, ("model",))),
            KeyError,
            "'model' trains is called 'model'",
        ),
        (replace(td3(), after_update=(AfterUpdate(rows, "critics"),)), KeyError, "'critics'"),
        (replace(td3(), losses={"critic": Loss({"x": Term(rows)}, ())}, after_update=()), Unfit, "trains nothing"),
    ],
)
def test_what_does_not_fit_together_is_named(algorithm, error, named):
    with pytest.raises(error, match=named):
        Learner(algorithm, SPEC)


@pytest.mark.parametrize(("algorithm", "spec"), [(td3(), CHOICES), (sac(), CHOICES), (dqn(), SPEC)])
def test_the_wrong_kind_of_action_is_named(algorithm, spec):
    with pytest.raises(Unfit, match="try"):
        Learner(algorithm, spec)


# ------------------------------------------------------------------------------------------------- values and names


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (td3(), td3(), ()),
        (td3(), td3(lr=1e-3), ("losses",)),
        (td3(), td3(hidden=(64,)), ("networks",)),
        (td3(), td3(tau=0.01), ("after_update",)),
        (td3(), td3(start=7), ("exploration", "schedule")),
        (td3(), td3(capacity=9), ("buffers",)),
        (dqn(), double(dqn()), ("losses",)),
        (dqn(), dueling(dqn()), ("networks",)),
        (dqn(), n_step(prioritised(dqn())), ("buffers",)),
        (sac(), sac(entropy_coefficient=0.2), ("networks", "losses")),
        (td3(), parts.replace_policy(td3(), policy), ("policy",)),
        (td3(), parts.also_evaluate(td3(), rows), ("evaluation",)),
        (td3(), parts.reschedule(td3(), updates=0.5), ("schedule",)),
        (td3(), ddpg(), tuple(part for part in PARTS if part in ("networks", "losses"))),
    ],
)
def test_changed_parts_are_computed(before, after, changed):
    assert changed_parts(before, after) == changed
    assert (before == after) is (not changed)
    assert (hash(before) == hash(after)) or changed


def test_equal_algorithms_hash_alike():
    one, other = ddpg(), td3(policy_delay=1, target_noise=0.0, target_clip=0.0, critics=1)
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize("text", ["td3(hidden=[8, 8])", "td3(hidden=(8, 8))"])
def test_every_algorithm_that_can_be_written_hashes(text):
    assert hash(parse(text)) == hash(parse(text))


def made(number):
    return lambda: number


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (partial(rows, bonus=1.0), partial(rows, bonus=1.0), True),
        (partial(rows, bonus=1.0), partial(rows, bonus=2.0), False),
        (made(1), made(1), True),
        (made(1), made(2), False),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), True),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), False),
        (torch.tensor([1.0]), torch.tensor([1.0, 1.0]), False),
        (Proportional(0.5, 0.4), Proportional(0.5, 0.4), True),
        (Proportional(0.5, 0.4), Proportional(0.6, 0.4), False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),  # losses are minimised in their order
        (Schedule(), Schedule(batch_size=1), False),
        ((1, [2]), (1, [2]), True),
        (1, True, False),
    ],
)
def test_same(left, right, equal):
    assert same(left, right) is equal
    assert same(right, left) is equal


def test_calls_keep_what_differs_from_the_defaults():
    algorithm = n_step(td3(lr=1e-3, gamma=0.99), n=5)
    assert algorithm.calls == (Call("td3", (("lr", 1e-3),)), Call("n-step", (("n", 5),), ("buffers",)))
    assert str(algorithm) == "td3(lr=0.001)+n-step(n=5)"
    assert str(ddpg()) == "ddpg"  # though it calls td3
    assert str(dueling(double(dqn()))) == "dqn+double+dueling"


def test_an_algorithm_is_built_twice_with_weights_of_its_own():
    algorithm = sac(hidden=(8,))
    one, same_seed, other = (Learner(algorithm, SPEC, (seed,)) for seed in (0, 0, 1))
    for name, value in one.nets.state_dict().items():
        assert torch.equal(same_seed.nets.state_dict()[name], value)
        assert value.dim() == 0 or not torch.equal(other.nets.state_dict()[name], value)
    with torch.no_grad():
        one.nets["critic"].mlp.weights[0].zero_()
    assert same_seed.nets["critic"].mlp.weights[0].abs().sum() > 0


@pytest.mark.parametrize("text", ["td3", "sac(hidden=(8,))", "sac-discrete", "dqn+double+dueling+n-step+prioritised"])
def test_an_algorithm_can_be_pickled(text):
    assert pickle.loads(pickle.dumps(parse(text))) == parse(text)


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Learner(td3(hidden=(8,)), SPEC, seeds=(3,))
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    "text",
    [
        "td3",
        " td3 ( lr = 1e-3 ) ",
        "td3(hidden=(64, 64), activation='tanh')",
        "sac-discrete",
        "sac_discrete(entropy_coefficient=0.5)",
        "dqn+double+dueling",
        "td3(lr=1e+3)+n_step(n=5)+prioritised(sharpness=0.5)",
    ],
)
def test_expressions_are_read_and_written(text):
    algorithm = parse(text)
    assert parse(str(algorithm)) == algorithm
    assert str(parse(str(algorithm))) == str(algorithm)


def test_settings_arrive():
    assert parse("td3(lr=1e-2, hidden=(7,))") == td3(lr=1e-2, hidden=(7,))
    assert parse("dqn+double") == double(dqn())
    assert parse("td3+n-step(n=4)") == n_step(td3(), n=4)


def test_split_and_read():
    assert split("a(x=(1+2), y='+')+b") == ["a(x=(1+2), y='+')", "b"]
    assert read("n_step(n=3, buffer='replay')") == ("n-step", {"n": 3, "buffer": "replay"})
    assert read("a") == ("a", {})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("tdd3", "no algorithm 'tdd3'; did you mean td3"),
        ("n-step", "'n-step' is a method: it changes a base, as in sac\\+n-step"),
        ("td3+sac", "'sac' is a base algorithm: it comes first"),
        ("td3+n-stp", "no method 'n-stp'; did you mean n-step"),
        ("td3(lrr=1)", "td3 has no setting 'lrr'; did you mean lr"),
        ("td3(algorithm=1)", "no setting 'algorithm'"),
        ("td3+n-step(algorithm=1)", "no setting 'algorithm'"),
        ("td3(lr='fast')", "lr='fast' does not fit; it is a float"),
        ("td3(policy_delay=1.5)", "policy_delay=1.5 does not fit"),
        ("td3(policy_delay=True)", "policy_delay=True does not fit"),
        ("td3(hidden=64)", "hidden=64 does not fit"),
        ("td3(hidden=('a',))", "does not fit"),
        ("td3(lr=None)", "lr=None does not fit"),
        ("td3(1e-3)", "arguments are given by name"),
        ("td3(lr=open('x'))", r"lr=open\('x'\) is not a literal"),
        ("td3(lr=1", "not closed"),
        ("td3(activation='relu)", "not closed"),
        ("td3(lr=)", "cannot be read"),
        ("td3)", "bracket or quote"),
        ("td3+", "not of the form"),
        ("", "not of the form"),
        ("td3(lr=1, lr=2)", "lr"),  # twice
        ("td3(hidden={[]: 1})", "td3"),
        ("td3+double", "double does not fit td3: .*next_value"),
        ("td3+dueling", "dueling does not fit td3"),
        ("sac-discrete+dueling", "dueling does not fit sac-discrete"),
        ("td3+n-step+n-step(n=2)", "both set buffers.replay.layout"),
        ("td3+n-step(n=0)", "n is 0; it must be at least 1"),
        ("td3+n-step(buffer='demos')", "'demos'; there are: replay"),
    ],
)
def test_wrong_expressions_are_explained_in_one_line(text, named):
    with pytest.raises(ValueError, match=named) as error:
        parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", list(catalogue("methods")))
def test_a_method_fits_a_base_or_says_why_not(method):
    def reason(base):
        try:
            return str(parse(f"{base}+{method}"))
        except ValueError as error:
            return str(error)

    reasons = {base: reason(base) for base in catalogue("algorithms")}
    assert {base: text for base, text in reasons.items() if method not in text} == {}


def test_every_entry_has_a_title():
    for group in ("algorithms", "methods"):
        for slug, entry in catalogue(group).items():
            assert len(entry.title) > 10, slug


def test_the_parameters_of_a_network_are_its_own():
    nets = Nets(None)
    nets["critic"] = shared = nn.Linear(2, 2)
    nets["twice"] = nn.Sequential(shared, shared)
    assert [id(p) for p in nets.parameters_of("twice")] == [id(shared.weight), id(shared.bias)]
    assert [id(p) for p in nets.parameters_of("critic")] == [id(p) for p in nets.parameters_of("twice")]
    nets["critic"] = other = nn.Linear(3, 3)
    assert [id(p) for p in nets.parameters_of("critic")] == [id(other.weight), id(other.bias)]
    copied = copy.deepcopy(nets)
    assert [id(p) for p in copied.parameters_of("critic")] == [id(p) for p in copied["critic"].parameters()]
