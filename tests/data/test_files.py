"""Datasets come out of every format as they went in, and what a format does not say is mended and told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from palaestra.data import files
from palaestra.data.arrays import from_arrays
from palaestra.data.dataset import Dataset, DatasetError
from palaestra.data.files import read, write
from tests.data.logs import BOX, TORQUE, dataset, hdf5, logged, npz

pytest.importorskip("h5py")

IMAGE = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
MAZE = gym.spaces.Dict({"observation": BOX, "desired_goal": gym.spaces.Box(-1, 1, (2,), np.float64)})
SPACES = {
    "box": (BOX, TORQUE),
    "dict": (MAZE, TORQUE),
    "image": (IMAGE, gym.spaces.Discrete(4)),
    "choices": (gym.spaces.Discrete(5, start=2), gym.spaces.MultiDiscrete([3, 2])),
    "flags": (gym.spaces.MultiBinary(4), gym.spaces.MultiBinary(2)),
    "started": (BOX, gym.spaces.Discrete(3, start=5)),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALAESTRA_CACHE", str(tmp_path / "cache"))


def same(left: Dataset, right: Dataset) -> None:
    assert left.hash == right.hash
    assert (left.observation_space, left.action_space) == (right.observation_space, right.action_space)
    np.testing.assert_array_equal(left.lengths, right.lengths)
    assert set(left.columns) == set(right.columns)
    for name, column in left.columns.items():
        assert column.dtype == right.columns[name].dtype, name
        np.testing.assert_array_equal(column, right.columns[name], err_msg=name)


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("name", ["set-v0", "set.hdf5", "set.npz"])
def test_what_is_written_is_read(tmp_path: Path, name: str, spaces: str) -> None:
    data = dataset((3, 1, 5), *SPACES[spaces], env="Some-v0", provenance={"algorithm_name": "noise", "seed": 3})
    path = write(data, tmp_path / "new" / name)
    again = read(path)
    same(again, data)
    assert again.about["env"] == "Some-v0"
    assert again.about["provenance"] == {"algorithm_name": "noise", "seed": 3}
    assert again.about["spaces"] == "file"
    assert Path(again.about["file"]).is_file()
    assert [entry.name for entry in path.parent.iterdir()] == [name], "temporary files are gone"


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("make", [hdf5, npz])
def test_a_log_with_next_observations_is_the_same_dataset(tmp_path: Path, make: Any, spaces: str) -> None:
    data = dataset((3, 1, 5, 2), *SPACES[spaces])
    path = make(tmp_path / f"log.{make.__name__}", logged(data))
    world = World(*SPACES[spaces])
    same(read(path, env=world), data)


class World(gym.Env[Any, Any]):
    """Spaces alone."""

    def __init__(self, obs: gym.Space[Any], action: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = obs, action


def test_arrays_in_memory_are_the_same_dataset() -> None:
    data = dataset((3, 1, 5), MAZE)
    given: dict[str, Any] = logged(data)
    nested = {name: array for name, array in given.items() if "/" not in name}
    for outer in ("observations", "next_observations"):
        nested[outer] = {key: given[f"{outer}/{key}"] for key in MAZE.spaces}
    same(from_arrays(nested, observation_space=MAZE, action_space=TORQUE), data)
    same(from_arrays({**data.columns, "lengths": data.lengths}, env=World(MAZE, TORQUE)), data)


def test_our_own_names_do_as_well() -> None:
    data = dataset((3, 2))
    given = logged(data)
    ours = {"obs": given["observations"], "next_obs": given["next_observations"], "action": given["actions"]}
    ours |= {"reward": given["rewards"], "terminated": given["terminals"], "truncated": given["timeouts"]}
    same(from_arrays(ours, env=World(BOX, TORQUE)), data)


def test_further_columns_come_along(tmp_path: Path) -> None:
    data = dataset((2, 3))
    logp = np.arange(7, dtype=np.float32) * data.is_step
    more = Dataset({**data.columns, "logp": logp}, data.lengths, BOX, TORQUE)
    for name in ("a-v0", "b.hdf5", "c.npz"):
        np.testing.assert_array_equal(read(write(more, tmp_path / name)).columns["logp"], logp)
    log = hdf5(tmp_path / "log.hdf5", {**logged(data), "logp": logp[data.is_step], "infos/qpos": np.zeros((5, 2))})
    again = read(log)
    np.testing.assert_array_equal(again.columns["logp"], logp)
    assert again.about["ignored"] == ["infos/qpos"]
    assert again.hash == data.hash, "what was logged besides does not change the name"


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(dataset(), tmp_path / "set.hdf5")
    with pytest.raises(DatasetError, match="there is something already"):
        write(dataset(), path)

    def fails(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        write(dataset(), tmp_path / "other-v0")
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.hdf5"]


def test_numbers_of_any_width_are_kept_as_the_library_does(tmp_path: Path) -> None:
    data = dataset((3, 2), BOX, gym.spaces.Discrete(4))
    wide = logged(data)
    wide |= {
        "observations": wide["observations"].astype(np.float64),
        "actions": wide["actions"].astype(np.uint8)[:, None],
    }
    wide |= {"terminals": wide["terminals"].astype(np.float32), "rewards": wide["rewards"].astype(np.float64)[:, None]}
    same(read(npz(tmp_path / "log.npz", wide), env=World(BOX, gym.spaces.Discrete(4))), data)


# ------------------------------------------------------------------------------------------------------ the traps


def test_without_next_observations_a_timed_out_step_is_dropped() -> None:
    # Lengths 3, 2, 4: episode 0 terminates, 1 is truncated, 2 terminates. Of episode 1 one step is left, and its
    # final observation is the one of the dropped row.
    data = dataset((3, 2, 4))
    again = from_arrays(logged(data, next_observations=False))
    assert again.lengths.tolist() == [3, 1, 4]
    assert again.about["dropped"] == 1
    np.testing.assert_array_equal(again.episode(1)["obs"], data.episode(1)["obs"][:2])
    assert again.episode(1)["truncated"].tolist() == [True]
    assert again.episode(1)["terminated"].tolist() == [False]
    for number in (0, 2):
        before, after = data.episode(number), again.episode(number)
        np.testing.assert_array_equal(after["obs"][:-1], before["obs"][:-1])
        np.testing.assert_array_equal(after["obs"][-1], before["obs"][-2], "a terminal step keeps a copy of its own")
        assert after["terminated"].tolist() == before["terminated"].tolist()
        np.testing.assert_array_equal(after["action"], before["action"])


def test_an_episode_of_one_dropped_step_is_gone() -> None:
    again = from_arrays(logged(dataset((2, 1, 2, 1)), next_observations=False))
    assert again.lengths.tolist() == [2, 2]
    assert again.about["dropped"] == 2


def test_a_log_of_dropped_steps_alone_is_no_dataset() -> None:
    rows = logged(dataset((2, 1)), next_observations=False)
    with pytest.raises(DatasetError, match="no row has a known next observation"):
        from_arrays({name: array[2:] for name, array in rows.items()})


def test_the_last_episode_without_an_end_is_truncated() -> None:
    rows = logged(dataset((3, 4)))
    rows["timeouts"][-1] = False
    again = from_arrays(rows)
    assert again.lengths.tolist() == [3, 4]
    assert again.episode(1)["truncated"].tolist() == [False, False, False, True]
    assert again.about["unended"] == 1


def test_where_rows_do_not_continue_an_episode_is_cut() -> None:
    data = dataset((6,))
    rows = logged(data)
    rows = {name: np.delete(array, 2, 0) for name, array in rows.items()}  # step 2 was lost
    again = from_arrays(rows)
    assert again.lengths.tolist() == [2, 3]
    assert again.about["cut"] == 1
    assert again.episode(0)["truncated"].tolist() == [False, True]
    np.testing.assert_array_equal(again.episode(0)["obs"], data.episode(0)["obs"][:3])
    np.testing.assert_array_equal(again.episode(1)["obs"], data.episode(0)["obs"][3:])


def test_a_shuffled_buffer_is_steps_of_their_own() -> None:
    data = dataset((7, 5, 6))
    rows, order = logged(data), np.random.default_rng(1).permutation(18)
    again = from_arrays({name: array[order] for name, array in rows.items()})
    begins = np.flatnonzero(again.is_step)
    np.testing.assert_array_equal(again.columns["obs"][begins + 1], rows["next_observations"][order])
    np.testing.assert_array_equal(again.columns["terminated"][begins], rows["terminals"][order])


def test_a_time_limit_is_never_a_terminal() -> None:
    data = dataset((4, 4))
    again = from_arrays(logged(data))
    assert again.columns["terminated"].sum() == 1
    assert again.columns["truncated"].sum() == 1
    rows = logged(data)
    rows["dones"] = rows.pop("terminals") | rows.pop("timeouts")
    with pytest.raises(DatasetError, match="split 'dones' into terminals and timeouts"):
        from_arrays(rows)


def test_missing_timeouts_are_told() -> None:
    rows = logged(dataset((4, 4)))
    del rows["timeouts"]
    again = from_arrays(rows)
    assert again.about["timeouts"] == "missing"
    assert again.lengths.tolist() == [4, 4]
    assert again.columns["truncated"].sum() == 1, "the last episode's"


def test_actions_stay_in_the_units_of_the_environment(tmp_path: Path) -> None:
    rows = logged(dataset((50,), action=gym.spaces.Box(-2, 2, (1,), np.float32)))
    assert np.abs(rows["actions"]).max() > 1.5
    again = read(hdf5(tmp_path / "log.hdf5", rows), env="Pendulum-v1")
    assert again.action_space.high.tolist() == [2.0]


def test_spaces_of_an_environment_that_the_file_names(tmp_path: Path) -> None:
    obs, action = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32), gym.spaces.Box(-2, 2, (1,), np.float32)
    rows = logged(dataset((4, 4), obs, action))
    again = read(hdf5(tmp_path / "log.hdf5", rows, env_id="Pendulum-v1"))
    assert again.action_space == action
    assert again.about["env"] == "Pendulum-v1"
    assert again.about["spaces"] == "env"


def test_no_module_is_imported_because_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('it ran')")
    rows = logged(dataset((4, 4)))
    sys.path.insert(0, str(tmp_path))
    try:
        again = read(hdf5(tmp_path / "log.hdf5", rows, env_id="evil_module:Some-v0"))
    finally:
        sys.path.remove(str(tmp_path))
    assert again.about["env"] is None
    assert again.about["spaces"] == "inferred"


def test_spaces_that_nobody_knows_are_inferred() -> None:
    rows = logged(dataset((5, 5), BOX, gym.spaces.Box(-1, 1, (2,), np.float32)))
    again = from_arrays(rows)
    assert again.action_space == gym.spaces.Box(-1, 1, (2,), np.float32)
    assert again.observation_space == BOX
    assert again.about["spaces"] == "inferred"
    rows["actions"] = np.stack([np.linspace(-3, 1, 10), np.linspace(0, 0.5, 10)], 1)
    assert from_arrays(rows).action_space == gym.spaces.Box(np.float32([-3, 0]), np.float32([1, 0.5]))
    rows["actions"] = np.arange(10) % 4
    assert from_arrays(rows).action_space == gym.spaces.Discrete(4)
    rows["actions"] = np.stack([np.arange(10) % 4, np.arange(10) % 2], 1)
    assert from_arrays(rows).action_space == gym.spaces.MultiDiscrete([4, 2])


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    rows: dict[str, Any] = logged(dataset())
    rows["rewards"] = np.array([Bomb()] * 9, object)
    with pytest.raises(DatasetError, match="Python objects"):
        read(npz(tmp_path / "log.npz", rows))


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was unpickled",))


def test_arrays_stored_by_columns(tmp_path: Path) -> None:
    data = dataset((3, 4))
    rows = {name: np.asfortranarray(array) for name, array in logged(data).items()}
    same(read(npz(tmp_path / "log.npz", rows), env=World(BOX, TORQUE)), data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rewards": np.zeros(8)}, "'rewards' has 8 rows|it has shape"),
        ({"actions": np.array(["a"] * 9)}, "dtype <U1: numbers are needed"),
        ({"rewards": np.zeros((9, 2))}, r"rows have shape \(2,\)"),
        ({"next_observations": np.zeros((9, 4))}, "not like the observations'"),
        ({"terminals": np.full(9, 0.5)}, "no flag: neither 0 nor 1"),
        ({"observations": np.full((9, 3), np.nan)}, "NaN"),
        ({"rewards": np.full(9, np.inf)}, "infinite"),
        ({"obs": np.zeros((9, 3))}, "given twice"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(change: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(DatasetError, match=says) as caught:
        from_arrays({**logged(dataset()), **change})
    assert "\n" not in str(caught.value)


def test_nan_is_found_where_it_is(tmp_path: Path) -> None:
    rows = logged(dataset((3, 1, 5)))
    rows["rewards"][6] = np.nan  # rows 4 to 8 are episode 2
    with pytest.raises(DatasetError, match=r"log.hdf5, field 'rewards', episode 2, step 2: NaN; "):
        read(hdf5(tmp_path / "log.hdf5", rows))


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no such file"):
        read(tmp_path / "nothing.hdf5")
    (tmp_path / "text.hdf5").write_text("hello")
    with pytest.raises(DatasetError, match="neither HDF5 nor"):
        read(tmp_path / "text.hdf5")
    with pytest.raises(DatasetError, match=r"no main_data.hdf5 in this folder"):
        read(tmp_path)


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(dataset(), tmp_path / "set.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DatasetError, match=r"pip install 'palaestra\[datasets\]'"):
        read(path)
    with pytest.raises(DatasetError, match=r"pip install 'palaestra\[datasets\]'"):
        write(dataset(), tmp_path / "other.hdf5")
    write(dataset(), tmp_path / "other.npz")


def test_a_file_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    import h5py

    hdf5(tmp_path / "secret.hdf5", logged(dataset()))
    path = hdf5(tmp_path / "log.hdf5", logged(dataset()))
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink("secret.hdf5", "/rewards")
    with pytest.raises(DatasetError, match="link to something else"):
        read(path)


# -------------------------------------------------------------------------------------------- what is ours is sealed


@pytest.mark.parametrize("field", ["observations", "actions", "rewards", "terminations"])
def test_a_change_in_a_file_of_ours_is_refused(tmp_path: Path, field: str) -> None:
    import h5py

    path = write(dataset(), tmp_path / "set.hdf5")
    with h5py.File(path, "a") as file:
        array = file[f"episode_2/{field}"]
        array[0] = array[0] * 0.5 if field != "terminations" else True
    with pytest.raises(DatasetError, match=r"its arrays were changed|outside"):
        read(path)


def test_a_change_in_what_our_file_says_is_refused(tmp_path: Path) -> None:
    import h5py

    path = write(dataset(), tmp_path / "set-v0") / "data" / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        file.attrs["palaestra"] = np.bytes_(file.attrs["palaestra"].replace(b"-2", b"-3", 1))
    with pytest.raises(DatasetError, match=r"metadata\.json|not what was written"):
        read(path)


def test_a_seal_that_was_lost_is_missed(tmp_path: Path) -> None:
    import h5py

    path = write(dataset(), tmp_path / "set.hdf5")
    with h5py.File(path, "a") as file:
        del file.attrs["palaestra"]
    with pytest.raises(DatasetError, match="it is missing, and the file was written here"):
        read(path)


def test_damage_that_the_hdf5_library_cannot_bear(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "log.hdf5", logged(dataset()), env_id="Some-v0")  # a string of variable length
    assert read(path).about["env"] == "Some-v0"
    content = bytearray(path.read_bytes())
    begin = content.index(b"GCOL") + 16  # there: index 1, and 16 bytes on "Some-v0"; then index 0, the free space
    content[begin + 24 : begin + 40] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="strings of variable length are damaged"):
        read(path)


@pytest.mark.parametrize("action", [1 << 40, -(1 << 62)])
def test_a_number_is_no_choice_because_it_is_whole(action: int) -> None:
    rows = logged(dataset((4,), action=gym.spaces.Discrete(3)))
    rows["actions"][2] = action
    with pytest.raises(DatasetError, match="field 'actions': choices go from"):
        from_arrays(rows)


def test_what_is_said_of_a_dataset_must_fit(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="64,000 fit"):
        write(dataset(provenance="x" * 70_000), tmp_path / "set.hdf5")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ memory and cache

MEASURED = """
import resource, sys
import numpy as np
from palaestra.data import files, flat
import h5py
files.read(sys.argv[1])  # imports and first calls
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = files.read(sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, data.steps)
"""


@pytest.mark.parametrize("kind", ["hdf5", "npz", "minari"])
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_loading_takes_little_more_than_the_rows(tmp_path: Path, kind: str) -> None:
    rng, rows = np.random.default_rng(0), 300_000
    log = {
        "observations": rng.normal(size=(rows, 20)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 6)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.arange(rows) % 400 == 399,
        "timeouts": np.arange(rows) % 200 == 199,
    }
    small = {name: array[:2000] for name, array in log.items()}
    make = {"hdf5": hdf5, "npz": npz}.get(kind, lambda path, arrays: write(from_arrays(arrays), path))
    paths = [make(tmp_path / f"{name}.{kind}", arrays) for name, arrays in (("small", small), ("large", log))]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, paths)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    taken, steps = map(int, done.stdout.split())
    assert steps > 298_000
    assert taken <= 1.2 * sum(array.nbytes for array in log.values())


def test_a_large_file_is_converted_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset((30, 20), MAZE)
    path = write(data, tmp_path / "set.hdf5")
    again = read(path, memory=100)
    same(again, data)
    assert all(isinstance(column, np.memmap) for column in again.columns.values())
    monkeypatch.setattr(files, "opened", None)  # nothing is opened again
    same(read(path, memory=100), data)
    assert read(path).about["file"] == str(path)
    assert len(list(files.cache().iterdir())) == 1, "temporary folders are gone"


def test_a_changed_file_is_converted_anew(tmp_path: Path) -> None:
    path = npz(tmp_path / "log.npz", logged(dataset(seed=1)))
    first = read(path, memory=100)
    npz(path, logged(dataset(seed=2)))
    os.utime(path, ns=(1, 1))
    second = read(path, memory=100)
    assert first.hash != second.hash
    assert second.hash == read(path).hash == dataset(seed=2).hash


def test_a_damaged_entry_of_the_cache_is_made_anew(tmp_path: Path) -> None:
    data = dataset((30, 20))
    path = write(data, tmp_path / "set.hdf5")
    read(path, memory=100)
    (entry,) = files.cache().iterdir()
    (entry / "obs.npy").write_bytes(b"")
    same(read(path, memory=100), data)


def test_two_processes_convert_at_the_same_time(tmp_path: Path) -> None:
    data = dataset((300, 200))
    path = write(data, tmp_path / "set.hdf5")
    code = "import sys; from palaestra.data.files import read; print(read(sys.argv[1], memory=100).hash)"
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in both] == [data.hash] * 2
    assert len(list(files.cache().iterdir())) == 1


def test_a_damaged_large_file_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    rows = logged(dataset((30, 20)))
    rows["rewards"][3] = np.nan
    with pytest.raises(DatasetError, match="NaN"):
        read(hdf5(tmp_path / "log.hdf5", rows), memory=100)
    assert not list(files.cache().iterdir())


def test_about_is_json(tmp_path: Path) -> None:
    for path in (hdf5(tmp_path / "log.hdf5", logged(dataset())), write(dataset(), tmp_path / "set-v0")):
        assert json.loads(json.dumps(dict(read(path).about)))
