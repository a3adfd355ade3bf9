"""The options of language models, which `train` and `compare` take alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str | None, typer.Option(help="A language model to begin with: a folder, a name, a run, or palaestra/add.")
]
PromptsFile = Annotated[Path | None, typer.Option(help="A file of prompts for it to answer.")]
Rewards = Annotated[
    list[str] | None, typer.Option(help="What answers earn: exact_match, file.py:function, a run of reward-model.")
]
Columns = Annotated[list[str] | None, typer.Option(help="Ours=theirs, such as prompt=question.")]
MicroBatch = Annotated[int | None, typer.Option(min=1, help="Rows of a language model's pass, to save memory.")]


def texts(
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
