"""`palaestra evaluate | export | chat`: what is done with what a run learnt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from palaestra.cli.console import Json, Telling, Verbose, give, say, say_scores

verbs = typer.Typer()


@verbs.command(epilog="Example: palaestra evaluate runs/first --episodes 50")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    episodes: Annotated[int | None, typer.Option(min=1, help="10, or 100 prompts.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the environments.")] = 0,
    device: Annotated[str | None, typer.Option(help="The run's own when left out.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Play fresh episodes with a run's last checkpoint and give their raw scores."""
    from palaestra import api

    with Telling(verbose):
        result = api.evaluate(run, episodes=episodes, seed=seed, device=device)
    _warn(result["problems"])
    if as_json:
        give(result)
    else:
        say_scores(result["scores"])
        for name, by_seed in result["scores"].items():
            for own, values in by_seed.items():
                whose = f" seed {own}" if len(by_seed) > 1 else ""
                print(f"{name}{whose}", *(f"{value:.6g}" for value in values))


@verbs.command(epilog="Example: palaestra export runs/first --out policy --format onnx")
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    format: Annotated[
        str | None, typer.Option(help="policy, which palaestra loads without the run, or onnx; huggingface of texts.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Whose policy, of several; the first's when left out.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the policy of a run's last checkpoint into a folder of its own."""
    from palaestra import api

    with Telling(verbose):
        result = api.export(run, out, format=format, seed=seed)
    _warn(result["problems"])
    if as_json:
        give(result)
        return
    say(f"the policy after {result['env_steps']:,} steps is in {out}: {', '.join(result['files'])}")
    if result["difference"] is not None:
        taken, given = (", ".join(f"{one['name']} {one['shape']}" for one in result[k]) for k in ("inputs", "outputs"))
        say(f"it takes {taken} and gives {given}; PyTorch's actions differ by {result['difference']:.2g} at most")


@verbs.command(epilog='Example: palaestra chat runs/first "2+3="')
def chat(
    run: Annotated[Path, typer.Argument(help="A run's folder, of a language model.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="To answer; lines are read when there are none.")] = None,
    draw: Annotated[
        int | None, typer.Option(help="Draw answers with this seed; the most likely when left out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Whose policy, of several; the first's when left out.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Talk to what a run learnt: its answer to each prompt."""
    from palaestra.speaker import speaker

    with Telling(verbose):
        learnt = speaker(run, seed)
        if "policy" not in learnt.learner.nets:
            raise typer.BadParameter(f"{run} learnt a reward model, which answers nothing")
        if prompts:
            answers = learnt.answers(prompts, draw)
            if as_json:
                give([{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)])
            else:
                print("\n".join(answers))
            return
        if as_json:
            raise typer.BadParameter("--json needs prompts on the command line")
        asking = sys.stdin.isatty()
        while True:
            try:
                prompt = input("> " if asking else "")
            except EOFError:
                return
            if prompt:
                print(learnt.answer(prompt, draw), flush=True)


def _warn(problems: list[str]) -> None:
    for problem in problems:
        say(f"warning: passed over a damaged checkpoint: {problem}")
