"""Files of ours open in the `minari` package, and the package's in ours."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from palaestra.data.check import check
from palaestra.data.dataset import Dataset, DatasetError
from palaestra.data.files import read, write
from tests.data.logs import BOX, TORQUE, dataset

pytest.importorskip("h5py")
minari = pytest.importorskip("minari")

IMAGE = gym.spaces.Box(0, 255, (36, 40, 3), np.uint8)
MAZE = gym.spaces.Dict({"observation": BOX, "desired_goal": gym.spaces.Box(-1, 1, (2,), np.float64)})
SPACES = {
    "box": (BOX, TORQUE),
    "dict": (MAZE, gym.spaces.MultiDiscrete([3, 2])),
    "choices": (gym.spaces.Discrete(5), gym.spaces.Discrete(3, start=5)),
    "image": (IMAGE, gym.spaces.MultiBinary(2)),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("PALAESTRA_CACHE", str(tmp_path / "cache"))


def equal(left: Any, right: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(left).astype(right.dtype), right)


@pytest.mark.parametrize("spaces", SPACES)
def test_minari_opens_ours(tmp_path: Path, spaces: str) -> None:
    data = dataset((3, 1, 5), *SPACES[spaces], provenance={"algorithm_name": "noise"})
    write(data, tmp_path / "noise-v0")
    theirs = minari.load_dataset("noise-v0")
    assert (theirs.total_episodes, theirs.total_steps) == (3, 9)
    assert (theirs.observation_space, theirs.action_space) == SPACES[spaces]
    assert theirs.storage.metadata["algorithm_name"] == "noise"
    for number, episode in enumerate(theirs.iterate_episodes()):
        ours = data.episode(number)
        for name in data.obs_names:
            equal(episode.observations[name[4:]] if "/" in name else episode.observations, ours[name])
        equal(episode.actions, ours["action"])
        equal(episode.rewards, ours["reward"])
        equal(episode.terminations, ours["terminated"])
        equal(episode.truncations, ours["truncated"])
    assert "noise-v0" in minari.list_local_datasets()


def test_minari_recovers_the_environment(tmp_path: Path) -> None:
    write(dataset(env="Pendulum-v1", action=gym.spaces.Box(-2, 2, (1,), np.float32)), tmp_path / "swing-v1")
    theirs = minari.load_dataset("swing-v1")
    assert theirs.recover_environment().spec.id == "Pendulum-v1"


@pytest.mark.parametrize("jpeg", [False, True])
@pytest.mark.parametrize("spaces", SPACES)
def test_we_open_minaris(tmp_path: Path, spaces: str, jpeg: bool) -> None:
    data = dataset((3, 1, 5), *SPACES[spaces])
    made = theirs(data, "theirs/set-v2", jpeg_encoding=jpeg)
    for path in (
        tmp_path / "theirs/set-v2",
        tmp_path / "theirs/set-v2/data",
        made.storage.data_path / "main_data.hdf5",
    ):
        again = read(path)
        assert (again.observation_space, again.action_space) == SPACES[spaces]
        assert again.about["provenance"]["dataset_id"] == "theirs/set-v2"
        assert again.about["spaces"] == "file"
        if spaces == "image" and jpeg:  # JPEG loses: as the package itself decodes it
            for number, episode in enumerate(made.iterate_episodes()):
                np.testing.assert_array_equal(again.episode(number)["obs"], episode.observations)
        else:
            assert again.hash == data.hash
    assert check(tmp_path / "theirs/set-v2") == []


def theirs(data: Dataset, name: str, **options: Any) -> Any:
    buffers = []
    for episode in data:
        obs: Any = episode.get("obs")
        if obs is None:
            obs = {name[4:]: episode[name] for name in data.obs_names}
        flags = {"terminations": episode["terminated"], "truncations": episode["truncated"]}
        infos = {"qpos": np.zeros((len(episode["reward"]) + 1, 2))}
        buffer = minari.data_collector.EpisodeBuffer(
            observations=obs, actions=episode["action"], rewards=episode["reward"], infos=infos, **flags
        )
        buffers.append(buffer)
    with pytest.warns(UserWarning, match="is set to None"):
        return minari.create_dataset_from_buffers(
            name, buffers, observation_space=data.observation_space, action_space=data.action_space, **options
        )


def test_ours_grows_in_minari_and_the_change_is_seen(tmp_path: Path) -> None:
    data = dataset((3, 2))
    path = write(data, tmp_path / "set-v0")
    opened = minari.load_dataset("set-v0")
    more = minari.data_collector.EpisodeBuffer(
        observations=np.zeros((3, 3), np.float32), actions=np.zeros((2, 2), np.float32), rewards=np.zeros(2),
        terminations=np.array([False, True]), truncations=np.zeros(2, bool),
    )  # fmt: skip
    opened.storage.update_episodes([more])
    with pytest.raises(DatasetError, match=r"total_episodes|changed"):
        read(path)
    assert check(path)


def test_the_old_layout_has_its_metadata_in_the_file(tmp_path: Path) -> None:
    import h5py
    from minari.serialization import serialize_space

    data = dataset((3, 2))
    made = theirs(data, "old-v0")
    path = made.storage.data_path / "main_data.hdf5"
    (made.storage.data_path / "metadata.json").unlink()
    with h5py.File(path, "a") as file:
        file.attrs.update({"total_episodes": 2, "total_steps": 5, "env_spec": gym.spec("Pendulum-v1").to_json()})
        file.attrs["observation_space"] = serialize_space(BOX)
        file.attrs["action_space"] = serialize_space(TORQUE)
    again = read(path)
    assert again.hash == data.hash
    assert again.about["env"] == "Pendulum-v1"
    assert again.action_space == TORQUE


def test_an_episode_that_goes_on_after_its_end_is_cut(tmp_path: Path) -> None:
    import h5py

    data = dataset((3, 5))
    made = theirs(data, "long-v0")
    path = made.storage.data_path / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        file["episode_1/terminations"][1] = True
    again = read(path)
    assert again.lengths.tolist() == [3, 2, 3]
    assert again.about["cut"] == 1
    np.testing.assert_array_equal(again.episode(1)["obs"], data.episode(1)["obs"][:3])
    np.testing.assert_array_equal(again.episode(2)["obs"], data.episode(1)["obs"][2:])
    assert [problem.where for problem in check(path)] == ["field 'terminations', episode 1, step 1"]


def test_tuples_and_other_formats_are_refused(tmp_path: Path) -> None:
    import json

    made = theirs(dataset(), "set-v0")
    metadata = made.storage.data_path / "metadata.json"
    said = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**said, "observation_space": '{"type": "Tuple", "subspaces": []}'}))
    with pytest.raises(DatasetError, match="Tuple: use Box"):
        read(tmp_path / "set-v0")
    (made.storage.data_path / "main_data.hdf5").unlink()
    metadata.write_text(json.dumps({**said, "data_format": "arrow"}))
    with pytest.raises(DatasetError, match="only Minari's HDF5 format"):
        read(tmp_path / "set-v0")
