"""`palaestra dataset check | info | make`: what is done with logged data before anybody learns from it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from palaestra.cli.console import Json, give, say

dataset_app = typer.Typer(
    help="Check datasets, describe them and make them.", no_args_is_help=True, rich_markup_mode=None
)

Data = Annotated[
    Path, typer.Argument(help="A file (.hdf5 in Minari's or D4RL's layout, .npz) or a folder of Minari's.")
]


@dataset_app.command(epilog="Example: palaestra dataset check hopper.hdf5 --env Hopper-v5")
def check(
    path: Data,
    env: Annotated[str | None, typer.Option(help="Whose spaces are the data's, where the file does not say.")] = None,
    as_json: Json = False,
) -> None:
    """Read a whole dataset and say what is wrong in it: file, field, episode and step."""
    from palaestra.data.check import examine
    from palaestra.data.dataset import DatasetError

    try:
        problems, notes = examine(path, env=env)
    except DatasetError as wrong:
        say(f"error: {wrong}")
        raise typer.Exit(1) from None
    if as_json:
        give({"ok": not problems, "problems": _plain(problems), "notes": _plain(notes)})
    else:
        for one in notes:
            say(f"note: {one}")
        for one in problems:
            say(f"error: {one}")
        number = len(problems)
        say(f"{number} problem{'s' * (number > 1)}" if number else "whole and sound")
    if problems:
        raise typer.Exit(1)


def _plain(problems: list[Any]) -> list[dict[str, str]]:
    return [dataclasses.asdict(one) for one in problems]


@dataset_app.command(epilog="Example: palaestra dataset info hopper.hdf5 --reference replay.hdf5 --plot hopper.png")
def info(
    path: Data,
    reference: Annotated[
        Path | None, typer.Option(help="A dataset to compare coverage with: the replay of an online run, as large.")
    ] = None,
    random_return: Annotated[float | None, typer.Option(help="A random policy's mean return, quality 0.")] = None,
    best_return: Annotated[float | None, typer.Option(help="The best known mean return, quality 1.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw returns, lengths and observations: .png, .svg, .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Describe a dataset: returns, coverage, quality, what is unusual, and which methods papers recommend for it."""
    from palaestra import api
    from palaestra.data.dataset import DatasetError
    from palaestra.data.files import read
    from palaestra.data.statistics import describe

    listed = {row["slug"] for what in ("algorithms", "methods") for row in api.listed(what)}
    try:
        data = read(path)
        against = None if reference is None else read(reference)
        found = describe(data, against, random_return, best_return, listed)
    except DatasetError as wrong:
        say(f"error: {wrong}")
        raise typer.Exit(1) from None
    if plot is not None:
        from palaestra.cli.dataset_figure import figure

        found["picture"] = str(figure(data, plot))
    if as_json:
        give(found)
        return
    from palaestra.cli.dataset_text import text

    text(found)
    if plot is not None:
        say(f"the picture is {plot}")


@dataset_app.command(epilog="Example: palaestra dataset make Pendulum-v1 --quality medium --steps 20000")
def make(
    env: Annotated[str, typer.Argument(help="A Gymnasium id.")],
    quality: Annotated[str, typer.Option(help="random, medium, expert, replay, mixed; stitching in a point maze.")],
    steps: Annotated[int, typer.Option(min=1, help="Environment steps; the last episode is kept whole.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the behaviour and of the episodes.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="A new file, .hdf5 or .npz; ENV-QUALITY-SEED.hdf5 when left out.")
    ] = None,
    behaviour: Annotated[
        str | None, typer.Option(help="An expression to train, in place of a controller or of what suits ENV.")
    ] = None,
    behaviour_steps: Annotated[int, typer.Option(min=1, help="Environment steps of its training.")] = 20_000,
    expert_share: Annotated[float, typer.Option(help="Share of an expert's steps in a mixed dataset.")] = 0.2,
    threads: Annotated[int, typer.Option(min=1, help="Of PyTorch; another number makes other data.")] = 1,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no messages.")] = False,
) -> None:
    """Make a dataset: train a behaviour, once, or take the environment's controller, and play whole episodes."""
    from palaestra.cli.progress import Progress
    from palaestra.data.files import write
    from palaestra.factories.behaviours import Behaviour
    from palaestra.factories.datasets import make_dataset

    out = out or Path(f"{env.replace('/', '-')}-{quality}-{seed}.hdf5")
    if out.exists():
        raise typer.BadParameter(f"{out} exists already: give another --out")
    trained = None if behaviour is None else Behaviour(behaviour, behaviour_steps)
    began = time.perf_counter()
    with Progress(quiet) as progress:
        data = make_dataset(
            env, quality, steps, seed, behaviour=trained, expert_share=expert_share, threads=threads, listen=progress
        )
    write(data, out)
    returns = data.returns()
    if as_json:
        told = ("env", "quality", "seed", "steps", "episodes", "behaviour", "reference")
        mean = {"mean_return": float(returns.mean()), "seconds": time.perf_counter() - began}
        give({"file": str(out), "hash": data.hash, **{key: data.about[key] for key in told}, **mean})
    elif not quiet:
        reference = data.about["reference"]
        say(
            f"{data.episodes:,} episodes, {data.steps:,} steps, mean return {returns.mean():.5g} (random actions "
            f"{reference['random']:.5g}, the behaviour's best {reference['best']:.5g}) are in {out}"
        )
