"""SS-ORL: windows and densities by hand, actions that are recovered, who refuses what, and nothing where none lack."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from palaestra.algorithm import Unfit
from palaestra.algorithms.td3_bc import td3_bc
from palaestra.data.dataset import Dataset, from_episodes
from palaestra.expression import parse
from palaestra.factories.datasets import action_free
from palaestra.learner import generator
from palaestra.loops.filled import whole
from palaestra.loops.offline import Offline
from palaestra.loops.online import Online
from palaestra.methods.offline import ss_orl as file
from palaestra.methods.offline.ss_orl import has_actions, inferred, label, labelled_alone, ss_orl, standardised, window
from tests.parts import worlds

SMALL = "hidden=(8,)"
BASES = [
    f"td3-bc({SMALL})", f"cql({SMALL})", f"iql({SMALL})", f"bc({SMALL})", f"xql({SMALL})",
    "decision-transformer(size=8, layers=1, length=4)",
]  # fmt: skip
QUICK = "ss-orl(hidden=(8,), batch_size=8, updates=3)"
FIT = {"past": 1, "held_out": 0.2, "hidden": (32,), "lr": 1e-2, "batch_size": 64, "updates": 1_500}


def walks(number: int = 30, length: int = 8, seed: int = 0) -> Dataset:
    """Walks in the plane, o' = o + a with torques a in [-2, 2]; a third number is noise that says nothing."""
    rng = np.random.default_rng(seed)
    episodes = []
    for _ in range(number):
        action = rng.uniform(-2, 2, (length, 2)).astype(np.float32)
        place = np.concatenate([np.zeros((1, 2)), action.cumsum(0)])
        obs = np.concatenate([place, rng.normal(size=(length + 1, 1))], 1).astype(np.float32)
        ends = np.arange(length) == length - 1
        episodes.append(
            {"obs": obs, "action": action, "reward": obs[1:, 0], "terminated": ends & False, "truncated": ends}
        )
    return from_episodes(episodes, gym.spaces.Box(-50, 50, (3,)), gym.spaces.Box(-2, 2, (2,)))


