"""A progress bar for people, on standard error: steps a second, the last evaluation, the time that remains."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from palaestra.processes import far


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
        self._begun = far(row)
        self._unit = {"env_steps": "steps"}.get(clock := row.get("counts", "env_steps"), clock)
        self._seconds: float | None = None
        from palaestra.together import written

        several = len(row["seeds"]) > 1
        self._seeds = row["seeds"]
        self._scores: dict[int, dict[str, list[float]]] = {}  # of evaluations that some seeds have yet to come to
        self._evaluated: dict[int, int] = {}
        which = f"seeds {written(row['seeds'])}, {_way(row)}," if several else f"seed {row['seeds'][0]}"
        self._say(f"{row['expression']} on {_ground(row)}, {row['steps']:,} {self._unit}, {which} -> {row['run']}")
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
            self._seconds, self._begun = row["seconds"], far(row)
        elapsed = row["seconds"] - self._seconds
        rate = f"{(far(row) - self._begun) / elapsed:,.0f}" if elapsed > 0 else "..."
        self.bar.update(self.task, completed=far(row), rate=rate)

    def _evaluation(self, row: dict[str, Any]) -> None:
        """The interquartile mean of all seeds' raw scores, when the last of them is there."""
        from palaestra.runs.queries import interquartile_mean

        steps = far(row)
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
            self._say(f"{steps:>9,} {self._unit}  {text}")

    def _warning(self, row: dict[str, Any]) -> None:
        self._say(f"warning: {row['text']}")


def _ground(row: dict[str, Any]) -> str:
    """What a run learns from, and where its policies are evaluated."""
    if row.get("model") is not None:
        return " and ".join(_texts(row)) + f", from {row['model']}"
    if row.get("dataset") is None:
        return str(row["env"])
    name = f"{Path(row['dataset']).name} ({row['dataset_steps']:,} steps)"
    if not row["offline"]:
        return f"{row['env']} and {name}"
    return f"{name}, evaluated " + (f"in {row['env']}" if row["env"] else "by fitted Q, without a simulator")


def _texts(row: dict[str, Any]) -> list[str]:
    """What a language model learns from."""
    found = [str(row["env"])] if row["env"] else []
    found += [f"the prompts of {Path(row['prompts']).name}"] if row["prompts"] else []
    return found + ([f"{Path(row['dataset']).name} ({row['dataset_steps']:,} rows)"] if row["dataset"] else [])


def _way(row: dict[str, Any]) -> str:
    """How several seeds run, and why."""
    workers = "one process at a time" if row["workers"] == 1 else f"{row['workers']} processes at a time"
    return f"{'stacked' if row['together'] == 'stacked' else workers} ({row['why_together']})"


class Comparing(Progress):
    """A listener of comparisons: a table of the arms that changes while they run; a line for each group otherwise."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet)
        self.folder = ""
        self.live: Any = None
        self._arms: dict[str, dict[str, str]] = {}
        self._steps = 1

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, row: dict[str, Any]) -> None:
        if row["kind"] == "comparing":
            self.folder = row["folder"]
        if row["kind"] in ("comparing", "group", "looked", "tick", "warning") and not self.quiet:
            getattr(self, f"_{row['kind']}")(row)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr) if self.live is None else self.live.console.print(text, highlight=False)

    def _comparing(self, row: dict[str, Any]) -> None:
        plan = row["plan"]
        self._plan = plan
        ground = " in ".join(filter(None, (plan["training"].get("dataset"), plan["env"])))
        self._say(
            f"{' against '.join(plan['arms'])} on {ground}, {plan['steps']:,} steps, groups of {plan['group']} seeds, "
            f"{plan['max_groups']} at most -> {row['folder']}"
        )
        empty = {"seeds": "0", "iqm": "", "interval": "", "decided": "", "now": ""}
        self._arms = {name: dict(empty) for name in plan["arms"]}
        self._draw()

    def _group(self, row: dict[str, Any]) -> None:
        for name, cells in self._arms.items():
            cells["now"] = "0 %" if name in row["arms"] else ""
        if self.live is None:
            self._say(f"group {row['number'] + 1}: {', '.join(row['arms'])}")
        self._draw()

    def _tick(self, row: dict[str, Any]) -> None:
        if "count" in row:
            for name, steps in row["count"].items():
                self._arms[name]["now"] = f"{100 * steps / self._plan['steps']:.0f} %"
            self._draw()

    def _looked(self, row: dict[str, Any]) -> None:
        for name, arm in row["summary"]["arms"].items():
            interval = "" if arm["interval"] is None else "{:.4g} to {:.4g}".format(*arm["interval"])
            cells = {"seeds": str(len(arm["seeds"])), "iqm": f"{arm['iqm']:.4g}", "interval": interval, "now": ""}
            self._arms[name] |= cells | {"decided": _decided(name, row["summary"]["decisions"])}
            if self.live is None:
                decided = f"; {self._arms[name]['decided']}" if self._arms[name]["decided"] else ""
                self._say(f"  {name}: {cells['seeds']} seeds, interquartile mean {cells['iqm']} ({interval}){decided}")
        self._draw()

    def _draw(self) -> None:
        if self.live is None:
            return
        from rich.table import Table

        table = Table("arm", box=None, pad_edge=False)
        for column in ("seeds", "interquartile mean", "95 % interval", "decided", "this group"):
            table.add_column(column, justify="left" if column == "decided" else "right")
        for name, cells in self._arms.items():
            table.add_row(name, *(cells[key] for key in ("seeds", "iqm", "interval", "decided", "now")))
        self.live.update(table)


def _decided(name: str, decisions: list[dict[str, Any]]) -> str:
    """Against whom an arm is decided, and how."""
    opposite = {"larger": "smaller", "smaller": "larger"}
    found = []
    for one in decisions:
        if one["decision"] != "undecided" and name in (one["left"], one["right"]):
            other = one["right"] if name == one["left"] else one["left"]
            how = one["decision"] if name == one["left"] else opposite[one["decision"]]
            found.append(f"{how} than {other}")
    return ", ".join(found)
