"""Episodes in flat arrays: where they lie, what they are worth, and what their hash depends on."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from palaestra.data.dataset import Dataset, DatasetError, canonical, from_episodes

OBS, ACTION = Box(-9, 9, (1,)), Box(-2, 2, (1,))


def episode(first, rewards, terminated=False):
    steps = len(rewards)
    ends = np.arange(steps) == steps - 1
    return {
        "obs": np.arange(first, first + steps + 1, dtype=np.float32)[:, None],
        "action": np.full((steps, 1), first / 10, np.float32),
        "reward": np.array(rewards, np.float64),
        "terminated": ends & terminated,
        "truncated": ends & (not terminated),
    }


def two() -> Dataset:
    return from_episodes([episode(1, [1, 2, 4]), episode(5, [8, 16], terminated=True)], OBS, ACTION, {"env": "X-v0"})


def test_an_observation_is_kept_once():
    data = two()
    assert data.columns["obs"][:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert data.columns["reward"].tolist() == [1, 2, 4, 0, 8, 16, 0]
    assert data.columns["reward"].dtype == np.float32
    assert (data.episodes, data.steps, data.slots) == (2, 5, 7)
    assert data.first.tolist() == [0, 4]
    assert data.is_step.tolist() == [True, True, True, False, True, True, False]


def test_what_episodes_are_worth():
    data = two()
    assert data.returns().tolist() == [7, 24]


def test_an_episode_comes_back_as_it_was():
    for given, found in zip([episode(1, [1, 2, 4]), episode(5, [8, 16], terminated=True)], two(), strict=True):
        assert found.keys() == given.keys()
        for name in given:
            np.testing.assert_array_equal(found[name], given[name])


def test_the_hash_is_of_what_happened():
    data = two()
    assert data.hash == two().hash
    again = Dataset({**data.columns, "note": np.ones(7)}, data.lengths, OBS, Box(-3, 3, (1,)), {"env": "Y-v0"})
    assert again.hash == data.hash  # what else was logged does not count
    for name in ("obs", "action", "reward", "terminated"):
        changed = {key: column.copy() for key, column in data.columns.items()}
        changed[name][1] = changed[name][1] + 1 if changed[name].dtype != bool else ~changed[name][1]
        assert Dataset(changed, data.lengths, OBS, ACTION).hash != data.hash
    assert Dataset(data.columns, np.array([2, 3]), OBS, ACTION).hash != data.hash


def test_a_dict_observation_is_an_array_a_key():
    space = Dict({"place": Box(-1, 1, (2,)), "room": Discrete(3)})
    steps = {"obs/place": np.zeros((3, 2)), "obs/room": np.array([0, 1, 2])}
    rest = {name: array for name, array in episode(0, [1, 1]).items() if name != "obs"}
    data = from_episodes([steps | rest], space, ACTION)
    assert data.obs_names == ("obs/place", "obs/room")
    assert data.columns["obs/room"].dtype == np.int64


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("float64", "float32"), ("float16", "float32"), ("uint8", "uint8"), ("int32", "int64"), ("bool", "bool")],
)
def test_numbers_are_of_few_kinds(dtype, kept):
    assert canonical(np.zeros(2, dtype)).dtype == kept


def test_what_does_not_fit_together_is_refused():
    short = {**episode(1, [1, 2]), "action": np.zeros((1, 1))}
    with pytest.raises(DatasetError, match=r"episode 1: 'action' has shape \(1, 1\), and \(2, 1\) is right"):
        from_episodes([episode(1, [1, 2]), short], OBS, ACTION)
    with pytest.raises(DatasetError, match="at least one episode"):
        from_episodes([], OBS, ACTION)
    data = two()
    with pytest.raises(DatasetError, match="lack 'reward'"):
        Dataset({k: v for k, v in data.columns.items() if k != "reward"}, data.lengths, OBS, ACTION)
    with pytest.raises(DatasetError, match="7 rows"):
        Dataset(data.columns, np.array([3, 3]), OBS, ACTION)
