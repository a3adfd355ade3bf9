"""Several runs at a time, each in a process of its own that is called as a person would call it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from palaestra.runs.files import from_json

Listen = Callable[[dict[str, Any]], None]
Key = TypeVar("Key", bound=Hashable)


ATTACHED = "--attached"  # the option of a command that then calls `stop_with_parent`
AGAIN = 2.0  # seconds between two interrupts


def stop_with_parent() -> None:
    """Raise KeyboardInterrupt in the main thread when standard input ends: whoever started this process is gone.

    A process that was killed cannot tell its children; the pipe that it held tells them. It is raised again every other
    second until this process has ended: one that falls into a destructor, or an import with a bare `except`, is lost.
    """

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin: its lock would be held when the interpreter ends
            pass
        while True:
            interrupt_main()
            time.sleep(AGAIN)

    threading.Thread(target=wait, daemon=True).start()


@dataclass(frozen=True)
class Job:
    """What `palaestra` is called with, and the run's folder that this writes."""

    folder: Path
    command: list[str]


@dataclass
class _Running(Generic[Key]):
    key: Key
    process: subprocess.Popen[bytes]
    said: IO[str]  # a file: a full pipe would hold the process up

    def problem(self) -> str:
        """The last line that it said, or its exit code; nothing where it ended well."""
        if not self.process.returncode:
            return ""
        self.said.seek(0)
        lines = self.said.read().strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else f"exit code {self.process.returncode}"


@dataclass
class _Tail:
    """The rows that a run appends to its metrics, and how many steps they have come to."""

    folder: Path
    told: int = field(init=False)  # bytes
    count: int = 0

    def __post_init__(self) -> None:
        self.told = self._path.stat().st_size if self._path.exists() else 0

    @property
    def _path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def new(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            self.told = min(self.told, file.seek(0, 2))  # a run that is resumed cuts off what came after a checkpoint
            file.seek(max(0, self.told - 1))
            content = file.read()
        if self.told:  # begin at a line
            begin = content.find(b"\n") + 1
            self.told, content = self.told - 1 + begin, content[begin:]
        content = content[: content.rfind(b"\n") + 1]
        self.told += len(content)
        rows = [from_json(line) for line in content.splitlines()]
        self.count = max([self.count, *map(far, rows)])
        return rows


def far(row: Mapping[str, Any]) -> int:
    """How far a run was at a row of its metrics: rounds, environment steps, or updates where it has neither."""
    return int(next((row[clock] for clock in ("rounds", "env_steps", "updates") if clock in row), 0))


def in_processes(jobs: Mapping[Key, Job], workers: int, listen: Listen) -> dict[Key, str]:
    """Run `palaestra COMMAND` for each job, so many at a time, and pass on what they log as it comes.

    Args:
        jobs: by any name.
        workers: processes at a time.
        listen: gets every row with its `job`, and several times a second `{"kind": "tick", "seconds": seconds,
            "count": {job: steps}}`.

    Returns:
        What the jobs that failed said; a job that fails leaves the others alone.

    Raises KeyboardInterrupt when all jobs were stopped because this process was interrupted.
    """
    waiting = list(jobs.items())
    running: list[_Running[Key]] = []
    tails = {key: _Tail(job.folder) for key, job in jobs.items()}
    failed: dict[Key, str] = {}
    began = time.perf_counter()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                key, job = waiting.pop(0)
                said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed below)
                arguments = [sys.executable, "-m", "palaestra", *job.command, ATTACHED]
                process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
                running.append(_Running(key, process, said))
            time.sleep(0.2)
            for one in list(running):
                ended = one.process.poll() is not None
                for row in tails[one.key].new():
                    listen({**row, "job": one.key})
                if ended:
                    running.remove(one)
                    if problem := one.problem():
                        failed[one.key] = problem
                    one.said.close()
            came = {key: tail.count for key, tail in tails.items()}
            listen({"kind": "tick", "count": came, "seconds": time.perf_counter() - began})
    finally:  # none is left, but where this process was interrupted
        for one in running:
            one.process.send_signal(signal.SIGINT)
        for one in running:
            one.process.wait()
            one.said.close()
    return failed
