"""`palaestra train`: one run, begun or continued."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from palaestra.cli.console import Json, Quiet, Telling, Verbose, give, say, say_scores
from palaestra.cli.texts import Columns, MicroBatch, Model, PromptsFile, Rewards, texts

verbs = typer.Typer()


@verbs.command(epilog='Example: palaestra train "sac(lr=1e-3)" --env Pendulum-v1 --steps 6000 --out runs/first')
def train(
    context: typer.Context,
    expression: Annotated[
        str | None, typer.Argument(help='An algorithm: sac, "td3(lr=1e-3)", dqn+double+n-step.')
    ] = None,
    env: Annotated[
        str | None, typer.Option(help="A Gymnasium id. With --dataset: where policies are evaluated.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Environment steps in all; on a dataset, updates.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds in all, where answers are collected.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="A file to learn from: .hdf5, .npz, a Minari folder; .jsonl, .parquet of texts.")
    ] = None,
    model: Model = None,
    prompts: PromptsFile = None,
    reward: Rewards = None,
    columns: Columns = None,
    micro_batch: MicroBatch = None,
    begin_from: Annotated[Path | None, typer.Option(help="Begin with the networks of this run.")] = None,
    then_env: Annotated[str | None, typer.Option(help="After the dataset, go on learning in this environment.")] = None,
    then_steps: Annotated[int | None, typer.Option(min=1, help="Environment steps there.")] = None,
    then_share: Annotated[float, typer.Option(help="Share of each batch there from the dataset.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of every random stream.")] = 0,
    seeds: Annotated[str | None, typer.Option(help="Several, each learning on its own: 0-15, or 3,5,8.")] = None,
    together: Annotated[
        str, typer.Option(help="How several seeds run: stacked, processes, or auto: the faster, by trying.")
    ] = "auto",
    environments: Annotated[int, typer.Option(min=1, help="Copies stepped side by side, of each seed.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The run's folder.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run from its last checkpoint.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="Steps between evaluations.")] = None,
    episodes: Annotated[int | None, typer.Option(min=1, help="Of each evaluation: 10, or 100 prompts.")] = None,
    log_every: Annotated[int | None, typer.Option(min=1, help="Steps between rows of the metrics.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Steps between checkpoints.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: a GPU where there is one.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32, or bf16 for forward passes.")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch.")] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Refuse sums without a fixed order.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Fuse each loss (a minute at the start).")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events for TensorBoard too.")] = False,
    attached: Annotated[bool, typer.Option("--attached", hidden=True, help="Stop when standard input ends.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train an algorithm in an environment or on a dataset, or continue a run."""
    ground = next((one for one in (env, dataset, prompts) if one is not None), None)
    if resume is None and (expression is None or ground is None or (steps is None and rounds is None)):
        needed = {"EXPRESSION": expression, "--env or --dataset": ground, "--steps": steps or rounds}
        missing = [name for name, value in needed.items() if value is None]
        raise typer.BadParameter(f"{', '.join(missing)} is missing, or give --resume RUN")
    if (then_env is None) != (then_steps is None):
        raise typer.BadParameter("give --then-env and --then-steps together")
    if then_env is not None and dataset is None:
        raise typer.BadParameter("--then-env goes on after a dataset: give --dataset")
    beside = {"resume", "dataset", "steps", "rounds", "attached", "as_json", "quiet", "verbose"}
    if resume is not None and (given := _given(context) - beside):
        names = ", ".join(sorted("EXPRESSION" if n == "expression" else f"--{n.replace('_', '-')}" for n in given))
        raise typer.BadParameter(f"--resume continues a run as it was begun: leave out {names}")
    if seeds is not None and "seed" in _given(context):
        raise typer.BadParameter("give --seed or --seeds, not both")
    from palaestra import api
    from palaestra.cli.progress import Progress
    from palaestra.together import seeds_of

    if attached:
        from palaestra.processes import stop_with_parent

        stop_with_parent()
    progress = Progress(quiet)
    try:
        with Telling(verbose), progress:
            if resume is not None:
                run = api.resume(resume, steps or rounds, dataset=dataset, listen=progress)
            else:
                assert expression is not None
                run = api.train(
                    expression, env, steps, rounds=rounds, dataset=dataset, begin_from=begin_from, seed=seed,
                    **texts(model, prompts, reward, columns, micro_batch),
                    seeds=None if seeds is None else seeds_of(seeds),
                    together=together, environments=environments, out=out, episodes=episodes,
                    evaluate_every=evaluate_every, log_every=log_every, checkpoint_every=checkpoint_every,
                    device=device, precision=precision, threads=threads, deterministic=deterministic,
                    compile=compile, tensorboard=tensorboard, listen=progress,
                )  # fmt: skip
            if then_env is not None:
                assert then_steps is not None
                run = api.go_online(
                    run, then_env, then_steps, share=then_share, environments=environments, episodes=episodes,
                    compile=compile, tensorboard=tensorboard, listen=progress,
                )  # fmt: skip
    except KeyboardInterrupt:
        say(f"stopped; continue with: palaestra train --resume {progress.run}" if progress.run else "stopped")
        raise typer.Exit(130) from None
    result = trained(run)
    if as_json:
        give(result)
    elif not quiet:
        say_scores(result["scores"])
        say(f"the run is in {run.folder}; look at it with: palaestra runs plot {run.folder}")


def _given(context: typer.Context) -> set[str]:
    """The options and arguments that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def trained(run: Any) -> dict[str, Any]:
    from palaestra.runs import row

    about, table = run.about, row(run)
    scores: dict[str, dict[str, list[float]]] = {}
    for one in run.metrics():
        if one["kind"] == "evaluation":
            for name, values in one["scores"].items():
                scores.setdefault(name, {})[str(one["seed"])] = values
    return {
        "run": str(run.folder),
        **{key: about[key] for key in ("expression", "env", "dataset", "seeds")},
        **{key: table[key] for key in ("env_steps", "updates")},
        "scores": scores,
        "seconds": table["seconds"],
    }
