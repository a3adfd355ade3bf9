"""Runs in one file, and back: without loss, all or none, and nothing outside the folder that was asked for."""

import csv
import io
import json
import math
import shutil
import tarfile
from pathlib import Path

import pytest

import palaestra as pal
from palaestra.runs import Run, RunError, find
from palaestra.runs.archive import export, import_

TABLES = ["table.csv", "table.parquet"]
TRYING = {"kind": "train", "seed": 1, "env_steps": 2**53 + 1, "updates": 0, "seconds": 0.1}


def make(folder: Path, seeds: int = 1) -> Run:
    """A run of everything that JSON can hold."""
    run = Run.create(folder, {"expression": "td3", "env": "Pendel-ü-v1", "seeds": [0, 1], "odd": [math.nan, None, "→"]})
    run.log({**TRYING, "loss/critic": 0.1 + 0.2, "tiny": 5e-324, "big": 10**400, "none": None, "said": 'a "b", ü\n\r'})
    run.log({**TRYING, "nan": math.nan, "both": [math.inf, -math.inf], "deep": [[1, [2.5, None]], {"a": [True, "x"]}]})
    run.log({"kind": "evaluation", "seed": 0, "env_steps": 1, "scores": {"episode_return": [1, -0.0, math.nan]}})
    run.log({})
    for seed in range(seeds - 1):
        part = Run.create(folder / "seeds" / str(seed), {"expression": "td3"})
        part.log({"kind": "train", "value": 1e-17})
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("name", TABLES)
def test_a_table_and_back(tmp_path, name):
    runs = [make(tmp_path / "runs" / "a", seeds=3), make(tmp_path / "runs" / "ü b")]
    Run.create(tmp_path / "runs" / "empty", {})
    told = export(find([tmp_path / "runs"]), tmp_path / "new" / name)
    assert (told["runs"], told["format"], told["hash"]) == (["a", "ü b", "empty"], name.split(".")[1], None)
    back = import_(tmp_path / "new" / name, tmp_path / "back")
    assert files(tmp_path / "back") == files(tmp_path / "runs")
    assert [Path(run).name for run in back["runs"]] == sorted(["a", "empty", "ü b"])
    for run in runs:  # NaN is not itself, so by what is written of it
        again = Run.open(tmp_path / "back" / run.folder.name)
        assert repr((again.about, again.metrics())) == repr((run.about, run.metrics()))


@pytest.mark.parametrize("name", TABLES)
def test_the_numbers_of_a_table(tmp_path, name):
    """What a data frame sees: a row a number, by name and place."""
    export([make(tmp_path / "a")], tmp_path / name)
    if name.endswith("csv"):
        with (tmp_path / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(tmp_path / name).to_pylist()
    found = [(r["name"], str(r["index"] or 0), float(r["value"])) for r in rows if r["kind"] == "train"]
    assert [repr(one) for one in found] == [
        repr(one)
        for one in [
            ("loss/critic", "0", 0.1 + 0.2), ("tiny", "0", 5e-324), ("big", "0", math.inf), ("nan", "0", math.nan),
            ("both", "0", math.inf), ("both", "1", -math.inf), ("deep[0]", "0", 1.0), ("deep[0][1]", "0", 2.5),
        ]
    ]  # fmt: skip
    (first, *_), last = rows[1:], rows[-1]
    assert (first["run"], first["expression"], first["env"]) == (
        Run.open(tmp_path / "a").about["id"],
        "td3",
        "Pendel-ü-v1",
    )
    assert (int(first["line"]), int(first["seed"]), int(first["env_steps"])) == (1, 1, 2**53 + 1)
    scores = [(r["name"], int(r["index"]), int(r["seed"])) for r in rows if r["kind"] == "evaluation"]
    assert scores == [("episode_return", 0, 0), ("episode_return", 1, 0), ("episode_return", 2, 0)]
    assert (last["name"] or None, last["text"]) == (None, "{}")


def test_many_numbers_in_a_field(tmp_path):
    """CSV readers of Python refuse fields of more than 131,072 letters unless told otherwise."""
    run = Run.create(tmp_path / "a", {})
    run.log({"kind": "train", "many": [0.1] * 50_000})
    limit = csv.field_size_limit()
    export([run], tmp_path / "t.csv")
    import_(tmp_path / "t.csv", tmp_path / "back")
    assert csv.field_size_limit() == limit
    assert Run.open(tmp_path / "back" / "a").metrics() == run.metrics()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "runs"
    settings = {"episodes": 2, "evaluate_every": 30}
    pal.train("td3(start=20,hidden=(8,),batch_size=8)", "palaestra/Pendulum-v0", 60, out=folder / "b", **settings)
    make(folder / "a", seeds=2)
    return folder


@pytest.fixture
def bundle(trained, tmp_path) -> Path:
    export(find([trained]), tmp_path / "bundle.tar.gz")
    return tmp_path / "bundle.tar.gz"


def test_a_bundle_and_back(trained, bundle, tmp_path):
    told = export(find([trained]), tmp_path / "again.tgz")
    assert (tmp_path / "again.tgz").read_bytes() == bundle.read_bytes()
    made = import_(bundle, tmp_path / "back", told["hash"])
    assert made == {
        "folder": str(tmp_path / "back"), "runs": [str(tmp_path / "back" / n) for n in "ab"], "hash": told["hash"],
    }  # fmt: skip
    assert files(tmp_path / "back") == files(trained)
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["a", "b"]
    assert pal.check(tmp_path / "back" / "b")["ok"]
    assert pal.evaluate(tmp_path / "back" / "b", episodes=1)["env_steps"] == 60
    with tarfile.open(bundle) as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in archive} == {(0, 0, 0, "", "")}


