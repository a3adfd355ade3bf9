"""The command line: `palaestra train | compare | stages | claim | evaluate | export | chat | show | list`, and what is
done with runs and datasets: `palaestra runs | dataset`.

What programs read (`--json`) goes to standard output, one object; progress and messages go to standard error. Exit
codes: 0 done, 1 a check or run failed, 2 bad usage. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from palaestra.cli_dataset import dataset_app
from palaestra.cli_runs import runs_app
from palaestra.console import Json, Quiet, Verbose, give, outline, say

app = typer.Typer(
    name="palaestra",
    help="Reinforcement-learning methods as small parts that compose.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
app.add_typer(runs_app, name="runs")
app.add_typer(dataset_app, name="dataset")


def _version(asked: bool) -> None:
    if asked:
        from palaestra import __version__

        print(f"palaestra {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Reinforcement-learning methods as small parts that compose."""


# What Typer raises for a mistake in options and arguments; its base class moved when Typer took click in.
Usage = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error, and so is a warning."""
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    try:
        sys.exit(app(prog_name="palaestra", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        say("stopped")
        sys.exit(130)
    except Exception as wrong:
        if code := _exit_code(wrong):
            say(_message(wrong))
            sys.exit(code)
        raise


def _message(wrong: Exception) -> str:
    if not isinstance(wrong, Usage):
        return f"error: {' '.join(str(wrong).split())}"  # spaces and foreign errors are written on several lines
    text, context = wrong.format_message(), wrong.ctx  # type: ignore[attr-defined]
    if type(wrong).__name__ == "NoArgsIsHelpError":
        return str(text)
    return f"error: {text.rstrip('.')}; see: {context.command_path if context else 'palaestra'} --help"


def _exit_code(wrong: Exception) -> int:
    """2 for what the user wrote, 1 for what a run or a file is; 0 for a mistake of ours, which keeps its traceback."""
    if isinstance(wrong, Usage):
        return 2
    from palaestra.data.dataset import DatasetError
    from palaestra.faults import EnvironmentFailed, NotFinite, RewardFailed
    from palaestra.runs.errors import RunError

    if isinstance(wrong, RunError | EnvironmentFailed | NotFinite | RewardFailed | DatasetError):
        return 1
    ours = type(wrong).__module__.startswith("palaestra") or type(wrong) is ValueError
    return 2 if ours and isinstance(wrong, ValueError) else 0


@contextmanager
def _telling(verbose: bool) -> Iterator[None]:
    """Show the traceback of an error that `main` makes one line of."""
    try:
        yield
    except Exception:
        if verbose:
            traceback.print_exc()
        raise


# ------------------------------------------------------------------------------------------------------------ verbs

Model = Annotated[
    str | None, typer.Option(help="A language model to begin with: a folder, a name, a run, or palaestra/add.")
]
PromptsFile = Annotated[Path | None, typer.Option(help="A file of prompts for it to answer.")]
Rewards = Annotated[
    list[str] | None, typer.Option(help="What answers earn: exact_match, file.py:function, a run of reward-model.")
]
Columns = Annotated[list[str] | None, typer.Option(help="Ours=theirs, such as prompt=question.")]
MicroBatch = Annotated[int | None, typer.Option(min=1, help="Rows of a language model's pass, to save memory.")]


@app.command(epilog='Example: palaestra train "sac(lr=1e-3)" --env Pendulum-v1 --steps 6000 --out runs/first')
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
    from palaestra.progress import Progress
    from palaestra.together import seeds_of

    if attached:
        from palaestra.processes import stop_with_parent

        stop_with_parent()
    progress = Progress(quiet)
    try:
        with _telling(verbose), progress:
            if resume is not None:
                run = api.resume(resume, steps or rounds, dataset=dataset, listen=progress)
            else:
                assert expression is not None
                run = api.train(
                    expression, env, steps, rounds=rounds, dataset=dataset, begin_from=begin_from, seed=seed,
                    **_texts(model, prompts, reward, columns, micro_batch),
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
    result = _trained(run)
    if as_json:
        give(result)
    elif not quiet:
        _say_scores(result["scores"])
        say(f"the run is in {run.folder}; look at it with: palaestra runs plot {run.folder}")


def _texts(
    model: str | None,
    prompts: Path | None,
    reward: list[str] | None,
    columns: list[str] | None,
    micro_batch: int | None,
) -> dict[str, Any]:
    """What was said of a language model, as `pal.train` takes it; nothing of what was not said."""
    pairs = [pair.partition("=") for pair in columns or ()]
    if wrong := [key + sign + value for key, sign, value in pairs if not (key and value)]:
        raise typer.BadParameter(
            f"--columns {wrong[0]!r} is not understood: write OURS=THEIRS, such as prompt=question"
        )
    said = {
        "model": model, "prompts": None if prompts is None else str(prompts), "reward": reward or None,
        "columns": {key: value for key, _, value in pairs} or None, "micro_batch": micro_batch,
    }  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def _given(context: typer.Context) -> set[str]:
    """The options and arguments that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _trained(run: Any) -> dict[str, Any]:
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


