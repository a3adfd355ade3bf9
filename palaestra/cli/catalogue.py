"""`palaestra show | list`: what there is, and what it is made of."""

from __future__ import annotations

from typing import Annotated

import typer

from palaestra.cli.console import Json, give, outline, say

verbs = typer.Typer()


@verbs.command(epilog='Example: palaestra show "td3(lr=1e-3)+n-step"')
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


@verbs.command("list", epilog="Example: palaestra list methods --json")
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
