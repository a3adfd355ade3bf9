"""`palaestra runs list | show | plot | report | export | import | check`: what is done with runs that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from palaestra.cli.console import Json, give, outline, say

runs_app = typer.Typer(help="Look at runs, share them and check them.", no_args_is_help=True, rich_markup_mode=None)

Folders = Annotated[list[Path], typer.Argument(help="Runs, or folders of runs.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Conditions: env=Pendulum-v1 algorithm~snapshot 'steps>=1000'; see the guide on tracked runs."),
]


def _asked(folders: list[Path] | None, where: list[str] | None) -> tuple[list[Path], list[str]]:
    """The folders and the conditions. An option takes one value: what follows it lands among the folders."""
    from palaestra.runs.queries import CONDITION

    folders, where = folders or [], where or []
    more = [one for one in folders if where and not one.exists() and CONDITION.fullmatch(str(one))]
    return [one for one in folders if one not in more] or [Path("runs")], [*where, *map(str, more)]


def _found(folders: list[Path] | None, where: list[str] | None) -> list[Any]:
    """The runs that are asked for; those that do not open are told."""
    from palaestra.runs import broken, find, matching

    folders, where = _asked(folders, where)
    for _, problem in broken(folders):
        say(f"error: {problem}")
    runs = find(folders)
    if runs and not (some := matching(runs, where)):
        raise typer.BadParameter(f"none of {len(runs)} runs meets {' '.join(where)}")
    return some if runs else []


@runs_app.command("list", epilog="Example: palaestra runs list runs --where env=Pendulum-v1 algorithm~snapshot")
def runs_list(
    folders: Annotated[list[Path] | None, typer.Argument(help="Where to look; runs/ when left out.")] = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """List the runs in folders."""
    from palaestra.runs import table

    rows, broken = table(*_asked(folders, where))
    problems = [{"folder": str(folder), "problem": str(problem)} for folder, problem in broken]
    if as_json:
        give({"runs": [{**r, "folder": str(r["folder"])} for r in rows], "broken": problems})
        return
    from rich.console import Console
    from rich.table import Table

    columns = ("folder", "env", "seeds", "status", "env_steps", "iqm", "expression")
    shown = Table(*columns, box=None, pad_edge=False)
    for one in rows:
        scores = ", ".join(f"{name} {value:.5g}" for name, value in one["iqm"].items())
        seeds = ",".join(map(str, one["seeds"] or []))
        cells = (one["folder"], one["env"], seeds, one["status"], one["env_steps"], scores, one["expression"])
        shown.add_row(*map(str, cells))
    Console().print(shown)
    for problem in problems:
        say(f"error: {problem['problem']}")


@runs_app.command("show", epilog="Example: palaestra runs show runs/first")
def runs_show(folders: Folders, where: Where = None, as_json: Json = False) -> None:
    """Show what a run was and how far it came. With --json: one object for one run's folder, otherwise a list."""
    from palaestra.runs import Run

    one = where is None and len(folders) == 1 and ((folders[0] / "run.json").exists() or not folders[0].is_dir())
    runs = [] if one else _found(folders, where)
    results = [_shown(run) for run in runs or [Run.open(folders[0])]]
    if as_json:
        give(results[0] if one else results)
        return
    for number, result in enumerate(results):
        if number:
            print()
        made = result["provenance"]
        short = {**made, "packages": f"{len(made.get('packages', []))}, listed by --json"}
        for key, value in {**result, "provenance": short}.items():
            print(f"{key:18}{outline(value, 18)}")


def _shown(run: Any) -> dict[str, Any]:
    from palaestra.runs import row

    table = row(run)
    result = {**run.about, "folder": str(run.folder), "status": table["status"]}
    return result | {key: table[key] for key in ("env_steps", "updates", "seconds")} | {"iqm": table["iqm"]}


@runs_app.command("plot", epilog="Example: palaestra runs plot runs/first --out curve.png")
def runs_plot(
    folders: Folders,
    where: Where = None,
    out: Annotated[Path, typer.Option(help="A .png, .svg or .pdf file.")] = Path("curve.png"),
    score: Annotated[str | None, typer.Option(help="Which score; the usual one when left out.")] = None,
    as_json: Json = False,
) -> None:
    """Draw learning curves: interquartile means over seeds with bands, and every raw value; a panel an environment."""
    from palaestra.runs import learning_curve

    path = learning_curve(_found(folders, where), out, score)
    give({"picture": str(path)}) if as_json else say(f"the picture is {path}")


@runs_app.command("report", epilog="Example: palaestra runs report runs --out report.html")
def runs_report(
    folders: Folders,
    where: Where = None,
    out: Annotated[Path, typer.Option(help="An .html file.")] = Path("report.html"),
    score: Annotated[str | None, typer.Option(help="Which score the curves are of.")] = None,
    as_json: Json = False,
) -> None:
    """Write one page about runs: curves, every seed's raw scores, settings that differ, versions and machine."""
    from palaestra.runs.report import report

    runs = _found(folders, where)
    path = report(runs, out, score)
    give({"report": str(path), "runs": len(runs)}) if as_json else say(f"the report on {len(runs)} runs is {path}")


@runs_app.command("export", epilog="Example: palaestra runs export runs --out runs.tar.gz")
def runs_export(
    folders: Folders,
    out: Annotated[Path, typer.Option(help=".tar.gz: whole runs with a hash; .parquet or .csv: a long table.")],
    where: Where = None,
    as_json: Json = False,
) -> None:
    """Write runs into one file, to share or to analyse; `runs import` makes folders of it again."""
    from palaestra.runs.archive import export

    result = export(_found(folders, where), out)
    if as_json:
        give(result)
        return
    what = f"hash {result['hash']}" if result["hash"] else f"{result['rows']:,} rows, no checkpoints"
    say(f"{len(result['runs'])} runs are in {out}: {what}")


@runs_app.command("import", epilog="Example: palaestra runs import runs.tar.gz --out runs")
def runs_import(
    file: Annotated[Path, typer.Argument(help="What `runs export` wrote.")],
    out: Annotated[Path, typer.Option(help="The folder for the runs; those that are in it stay.")],
    hash: Annotated[str | None, typer.Option(help="That the bundle must have, as `runs export` printed it.")] = None,
    as_json: Json = False,
) -> None:
    """Make run folders of an exported file, after comparing every file of a bundle with its hash."""
    from palaestra.runs.archive import import_

    result = import_(file, out, hash)
    if as_json:
        give(result)
        return
    say(f"{len(result['runs'])} runs are in {out}: {', '.join(Path(run).name for run in result['runs'])}")
    if not result["hash"]:
        say("their checkpoints are not: tables hold none")


@runs_app.command("check", epilog="Example: palaestra runs check runs/first")
def runs_check(folders: Folders, as_json: Json = False) -> None:
    """Read every file of the runs in folders and say which are damaged, and what a complete run would say besides."""
    from palaestra import api

    result = api.check(*folders)
    if as_json:
        give(result)
    else:
        for one in result["problems"]:
            place = f"{one['file']}, {one['where']}" if one["where"] else one["file"]
            say(f"error: {place}: {one['what']}; {one['remedy']}")
        number = len(result["problems"])
        runs = f"{result['runs']} runs, " if result["runs"] > 1 else ""
        say(runs + (f"{number} problem{'s' * (number > 1)}" if number else "whole and complete"))
    if not result["ok"]:
        raise typer.Exit(1)
