"""`palaestra compare | stages | claim`: several runs, and what they say together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from palaestra.cli.console import Json, Quiet, Telling, Verbose, give, say, say_scores
from palaestra.cli.texts import Columns, MicroBatch, Model, PromptsFile, Rewards, texts
from palaestra.cli.train import trained

verbs = typer.Typer()


@verbs.command(
    epilog='Example: palaestra compare "td3(hidden=(64, 64))" "td3(hidden=(64, 64))+snapshotrl" --env Pendulum-v1 '
    "--steps 5000"
)
def compare(
    expressions: Annotated[list[str], typer.Argument(metavar="EXPRESSION EXPRESSION...", help="What is compared.")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Environment steps of each seed; on a dataset, updates.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each seed, where answers are collected.")] = None,
    env: Annotated[
        str | None, typer.Option(help="A Gymnasium id. With --dataset: where policies are evaluated.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="A file to learn from.")] = None,
    model: Model = None,
    prompts: PromptsFile = None,
    reward: Rewards = None,
    columns: Columns = None,
    micro_batch: MicroBatch = None,
    alpha: Annotated[float, typer.Option(help="Probability, at most, of naming a difference where none is.")] = 0.05,
    group: Annotated[int, typer.Option(min=1, help="Seeds of each arm between two looks.")] = 5,
    max_groups: Annotated[int, typer.Option(min=1, help="Looks at most.")] = 5,
    measure: Annotated[str, typer.Option(help="auc, final or best: of each seed's evaluations.")] = "auc",
    score: Annotated[
        str | None, typer.Option(help="Which score of an evaluation; episode_return, or fitted_q_value without --env.")
    ] = None,
    against_first: Annotated[bool, typer.Option("--against-first", help="Compare with the first alone.")] = False,
    out: Annotated[Path | None, typer.Option(help="The comparison's folder.")] = None,
    environments: Annotated[int, typer.Option(min=1, help="Copies stepped side by side, of each seed.")] = 1,
    episodes: Annotated[int | None, typer.Option(min=1, help="Of each evaluation: 10, or 100 prompts.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="Steps between evaluations.")] = None,
    together: Annotated[str, typer.Option(help="How a group's seeds run: stacked, processes or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32, or bf16 for forward passes.")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="Of all processes together.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare algorithms with as few seeds as the data allow, and say how sure the answer is.

    The same command again continues where it was stopped.
    """
    from palaestra import api
    from palaestra.cli.progress import Comparing

    progress = Comparing(quiet)
    given: dict[str, Any] = {
        "environments": environments, "episodes": episodes, "evaluate_every": evaluate_every, "together": together,
        "device": device, "precision": precision, **texts(model, prompts, reward, columns, micro_batch),
    }  # fmt: skip
    if env is None and dataset is None and prompts is None:
        raise typer.BadParameter("there is nothing to learn from: give --env or --dataset")
    if (steps is None) == (rounds is None):
        raise typer.BadParameter("say how long, with --steps or with --rounds")
    if dataset is not None:
        given["dataset"] = str(dataset)
    try:
        with Telling(verbose), progress:
            result = api.compare(
                expressions, env, steps or 0, rounds=rounds, alpha=alpha,
                group=group, max_groups=max_groups, measure=measure, score=score,
                against_first=against_first, out=out, threads=threads, listen=progress, **given,
            )  # fmt: skip
    except KeyboardInterrupt:
        say("stopped; the same command goes on" if progress.folder else "stopped")
        raise typer.Exit(130) from None
    if as_json:
        give(_compared(result))
    else:
        for sentence in result.summary["verdict"]:
            print(sentence)
        if not quiet:
            say(f"the report is {result.report}")


def _compared(result: Any) -> dict[str, Any]:
    told = ("arms", "decisions", "verdict", "status", "groups", "seconds", "folder", "report")
    return {key: result.summary[key] for key in told}


@verbs.command(epilog="Example: palaestra stages tulu3-rlvr --out tulu3")
def stages(
    file: Annotated[str, typer.Argument(help="A file of stages, or the name of one that comes with palaestra.")],
    out: Annotated[Path, typer.Option(help="The folder of all runs, each in one of its stage's name.")],
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train algorithms one after another, each beginning with what an earlier one learnt.

    The same command again continues where it was stopped.
    """
    from palaestra import api
    from palaestra.cli.progress import Progress

    progress = Progress(quiet)

    def told(row: dict[str, Any]) -> None:
        if row["kind"] == "stage" and not quiet:
            say(f"stage {row['number']} of {row['of']}, {row['name']}{': finished' if row['finished'] else ''}")
        progress(row)

    try:
        with Telling(verbose), progress:
            runs = api.stages(file, out, listen=told)
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        raise typer.Exit(130) from None
    found = [{"name": name, **trained(run)} for name, run in runs.items()]
    if as_json:
        give({"folder": str(out), "stages": found})
    elif not quiet:
        for stage in found:
            say(f"{stage['name']} ({stage['run']}):")
            say_scores(stage["scores"])


@verbs.command(epilog="Example: palaestra claim snapshotrl --scale smoke")
def claim(
    slug: Annotated[str, typer.Argument(help="A paper's method, as `palaestra list claims` names it.")],
    scale: Annotated[str, typer.Option(help="smoke (seconds), cpu (minutes) or paper (the original setting).")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="The comparison's folder.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of all processes together.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the result with the library, for its pages.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a paper's main claim as an experiment and say whether it holds here.

    Exit code 0 whatever the verdict: confirmed, contradicted or undecided.
    """
    from palaestra import api
    from palaestra.cli.progress import Comparing

    progress = Comparing(quiet)
    try:
        with Telling(verbose), progress:
            result = api.claim(slug, scale, out=out, threads=threads, record=record, listen=progress)
    except KeyboardInterrupt:
        say("stopped; the same command goes on" if progress.folder else "stopped")
        raise typer.Exit(130) from None
    if as_json:
        told = ("slug", "scale", "verdict", "measured", "scores", "seconds", "report")
        give({key: result[key] for key in told})
        return
    print(f"{slug} ({scale}): {result['verdict']}")
    if not quiet:
        for sentence in result["sentences"]:
            say(sentence)
        say(f"the report is {result['report']}")
