"""A progress bar for people, on standard error: steps a second, the last evaluation, the time that remains."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class Progress:
    """A listener of runs. Silent when `quiet`; without a bar, but with messages, when standard error is no terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.run = ""  # the folder of the run that has begun
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
                TextColumn("{task.fields[rate]} steps/s"), TimeRemainingColumn(), TextColumn("{task.fields[score]}"),
                console=Console(stderr=True),
            )  # fmt: skip
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, row: dict[str, Any]) -> None:
        if row["kind"] == "begin":
            self.run = row["run"]
        if not self.quiet:
            getattr(self, f"_{row['kind']}", self._ignore)(row)

    def _ignore(self, row: dict[str, Any]) -> None:
        """Rows that people need not see."""

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr) if self.bar is None else self.bar.console.print(text, highlight=False)

    def _begin(self, row: dict[str, Any]) -> None:
        self._begun = row.get("env_steps", 0)
        self._seconds: float | None = None
        from palaestra.together import written

        several = len(row["seeds"]) > 1
        self._seeds = row["seeds"]
        self._scores: dict[int, dict[str, list[float]]] = {}  # of evaluations that some seeds have yet to come to
        self._evaluated: dict[int, int] = {}
        which = f"seeds {written(row['seeds'])}, {_way(row)}," if several else f"seed {row['seeds'][0]}"
        self._say(f"{row['expression']} on {row['env']}, {row['steps']:,} steps, {which} -> {row['run']}")
        if row["resume"] != "exact":
            self._say(f"a resumed run will begin a new episode: {row['resume']}")
        if self.bar is not None:
            fields = {"rate": "...", "score": "", "completed": self._begun}
            self.task = self.bar.add_task("training", total=row["steps"], **fields)

    def _choosing(self, row: dict[str, Any]) -> None:
        self._say(f"trying how {len(row['seeds'])} seeds run best")

    def _tick(self, row: dict[str, Any]) -> None:
        if self.bar is None:
            return
        if self._seconds is None:
            self._seconds, self._begun = row["seconds"], row["env_steps"]
        elapsed = row["seconds"] - self._seconds
        rate = f"{(row['env_steps'] - self._begun) / elapsed:,.0f}" if elapsed > 0 else "..."
        self.bar.update(self.task, completed=row["env_steps"], rate=rate)

    def _evaluation(self, row: dict[str, Any]) -> None:
        """The interquartile mean of all seeds' raw scores, when the last of them is there."""
        from palaestra.runs.queries import interquartile_mean

        steps = row["env_steps"]
        came = self._scores.setdefault(steps, {})
        for name, values in row["scores"].items():
            came.setdefault(name, []).extend(values)
        self._evaluated[steps] = self._evaluated.get(steps, 0) + 1
        if self._evaluated[steps] < len(self._seeds):
            return
        text = ", ".join(f"{name} {interquartile_mean(values):.5g}" for name, values in came.items())
        del self._scores[steps], self._evaluated[steps]
        if self.bar is not None:
            self.bar.update(self.task, score=text)
        else:
            self._say(f"{steps:>9,} steps  {text}")

    def _warning(self, row: dict[str, Any]) -> None:
        self._say(f"warning: {row['text']}")


def _way(row: dict[str, Any]) -> str:
    """How several seeds run, and why."""
    workers = "one process at a time" if row["workers"] == 1 else f"{row['workers']} processes at a time"
    return f"{'stacked' if row['together'] == 'stacked' else workers} ({row['why_together']})"