def test_the_hash_is_of_what_the_runs_hold(trained, tmp_path):
    changed = Path(shutil.copytree(trained, tmp_path / "runs"))
    before = export(find([trained]), tmp_path / "one.tar.gz")["hash"]
    assert export(find([changed]), tmp_path / "two.tar.gz")["hash"] == before
    with (changed / "b" / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    after = export(find([changed]), tmp_path / "three.tar.gz")["hash"]
    assert after != before
    with pytest.raises(RunError, match=f"its hash is {after}, not {before}"):
        import_(tmp_path / "three.tar.gz", tmp_path / "back", before)


@pytest.mark.parametrize("name", ["bundle.tar.gz", *TABLES])
def test_a_run_is_never_overwritten(trained, tmp_path, name):
    export(find([trained]), tmp_path / name)
    (tmp_path / "back" / "b").mkdir(parents=True)
    (tmp_path / "back" / "b" / "mine").write_text("mine")
    with pytest.raises(RunError, match=r"back/b: is there already; import into another --out"):
        import_(tmp_path / name, tmp_path / "back")
    assert files(tmp_path / "back") == {"b/mine": b"mine"}
    assert [p.name for p in (tmp_path / "back").iterdir()] == ["b"], "nothing half made"


def rewritten(bundle: Path, change) -> None:
    """The bundle with its members changed: `change(members)` of [name, content, type]."""
    with tarfile.open(bundle) as archive:
        members = [[m.name, archive.extractfile(m).read(), tarfile.REGTYPE] for m in archive]
    change(members)
    with tarfile.open(bundle, "w:gz") as archive:
        for name, content, kind in members:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            entry.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(content))


def swapped(text: bytes) -> bytes:
    return text[:-2] + bytes([text[-2] ^ 1]) + text[-1:]


def named(name: str, field: int, change):
    def spoil(members):
        (one,) = [m for m in members if m[0] == name]
        one[field] = change(one[field])

    return spoil


