"""Packages that others install beside ours: their bases and methods are used like ours; broken ones are named.

What pip would write for `plugin/` is written here by hand, so that no test needs a build backend or a network.
"""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).parent / "plugin"
ALGORITHMS, METHODS = "palaestra.algorithms", "palaestra.methods"

# Several command lines in one process, because each would import PyTorch.
SEVERAL = """
import contextlib, io, json, sys
from palaestra import cli

answers = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["palaestra", *arguments]
    out, err = io.StringIO(), io.StringIO()
    code = "a traceback"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as exit:
            code = exit.code or 0
        except BaseException as wrong:
            print(f"{type(wrong).__name__}: {wrong}", file=sys.stderr)
    answers.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
print(json.dumps(answers))
"""


def install(target: Path, name: str, groups: Mapping[str, Mapping[str, str]], modules: Mapping[str, str]) -> None:
    """What `pip install --target` leaves: modules, and a `.dist-info` with the entry points."""
    info = target / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [
        line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, text in modules.items():
        (target / f"{module}.py").write_text(text)
    files = [*(f"{module}.py" for module in modules), *(f"{info.name}/{n}" for n in ("METADATA", "entry_points.txt"))]
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info.name}/RECORD"]))


def install_handstand(target: Path) -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    install(target, project["name"], project["entry-points"], {"handstand": (PLUGIN / "handstand.py").read_text()})


def answers(packages: Path, *lines: Sequence[str]) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(packages)}
    command = [sys.executable, "-c", SEVERAL, json.dumps(lines)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=packages.parent)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_used_like_ours(tmp_path: Path) -> None:
    install_handstand(tmp_path / "packages")
    given = ("--env", "palaestra/Pendulum-v0", "--steps", "50", "--episodes", "1", "--evaluate-every", "50", "--json")
    algorithms, methods, table, shown, trained, resumed, typo, wrong = answers(
        tmp_path / "packages",
        ("list", "algorithms", "--json"),
        ("list", "methods", "--json"),
        ("list", "algorithms"),
        ("show", "hasty(lr=0.1)+seldom_updated(period=5)", "--json"),
        ("train", "hasty+seldom-updated+n-step", *given, "--out", "run"),
        ("train", "--resume", "run", "--steps", "60", "--json"),
        ("train", "hasti", *given),
        ("train", "hasty(speed=3)", *given),
    )
    theirs = {"slug": "hasty", "title": "TD3 without delay, in a hurry.", "package": "handstand", "problem": None}
    assert theirs in json.loads(algorithms["out"])
    (method,) = [row for row in json.loads(methods["out"]) if row["slug"] == "seldom-updated"]
    assert (method["parts"], method["family"], method["package"]) == (["schedule"], "handstand", "handstand")
    assert "TD3 without delay, in a hurry.  [handstand]" in table["out"]
    assert "td3" in table["out"]

    taken = json.loads(shown["out"])
    assert (taken["expression"], taken["base"]) == ("hasty(lr=0.1)+seldom-updated(period=5)", "hasty")
    assert taken["methods"] == [{"slug": "seldom-updated", "parts": ["schedule"]}]
    assert taken["parts"]["schedule"]["updates"] == 0.2

    result = json.loads(trained["out"])
    assert (result["expression"], result["updates"]) == ("hasty+seldom-updated+n-step", 20)
    assert (resumed["code"], json.loads(resumed["out"])["updates"]) == (0, 25)
    assert (typo["code"], typo["err"]) == (2, "error: there is no algorithm 'hasti'; did you mean hasty, sft?\n")
    assert wrong["code"] == 2
    assert "hasty has no setting 'speed'" in wrong["err"]


def test_one_that_cannot_be_imported_hides_no_other(tmp_path: Path) -> None:
    install_handstand(tmp_path / "packages")
    groups = {ALGORITHMS: {"fallen": "fallen:fallen"}, METHODS: {"missing": "handstand:missing"}}
    install(tmp_path / "packages", "fallen", groups, {"fallen": "import a_package_that_nobody_has\n"})
    table, algorithms, methods, named, shown, ours = answers(
        tmp_path / "packages",
        ("list", "algorithms"),
        ("list", "algorithms", "--json"),
        ("list", "methods", "--json"),
        ("show", "fallen"),
        ("show", "td3+missing"),
        ("show", "hasty+n-step"),
    )
    problem = "fallen (fallen:fallen) of fallen cannot be loaded: No module named 'a_package_that_nobody_has'"
    assert (table["code"], table["err"]) == (0, f"error: {problem}\n")
    assert {"td3", "hasty", "dqn"} < {line.split()[0] for line in table["out"].splitlines()}
    assert {row["slug"]: row["problem"] for row in json.loads(algorithms["out"])}["fallen"] == problem
    assert {row["slug"]: row["problem"] for row in json.loads(algorithms["out"])}["hasty"] is None
    (missing,) = [row for row in json.loads(methods["out"]) if row["slug"] == "missing"]
    assert "missing (handstand:missing) of fallen cannot be loaded" in missing["problem"]
    assert (named["code"], named["err"]) == (2, f"error: {problem}\n")
    assert shown["code"] == 2
    assert "missing (handstand:missing) of fallen cannot be loaded" in shown["err"]
    assert ours["code"] == 0


def test_a_name_that_is_taken_is_named(tmp_path: Path) -> None:
    install(tmp_path / "packages", "rival", {ALGORITHMS: {"sac": "rival:sac"}}, {"rival": ""})
    (listed,) = answers(tmp_path / "packages", ("list", "algorithms"))
    assert "'sac' of rival is taken by palaestra: its entry point needs another name" in listed["err"]
    assert len(listed["err"].splitlines()) == 1


def test_a_name_that_is_taken_hides_no_other(tmp_path: Path) -> None:
    install(tmp_path / "packages", "rival", {ALGORITHMS: {"sac": "rival:sac"}}, {"rival": ""})
    listed, shown = answers(tmp_path / "packages", ("list", "algorithms"), ("show", "sac"))
    assert "td3" in listed["out"]
    assert (listed["code"], shown["code"]) == (0, 0)


def test_one_with_an_error_hides_no_other(tmp_path: Path) -> None:
    install(tmp_path / "packages", "fallen", {ALGORITHMS: {"fallen": "fallen:fallen"}}, {"fallen": "def fallen(:\n"})
    (listed,) = answers(tmp_path / "packages", ("list", "algorithms"))
    assert listed["code"] == 0
    assert "td3" in listed["out"]


def test_an_entry_point_with_a_name_of_its_own(tmp_path: Path) -> None:
    module = {"handstand": (PLUGIN / "handstand.py").read_text()}
    install(tmp_path / "packages", "handstand", {ALGORITHMS: {"upside-down": "handstand:hasty"}}, module)
    (shown,) = answers(tmp_path / "packages", ("show", "upside-down", "--json"))
    assert shown["code"] == 0
    assert json.loads(shown["out"])["expression"] == "upside-down"
