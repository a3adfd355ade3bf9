"""What is saved is loaded, or what is wrong with it is said."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from palaestra.runs.checkpoints import Checkpoints, Segment
from palaestra.runs.errors import CheckpointError


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def rows(start: int, stop: int, oldest: int = 0) -> Segment:
    """The rows from start to stop, from a buffer that has overwritten what came before oldest."""
    return Segment({"obs": torch.arange(start, stop)}, {"rows": (start, stop)}, lambda meta: meta["rows"][1] > oldest)


def held(found) -> list[list[int]]:
    return [segment.meta["rows"] for segment in found.segments.get("replay", [])]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_saved_is_none(checkpoints):
    assert checkpoints.latest() is None
    assert checkpoints.paths() == []


def test_save_then_latest(checkpoints):
    path = checkpoints.save(12_000, {"x": (1, torch.ones(2))}, position=77)
    assert path == checkpoints.folder / "000012000"
    found = Checkpoints(checkpoints.folder).latest()
    assert (found.count, found.position, found.segments) == (12_000, 77, {})
    assert found.state["x"][0] == 1
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "state.json", "state.safetensors"]


def test_only_the_newest_stay(checkpoints):
    for count in (1, 2, 3, 10**9 + 5):
        checkpoints.save(count, count)
    assert [path.name for path in checkpoints.paths()] == ["000000003", "1000000005"]
    assert checkpoints.latest().state == 10**9 + 5


def test_a_count_saved_again_replaces(checkpoints):
    checkpoints.save(1, "first")
    for state in ("second", "third", "fourth"):
        checkpoints.save(2, state)
    assert checkpoints.latest().state == "fourth"
    assert [checkpoints.load(path).count for path in checkpoints.paths()] == [1, 2]


def test_an_abandoned_future_is_removed(checkpoints):
    checkpoints.save(1, "a", {"replay": rows(0, 4)})
    checkpoints.save(3, "b", {"replay": rows(4, 8)})
    again = Checkpoints(checkpoints.folder)
    again.load(again.paths()[0])
    again.save(2, "c", {"replay": rows(4, 6)})
    assert held(again.latest()) == [[0, 4], [4, 6]]
    assert [path.name for path in again.paths()] == ["000000001", "000000002"]
    assert len(list((again.folder / "segments").iterdir())) == 2


def test_segments_are_carried_and_expire(checkpoints):
    checkpoints.save(1, None, {"replay": rows(0, 4), "other": rows(0, 2)})
    assert held(checkpoints.latest()) == [[0, 4]]
    checkpoints = Checkpoints(checkpoints.folder)  # a new process
    checkpoints.latest()
    checkpoints.save(2, None, {"replay": rows(4, 8)})
    checkpoints.save(3, None, {"replay": Segment({}), "other": Segment({"obs": torch.ones(0, 3)})})
    found = checkpoints.latest()
    assert held(found) == [[0, 4], [4, 8]]
    assert torch.equal(torch.cat([s.tensors["obs"] for s in found.segments["replay"]]), torch.arange(8))
    assert [s.meta["rows"] for s in found.segments["other"]] == [[0, 2]]
    checkpoints.save(4, None, {"replay": rows(8, 12, oldest=5)})
    assert held(checkpoints.latest()) == [[4, 8], [8, 12]]
    names = {path.name for path in (checkpoints.folder / "segments").iterdir()}
    assert len(names) == 4, "the checkpoint before still needs the expired one"
    checkpoints.save(5, None)
    names = {path.name for path in (checkpoints.folder / "segments").iterdir()}
    assert names == {"other-000002.safetensors", "replay-000003.safetensors", "replay-000004.safetensors"}


def test_old_segments_are_not_written_again(checkpoints):
    checkpoints.save(1, None, {"replay": rows(0, 4)})
    file = next((checkpoints.folder / "segments").iterdir())
    before = file.stat()
    checkpoints.save(2, None, {"replay": rows(4, 8)})
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_who_loaded_nothing_carries_nothing(checkpoints):
    checkpoints.save(1, None, {"replay": rows(0, 4)})
    fresh = Checkpoints(checkpoints.folder)
    fresh.save(2, None, {"replay": rows(0, 3)})
    assert held(fresh.latest()) == [[0, 3]]


def test_loaded_segments_outlive_their_file(checkpoints):
    checkpoints.save(1, None, {"replay": rows(0, 4)})
    found = checkpoints.latest()
    shutil.rmtree(checkpoints.folder)
    assert torch.equal(found.segments["replay"][0].tensors["obs"], torch.arange(4))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json", "replay-000002.safetensors"])
@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
def test_a_damaged_file_is_named_and_passed_over(checkpoints, name, harm):
    for count in (1, 2):
        checkpoints.save(count, {"x": torch.ones(100)}, {"replay": rows(count * 4, count * 4 + 4)})
    newest = checkpoints.paths()[1]
    file = (checkpoints.folder / "segments" if name.startswith("replay") else newest) / name
    size = file.stat().st_size
    harm(file)
    reader = Checkpoints(checkpoints.folder)
    assert reader.latest().count == 1
    (problem,) = reader.problems
    assert problem.file == file
    what = {
        cut: "truncated" if name == "manifest.json" else f"truncated: {size - 3} bytes instead of {size}",
        flip: "changed",
        Path.unlink: "missing",
    }[harm]
    assert what in str(problem)
    assert "\n" not in str(problem)
    assert [str(error) for error in reader.check()] == [str(problem)]

    # The run goes on from the older one, with its rows, and the damaged one goes.
    reader.save(2, "again", {"replay": rows(8, 11)})
    assert held(reader.latest()) == [[4, 8], [8, 11]]
    assert reader.problems == []
    assert [path.name for path in reader.paths()] == ["000000001", "000000002.1"]


def test_none_intact_is_an_error(checkpoints):
    for count in (1, 2):
        cut(checkpoints.save(count, 0) / "state.json")
    with pytest.raises(
        CheckpointError, match=r"000000002.state.json: truncated: .*, and no other checkpoint is intact"
    ):
        checkpoints.latest()
    assert len(checkpoints.problems) == 2


def test_a_segment_to_carry_that_is_gone_is_an_error(checkpoints):
    checkpoints.save(1, None, {"replay": rows(0, 4)})
    shutil.rmtree(checkpoints.folder / "segments")
    with pytest.raises(CheckpointError, match=r"replay-000001.safetensors: missing"):
        checkpoints.save(2, None, {"replay": rows(4, 8)})


@pytest.mark.parametrize("number", range(12))
def test_a_full_disk_leaves_the_old_checkpoint_whole(checkpoints, monkeypatch, number):
    """The disk is full at the number-th fsync: of files, of the segment, of folders, and after the rename."""
    checkpoints.save(1, {"x": torch.ones(9)}, {"replay": rows(0, 4)})
    before = files(checkpoints.folder)
    fsync, calls = os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    segments = {"replay": rows(4, 8)}
    if number >= 8:  # a save has eight
        checkpoints.save(2, {"x": torch.zeros(9)}, segments)
        return
    with pytest.raises(CheckpointError) as caught:
        checkpoints.save(2, {"x": torch.zeros(9)}, segments)
    good = f"the last good checkpoint is {checkpoints.folder / '000000001'} (1 steps)"
    assert f"000000002: cannot be written (No space left on device); {good}; free space" in str(caught.value)
    assert files(checkpoints.folder) == before
    checkpoints.save(2, {"x": torch.zeros(9)}, segments)
    assert held(checkpoints.latest()) == [[0, 4], [4, 8]]


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a tmpfs")
    try:
        checkpoints = Checkpoints(disk / "checkpoints")
        checkpoints.save(1, {"x": torch.ones(10_000)})
        before = files(disk)
        with pytest.raises(
            CheckpointError, match=r"\(No space left on device\); the last good checkpoint is .*000000001 "
        ):
            checkpoints.save(2, {"x": torch.ones(100_000)})
        assert files(disk) == before
        checkpoints.save(2, {"x": torch.ones(10_000)})
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError, match=r"cannot be written \(Not a directory\); there is no checkpoint yet; free"
    ):
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, 0)


def test_what_cannot_be_saved_leaves_nothing(checkpoints):
    with pytest.raises(TypeError, match="state/x"):
        checkpoints.save(1, {"x": object()})
    with pytest.raises(ValueError, match="segment 'a/b' is no portable file name"):
        checkpoints.save(1, 0, {"a/b": rows(0, 1)})
    with pytest.raises(TypeError, match=r"segment 'replay', column 'z': torch\.complex128"):
        checkpoints.save(1, 0, {"replay": Segment({"z": torch.ones(1, dtype=torch.complex128)})})
    with pytest.raises(ValueError, match="keep: 0"):
        Checkpoints(checkpoints.folder, keep=0)
    assert files(checkpoints.folder) == {}
    assert checkpoints.latest() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the processes that it kills")
def test_a_kill_at_any_moment_leaves_a_checkpoint(tmp_path):
    script = Path(__file__).with_name("killing.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    command = [sys.executable, str(script), str(tmp_path / "checkpoints")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 20, "too few steps to have seen all of a save"
