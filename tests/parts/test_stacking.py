"""Several seeds at once learn what each would learn alone: the same draws, to float tolerance."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from palaestra.algorithm import (
    Buffer,
    Start,
    Transform,
    Unfit,
    add_buffer,
    collect_with,
    first_state,
    mix,
    prepend_transform,
    reprioritise,
    with_tasks,
)
from palaestra.algorithms.td3 import td3
from palaestra.batch import flatten
from palaestra.data.layouts import transition
from palaestra.data.priorities import Proportional
from palaestra.envs.make import make_vector
from palaestra.expression import catalogue, parse
from palaestra.faults import NotFinite
from palaestra.functional.schedules import linear
from palaestra.learner import Learner
from palaestra.loops.offline import Offline
from palaestra.loops.online import Online, logged_column, online, stacking_problem
from tests.parts.test_contracts import ARGUMENTS, hosts, world_of
from tests.parts.worlds import WORLDS, RandomWorld, batches, beside, dataset, fits, small, spec
from tests.rotation import rotating

SEEDS = (3, 0, 7)
COPIES = 2


class Apart(RandomWorld):
    """A copy draws from spaces of its own, so that it goes on alike whatever is stepped beside it."""

    def __init__(self, observation, action):
        super().__init__(copy.deepcopy(observation), action)


def run_of(expression, world, seeds):
    """A run of some seeds, with as many copies for each, or one on a dataset where it learns from that alone."""
    algorithm = parse(expression)
    if logged_column(algorithm):
        return Offline(algorithm, dataset(world), seeds)
    copies = [partial(Apart, *WORLDS[world])] * (COPIES * len(seeds))
    env = SyncVectorEnv(copies, autoreset_mode=AutoresetMode.DISABLED)
    return Online(algorithm, env, seeds, dataset=beside(algorithm, world))


def early(base):
    """The base with few rows before it learns, so that a few steps see updates."""
    return small(base, start=8, batch_size=8, collect=4, target_every=2, exploration_steps=10, minibatches=2, epochs=2)


def advanced(run, number=6):
    for _ in range(number):
        run.advance()
    return run


def close(left, right, what):
    assert left.shape == right.shape, what
    if left.dtype.is_floating_point:
        assert torch.allclose(left, right, rtol=1e-3, atol=1e-4), f"{what}: {(left - right).abs().max()}"
    else:
        assert torch.equal(left, right), what


BASES = [(early(base), world) for base in catalogue("algorithms") for world in WORLDS if fits(early(base), world)]
HOSTED = [
    f"{early(base)}+{method}{ARGUMENTS.get(method, '')}"
    for method in catalogue("methods")
    for base in dict.fromkeys(hosts(method)[:1] + hosts(method)[-1:])
]
CHANGED = [(expression, world_of(expression)) for expression in HOSTED]


def the_same(together, singles):
    """Whether stacked seeds went where each went alone."""
    assert together.learner.updates > 1
    for i, (seed, single) in enumerate(zip(together.seeds, singles, strict=True)):
        assert (single.count, single.learner.updates) == (together.count, together.learner.updates)
        assert single.metrics.keys() == together.metrics.keys()
        for name, value in single.metrics.items():
            close(value, together.metrics[name][i], name)
        ours, theirs = single.learner.nets.state_dict(), together.learner.nets_of(seed).state_dict()
        for name, value in ours.items():
            close(value, theirs[name], name)
        if isinstance(single, Offline):
            continue
        seen, others = flatten({"obs": single.source.obs}), flatten({"obs": together.source.obs})
        copies = single.source.n
        for name, value in seen.items():
            close(value, others[name][i * copies : (i + 1) * copies], name)


@pytest.mark.parametrize(("expression", "world"), rotating(BASES + CHANGED))
def test_stacked_equals_single(expression, world):
    if problem := stacking_problem(parse(expression)):
        pytest.skip(problem)
    together = advanced(run_of(expression, world, SEEDS))
    the_same(together, [advanced(run_of(expression, world, (seed,))) for seed in SEEDS])


def test_few_algorithms_cannot_be_stacked():
    cannot = {expression.partition("+")[2] for expression, _ in BASES + CHANGED if stacking_problem(parse(expression))}
    assert cannot == {"props", "robust-on-policy-sampling"}  # another policy learns while they collect


def small_td3(**settings):
    return td3(start=4, batch_size=8, hidden=(8,), **settings)


def pendulums(algorithm, seeds, world="palaestra/Pendulum-v0"):
    return Online(algorithm, make_vector(world, COPIES * len(seeds)), seeds)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: reprioritise(a, "replay", Proportional(1.0, 0.5)),
        lambda a: mix(
            reprioritise(add_buffer(a, "good", Buffer(transition, keep=positive)), "good", Proportional(1.0, 0.5)),
            "replay",
            good=0.5,
        ),
        lambda a: prepend_transform(a, Transform(Paid())),  # has a state: one for each seed
        lambda a: prepend_transform(a, Transform(shaken)),
        lambda a: prepend_transform(a, Transform(shaken, moment="collect")),
        lambda a: replace(a, losses={n: replace(loss, clip_norm=0.05) for n, loss in a.losses.items()}),
        lambda a: replace(a, losses={n: replace(loss, lr=linear(1e-2, 1e-3, 20)) for n, loss in a.losses.items()}),
        lambda a: with_tasks(a, Heavier()),
        lambda a: first_state(a, Somewhere()),
    ],
    ids=["priority", "mix", "stateful", "random", "random-collect", "clip", "rate", "tasks", "starts"],
)
def test_the_other_parts_are_each_seeds_own(change):
    world = "palaestra/ContextualPendulum-v0"
    together = advanced(pendulums(change(small_td3()), SEEDS, world), 12)
    the_same(together, [advanced(pendulums(change(small_td3()), (seed,), world), 12) for seed in SEEDS])


def positive(rows):
    return rows["obs"][..., 0] > 0


class Paid:
    """Pays the number of batches so far."""

    def __init__(self):
        self.batches = 0.0

    def __call__(self, nets, batch, rng):
        self.batches += 1.0
        return {**batch, "reward": batch["reward"] + self.batches}

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


def shaken(nets, batch, rng):
    """Rewards with noise, and now and then doubled."""
    noise = torch.randn(batch["reward"].shape, generator=rng)
    twice = torch.rand(batch["reward"].shape, generator=rng) < 0.5
    return {**batch, "reward": torch.where(twice, 2 * batch["reward"], batch["reward"]) + noise}


class Heavier:
    """Tasks that are drawn, and heavier with every episode that ended."""

    def __init__(self):
        self.ended = 0

    def sample(self, nets, rng):
        return (6.0 + self.ended + torch.rand((), generator=rng).item(), 1.0, 1.0)

    def update(self, tasks, episodes):
        self.ended += len(episodes)


class Somewhere:
    """Starts that are drawn, and episodes of three steps."""

    def sample(self, task, env_steps, rng):
        return Start(torch.randn(2, generator=rng).numpy().astype(np.float64), time_limit=3)

    def observe(self, episode):
        pass


def test_a_state_goes_on_alike():
    whole = advanced(pendulums(small_td3(), SEEDS), 20)
    half = advanced(pendulums(small_td3(), SEEDS), 9)
    other = pendulums(small_td3(), SEEDS)
    other.load_state_dict(half.state_dict(), {"replay": [half.replays["replay"].segment()]})
    advanced(other, 11)
    left, right = whole.learner.state_dict(), other.learner.state_dict()
    assert all(torch.equal(left["nets"][name], right["nets"][name]) for name in left["nets"])
    assert all(torch.equal(value, other.metrics[name]) for name, value in whole.metrics.items())


@pytest.mark.parametrize("split", [2, 4])
def test_an_update_in_pieces(split):
    learners = [Learner(small_td3(), spec("continuous"), SEEDS) for _ in range(2)]
    rng = torch.Generator().manual_seed(0)
    one = batches(early("td3"), "continuous")[0]["replay"]
    batch = {k: torch.stack([v[torch.randperm(len(v), generator=rng)] for _ in SEEDS]) for k, v in one.items()}
    for learner, pieces in zip(learners, (1, split), strict=True):
        for _ in range(2):
            learner.update({"replay": batch}, split=pieces)
    for (name, left), right in zip(learners[0].nets.named_parameters(), learners[1].nets.parameters(), strict=True):
        if left.grad is not None:
            assert (left.grad - right.grad).norm() <= 1e-4 * left.grad.norm() + 1e-6, name


def test_every_seeds_episodes_and_scores_are_its_own():
    def recorded(seeds):
        rows = []
        run = pendulums(small_td3(), seeds)
        online(run, 420, make_vector("palaestra/Pendulum-v0", 3 * len(seeds)), evaluate_every=200, record=rows.append)
        return rows

    together = recorded((1, 2))
    for seed in (1, 2):
        for row, own in zip(recorded((seed,)), [row for row in together if row["seed"] == seed], strict=True):
            assert row.keys() == own.keys()
            for key in row.keys() - {"kind", "seconds", "scores"}:
                assert own[key] == pytest.approx(row[key], rel=1e-2, abs=1e-3), key
            if row["kind"] == "evaluation":
                assert own["scores"]["episode_return"] == pytest.approx(row["scores"]["episode_return"], rel=1e-2)
                assert len(own["scores"]["episode_return"]) == 3


def test_what_cannot_be_stacked_says_why():
    stops = replace(small_td3(), schedule=replace(small_td3().schedule, stop=lambda metrics: False))
    with pytest.raises(Unfit, match="stops each seed's passes"):
        pendulums(stops, SEEDS)
    with pytest.raises(Unfit, match="collects in a way of its own"):
        pendulums(collect_with(small_td3(), lambda collect: partial(collect)), SEEDS)
    with pytest.raises(ValueError, match="give at least one, and each once"):
        Learner(small_td3(), spec("continuous"), (1, 1))
    with pytest.raises(ValueError, match="3 environments cannot be shared by 2 seeds"):
        Online(small_td3(), make_vector("palaestra/Pendulum-v0", 3), (0, 1))


@pytest.mark.parametrize("at_once", [1, 3, 256])
def test_a_number_that_is_not_finite_is_found_with_its_seed_and_update(at_once, monkeypatch):
    monkeypatch.setattr("palaestra.finiteness.AT_ONCE", at_once)
    learner = Learner(small_td3(), spec("continuous"), SEEDS)
    one = batches(early("td3"), "continuous")[0]["replay"]
    batch = {k: torch.stack([v] * 3) for k, v in one.items()}
    learner.update({"replay": batch})
    learner.check_finite()
    learner.update({"replay": {**batch, "reward": torch.stack([one["reward"]] * 2 + [one["reward"] / 0])}})
    learner.update({"replay": batch})
    with pytest.raises(NotFinite, match="loss/critic was not finite in update 2 of seed 7"):
        learner.check_finite()
