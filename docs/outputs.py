"""Renew what commands print in the pages: `python docs/outputs.py`, with `--all` for those that train, too.

In a ```console block, what follows `$ COMMAND` up to the next `$` is its output; commands that are shown without any
stay without. By default only `show` and `list` are renewed, which depend on nothing but the code: a test compares them,
so that the pages cannot show what is no longer so. With `--all` the commands of each page run in a temporary folder.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

DOCS = Path(__file__).parent
CONSOLE = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n", re.MULTILINE)
PURE = ("palaestra show ", "palaestra list ")


def printed(command: str, before: str) -> str:
    """What `show` and `list` print, a user's mistake as its error line; `before` for any other command."""
    if not command.startswith(PURE):
        return before
    from palaestra.cli import app

    result = CliRunner().invoke(app, shlex.split(command)[1:])
    return f"error: {result.exception}" if isinstance(result.exception, ValueError) else result.output


def shell() -> Callable[[str, str], str]:
    """A way to run commands one after another in a temporary folder; `echo $?` is about the one before."""
    folder = tempfile.mkdtemp()
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "COLUMNS": "110"}
    code = 0

    def run(command: str, before: str) -> str:
        nonlocal code
        line = f"(exit {code}); {command}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        code = done.returncode
        return done.stdout

    return run


def renewed(text: str, run: Callable[[str, str], str] = printed) -> str:
    """A page with outputs as `run(command, output before)` gives them."""

    def block(found: re.Match[str]) -> str:
        first, *rest = COMMAND.split(found[1])
        pieces = [first]
        for command, before in zip(rest[::2], rest[1::2], strict=True):
            now = run(command, before) if before.strip() else ""
            lines = "".join(f"{line.rstrip()}\n" for line in now.splitlines())
            pieces.append(f"$ {command}\n{lines or before}")
        return "".join(pieces)

    return CONSOLE.sub(block, text)


def main() -> None:
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := renewed(text, shell() if "--all" in sys.argv[1:] else printed)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"renewed {page.name}")


if __name__ == "__main__":
    main()