def _say_scores(scores: dict[str, dict[str, list[float]]]) -> None:
    from palaestra.runs.queries import interquartile_mean

    for name, by_seed in scores.items():
        values = [value for seed in by_seed.values() for value in seed]
        say(
            f"{name}: interquartile mean {interquartile_mean(values):.5g} of {len(values)} episodes "
            f"(from {min(values):.5g} to {max(values):.5g})"
        )


@app.command(
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
    from palaestra.progress import Comparing

    progress = Comparing(quiet)
    given: dict[str, Any] = {
        "environments": environments, "episodes": episodes, "evaluate_every": evaluate_every, "together": together,
        "device": device, "precision": precision, **_texts(model, prompts, reward, columns, micro_batch),
    }  # fmt: skip
    if env is None and dataset is None and prompts is None:
        raise typer.BadParameter("there is nothing to learn from: give --env or --dataset")
    if (steps is None) == (rounds is None):
        raise typer.BadParameter("say how long, with --steps or with --rounds")
    if dataset is not None:
        given["dataset"] = str(dataset)
    try:
        with _telling(verbose), progress:
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


@app.command(epilog="Example: palaestra stages tulu3-rlvr --out tulu3")
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
    from palaestra.progress import Progress

    progress = Progress(quiet)

    def told(row: dict[str, Any]) -> None:
        if row["kind"] == "stage" and not quiet:
            say(f"stage {row['number']} of {row['of']}, {row['name']}{': finished' if row['finished'] else ''}")
        progress(row)

    try:
        with _telling(verbose), progress:
            runs = api.stages(file, out, listen=told)
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        raise typer.Exit(130) from None
    found = [{"name": name, **_trained(run)} for name, run in runs.items()]
    if as_json:
        give({"folder": str(out), "stages": found})
    elif not quiet:
        for stage in found:
            say(f"{stage['name']} ({stage['run']}):")
            _say_scores(stage["scores"])


@app.command(epilog="Example: palaestra claim snapshotrl --scale smoke")
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
    from palaestra.progress import Comparing

    progress = Comparing(quiet)
    try:
        with _telling(verbose), progress:
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


@app.command(epilog="Example: palaestra evaluate runs/first --episodes 50")
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

    with _telling(verbose):
        result = api.evaluate(run, episodes=episodes, seed=seed, device=device)
    for problem in result["problems"]:
        say(f"warning: passed over a damaged checkpoint: {problem}")
    if as_json:
        give(result)
    else:
        _say_scores(result["scores"])
        for name, by_seed in result["scores"].items():
            for own, values in by_seed.items():
                whose = f" seed {own}" if len(by_seed) > 1 else ""
                print(f"{name}{whose}", *(f"{value:.6g}" for value in values))


@app.command(epilog="Example: palaestra export runs/first --out policy --format onnx")
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

    with _telling(verbose):
        result = api.export(run, out, format=format, seed=seed)
    for problem in result["problems"]:
        say(f"warning: passed over a damaged checkpoint: {problem}")
    if as_json:
        give(result)
        return
    say(f"the policy after {result['env_steps']:,} steps is in {out}: {', '.join(result['files'])}")
    if result["difference"] is not None:
        taken, given = (", ".join(f"{one['name']} {one['shape']}" for one in result[k]) for k in ("inputs", "outputs"))
        say(f"it takes {taken} and gives {given}; PyTorch's actions differ by {result['difference']:.2g} at most")


@app.command(epilog='Example: palaestra chat runs/first "2+3="')
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

    with _telling(verbose):
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


@app.command(epilog='Example: palaestra show "td3(lr=1e-3)+n-step"')
def show(expression: Annotated[str, typer.Argument(help="An algorithm.")], as_json: Json = False) -> None:
    """Take an algorithm apart: its parts, and what each method changed."""
    from palaestra import api

    taken = api.show(expression)
    if as_json:
        give(taken)
        return
    print(taken["expression"])
    for method in taken["methods"]:
        print(f"  {method['slug']} changes {', '.join(method['parts']) or 'nothing'}")
    print()
    for part, value in taken["parts"].items():
        print(f"{part:15}{outline(value)}")


@app.command("list", epilog="Example: palaestra list methods --json")
def list_(
    what: Annotated[str, typer.Argument(help="algorithms, methods, envs, datasets or claims.")], as_json: Json = False
) -> None:
    """List what there is."""
    from palaestra import api

    rows = api.listed(what)
    if as_json:
        give(rows)
        return
    wide = max((len(row["slug"]) for row in rows), default=0) + 2
    for row in rows:
        if row.get("problem"):
            say(f"error: {row['problem']}")
            continue
        ours = "" if row.get("package", "palaestra") == "palaestra" else f"  [{row['package']}]"
        print(f"{row['slug']:{wide}}{row['title']}{ours}")
    if what in ("envs", "datasets"):
        say("and every id that Gymnasium knows")