def outside(name: str):
    """A manifest that is sealed, and names a file somewhere else."""

    def spoil(members):
        from palaestra.runs.files import seal

        body = json.loads(members[0][1])
        del body["sha256"]
        body["files"] = {name: body["files"]["a/run.json"]}
        members[0][1] = json.dumps({**body, "sha256": seal(body)}).encode()
        members[1:] = [[name, m[1], m[2]] for m in members if m[0] == "a/run.json"]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (named("b/metrics.jsonl", 1, swapped), "b/metrics.jsonl: changed: its SHA-256 is not"),
        (named("b/metrics.jsonl", 1, lambda c: c[:-1]), "b/metrics.jsonl: has .* bytes instead of"),
        (named("manifest.json", 1, lambda c: c.replace(b'"format": 1', b'"format": 0')), "manifest.json: changed"),
        (lambda members: members.pop(0), "does not begin with manifest.json"),
        (lambda members: members.pop(), "is missing"),
        (lambda members: members.append(["b/more", b"", tarfile.REGTYPE]), "b/more: is not in the manifest"),
        (named("a/run.json", 2, lambda _: tarfile.SYMTYPE), "a/run.json: is not in the manifest, or no plain file"),
        (named("a/run.json", 2, lambda _: tarfile.LNKTYPE), "a/run.json: is not in the manifest, or no plain file"),
        (outside("../run.json"), "'../run.json' does not lie in a run's folder"),
        (outside("/tmp/x/run.json"), "'/tmp/x/run.json' does not lie in a run's folder"),
        (outside("a/../../x"), "does not lie in a run's folder"),
        (outside("a\\b/run.json"), "does not lie in a run's folder"),
        (outside(".ssh/run.json"), "does not lie in a run's folder"),
        (outside("c:/run.json"), "does not lie in a run's folder"),
    ],
)
def test_a_bundle_that_was_changed(bundle, tmp_path, spoil, said):
    rewritten(bundle, spoil)
    with pytest.raises(RunError, match=said):
        import_(bundle, tmp_path / "in" / "back")
    assert not (tmp_path / "in" / "back").exists()


@pytest.mark.parametrize("name", ["bundle.tar.gz", *TABLES])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file(trained, tmp_path, name, share):
    whole = tmp_path / name
    export(find([trained]), whole)
    whole.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(RunError, match=name):
        import_(whole, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_table_with_a_folder_outside(tmp_path):
    export([make(tmp_path / "a")], tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("\na,", "\n../a,"))
    with pytest.raises(RunError, match="does not lie in a run's folder"):
        import_(tmp_path / "t.csv", tmp_path / "back")


def test_what_cannot_be_exported(trained, tmp_path):
    run = make(tmp_path / "a")
    with pytest.raises(ValueError, match=r"runs.zip has no suffix of an export; use .parquet, .csv or .tar.gz"):
        export([run], tmp_path / "runs.zip")
    with pytest.raises(RunError, match="there are no runs to export"):
        export([], tmp_path / "t.csv")
    with run.writing(), pytest.raises(RunError, match=r"a: process \d+ is writing this run"):
        export([run], tmp_path / "t.tar.gz")
    (tmp_path / "a" / "link").symlink_to("/etc/passwd")
    with pytest.raises(RunError, match="link: is a link"):
        export([run], tmp_path / "t.tar.gz")
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(RunError, match="line 5: is no JSON object"):
        export([run], tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"--hash: t.csv is a table"):
        import_(tmp_path / "t.csv", tmp_path / "back", "0" * 64)
    with pytest.raises(RunError, match="there is no such file"):
        import_(tmp_path / "t.csv", tmp_path / "back")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"], "nothing half written"


def test_runs_of_one_name_are_numbered(tmp_path):
    runs = [make(tmp_path / some / "a") for some in ("x", "y")]
    assert export(runs, tmp_path / "t.tar.gz")["runs"] == ["a", "a-2"]
    import_(tmp_path / "t.tar.gz", tmp_path / "back")
    assert Run.open(tmp_path / "back" / "a-2").about["id"] == runs[1].about["id"]


def test_what_was_shared_can_be_repeated(bundle, tmp_path):
    """From what its run.json says alone, bit for bit: with the same versions, on the same kind of machine."""
    import_(bundle, tmp_path / "back")
    shared = Run.open(tmp_path / "back" / "b")
    names = ("steps", "environments", "episodes", "evaluate_every", "log_every", "checkpoint_every", "threads")
    settings = {name: shared.about[name] for name in names}
    again = pal.train(
        shared.about["expression"], shared.about["env"], seeds=shared.about["seeds"], out=tmp_path / "again", **settings
    )

    def learnt(run):
        return [{key: value for key, value in one.items() if key != "seconds"} for one in run.metrics()]

    assert learnt(again) == learnt(shared)