def labels(data: Dataset, **settings: object) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The columns of a dataset before and after."""
    run = Offline(td3_bc(hidden=(8,)), walks(2))
    before = whole(data, run.border)
    rng = generator(0, "test")
    with torch.no_grad():
        return before, label(run.learner.nets, before, rng, **{**FIT, **settings})


# ------------------------------------------------------------------------------------------------------- by hand


def test_windows_begin_with_zeros_and_end_with_what_followed():
    """Slots 0 to 2 are an episode of two steps, 3 and 4 one of one step."""
    seen, begun = torch.tensor([[1.0], [2.0], [3.0], [10.0], [20.0]]), torch.tensor([0, 1, 2, 0, 1])
    index = torch.tensor([0, 1, 3])
    assert window(seen, begun, index, 0).tolist() == [[1, 2], [2, 3], [10, 20]]
    assert window(seen, begun, index, 1).tolist() == [[0, 1, 2], [1, 2, 3], [0, 10, 20]]
    assert window(seen, begun, index, 2).tolist() == [[0, 0, 1, 2], [0, 1, 2, 3], [0, 0, 10, 20]]
    wide = torch.stack((seen[:, 0], -seen[:, 0]), 1)  # an observation's numbers stay together
    assert window(wide, begun, index[:1], 1).tolist() == [[0, 0, 1, -1, 2, -2]]


def test_an_episode_has_actions_unless_all_of_them_are_nan():
    nan = math.nan
    action = torch.tensor([[nan, nan], [nan, nan], [0, 0], [nan, nan], [1, nan], [0, 0], [1, 2], [0, 0]])
    valid = torch.tensor([True, True, False, True, True, False, True, False])
    first = torch.tensor([True, False, False, True, False, False, True, False])
    columns = {"action": action, "valid": valid, "first": first}
    assert has_actions(columns).tolist() == [False] * 3 + [True] * 5
    assert has_actions({**columns, "action": torch.zeros(8, dtype=torch.int64)}).all()


def test_the_density_is_a_clamped_normal():
    said = torch.tensor([[0.5, 1.0, -20.0, 3.0]], dtype=torch.float64)  # of two entries, means first
    found = inferred(lambda window: said, torch.zeros(1, 1))
    assert found.mean.tolist() == [[0.5, 1.0]]
    assert found.log_std.tolist() == [[-5.0, 2.0]]
    # -(0.5 z^2 + log std + log(2 pi) / 2) of each: z = 0 at the first mean, z = 1 one deviation above the second
    expected = 5.0 - 0.5 - 2.0 - math.log(2 * math.pi)
    action = torch.tensor([[0.5, 1.0 + math.exp(2)]], dtype=torch.float64)
    assert found.log_prob(action).item() == pytest.approx(expected)


def test_numbers_are_standardised_over_steps_alone():
    seen = torch.tensor([[0.0, 7.0], [4.0, 7.0], [1000.0, 7.0]])  # mean 2 and deviation 2 of the first two
    assert standardised(seen, torch.tensor([True, True, False])).tolist() == [[-1, 0], [1, 0], [499, 0]]


def test_the_mean_is_clipped_and_the_deviation_is_of_all_entries(monkeypatch: pytest.MonkeyPatch):
    """A model that says mean (3, -0.25) and deviations (2, 1) of everything: root of the mean variance, sqrt(2.5)."""

    def pretended(model: nn.Module, *args: object, **settings: object) -> nn.Module:
        for parameter in model.parameters():
            parameter.zero_()
        model.layers[-1].bias.copy_(torch.tensor([3.0, -0.25, math.log(2), 0.0]))
        return model

    monkeypatch.setattr(file, "fitted", pretended)
    data = action_free(walks(3, 2), [1])
    before, after = labels(data)
    filled = torch.tensor([False] * 3 + [True, True, False] + [False] * 3)
    assert after["action"][filled].tolist() == [[1.0, -0.25]] * 2
    assert torch.equal(after["action"][~filled], before["action"][~filled])
    assert after["action"][5].tolist() == [0, 0]  # a final slot
    assert after["action_deviation"].tolist() == pytest.approx(torch.where(filled, math.sqrt(2.5), 0.0).tolist())
    assert after["labelled"].tolist() == [True] * 3 + [False] * 3 + [True] * 3
    assert before["action"][filled].isnan().all()  # the columns that came are left alone


# ------------------------------------------------------------------------------------------------ what is recovered


def test_actions_are_recovered_from_what_they_did():
    """Twelve walks are labelled, eighteen are not: of uniform actions little is unexplained."""
    data = walks()
    _, after = labels(action_free(data, range(12, 30)))
    truth = torch.from_numpy(data.columns["action"]) / 2
    filled = ~after["labelled"] & torch.from_numpy(data.is_step)
    assert filled.sum() == 18 * 8
    error = (after["action"] - truth)[filled].square().mean().item()
    assert error < 0.05 / 3  # the card's bound: a twentieth of the variance
    said = after["action_deviation"][filled].square().mean().item()
    assert 0.3 * error < said < 3 * error  # it knows how wrong it is


def test_labels_depend_on_the_dataset_alone():
    data = action_free(walks(6, 4), [0, 3])
    algorithm = parse(f"td3-bc({SMALL})+{QUICK}")
    runs = [Offline(algorithm, data, seeds) for seeds in ((0,), (5,), (1, 2))]
    before = torch.random.get_rng_state()
    actions = [run.replays["replay"].columns["action"] for run in runs]
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(action, actions[0]) for action in actions[1:])
    assert actions[0].isfinite().all()


@pytest.mark.parametrize("base", BASES)
def test_every_base_learns_from_labelled_episodes(base: str):
    data = action_free(walks(6, 4), [0, 3])
    for method in (QUICK, "labelled-alone"):
        run = Offline(parse(f"{base}+{method}"), data)
        for _ in range(3):
            run.advance()
        run.learner.check_finite()
        assert all(np.isfinite(values).all() for values in run.evaluate(None, 1)[0].values())


def test_methods_that_read_the_dataset_get_the_labels_in_any_order():
    data = action_free(walks(6, 4), [0, 3])
    for methods in (f"prdc+{QUICK}", f"{QUICK}+prdc"):
        Offline(parse(f"td3-bc({SMALL})+{methods}"), data).advance()


@pytest.mark.parametrize("method", [QUICK, "labelled-alone"])
def test_a_dataset_beside_an_environment_is_labelled_too(method: str):
    data = action_free(worlds.dataset("continuous"), range(20))
    rlpd = worlds.small("rlpd", start=20, batch_size=8)
    with pytest.raises(Unfit, match="20 of 40 episodes have no actions"):
        Online(parse(rlpd), worlds.make("continuous"), dataset=data)
    run = Online(parse(f"{rlpd}+{method}"), worlds.make("continuous"), dataset=data)
    while run.env_steps < 30:
        run.advance()
    run.learner.check_finite()


def test_labelled_alone_draws_no_other():
    data = action_free(walks(6, 4), [0, 3])
    run = Offline(labelled_alone(td3_bc(hidden=(8,))), data)
    batch = run.replays["replay"].sample(2_000, generator(0, "test"), run.learner.clock)
    slots = torch.arange(data.slots)[torch.from_numpy(data.is_step)]
    expected = slots[(slots >= 5) & (slots < 15) | (slots >= 20)]  # an episode takes five slots
    assert sorted(set(batch["index"].tolist())) == expected.tolist()
    assert batch["labelled"].all()


# ------------------------------------------------------------------------------------------------- where none lack


def learnt(algorithm: object, data: Dataset) -> dict[str, torch.Tensor]:
    run = Offline(algorithm, data)  # type: ignore[arg-type]
    for _ in range(4):
        run.advance()
    return run.learner.nets.state_dict()


@pytest.mark.parametrize("base", BASES)
def test_with_every_action_there_it_is_the_base(base: str, monkeypatch: pytest.MonkeyPatch):
    def never(*args: object, **settings: object) -> None:
        raise AssertionError("a model was fitted")

    data = worlds.dataset("continuous")
    plain = learnt(parse(base), data)
    short = action_free(data, range(20))
    labelled = learnt(parse(f"{base}+{QUICK}"), short)
    monkeypatch.setattr(file, "fitted", never)
    same = learnt(parse(f"{base}+{QUICK}"), data)
    assert all(torch.equal(same[name], plain[name]) for name in plain)
    assert not all(torch.equal(labelled[name], plain[name]) for name in plain)


def test_with_every_action_there_labelled_alone_draws_all_alike():
    data = walks(4, 3)
    run = Offline(labelled_alone(td3_bc(hidden=(8,))), data)
    odds = run.replays["replay"].prioritised.trees[0].get(torch.arange(data.slots))
    assert odds.tolist() == data.is_step.astype(float).tolist()
    choices = Offline(parse(f"cql-discrete({SMALL})+labelled-alone"), worlds.dataset("discrete"))
    choices.advance()


# ----------------------------------------------------------------------------------------------------- who refuses


@pytest.mark.parametrize("base", BASES)
def test_without_it_training_names_it(base: str):
    data = action_free(walks(6, 4), [0, 3])
    with pytest.raises(Unfit, match=r"2 of 6 episodes have no actions .*: add \+ss-orl to .*\+labelled-alone") as wrong:
        Offline(parse(base), data)
    assert "\n" not in str(wrong.value)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="ss-orl finds no episode with actions"):
        labels(action_free(walks(3), range(3)))
    with pytest.raises(Unfit, match="6 of 6 episodes have no actions"):
        Offline(labelled_alone(td3_bc(hidden=(8,))), action_free(walks(6, 4), range(6)))
    with pytest.raises(Unfit, match="ss-orl labels continuous actions"):
        Offline(parse(f"cql-discrete({SMALL})+ss-orl"), worlds.dataset("discrete"))
    with pytest.raises(ValueError, match="cannot be NaN"):
        action_free(worlds.dataset("discrete"), [0])
    for method in ("ss-orl", "labelled-alone"):
        with pytest.raises(ValueError, match=f"{method} does not fit ppo.*draws nothing from a dataset"):
            parse(f"ppo+{method}")
        with pytest.raises(ValueError, match="is there already"):
            parse(f"bc+ss-orl+{method}")
    for wrong in ({"past": -1}, {"held_out": 0.0}, {"held_out": 1.5}, {"lr": 0.0}, {"updates": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ss_orl(td3_bc(), **wrong)


def test_observations_may_be_a_dictionary_with_images():
    """The model reads all that there is, as numbers."""
    data = worlds.dataset("privileged")
    run = Offline(parse(f"bc({SMALL})+{QUICK}"), action_free(data, range(3)))
    assert run.replays["replay"].columns["action"].isfinite().all()
