"""`run.json`, the metrics and the lock."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from palaestra.runs import Run, RunError, provenance
from palaestra.runs.lock import lock


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", {"expression": "td3", "env": "Pendulum-v1", "clip": math.inf, "hidden": (8, 8)})


def test_create_then_open_gives_the_same(run):
    opened = Run.open(run.folder)
    assert opened == run
    assert opened.about["clip"] == math.inf
    assert opened.about["hidden"] == [8, 8]
    assert (opened.about["format"], opened.about["status"]) == (1, "running")
    assert opened.about["created"].endswith("+00:00")
    json.loads((run.folder / "run.json").read_text(), parse_constant=pytest.fail)  # strict JSON


def test_a_second_run_in_one_folder_is_refused(run):
    with pytest.raises(RunError, match=r"holds a run already; go on with it by --resume, or choose another --out$"):
        Run.create(run.folder, {})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file.run: cannot be written"):
        Run.create(tmp_path / "file" / "run", {})


def test_create_names_what_is_no_json_and_what_is_taken(tmp_path):
    with pytest.raises(TypeError, match=r"settings/seeds\[1\]: a set is no JSON"):
        Run.create(tmp_path / "a", {"settings": {"seeds": [1, {2}]}})
    with pytest.raises(ValueError, match="'status' is filled in"):
        Run.create(tmp_path / "a", {"status": "done"})


def test_update_merges_and_keeps_what_others_wrote(run):
    other = Run.open(run.folder)
    other.update(status="done")
    run.update(note="fine")
    assert Run.open(run.folder).about == {**other.about, "note": "fine"}


def test_a_killed_update_leaves_the_old_file(run, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"run.json: cannot be written \(No space left on device\); free space"):
        run.update(status="done")
    assert Run.open(run.folder).about["status"] == "running"
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"id": "a",\n  "format": ', "run.json, line 2, column 13: is no JSON"),
        ("", "run.json: is empty"),
        ("[]", "run.json: is a list instead of an object"),
        ('{"id": "a"}', "run.json, field 'format': is missing"),
        ('{"id": 1}', "run.json, field 'id': 1 is no str"),
        ('{"id": "", "format": 9, "created": "", "status": ""}', "field 'format': 9 is newer than the 1"),
    ],
)
def test_a_broken_run_json_is_located(run, content, says):
    (run.folder / "run.json").write_text(content)
    with pytest.raises(RunError) as caught:
        Run.open(run.folder)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_name_gets_the_nearest(run):
    with pytest.raises(RunError, match=r"there is no such run; did you mean .*run\?$"):
        Run.open(run.folder.with_name("rum"))


def test_metrics_survive_what_json_cannot_say(run):
    row = {"kind": "train", "seed": 0, "loss/critic": math.inf, "down": -math.inf, "scores": {"r": [1.5, math.nan]}}
    run.log(row)
    run.log({"n": 2**70, "x": 0.1 + 0.2})
    first, second = run.metrics()
    assert math.isnan(first["scores"]["r"].pop())
    assert math.isnan(row["scores"]["r"].pop())
    assert first == row
    assert second == {"n": 2**70, "x": 0.1 + 0.2}
    for line in (run.folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_row_that_is_no_json_is_refused_by_its_key(run):
    with pytest.raises(TypeError, match="loss/critic: a object is no JSON"):
        run.log({"loss/critic": object()})
    assert run.metrics() == []


def test_a_torn_last_line_is_left_out_and_dropped_by_the_next_writer(run):
    run.log({"n": 1})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"n": ')
    assert run.metrics() == [{"n": 1}]
    with run.writing():
        run.log({"n": 2})
    assert run.metrics() == [{"n": 1}, {"n": 2}]


def test_a_broken_line_in_the_middle_is_an_error(run):
    (run.folder / "metrics.jsonl").write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl, line 2: is no JSON object: '\{\"n\": '; correct or delete"):
        run.metrics()


def test_truncate_goes_back_to_a_position(run):
    assert run.position() == 0
    run.log({"n": 1})
    position = run.position()
    run.log({"n": 2})
    with pytest.raises(RunError, match="inside a line"):
        run.truncate(position - 1)
    run.truncate(position)
    assert run.metrics() == [{"n": 1}]
    with pytest.raises(RunError, match=rf"has {position} bytes, and the checkpoint was made at 1000"):
        run.truncate(1000)


def test_a_disk_that_fills_up_leaves_whole_lines(run, monkeypatch):
    run.log({"n": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    with pytest.raises(RunError, match="the disk is full"):
        run.log({"n": 2})
    monkeypatch.undo()
    run.log({"n": 3})
    assert run.metrics() == [{"n": 1}, {"n": 3}]


def test_the_lock_names_its_owner_and_dies_with_it(run):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom palaestra.runs import Run\n"
        "with Run.open(Path(sys.argv[1])).writing():\n    print('locked', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.folder)], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"locked\n"
        assert run.writer() == child.pid
        with pytest.raises(RunError, match=rf"process {child.pid} is writing this run"), run.writing():
            pytest.fail("two writers")
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert run.writer() is None
    with run.writing():
        assert run.writer() == os.getpid()


def test_the_lock_waits_for_who_only_looks(run):
    with run.writing():
        pass
    looking = os.open(run.folder / ".lock", os.O_RDONLY)
    assert lock(looking)
    timer = threading.Timer(0.1, os.close, [looking])
    timer.start()
    with run.writing():
        pass
    timer.join()


def test_provenance_names_nobody(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/env/bin/palaestra", "train", f"--out={Path.home()}/runs"])
    found = provenance()
    assert found["command"] == ["palaestra", "train", "--out=~/runs"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cores"] >= 1
    json.dumps(found)


def test_provenance_reads_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "somebody")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git"] is None
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run(["git", *command], check=True)
    clean = provenance()["git"]
    assert len(clean["commit"]) == 40
    assert not clean["dirty"]
    (tmp_path / "file").write_text("2")
    assert provenance()["git"] == {**clean, "dirty": True}
