"""Rows of text from files: prompts, demonstrations, pairs and labelled answers, validated and brought to one shape.

A row is a JSON object. What it needs depends on its kind, `KINDS`; a prompt is a string or a list of messages
`{"role": ..., "content": ...}`, an answer (`completion`, `chosen`, `rejected`) is a string. Further fields ride along
untouched: rewards read them. `checked` also takes the usual foreign spellings:

    {"messages": [..., answer]}                      the prompt is all but the last message, the completion the last
    {"chosen": [..., better], "rejected": [..., worse]}   the prompt is what both begin with; "prompt" may say it again
    {"prompt": ..., "completion": [answer]}          an answer as one message, and the prompt then as messages too

Row numbers in errors begin at 1; in a .jsonl file a row's number is its line.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from palaestra.data.plan import Damaged, Findings, Problem

KINDS = {
    "prompts": ("prompt",),
    "demonstrations": ("prompt", "completion"),
    "pairs": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
}
ANSWERS = ("completion", "chosen", "rejected")
Row = dict[str, Any]
Messages = list[dict[str, Any]]
Wrong = Callable[[str, str, str], Damaged]  # of a field, what is wrong with it, and the remedy


def read_rows(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of a file, at least one, as they stand in it but for the names of columns.

    Args:
        path: .jsonl (one object a line), .json (a list of objects) or .parquet.
        columns: our names to the file's, {"prompt": "question"}. What the file calls by one of our names then goes.

    Raises:
        DatasetError: in one line, the file, the row, the field, what is wrong, and what would be right.
    """
    file = Path(path)
    if not file.is_file():
        raise Damaged(Problem(str(file), "", "there is no such file", _nearest(file)))
    if file.suffix not in _READERS:
        raise Damaged(Problem(str(file), "", f"its ending is {file.suffix!r}", f"give {', '.join(_READERS)}"))
    with Findings(file).reading():
        rows = list(_READERS[file.suffix](file))
    if not rows:
        raise Damaged(Problem(str(file), "", "there are no rows in it", "give a file with at least one"))
    return [_renamed(row, columns, partial(wrong, file, number)) for number, row in enumerate(rows, 1)]


def checked(rows: Sequence[Mapping[str, Any]], kind: str, file: str | Path) -> list[Row]:
    """The rows in the shape of their kind: new dictionaries, the fields of `KINDS[kind]` first.

    Args:
        rows: as `read_rows` gives them.
        kind: of `KINDS`. A label is a bool, or 0 or 1.
        file: where they are from, for errors.

    Raises:
        DatasetError: a field is missing, is no text, is empty; chosen and rejected are the same, or answer different
            prompts; a label is neither true nor false.
    """
    return [_checked(row, kind, partial(wrong, file, number)) for number, row in enumerate(rows, 1)]


def digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256, in hex, of the rows as canonical JSON: it names a dataset, whatever file it came from.

    The order of rows counts. That of fields does not, nor whether a field is absent or null (Parquet knows only null),
    nor whether a whole number is written 1 or 1.0.
    """
    whole = hashlib.sha256()
    for row in rows:
        text = json.dumps(_canonical(row), sort_keys=True, separators=(",", ":"), default=str)
        whole.update(text.encode() + b"\n")
    return whole.hexdigest()


def wrong(file: str | Path, row: int, field: str, what: str, remedy: str) -> Damaged:
    """The error of a row; `field` may be empty, for the whole of it."""
    where = f"field {field!r}, row {row}" if field else f"row {row}"
    return Damaged(Problem(str(file), where, what, remedy))


# -------------------------------------------------------------------------------------------------------- reading


def _json_lines(file: Path) -> Iterator[Row]:
    lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")  # an empty line at the end is none
    for number, line in enumerate(lines if any(lines) else (), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as mistake:
            what = f"it is no JSON ({mistake.msg}, column {mistake.colno})"
            raise wrong(file, number, "", what, "give one object a line, with no line empty") from mistake
        yield _object(row, file, number)


def _json_list(file: Path) -> Iterator[Row]:
    remedy = "give a list of objects; one object a line is a .jsonl file"
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig").strip() or "[]")
    except json.JSONDecodeError as mistake:
        what = f"it is no JSON ({mistake.msg})"
        raise Damaged(Problem(str(file), f"line {mistake.lineno}", what, remedy)) from mistake
    if not isinstance(rows, list):
        raise Damaged(Problem(str(file), "", f"it holds {_named(rows)}", remedy))
    for number, row in enumerate(rows, 1):
        yield _object(row, file, number)


def _parquet(file: Path) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as missing:
        remedy = "pip install 'palaestra[parquet]', or use .jsonl"
        raise Damaged(Problem(str(file), "", "Parquet files need pyarrow, which is not installed", remedy)) from missing
    with file.open("rb") as opened:
        return parquet.read_table(opened).to_pylist()


_READERS: dict[str, Callable[[Path], Iterator[Row] | list[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".parquet": _parquet,
}


def _object(row: Any, file: Path, number: int) -> Row:
    if not isinstance(row, dict):
        raise wrong(file, number, "", f"it is {_named(row)}", 'give an object, {"prompt": ...}')
    return row


def _renamed(row: Row, columns: Mapping[str, str] | None, wrong: Wrong) -> Row:
    if not columns:
        return row
    for ours, theirs in columns.items():
        if theirs not in row:
            raise _missing(theirs, ours, row, wrong)
    rest = {name: value for name, value in row.items() if name not in columns.values()}
    return rest | {ours: row[theirs] for ours, theirs in columns.items()}


def _nearest(file: Path) -> str:
    if not file.parent.is_dir():
        return f"nor a folder {file.parent}"
    names = sorted(entry.name for entry in file.parent.iterdir() if entry.suffix in _READERS)
    near = difflib.get_close_matches(file.name, names, 3) or names[:3]
    return f"nearest are {', '.join(near)}" if near else f"no file in that folder ends in {', '.join(_READERS)}"


# ------------------------------------------------------------------------------------------------------- checking


def _checked(row: Mapping[str, Any], kind: str, wrong: Wrong) -> Row:
    fields = _unfolded(row, kind, wrong)
    split = {name: _answer(fields.get(name), name, row, wrong) for name in KINDS[kind] if name in ANSWERS}
    beginnings = [beginning for beginning, _ in split.values()]
    if any(beginning != beginnings[0] for beginning in beginnings):
        raise wrong("rejected", "what stands before its answer is not what does in 'chosen'", "answer one prompt twice")
    texts = {name: text for name, (_, text) in split.items()}
    if len(set(texts.values())) < len(texts):
        raise wrong("rejected", "it is the same as 'chosen'", "remove the row: it prefers nothing")
    shaped: Row = {"prompt": _prompt(fields.get("prompt"), beginnings[0] if beginnings else None, row, wrong), **texts}
    if "label" in KINDS[kind]:
        shaped["label"] = _label(row, wrong)
    return shaped | {name: value for name, value in fields.items() if name not in shaped}


def _unfolded(row: Mapping[str, Any], kind: str, wrong: Wrong) -> Row:
    """The row, with its `messages` taken apart if it needs what they hold: pairs have it otherwise."""
    held = "prompt" if kind == "prompts" else "completion"
    if held not in KINDS[kind] or row.get(held) is not None or row.get("messages") is None:
        return dict(row)
    rest = {name: value for name, value in row.items() if name != "messages"}
    messages = _messages(row["messages"], "messages", wrong)
    if kind == "prompts" and messages[-1]["role"] != "assistant":
        return rest | {"prompt": messages}
    beginning, text = _answer(messages, "messages", row, wrong)
    return rest | {"prompt": _prompt(row.get("prompt"), beginning, row, wrong), "completion": text}


def _answer(value: Any, field: str, row: Mapping[str, Any], wrong: Wrong) -> tuple[Messages | None, str]:
    """The messages before the answer, None where it is a string, and the answer."""
    if value is None:
        raise _missing(field, field, row, wrong)
    beginning, text = None, value
    if not isinstance(value, str):
        *beginning, last = _messages(value, field, wrong)
        if last["role"] != "assistant":
            raise wrong(field, f"its last message is of role {last['role']!r}", "end with one of role 'assistant'")
        text = last["content"]
    if not text.strip():
        raise wrong(field, "it is empty", "give an answer, or remove the row")
    return beginning, text


def _prompt(value: Any, beginning: Messages | None, row: Mapping[str, Any], wrong: Wrong) -> str | Messages:
    """The prompt: the field's value, or what stands before answers that are messages, or both where they agree."""
    if value is None:
        if beginning:
            return beginning
        raise _missing("prompt", "prompt", row, wrong)
    if isinstance(value, str):
        if not value.strip():
            raise wrong("prompt", "it is empty", "give a prompt, or remove the row")
        if beginning is None:
            return value
        value = [{"role": "user", "content": value}]
    messages = _messages(value, "prompt", wrong)
    if not beginning:
        return messages
    if any(message not in beginning for message in messages):
        raise wrong("prompt", "it is not in the messages before the answer", "leave out one of the two")
    return beginning


def _messages(value: Any, field: str, wrong: Wrong) -> Messages:
    """A list of messages, at least one, without what is null: to a template that would be there."""
    if not isinstance(value, list):
        raise wrong(field, f"it is {_named(value)}", "give a string or a list of messages")
    if not value:
        raise wrong(field, "it has no message", "give at least one, or remove the row")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            remedy = 'give {"role": "user", "content": "..."}, both strings'
            raise wrong(field, f"its message {number} has no role and content", remedy)
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def _label(row: Mapping[str, Any], wrong: Wrong) -> bool:
    value = row.get("label")
    if value is None:
        raise _missing("label", "label", row, wrong)
    if value not in (0, 1):
        raise wrong("label", f"it is {_named(value)}", "give true or false, or 1 or 0")
    return bool(value)


def _missing(field: str, ours: str, row: Mapping[str, Any], wrong: Wrong) -> Damaged:
    there = ", ".join(name for name, value in row.items() if value is not None)
    return wrong(field, "it is missing", f"there are {there or 'none'}: give --columns {ours}=NAME with one of these")


def _named(value: Any) -> str:
    """What a value is, in words of JSON."""
    kinds = {dict: "an object", list: "a list", str: "the string", bool: "the value", type(None): "the value"}
    kind = kinds.get(type(value), "the number" if isinstance(value, int | float) else f"a {type(value).__name__}")
    return f"{kind} {json.dumps(value)[:40]}" if kind.startswith("the") else kind


def _canonical(value: Any) -> Any:
    """Without what is null, and whole numbers as such."""
    if isinstance(value, Mapping):
        return {str(name): _canonical(part) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_canonical(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
