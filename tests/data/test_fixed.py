"""A buffer over a dataset: whole steps alone, in library units, each as likely as its priorities say."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete

from palaestra.algorithm import Buffer, Clock
from palaestra.data.dataset import from_episodes
from palaestra.data.fixed import Fixed
from palaestra.data.layouts import n_steps, transition, windows
from palaestra.data.priorities import Proportional
from palaestra.data.whole import episode_return, return_to_go, timestep
from palaestra.envs.border import Border
from tests.data.test_dataset import OBS, episode, two


def fixed(layout=transition, seeds=1, **buffer):
    data = two()
    return Fixed(Buffer(layout, **buffer), data, Border(data.observation_space, data.action_space), seeds=seeds)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rows_are_whole_steps():
    batch = fixed().sample(1_000, generator())
    assert set(batch["index"].tolist()) == {0, 1, 2, 4, 5}
    torch.testing.assert_close(batch["next_obs"], batch["obs"] + 1)
    last = (batch["obs"] == 6)[:, 0]
    assert torch.equal(batch["terminated"], last)
    assert torch.equal(batch["truncated"], (batch["obs"] == 3)[:, 0])
    counts = torch.bincount(batch["index"], minlength=6)[[0, 1, 2, 4, 5]]
    assert (counts - 200).abs().max() < 4 * (1_000 * 0.2 * 0.8) ** 0.5  # four standard deviations


def test_actions_are_in_library_units():
    batch = fixed().sample(50, generator())  # the space is [-2, 2], and the two episodes act 0.1 and 0.5
    assert sorted(set(batch["action"][:, 0].tolist())) == pytest.approx([0.05, 0.25])


def test_choices_begin_at_0():
    steps = {**episode(1, [1, 2]), "action": np.array([3, 4])}
    space = Discrete(2, start=3)
    rows = Fixed(Buffer(transition), from_episodes([steps], OBS, space), Border(OBS, space))
    assert rows.get("action", torch.tensor([0, 1])).tolist() == [0, 1]


def test_n_steps_stop_at_an_end():
    rows = fixed(partial(n_steps, n=2))
    batch = rows.buffer.layout(rows, torch.tensor([1, 2, 4]), generator())
    assert batch["reward"].tolist() == [[2, 4], [4, 0], [8, 16]]
    assert batch["steps"].tolist() == [2, 1, 2]
    assert batch["next_obs"][:, 0].tolist() == [4, 4, 7]


def test_windows_are_masked_behind_an_end():
    rows = fixed(partial(windows, length=3))
    batch = rows.buffer.layout(rows, torch.tensor([1, 4]), generator())
    assert batch["mask"].tolist() == [[True, True, False]] * 2


def test_each_seed_draws_as_it_would_alone():
    together = fixed(seeds=2).sample(8, (generator(1), generator(2)))
    for seed in (0, 1):
        alone = fixed().sample(8, generator(seed + 1))
        assert together.keys() == alone.keys()
        for name in alone:
            torch.testing.assert_close(together[name][seed], alone[name])


def test_priorities_are_each_seeds_own():
    rows = fixed(seeds=2, priority=(Proportional(1.0, 0.0, 1e-6),))
    rows.update(torch.tensor([[0, 1, 2, 4, 5]] * 2), torch.tensor([[0.0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]))
    batch = rows.sample(100, (generator(), generator()), Clock())
    assert batch["index"][0].float().mean() > 4.9
    assert batch["index"][1].float().mean() < 0.1
    again = fixed(seeds=2, priority=(Proportional(1.0, 0.0, 1e-6),))
    again.load(rows.state_dict(), ())
    assert torch.equal(again.sample(9, (generator(3), generator(4)), Clock())["index"],
                       rows.sample(9, (generator(3), generator(4)), Clock())["index"])  # fmt: skip


def test_a_state_of_another_dataset_is_refused():
    state = {**fixed().state_dict(), "dataset": "0" * 64}
    with pytest.raises(ValueError, match="written with dataset 000000000000"):
        fixed().load(state, ())


def columns():
    data = two()
    found = {name: torch.from_numpy(array.copy()) for name, array in data.columns.items()}
    first = torch.zeros(data.slots, dtype=torch.bool)
    first[torch.from_numpy(data.first)] = True
    return found | {"valid": torch.from_numpy(data.is_step), "first": first}


# 1, 2, 4 and 8, 16 are paid: with 0.5, 4, 2 + 4/2, 1 + 4/2 and 16, 8 + 16/2; 0 behind the last step
@pytest.mark.parametrize(("gamma", "left"), [(1.0, [7, 6, 4, 0, 24, 16, 0]), (0.5, [3, 4, 4, 0, 16, 16, 0])])
def test_what_is_read_off_the_whole_dataset(gamma, left):
    nets = None
    assert timestep(nets, columns(), generator())["timestep"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    found = return_to_go(nets, columns(), generator(), gamma)["return_to_go"]
    assert found.tolist() == left
    assert episode_return(nets, columns(), generator())["episode_return"].tolist() == [7] * 4 + [24] * 3
