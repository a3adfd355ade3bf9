"""The command line: `palaestra train | compare | stages | claim | evaluate | export | chat | show | list`, and what is
done with runs and datasets: `palaestra runs | dataset`.

What programs read (`--json`) goes to standard output, one object; progress and messages go to standard error. Exit
codes: 0 done, 1 a check or run failed, 2 bad usage. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from palaestra.cli import catalogue, experiments, policies, train
from palaestra.cli.console import say
from palaestra.cli.dataset import dataset_app
from palaestra.cli.runs import runs_app

app = typer.Typer(
    name="palaestra",
    help="Reinforcement-learning methods as small parts that compose.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
for part in (train, experiments, policies, catalogue):
    app.add_typer(part.verbs)
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
