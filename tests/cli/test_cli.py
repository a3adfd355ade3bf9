"""The command line, as people and programs meet it: what it says, where, and with which exit code."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from palaestra import cli

TD3 = "td3(start=20,hidden=(8,),batch_size=8)"
PENDULUM = ("--env", "palaestra/Pendulum-v0")
VERBS = (
    "train", "compare", "stages", "claim", "evaluate", "export", "show", "list", "runs list", "runs show", "runs plot",
    "runs report", "runs check", "runs export", "runs import",
)  # fmt: skip
SHORT = (*PENDULUM, "--steps", "60", "--episodes", "2", "--evaluate-every", "40")


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


class Line:
    """Calls `main` in this process, in a folder of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Answer:
        self._patch.setattr(sys, "argv", ["palaestra", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        said = self._capsys.readouterr()
        return Answer(int(exit.value.code or 0), said.out, said.err)

    def refused(self, *arguments: object, code: int = 2) -> str:
        """The one line that it answers a mistake with."""
        answer = self(*arguments)
        assert answer.code == code, answer
        assert answer.out == ""
        assert re.fullmatch(r"error: [^\n]+\n", answer.err), answer.err
        return answer.err


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Line:
    monkeypatch.chdir(tmp_path)
    return Line(monkeypatch, capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 60 steps with two checkpoints; tests copy it before they change it."""
    import palaestra

    folder = tmp_path_factory.mktemp("trained") / "first"
    palaestra.train(TD3, "palaestra/Pendulum-v0", 60, episodes=2, evaluate_every=40, checkpoint_every=20, out=folder)
    return folder


@pytest.fixture
def first(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "first"))


# -------------------------------------------------------------------------------------------------------- what works


def test_from_training_to_a_picture(line: Line) -> None:
    began = line("train", TD3, *SHORT, "--out", "runs/first")
    assert (began.code, began.out) == (0, "")
    assert began.err.splitlines()[0] == (
        "td3(batch_size=8, start=20, hidden=(8,)) on palaestra/Pendulum-v0, 60 steps, seed 0 -> runs/first"
    )
    assert "       40 steps  episode_return -1" in began.err
    assert began.err.endswith("look at it with: palaestra runs plot runs/first\n")

    scored = line("evaluate", "runs/first", "--episodes", "3")
    assert scored.code == 0
    assert re.fullmatch(r"episode_return( -\d+\.\d+){3}\n", scored.out)

    listed = line("runs", "list")
    assert "runs/first" in listed.out.replace("\n", "")
    assert "finished" in listed.out
    assert "env_steps         60" in line("runs", "show", "runs/first").out
    assert line("runs", "plot", "runs", "--out", "curve.svg").err == "the picture is curve.svg\n"
    assert Path("curve.svg").read_text().startswith("<?xml")


def test_a_run_is_named_after_what_it_runs(line: Line) -> None:
    for name in ("td3-palaestra-Pendulum-v0-4", "td3-palaestra-Pendulum-v0-4-2"):
        answer = line("train", TD3, *SHORT, "--seed", 4, "--json")
        assert json.loads(answer.out)["run"] == f"runs/{name}"


def test_json_on_standard_output_and_the_rest_on_standard_error(line: Line) -> None:
    answer = line("train", TD3, *SHORT, "--json")
    assert json.loads(answer.out)["env_steps"] == 60
    assert len(answer.err.splitlines()) == 3, "what begins, and two evaluations"
    quiet = line("train", TD3, *SHORT, "--json", "--quiet")
    assert json.loads(quiet.out)["env_steps"] == 60
    assert quiet.err == ""


def test_without_a_terminal_there_is_no_bar(line: Line) -> None:
    answer = line("train", TD3, *SHORT)
    assert "\x1b" not in answer.err
    assert "\r" not in answer.err


def test_a_start_beyond_the_end_is_said(line: Line) -> None:
    answer = line("train", "td3(hidden=(8,))", *SHORT)
    assert answer.code == 0
    assert "nothing will be learnt" in answer.err


def test_resuming_with_more_steps(line: Line, first: Path) -> None:
    answer = line("train", "--resume", first, "--steps", 80, "--json")
    assert answer.code == 0
    assert (json.loads(answer.out)["env_steps"], json.loads(answer.out)["updates"]) == (80, 60)


@pytest.mark.parametrize("what", ["algorithms", "methods", "envs", "datasets"])
def test_lists(line: Line, what: str) -> None:
    answer = line("list", what)
    assert answer.code == 0
    assert len(answer.out.splitlines()) >= 4
    assert answer.err == ("and every id that Gymnasium knows\n" if what in ("envs", "datasets") else "")


def test_show(line: Line) -> None:
    answer = line("show", "dqn+double+n-step")
    assert "  double changes losses\n  n-step changes buffers\n" in answer.out


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("expression", "remedy"),
    [
        ("tdd3", "there is no algorithm 'tdd3'; did you mean td3"),
        ("td3+n-stp", "there is no method 'n-stp'; did you mean n-step?"),
        ("td3(lrr=1e-3)", "td3 has no setting 'lrr'; did you mean lr?"),
        ("td3(lr='fast')", "td3: lr='fast' does not fit; it is a float"),
        ("td3(lr=x)", "td3: lr=x is not a literal"),
        ("td3(", "has a bracket or quote that is not closed"),
        ("td3(1e-3)", "arguments are given by name, as in td3(keyword=value)"),
        ("n-step", "it changes a base, as in sac+n-step"),
        ("td3+sac", "it comes first, and alone"),
        ("td3+n-step+n-step", "both set buffers.replay.layout, which holds only one"),
        ("td3+double", "double does not fit td3: no keyword of term 'td'"),
        ("td3(activation='reluu')", "did you mean relu?"),
        ("td3(capacity=2)", "at least 3 are needed"),
    ],
)
def test_a_wrong_expression(line: Line, expression: str, remedy: str) -> None:
    assert remedy in line.refused("train", expression, *SHORT)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("Pendulm-v1", "did you mean Pendulum-v1"),
        ("Pendulum", "did you mean Pendulum-v1"),
        ("palaestra/Pendulm-v0", "did you mean palaestra/Pendulum-v0"),
        ("palestra/Pendulum-v0", "did you mean palaestra/Pendulum-v0"),
        ("Pendulum-v7", "did you mean Pendulum-v1"),
    ],
)
def test_an_unknown_environment(line: Line, name: str, remedy: str) -> None:
    assert remedy in line.refused("train", TD3, "--env", name, "--steps", 60)


@pytest.mark.skipif(find_spec("Box2D") is not None, reason="Box2D is installed")
def test_a_missing_package_names_the_extra(line: Line) -> None:
    said = line.refused("train", "dqn", "--env", "LunarLander-v3", "--steps", 60)
    assert "pip install 'palaestra[box2d]'" in said


@pytest.mark.skipif(find_spec("ale_py") is not None, reason="ale-py is installed")
def test_a_missing_namespace_names_the_extra(line: Line) -> None:
    said = line.refused("train", "dqn", "--env", "ALE/Pong-v5", "--steps", 60)
    assert "pip install 'palaestra[atari]'" in said


@pytest.mark.parametrize(
    ("base", "name", "others"),
    [("sac", "CartPole-v1", "try dqn or sac-discrete"), ("dqn", "Pendulum-v1", "try sac or td3")],
)
def test_an_algorithm_that_does_not_fit_names_others(line: Line, base: str, name: str, others: str) -> None:
    assert others in line.refused("train", base, "--env", name, "--steps", 60)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (
            ("train",),
            "EXPRESSION, --env or --dataset, --steps is missing, or give --resume RUN; see: palaestra train --help",
        ),
        (("train", TD3, *PENDULUM, "--steps", "0"), "see: palaestra train --help"),
        (("train", TD3, *PENDULUM, "--steps", "many"), "'--steps'"),
        (("train", TD3, *PENDULUM, "--stpes", "60"), "--steps"),
        (("train", TD3, *SHORT, "--device", "potato"), "use cpu"),
        (("train", TD3, *SHORT, "--device", "meta"), "use cpu"),
        (("train", "--resume", "first", TD3), "--resume continues a run as it was begun: leave out EXPRESSION"),
        (("train", "--resume", "first", "--seed", "1", "--out", "x"), "leave out --out, --seed"),
        (("list", "method"), "did you mean methods?"),
        (("list", "environments"), "did you mean envs?"),
        (("list", "everything"), "there are: algorithms, claims, datasets, envs, methods"),
        (("list",), "see: palaestra list --help"),
        (("evaluate",), "see: palaestra evaluate --help"),
        (("export", "first"), "'--out'"),
        (("export", "first", "--out", "policy", "--format", "onxn"), "did you mean onnx?"),
        (("train", TD3, *SHORT, "--precision", "bf61"), "it must be one of float32, bf16"),
        (("tarin",), "train"),
        (("runs", "plto"), "plot"),
        (("exprot",), "export"),
    ],
)
def test_wrong_usage(line: Line, first: Path, arguments: tuple[str, ...], remedy: str) -> None:
    assert remedy in line.refused(*arguments)


def test_a_folder_that_holds_a_run(line: Line, first: Path) -> None:
    before = (first / "run.json").read_bytes()
    said = line.refused("train", TD3, *SHORT, "--out", "first", code=1)
    assert "holds a run already; go on with it by --resume, or choose another --out" in said
    assert (first / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "verb", [("evaluate",), ("train", "--resume"), ("runs", "show"), ("runs", "check"), ("export", "--out", "policy")]
)
def test_a_missing_run_names_the_nearest(line: Line, first: Path, verb: tuple[str, ...]) -> None:
    assert line.refused(*verb, "frist", code=1) == "error: frist: there is no such run; did you mean first?\n"


@pytest.mark.parametrize("verb", [("runs", "list"), ("runs", "plot")])
def test_a_missing_folder_of_runs(line: Line, verb: tuple[str, ...]) -> None:
    assert "nowhere: there is no such folder" in line.refused(*verb, "nowhere", code=1)


@pytest.mark.parametrize("verb", [("evaluate",), ("train", "--resume"), ("runs", "show")])
def test_a_truncated_run_json(line: Line, first: Path, verb: tuple[str, ...]) -> None:
    (first / "run.json").write_bytes((first / "run.json").read_bytes()[:150])
    said = line.refused(*verb, first, code=1)
    assert re.search(r"run.json, line \d+, column \d+: is no JSON: .*; restore it from a copy", said)


@pytest.mark.parametrize("verb", [("evaluate",), ("train", "--resume")])
def test_a_run_json_of_which_a_part_is_missing(line: Line, first: Path, verb: tuple[str, ...]) -> None:
    about = json.loads((first / "run.json").read_text())
    del about["spaces"]
    (first / "run.json").write_text(json.dumps(about))
    assert "run.json, field 'spaces': is missing; restore it from a copy" in line.refused(*verb, first, code=1)


def damage(checkpoint: Path) -> None:
    file = checkpoint / "state.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize("verb", [("evaluate",), ("train", "--resume")])
def test_damaged_checkpoints(line: Line, first: Path, verb: tuple[str, ...]) -> None:
    for checkpoint in (first / "checkpoints").glob("0*"):
        damage(checkpoint)
    said = line.refused(*verb, first, code=1)
    assert "state.safetensors: truncated: 1000 bytes instead of" in said
    assert "no other checkpoint is intact; restore it from a copy, or train again with another --out" in said


def test_a_damaged_checkpoint_is_passed_over_and_said(line: Line, first: Path) -> None:
    before = [row for row in (first / "metrics.jsonl").read_text().splitlines() if '"env_steps":60' not in row]
    damage(first / "checkpoints" / "000000060")
    scored = line("evaluate", first, "--json")
    assert scored.code == 0
    assert json.loads(scored.out)["env_steps"] == 40
    assert scored.err.startswith("warning: passed over a damaged checkpoint: ")
    resumed = line("train", "--resume", first, "--json")
    assert "warning: passed over a damaged checkpoint: " in resumed.err
    assert json.loads(resumed.out)["env_steps"] == 60
    assert (first / "metrics.jsonl").read_text().splitlines()[:3] == before[:3]
    assert json.loads(line("evaluate", first, "--json").out)["env_steps"] == 60


def test_nothing_left_to_resume(line: Line, first: Path) -> None:
    said = line.refused("train", "--resume", first, code=1)
    assert "it is at 60 of 60 steps already; ask for more with --steps" in said
    assert json.loads((first / "run.json").read_text())["status"] == "finished"


def test_a_run_without_a_checkpoint_cannot_be_evaluated(line: Line, first: Path) -> None:
    shutil.rmtree(first / "checkpoints")
    assert "it has no checkpoint yet; wait for one" in line.refused("evaluate", first, code=1)


@pytest.mark.parametrize("out", ["a file/run", "a file"])
def test_a_folder_that_cannot_be_written(line: Line, out: str) -> None:
    Path("a file").write_text("")
    assert "cannot be written" in line.refused("train", TD3, *SHORT, "--out", out, code=1)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(line: Line, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    said = line.refused("train", TD3, *SHORT, "--out", "locked/run", code=1)
    assert "Permission denied" in said


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (("--out", "curve.bmp"), "use .png, .svg or .pdf"),
        (("--out", "first/run.json/curve.png"), "choose another file"),
        (("--score", "episode_retrun"), "the metrics have episode_length, episode_return"),
    ],
)
def test_pictures_that_cannot_be_drawn(line: Line, first: Path, given: tuple[str, str], remedy: str) -> None:
    assert remedy in line.refused("runs", "plot", "first", *given, code=1)


def test_a_broken_run_does_not_hide_the_others(line: Line, first: Path) -> None:
    shutil.copytree(first, "second")
    Path("second/run.json").write_text("{")
    answer = line("runs", "list", ".")
    assert answer.code == 0
    assert "first" in answer.out
    assert re.fullmatch(r"error: second/run.json[^\n]*\n", answer.err)


def test_a_mistake_of_ours_keeps_its_traceback(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(expression: str) -> None:
        raise TypeError("ours")

    monkeypatch.setattr("palaestra.api.show", broken)
    monkeypatch.setattr(sys, "argv", ["palaestra", "show", "sac"])
    with pytest.raises(TypeError, match="ours"):
        cli.main()


# ---------------------------------------------------------------------------------------- in a process of its own


def started(*arguments: str, where: Path) -> subprocess.Popen[str]:
    pipe, environment = subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}

    def heeding() -> None:  # a background job of a shell ignores Ctrl-C, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=where,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=heeding,
    )


def test_control_c_says_how_to_go_on(tmp_path: Path) -> None:
    process = started("-m", "palaestra", "train", TD3, *PENDULUM, "--steps", "1000000", "--out", "long", where=tmp_path)
    assert process.stderr is not None
    process.stderr.readline()  # it has begun
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "stopped; continue with: palaestra train --resume long"
    assert "Traceback" not in err
    assert json.loads((tmp_path / "long" / "run.json").read_text())["status"] == "stopped"


def test_help_is_fast_and_loads_nothing_heavy(tmp_path: Path) -> None:
    """Half a second is promised; three times that leaves room for a busy machine."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        process = started("-m", "palaestra", "--help", where=tmp_path)
        out, _ = process.communicate()
        times.append(time.perf_counter() - began)
        assert process.returncode == 0
        assert "train" in out
    assert statistics.median(times) < 1.5


@pytest.mark.parametrize("code", ["import palaestra", "import palaestra.cli", "import palaestra; dir(palaestra)"])
def test_importing_loads_nothing_heavy(tmp_path: Path, code: str) -> None:
    heavy = "sorted({'torch', 'numpy', 'gymnasium', 'matplotlib', 'mujoco'} & set(sys.modules))"
    out, err = started("-c", f"import sys; {code}; print({heavy})", where=tmp_path).communicate()
    assert (out, err) == ("[]\n", "")


@pytest.mark.parametrize("verb", [(), *map(tuple, map(str.split, VERBS))])
def test_every_verb_has_help_with_an_example(line: Line, verb: tuple[str, ...]) -> None:
    answer = line(*verb, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert not verb or "Example: palaestra" in answer.out
