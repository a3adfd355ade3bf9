"""Rows of text come out of every format alike, foreign spellings come to one shape, and errors say where."""

import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.data.dataset import DatasetError
from palaestra.data.text import KINDS, checked, digest, read_rows

USER = {"role": "user", "content": "2+2"}
ANSWER, WORSE = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}
SYSTEM = {"role": "system", "content": "add"}
TEXTS = [
    {"prompt": "1+1=", "chosen": "2", "rejected": "3", "answer": 2, "source": {"name": "añ\u2028b", "page": 1}},
    {"prompt": "2+2=", "chosen": "4", "rejected": "5", "answer": 4, "source": None},
]
CHATS = [{"messages": [SYSTEM, USER, ANSWER]}, {"messages": [USER, ANSWER]}]


def written(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(what: Any, *arguments: Any) -> str:
    with pytest.raises(DatasetError) as raised:
        what(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# -------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("rows", [TEXTS, CHATS], ids=["texts", "chats"])
def test_what_is_written_is_read(tmp_path: Path, ending: str, rows: list[Any]) -> None:
    read = read_rows(written(tmp_path / f"rows.{ending}", rows))
    assert read == rows
    assert digest(read) == digest(rows)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_columns_are_renamed_and_may_change_places(tmp_path: Path, ending: str) -> None:
    file = written(tmp_path / f"rows.{ending}", [{"prompt": "id-7", "question": "q", "chosen": "a", "rejected": "b"}])
    columns = {"prompt": "question", "chosen": "rejected", "rejected": "chosen"}
    assert read_rows(file, columns) == [{"prompt": "q", "chosen": "b", "rejected": "a"}]


def test_the_mark_of_a_windows_editor_and_lines_that_are_empty_at_the_end_are_nothing(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n\r\n')
    assert read_rows(file) == [{"prompt": "a"}, {"prompt": "b"}]


def test_the_digest_is_of_what_rows_say() -> None:
    row: dict[str, Any] = {"prompt": "a", "answer": 1, "source": {"page": 2}}
    same = {"source": {"page": 2.0, "name": None}, "answer": 1.0, "prompt": "a", "other": None}
    # printf '{"answer":1,"prompt":"a","source":{"page":2}}\n' | sha256sum
    assert digest([row]) == "57c2f0833e0db123d7f079904e88bfcceb20c43b89882072216d271c590da1e5"
    assert digest([same]) == digest([row])
    others = [[row | {"answer": 1.5}], [row | {"answer": "1"}], [row, row], [{"answer": 1, "source": {"page": 2}}]]
    assert len({digest(other) for other in [[row], *others]}) == 5


def test_the_order_of_rows_counts() -> None:
    assert digest(TEXTS) != digest(TEXTS[::-1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.jsonl", '{"prompt": "a"}\n[1]\n', 'FILE, row 2: it is a list; give an object, {"prompt": ...}'),
        (
            "no.jsonl",
            '{"prompt": "a"}\n\n{"prompt": "b"}\n',
            "FILE, row 2: it is no JSON (Expecting value, column 1); give one object a line, with no line empty",
        ),
        (
            "no.jsonl",
            '{"prompt": "a"\n',
            "FILE, row 1: it is no JSON (Expecting ',' delimiter, column 15); "
            "give one object a line, with no line empty",
        ),
        ("no.jsonl", "", "FILE: there are no rows in it; give a file with at least one"),
        ("no.jsonl", " \n\n", "FILE: there are no rows in it; give a file with at least one"),
        ("no.json", "", "FILE: there are no rows in it; give a file with at least one"),
        ("no.json", "[]", "FILE: there are no rows in it; give a file with at least one"),
        ("no.json", '[{}, "a"]', 'FILE, row 2: it is the string "a"; give an object, {"prompt": ...}'),
        (
            "no.json",
            '{"prompt": "a"}',
            "FILE: it holds an object; give a list of objects; one object a line is a .jsonl file",
        ),
        (
            "no.json",
            '{"prompt": "a"}\n{"prompt": "b"}',
            "FILE, line 2: it is no JSON (Extra data); give a list of objects; one object a line is a .jsonl file",
        ),
        ("no.csv", "prompt\na\n", "FILE: its ending is '.csv'; give .jsonl, .json, .parquet"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    assert refused(read_rows, file) == message.replace("FILE", str(file))


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_bytes_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"rows.{ending}"
    file.write_bytes(b'{"prompt": "\xff\xfe"}')
    assert refused(read_rows, file).startswith(f"{file}: it cannot be read (")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "pair.jsonl"
    endings = "no file in that folder ends in .jsonl, .json, .parquet"
    assert refused(read_rows, missing) == f"{missing}: there is no such file; {endings}"
    for name in ("pairs.jsonl", "holdout.json", "notes.txt"):
        (tmp_path / name).touch()
    assert refused(read_rows, missing) == f"{missing}: there is no such file; nearest are pairs.jsonl"
    other = tmp_path / "zzzz"
    assert refused(read_rows, other) == f"{other}: there is no such file; nearest are holdout.json, pairs.jsonl"
    beyond = tmp_path / "no" / "pairs.jsonl"
    assert refused(read_rows, beyond) == f"{beyond}: there is no such file; nor a folder {beyond.parent}"


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_a_column_that_is_mapped_and_not_there(tmp_path: Path, ending: str) -> None:
    file = written(tmp_path / f"rows.{ending}", [{"query": "q", "answer": "a"}])
    told = "it is missing; there are query, answer: give --columns prompt=NAME with one of these"
    assert refused(read_rows, file, {"prompt": "question"}) == f"{file}, field 'question', row 1: {told}"


# ------------------------------------------------------------------------------------------------------- checking

EXTRA = {"answer": "4", "weights": [1, None]}
SHAPED = {
    "prompts": {"prompt": [USER]},
    "demonstrations": {"prompt": [USER], "completion": "4"},
    "pairs": {"prompt": [USER], "chosen": "4", "rejected": "5"},
    "labelled": {"prompt": [USER], "completion": "4", "label": True},
}
PAIR = {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_shape_stays_so_and_fields_ride_along(kind: str) -> None:
    for row in (SHAPED[kind] | EXTRA, SHAPED[kind] | EXTRA | {"prompt": "2+2"}):
        rows = [dict(row)]
        assert checked(rows, kind, "file") == [row]
        assert checked(checked(rows, kind, "file"), kind, "file") == [row]
        assert rows == [row]


@pytest.mark.parametrize(
    ("kind", "spelled"),
    [
        ("prompts", {"messages": [USER]}),
        ("demonstrations", {"messages": [USER, ANSWER]}),
        ("demonstrations", {"prompt": "2+2", "messages": [USER, ANSWER]}),
        ("demonstrations", {"prompt": "2+2", "completion": [ANSWER]}),
        ("demonstrations", {"prompt": [USER], "completion": [ANSWER]}),
        ("demonstrations", {"completion": [{"tool_calls": None, **USER}, ANSWER]}),
        ("labelled", {"messages": [USER, ANSWER], "label": 1}),
        ("pairs", PAIR),
        ("pairs", PAIR | {"prompt": "2+2"}),
        ("pairs", PAIR | {"prompt": [USER]}),
        ("pairs", {"prompt": "2+2", "chosen": [ANSWER], "rejected": [WORSE]}),
    ],
)
def test_foreign_spellings_come_to_one_shape(kind: str, spelled: dict[str, Any]) -> None:
    assert checked([spelled | EXTRA], kind, "file") == [SHAPED[kind] | EXTRA]
    assert list(checked([EXTRA | spelled], kind, "file")[0]) == [*KINDS[kind], *EXTRA]


def test_what_stands_before_the_last_answer_is_the_prompt() -> None:
    talk = [SYSTEM, USER, WORSE, USER | {"content": "sure?"}]
    expected = {"prompt": talk, "completion": "4"}
    assert checked([{"messages": [*talk, ANSWER]}], "demonstrations", "file") == [expected]
    assert checked([{"messages": [*talk, ANSWER]}], "prompts", "file") == [expected], "the answer is there for rewards"
    assert checked([{"messages": [*talk, ANSWER], "prompt": "2+2"}], "demonstrations", "file") == [expected]


@pytest.mark.parametrize("kind", KINDS)
def test_messages_that_nothing_is_needed_from_ride_along(kind: str) -> None:
    row = SHAPED[kind] | {"messages": [SYSTEM, USER, WORSE]}
    assert checked([row], kind, "file") == [row]


def test_a_prompt_that_is_not_what_the_messages_begin_with_is_refused() -> None:
    told = "some.jsonl, field 'prompt', row 1: it is not in the messages before the answer; leave out one of the two"
    assert refused(checked, [PAIR | {"prompt": "3+3"}], "pairs", "some.jsonl") == told


@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_labels_become_bools(label: Any) -> None:
    found = checked([{"prompt": "a", "completion": "b", "label": label}], "labelled", "file")[0]["label"]
    assert found is bool(label)


TWO = 'give {"role": "user", "content": "..."}, both strings'


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "pairs",
            {"rejected": None},
            "field 'rejected', row 2: it is missing; there are prompt, chosen: "
            "give --columns rejected=NAME with one of these",
        ),
        (
            "prompts",
            {"prompt": None},
            "field 'prompt', row 2: it is missing; there are none: give --columns prompt=NAME with one of these",
        ),
        (
            "labelled",
            {"label": None},
            "field 'label', row 2: it is missing; there are prompt, completion: "
            "give --columns label=NAME with one of these",
        ),
        ("prompts", {"prompt": 3}, "field 'prompt', row 2: it is the number 3; give a string or a list of messages"),
        (
            "prompts",
            {"prompt": {"a": 1}},
            "field 'prompt', row 2: it is an object; give a string or a list of messages",
        ),
        ("prompts", {"prompt": "\n"}, "field 'prompt', row 2: it is empty; give a prompt, or remove the row"),
        (
            "prompts",
            {"prompt": []},
            "field 'prompt', row 2: it has no message; give at least one, or remove the row",
        ),
        ("prompts", {"prompt": ["a"]}, f"field 'prompt', row 2: its message 1 has no role and content; {TWO}"),
        (
            "prompts",
            {"prompt": [USER, {"role": "user", "content": ["a"]}]},
            f"field 'prompt', row 2: its message 2 has no role and content; {TWO}",
        ),
        (
            "demonstrations",
            {"completion": " "},
            "field 'completion', row 2: it is empty; give an answer, or remove the row",
        ),
        ("pairs", {"chosen": ""}, "field 'chosen', row 2: it is empty; give an answer, or remove the row"),
        ("pairs", {"rejected": ""}, "field 'rejected', row 2: it is empty; give an answer, or remove the row"),
        (
            "pairs",
            {"rejected": True},
            "field 'rejected', row 2: it is the value true; give a string or a list of messages",
        ),
        (
            "pairs",
            {"rejected": "4"},
            "field 'rejected', row 2: it is the same as 'chosen'; remove the row: it prefers nothing",
        ),
        (
            "pairs",
            {"chosen": [USER, ANSWER], "rejected": [SYSTEM, WORSE]},
            "field 'rejected', row 2: what stands before its answer is not what does in 'chosen'; "
            "answer one prompt twice",
        ),
        (
            "pairs",
            {"chosen": [ANSWER]},
            "field 'rejected', row 2: what stands before its answer is not what does in 'chosen'; "
            "answer one prompt twice",
        ),
        (
            "pairs",
            PAIR | {"prompt": [SYSTEM, USER]},
            "field 'prompt', row 2: it is not in the messages before the answer; leave out one of the two",
        ),
        (
            "demonstrations",
            {"completion": None, "messages": [ANSWER, USER]},
            "field 'messages', row 2: its last message is of role 'user'; end with one of role 'assistant'",
        ),
        (
            "demonstrations",
            {"completion": None, "messages": [USER, ANSWER | {"content": ""}]},
            "field 'messages', row 2: it is empty; give an answer, or remove the row",
        ),
        (
            "labelled",
            {"label": "yes"},
            "field 'label', row 2: it is the string \"yes\"; give true or false, or 1 or 0",
        ),
        ("labelled", {"label": 0.5}, "field 'label', row 2: it is the number 0.5; give true or false, or 1 or 0"),
    ],
)
def test_a_row_that_is_wrong_is_refused(kind: str, change: dict[str, Any], message: str) -> None:
    rows = [SHAPED[kind], SHAPED[kind] | change]
    assert refused(checked, rows, kind, "some.jsonl") == f"some.jsonl, {message}"
