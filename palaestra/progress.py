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
        self._say(
            f"{row['expression']} on {row['env']}, {row['steps']:,} steps, seed {row['seeds'][0]} -> {row['run']}"
        )
        if row["resume"] != "exact":
            self._say(f"a resumed run will begin a new episode: {row['resume']}")
        if self.bar is not None:
            fields = {"rate": "...", "score": "", "completed": self._begun}
            self.task = self.bar.add_task("training", total=row["steps"], **fields)

    def _tick(self, row: dict[str, Any]) -> None:
        if self.bar is None:
            return
        if self._seconds is None:
            self._seconds, self._begun = row["seconds"], row["env_steps"]
        elapsed = row["seconds"] - self._seconds
        rate = f"{(row['env_steps'] - self._begun) / elapsed:,.0f}" if elapsed > 0 else "..."
        self.bar.update(self.task, completed=row["env_steps"], rate=rate)

    def _evaluation(self, row: dict[str, Any]) -> None:
        from palaestra.runs.queries import interquartile_mean

        text = ", ".join(f"{name} {interquartile_mean(values):.5g}" for name, values in row["scores"].items())
        if self.bar is not None:
            self.bar.update(self.task, score=text)
        else:
            self._say(f"{row['env_steps']:>9,} steps  {text}")

    def _warning(self, row: dict[str, Any]) -> None:
        self._say(f"warning: {row['text']}")
