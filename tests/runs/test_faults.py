"""Everything that can go wrong with a run, through the command line: one line, the right exit code, nothing lost."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple

import palaestra as pal
from palaestra import cli
from palaestra.runs import RunError
from palaestra.runs.checkpoints import Checkpoints

TD3 = "td3(start=20,hidden=(8,),batch_size=8)"
SHORT = ("--steps", 100, "--episodes", 2, "--evaluate-every", 40, "--checkpoint-every", 20)
PENDULUM = ("--env", "palaestra/Pendulum-v0")


class Broken(gym.Env):
    """Goes wrong in its 51st step, in the way that `how` says; mended when the file `mended` is there."""

    observation_space = Box(-1, 1, (3,))
    action_space = Box(-1, 1, (1,))

    def __init__(self, how: str = "", mended: str = "mended") -> None:
        if how == "making":
            raise FileNotFoundError("assets/mesh.stl")
        self.how, self.mended, self.steps = how, mended, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.how == "resetting" and not Path(self.mended).exists():
            raise ZeroDivisionError("no start")
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        obs, reward = np.zeros(3, np.float32), 1.0
        if self.steps > 50 and not Path(self.mended).exists():
            if self.how == "raising":
                raise ZeroDivisionError("the joint\nis broken")
            if self.how == "a value":
                raise ValueError("the joint is broken")
            reward = float("nan") if self.how == "reward" else 1.0
            obs[1] = np.inf if self.how == "observation" else 0.0
        return obs, reward, False, self.steps % 10 == 0, {}


SPACES = {
    "tuple": (Tuple((Box(-1, 1, (3,)), Discrete(2))), Broken.action_space),
    "text": (Text(5), Broken.action_space),
    "nested": (Dict({"a": Dict({"b": Box(-1, 1, (3,))})}), Broken.action_space),
    "actions": (Broken.observation_space, Tuple((Discrete(2), Discrete(2)))),
    "unbounded": (Broken.observation_space, Box(-np.inf, np.linspace(1, 99, 40, dtype=np.float32))),
    "matrix": (Broken.observation_space, Box(-1, 1, (2, 2))),
}


def spaced(which: str) -> gym.Env:
    env = Broken()
    env.observation_space, env.action_space = SPACES[which]
    return env


@pytest.fixture(scope="module", autouse=True)
def ids():
    """`faulty/RAISING-v0` and the like."""
    names = []
    for how in ("making", "resetting", "raising", "a value", "reward", "observation"):
        names.append(f"faulty/{how.replace(' ', '-')}-v0")
        gym.register(names[-1], Broken, kwargs={"how": how}, disable_env_checker=True)
    for which in SPACES:
        names.append(f"faulty/{which}-v0")
        gym.register(names[-1], spaced, kwargs={"which": which}, disable_env_checker=True)
    gym.register("faulty/nowhere-v0", "a_package_that_nobody_has:World")
    yield
    for name in (*names, "faulty/nowhere-v0"):
        del gym.registry[name]


@pytest.fixture
def said(monkeypatch, capsys, tmp_path) -> Callable[..., str]:
    """What the command line says on standard error; in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int) -> str:
        monkeypatch.setattr(sys, "argv", ["palaestra", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        assert int(exit.value.code or 0) == code, err
        assert code == 0 or out == ""
        return err

    return run


@pytest.fixture
def refused(said) -> Callable[..., str]:
    """The one line that it answers with."""

    def run(*arguments: object, code: int) -> str:
        err = said(*arguments, "--quiet", code=code) if arguments[0] == "train" else said(*arguments, code=code)
        assert re.fullmatch(r"error: [^\n]+\n", err), err
        return err

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Finished runs: `td3` and `sac` in one environment, `mass` in another."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"episodes": 2, "evaluate_every": 40, "checkpoint_every": 20}
    for name, algorithm, env in (
        ("td3", TD3, "palaestra/Pendulum-v0"),
        ("sac", TD3.replace("td3", "sac"), "palaestra/Pendulum-v0"),
        ("mass", TD3, "palaestra/PointMass-v0"),
    ):
        pal.train(algorithm, env, 100, out=folder / name, **settings)
    return folder


@pytest.fixture
def first(runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs / "td3", tmp_path / "first")
    return Path("first")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["status"]


# ------------------------------------------------------------------------------------------- environments that fail

FAILING = [
    ("raising", "raised ZeroDivisionError", "the joint"),
    ("a-value", "raised ValueError", "the joint is broken"),
    ("reward", "the reward of", "nan"),
    ("observation", "the observation[1] of", "inf"),
]


@pytest.mark.parametrize(("how", "what", "text"), FAILING)
def test_an_environment_that_fails(refused, said, how, what, text):
    answer = refused("train", TD3, "--env", f"faulty/{how}-v0", *SHORT, "--out", "run", code=1)
    assert answer.startswith("error: run: ")
    assert what in answer
    assert text in answer
    assert re.search(r"\b5[01]\b", answer), "the step"
    assert "; the last good checkpoint is run/checkpoints/000000040 (40 steps); " in answer
    assert answer.endswith("continue with: palaestra train --resume run\n")
    about = json.loads(Path("run/run.json").read_text())
    assert about["status"] == "failed"
    assert text in about["problem"]
    Path("mended").touch()
    said("train", "--resume", "run", code=0)
    assert status(Path("run")) == "finished"
    assert "problem" not in json.loads(Path("run/run.json").read_text())


def test_an_environment_that_raises_is_named(refused):
    assert "faulty/raising-v0" in refused("train", TD3, "--env", "faulty/raising-v0", *SHORT, code=1)


def test_verbose_shows_where_it_raised(said):
    answer = said("train", TD3, "--env", "faulty/raising-v0", *SHORT, "--out", "run", "--quiet", "-v", code=1)
    assert 'raise ZeroDivisionError("the joint' in answer
    assert answer.splitlines()[-1].startswith("error: run: ")


def test_a_failure_before_the_first_checkpoint(refused):
    answer = refused("train", TD3, "--env", "faulty/raising-v0", "--steps", 100, "--checkpoint-every", 90, code=1)
    assert "; there is no checkpoint yet; " in answer


def test_in_python_it_is_a_run_error_with_its_cause(tmp_path):
    with pytest.raises(
        RunError, match=r"the last good checkpoint is .*000000050 \(50 steps\); .*pal\.resume"
    ) as caught:
        pal.train(TD3, lambda: Broken("raising"), 100, checkpoint_every=50, evaluate_every=100, out=tmp_path / "run")
    assert isinstance(caught.value.__cause__.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(("how", "what"), [("making", "FileNotFoundError: assets/mesh.stl"), ("resetting", "no start")])
def test_an_environment_that_never_begins(refused, how, what):
    answer = refused("train", TD3, "--env", f"faulty/{how}-v0", *SHORT, "--out", "run", code=1)
    assert f"faulty/{how}-v0" in answer
    assert what in answer
    assert not Path("run").exists()


def test_an_environment_that_fails_in_an_evaluation(refused):
    often = ("--steps", 100, "--episodes", 1, "--evaluate-every", 5, "--checkpoint-every", 20)
    answer = refused("train", TD3, "--env", "faulty/raising-v0", *often, "--out", "run", code=1)
    assert "the last good checkpoint is run/checkpoints/000000020 (20 steps)" in answer

    Path("mended").touch()
    pal.train(TD3, "faulty/resetting-v0", 40, episodes=2, out="whole")
    Path("mended").unlink()
    assert "raised ZeroDivisionError" in refused("evaluate", "whole", code=1)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("faulty/rasing-v0", "did you mean faulty/raising-v0"),
        ("faulty/nowhere-v0", "needs a package that is not installed: No module named 'a_package_that_nobody_has'"),
        ("Blackjack-v1", "use Box, Discrete, MultiDiscrete, MultiBinary, or a flat Dict of them"),
        *((f"faulty/{which}-v0", "wrap") for which in ("nested", "tuple", "unbounded", "matrix")),
        ("faulty/text-v0", "use Box"),
        ("faulty/actions-v0", "use Box, Discrete, MultiDiscrete or MultiBinary"),
        ("CartPole-v1", "try dqn"),
    ],
)
def test_an_environment_that_does_not_fit(refused, name, remedy):
    assert remedy in refused("train", TD3, "--env", name, *SHORT, "--out", "run", code=2)
    assert not Path("run").exists()


# ------------------------------------------------------------------------------------------- disks that fail

FILLING = """
import resource, sys
import gymnasium as gym
from palaestra.cli import main
from tests.runs.test_faults import Broken

class Filling(Broken):
    def step(self, action):
        if self.steps == 50:  # from here on every write beyond the first {limit} bytes of a file fails
            resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        return super().step(action)

gym.register("faulty/filling-v0", Filling)
sys.argv[0] = "palaestra"
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize(
    ("limit", "what"), [(0, "metrics.jsonl"), (40_000, "checkpoints/000000060")], ids=["all", "checkpoints"]
)
def test_a_disk_that_fills_while_it_trains(tmp_path, said, limit, what):
    arguments = ["train", TD3, "--env", "faulty/filling-v0", *SHORT, "--out", "run", "--quiet"]
    if limit:
        arguments[1] = TD3.replace("(8,)", "(64,)")
    before = subprocess.run(
        [sys.executable, "-c", FILLING.format(limit=limit), *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert before.returncode == 1, before.stderr
    assert re.fullmatch(
        rf"error: run/{what}: cannot be written \(File too large\); "
        r"the last good checkpoint is run/checkpoints/000000040 \(40 steps\); [^\n]+\n",
        before.stderr,
    ), before.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp*"))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in checkpoints.paths()] == ["000000020", "000000040"]
    assert checkpoints.check() == []
    assert Path("run/run.json").exists()
    gym.register("faulty/filling-v0", Broken)
    try:
        said("train", "--resume", "run", code=0)
    finally:
        del gym.registry["faulty/filling-v0"]
    assert status(Path("run")) == "finished"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path):
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); from palaestra.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "train", TD3, *PENDULUM, *map(str, SHORT), "--out", "run", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        1, "error: run: cannot be written (File too large); choose another --out\n"
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("entry", ["metrics.jsonl", ".lock", "checkpoints"])
def test_an_entry_that_cannot_be_written(refused, first, entry):
    """Of another kind than it should be: that holds for root as well, who may write anything."""
    path = first / entry
    if path.is_dir():
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink()
        path.mkdir()
    before = contents(first)
    answer = refused("train", "--resume", first, "--steps", 120, code=1)
    assert f"first/{entry}: cannot be " in answer
    after = contents(first)
    if entry != "checkpoints":  # a run without a checkpoint begins anew
        assert after == before


# ------------------------------------------------------------------------------------------- files that were damaged


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "edited":
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "empty", "edited", "missing"])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("verb", [("evaluate",), ("train", "--resume")])
def test_a_damaged_checkpoint(refused, first, verb, name, how):
    for folder in (first / "checkpoints").glob("0*"):
        damage(folder / name, how)
    before = contents(first)
    answer = refused(*verb, first, code=1)
    assert f"first/checkpoints/000000100/{name}" in answer
    assert re.search("truncated|changed|missing", answer)
    assert "restore it from a copy" in answer
    assert contents(first) == before


@pytest.mark.parametrize("verb", [("evaluate",), ("train", "--resume")])
def test_damaged_rows(refused, first, verb):
    for path in (first / "checkpoints" / "segments").iterdir():
        damage(path, "edited")
    assert "segments/replay-000001.safetensors: changed" in refused(*verb, first, code=1)


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json", "../../run.json"])
def test_a_pickle_is_never_read(refused, first, name):
    for folder in (first / "checkpoints").glob("0*"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    refused("evaluate", first, code=1)
    refused("train", "--resume", first, code=1)
    assert not Path("sprung").exists()
    pickle.loads((first / "checkpoints" / "000000100" / name).read_bytes())
    assert Path("sprung").exists(), "the trap does spring"


@pytest.mark.parametrize(
    ("other", "of"),
    [
        ("sac", "is of sac(batch_size=8, start=20, hidden=(8,)) in palaestra/Pendulum-v0"),
        ("mass", "palaestra/PointMass-v0"),
    ],
)
@pytest.mark.parametrize("verb", [("evaluate",), ("train", "--resume")])
def test_a_checkpoint_of_another_run(refused, runs, first, verb, other, of):
    shutil.rmtree(first / "checkpoints")
    shutil.copytree(runs / other / "checkpoints", first / "checkpoints")
    before = contents(first)
    more = ("--steps", 120) if verb[0] == "train" else ()
    answer = refused(*verb, first, *more, code=1)
    assert "first/checkpoints/000000100: " in answer
    assert of in answer
    assert "and run.json says td3(" in answer
    assert contents(first) == before


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("expression", "tdd3(hidden=(8,))", "field 'expression': there is no algorithm 'tdd3'; did you mean td3"),
        ("expression", "sac(hidden=(8,))", "and run.json says sac(hidden=(8,))"),
        ("env", "palaestra/Pendulm-v0", "palaestra/Pendulm-v0"),
        ("env", "CartPole-v1", "CartPole-v1"),
        ("spaces", {}, "spaces"),
        ("seeds", [], "field 'seeds': [] is no list of whole numbers from 0"),
        ("seeds", "0", "field 'seeds': '0' is no list"),
        ("threads", 0, "field 'threads': is 0; it must be at least 1"),
        ("environments", "one", "field 'environments': 'one' is no int"),
        ("rebuilds", False, "its algorithm was made by hand"),
        ("made_by_id", False, "was constructed"),
        ("device", "cuda:99", "field 'device': device='cuda:99' cannot be used here"),
    ],
)
@pytest.mark.parametrize("verb", [("evaluate",), ("train", "--resume")])
def test_an_edited_run_json(refused, first, verb, field, value, what):
    about = json.loads((first / "run.json").read_text())
    (first / "run.json").write_text(json.dumps({**about, field: value}))
    before = contents(first)
    more = ("--steps", 120) if verb[0] == "train" else ()
    answer = refused(*verb, first, *more, code=1)
    assert what in answer or (value == "CartPole-v1" and "spaces.obs" in answer)
    assert contents(first) == before


@pytest.mark.parametrize("content", [b'{"kind": tr\n', b"\xff\xfe\n", b"[]\n"])
def test_broken_metrics(refused, first, content):
    (first / "metrics.jsonl").write_bytes(content)
    assert "metrics.jsonl, line 1: is no JSON object" in refused("runs", "show", first, code=1)
    assert "metrics.jsonl: has" in refused("train", "--resume", first, "--steps", 120, code=1)


def test_a_run_with_broken_metrics_does_not_hide_the_others(said, runs, first):
    shutil.copytree(runs / "sac", "second")
    (first / "metrics.jsonl").write_text("{\n")
    answer = said("runs", "list", ".", code=0)
    assert re.fullmatch(r"error: first/metrics.jsonl, line 1: [^\n]+\n", answer)


# ------------------------------------------------------------------------------------------- learning that fails


def test_a_run_that_diverges(refused, said):
    diverging = "td3(start=50,hidden=(8,),batch_size=8,lr=1e30)"
    answer = refused("train", diverging, *PENDULUM, *SHORT, "--out", "run", code=1)
    assert re.search(r"error: run: .* not finite .*; the last good checkpoint is run/checkpoints/000000040 ", answer)
    assert status(Path("run")) == "failed"
    assert [path.name for path in Checkpoints(Path("run/checkpoints")).paths()] == ["000000020", "000000040"]
    said("evaluate", "run", code=0)


# ------------------------------------------------------------------------------------------- without permission


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions")
def test_folders_without_permission(runs, refused, monkeypatch):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(runs / "td3", folder / "first")
        (folder / "first" / ".lock").unlink()
        (folder / "locked").mkdir()
        before = contents(folder)
        monkeypatch.chdir(folder)
        closed = (folder / "first", folder / "locked", folder)
        for path in closed:
            path.chmod(0o555)
        try:
            with nobody():
                fresh = refused("train", TD3, *PENDULUM, *SHORT, "--out", "locked/run", code=1)
                again = refused("train", "--resume", "first", "--steps", 120, code=1)
                exported = refused("export", "first", "--out", "policy", code=1)
        finally:
            for path in closed:
                path.chmod(0o755)
        assert fresh == "error: locked/run: cannot be written (Permission denied); choose another --out\n"
        assert again == "error: first/.lock: cannot be written (Permission denied); check the folder's permissions\n"
        assert exported.startswith("error: policy: cannot be written (Permission denied); ")
        assert contents(folder) == before
        monkeypatch.chdir("/")
