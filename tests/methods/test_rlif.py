"""RLIF: who acts, what is blamed, and an expert that is fitted to a dataset."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from palaestra.algorithms.bc import bc
from palaestra.algorithms.experience import prior_data
from palaestra.algorithms.rlpd import rlpd
from palaestra.algorithms.sac import sac
from palaestra.algorithms.td3 import td3
from palaestra.data.dataset import Dataset, from_episodes
from palaestra.envs.make import make_vector
from palaestra.loops.online import Online
from palaestra.methods.offline.rlif import hg_dagger, rlif, rlif_random, worse_than_expert
from palaestra.rollout.intervention import blamed, intervened

MASS = "palaestra/PointMass-v0"
SMALL: dict[str, Any] = {"hidden": (8,), "batch_size": 8}


def told(policy_memory: bool = False) -> Any:
    """A policy that does 0 and counts its own steps in its memory."""

    def act(nets: Any, obs: Tensor, memory: Any, rng: Any) -> Any:
        seen = torch.zeros(len(obs)) if memory is None else memory["seen"]
        return torch.zeros(len(obs), 1), {}, {"seen": seen + 1} if policy_memory else None

    return act


@pytest.mark.parametrize("policy_memory", [False, True])
def test_an_expert_acts_for_so_many_steps_and_may_begin_anew(policy_memory: bool) -> None:
    # In the first row it steps in at 1 and at 4 (it wants to at 2 as well, and acts already), in the second never.
    wanted = [[0, 0], [1, 0], [1, 0], [0, 0], [1, 0], [0, 0]]
    step = iter(wanted)
    wrapped = intervened(
        told(policy_memory), lambda nets, obs: torch.ones(2, 1), lambda *_: torch.tensor(next(step)) > 0, steps=3
    )
    memory, acted, began = None, [], []
    for _ in wanted:
        action, columns, memory = wrapped(SimpleNamespace(), torch.zeros(2, 1), memory, Generator())  # type: ignore[arg-type]
        acted.append(columns["intervened"].tolist())
        began.append(columns["stepped_in"].tolist())
        assert torch.equal(action[:, 0] == 1, columns["intervened"])
    assert [first for first, _ in acted] == [False, True, True, True, True, True]
    assert [first for first, _ in began] == [False, True, False, False, True, False]
    assert not any(second for _, second in acted)
    if policy_memory:
        assert memory["policy"]["seen"].tolist() == [6, 6]  # the policy remembers what it would have done


class Log:
    """A store of one episode of five steps and its end."""

    columns: ClassVar = {
        "obs": torch.arange(6.0).unsqueeze(1),
        "action": torch.zeros(6, 1),
        "reward": torch.full((6,), 7.0),
        "terminated": torch.zeros(6, dtype=torch.bool),
        "truncated": torch.zeros(6, dtype=torch.bool),
        "intervened": torch.tensor([0, 1, 1, 0, 1, 1]) > 0,
        "stepped_in": torch.tensor([0, 1, 1, 0, 1, 1]) > 0,
    }

    def names(self) -> Any:
        return self.columns

    def get(self, name: str, index: Tensor) -> Tensor:
        return self.columns[name][index]

    def next(self, index: Tensor) -> Tensor:
        return index + 1

    def ends(self, index: Tensor) -> Tensor:
        return index == 5


def test_only_the_policys_step_before_is_blamed() -> None:
    # 0 and 3 are the policy's, and the expert steps in right after both; 1 is the expert's own; after 4 comes the end.
    rows = blamed(Log(), torch.arange(5), Generator())
    assert rows["reward"].tolist() == [-1, 0, 0, -1, 0]
    without = Log()
    without.columns = {key: value for key, value in Log.columns.items() if key not in ("intervened", "stepped_in")}
    assert blamed(without, torch.arange(5), Generator())["reward"].tolist() == [0] * 5


@pytest.mark.parametrize(("expert", "share"), [(10.0, 0.95), (-10.0, 0.95), (9.0, 0.05), (-8.5, 0.05)])
def test_the_threshold_holds_for_values_of_either_sign(expert: float, share: float) -> None:
    # Below 10 - 0.25 and -10 - 0.25, above 9 - 0.225 and -8.5 - 0.2125.
    worth = {10.0: 8.9, -10.0: -10.5, 9.0: 8.9, -8.5: -8.6}[expert]

    def critic(obs: Tensor, action: Tensor) -> Tensor:
        return torch.where(action[:, 0] > 0, expert, worth).unsqueeze(0)

    nets: Any = {"expert": lambda obs: torch.ones(len(obs), 1), "judge": critic}
    rows = 4_000
    wants = worse_than_expert(nets, torch.zeros(rows, 1), torch.zeros(rows, 1), Generator().manual_seed(0), 0.975)
    assert wants.float().mean().item() == pytest.approx(share, abs=0.02)


def pushes(episodes: int = 12, steps: int = 30) -> Dataset:
    """Always the same action, paid 1 a step."""
    world = make_vector(MASS, 1)
    made = [
        {
            "obs": np.zeros((steps + 1, *(world.single_observation_space.shape or ())), np.float32),
            "action": np.full((steps, 2), 0.5, np.float32),
            "reward": np.ones(steps, np.float32),
            "terminated": np.zeros(steps, bool),
            "truncated": np.arange(steps) == steps - 1,
        }
        for _ in range(episodes)
    ]
    return from_episodes(made, world.single_observation_space, world.single_action_space)


def begun(algorithm: Any, seeds: tuple[int, ...] = (0,)) -> Online:
    return Online(algorithm, make_vector(MASS, len(seeds)), seeds, dataset=pushes())


def test_the_expert_is_the_datasets_clone_and_every_seeds() -> None:
    run = begun(rlif(rlpd(start=0, critics=2, critic_updates=1, **SMALL), hidden=(16,)), (3, 4))
    obs = torch.zeros(5, *run.learner.nets_of(3).spec.obs.shape)  # type: ignore[union-attr]
    for seed in (3, 4):
        assert torch.allclose(run.learner.nets_of(seed)["expert"](obs), torch.full((5, 2), 0.5), atol=0.02)
    alone = begun(rlif(rlpd(start=0, critics=2, critic_updates=1, **SMALL), hidden=(16,)), (4,)).learner.nets_of(4)
    for name in ("expert", "judge"):
        for ours, theirs in zip(alone[name].parameters(), run.learner.nets_of(3)[name].parameters(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "algorithm",
    [
        rlif(prior_data(sac(start=0, **SMALL)), hidden=(8,)),
        rlif_random(rlpd(start=0, critics=2, critic_updates=1, **SMALL), hidden=(8,)),
        hg_dagger(prior_data(bc(start=0, **SMALL)), hidden=(8,)),
    ],
    ids=str,
)
def test_it_learns_and_rewards_of_the_world_are_not_read(algorithm: Any) -> None:
    run = begun(algorithm)
    for _ in range(12):
        run.advance()
    run.learner.check_finite()
    if "hg-dagger" in str(algorithm):
        kept = run.replays["replay"]
        assert int(kept.rows[0]) <= 12
    else:
        rewards = run._draw("replay", 64)["reward"]
        assert set(rewards.tolist()) <= {0.0, -1.0}


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_who_never_or_always_steps_in(probability: float) -> None:
    run = begun(rlif_random(prior_data(td3(start=0, **SMALL)), probability=probability, hidden=(16,)))
    for _ in range(12):
        run.advance()
    rows = run.replays["replay"].sample(64, Generator().manual_seed(0))
    assert set(rows["intervened"].tolist()) == {probability == 1}
    assert set(rows["reward"].tolist()) == {0}  # always: no step is the policy's own
    assert torch.allclose(rows["action"], run.learner.nets["expert"](rows["obs"]), atol=1e-5) == (probability == 1)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: rlif(sac(**SMALL)), r"\+prior-data"),
        (lambda: rlif(rlpd(**SMALL), tolerance=1.5), "tolerance is 1.5"),
        (lambda: rlif_random(rlpd(**SMALL), probability=-1), "probability is -1"),
        (lambda: hg_dagger(rlpd(**SMALL), length=0), "length is 0"),
    ],
)
def test_wrong_settings(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
