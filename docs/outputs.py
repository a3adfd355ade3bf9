"""Renew what commands that depend on nothing but the code print in the pages: `python docs/outputs.py`.

In a ```console block, what follows `$ palaestra show ...` or `$ palaestra list ...` up to the next `$` is its output.
A test compares, so that the pages cannot show what is no longer so.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

DOCS = Path(__file__).parent
CONSOLE = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
PURE = ("palaestra show ", "palaestra list ")


def printed(command: str) -> str:
    """What a command prints; a user's mistake is its error line, as `main` says it."""
    from palaestra.cli import app

    result = CliRunner().invoke(app, shlex.split(command)[1:])
    text = f"error: {result.exception}" if isinstance(result.exception, ValueError) else result.output
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def renewed_block(block: re.Match[str]) -> str:
    first, *commands = re.split(r"^\$ ", block[1], flags=re.MULTILINE)
    renewed = [first]
    for each in commands:
        command, _, output = each.partition("\n")
        renewed.append(f"$ {command}\n{printed(command) if command.startswith(PURE) and output else output}")
    return "".join(renewed)


def renewed(text: str) -> str:
    """A page with outputs as they are now; commands that are shown without any stay without."""
    return CONSOLE.sub(renewed_block, text)


def main() -> None:
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := renewed(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"renewed {page.name}")


if __name__ == "__main__":
    main()
