"""Rows of text as token ids: a prompt and its completions apart, as ragged lists.

A completion is encoded apart from its prompt and the ids are concatenated; encoded as one text, letters on both sides
of the seam could become one token, and no mask could part them. A completion ends with one end-of-text token, which is
a target like any other.

Padding: lists are ragged here, and whoever pads them masks by length, never by comparing ids. A padding token that is
also the end-of-text token therefore takes nothing away, and none is ever added to a tokenizer: a new id could lie
beyond the model's embeddings. A tokenizer that names none is refused all the same (`check_tokenizer`), since what a
run saves is loaded by other programs, which pad by it.

Traps: a text that contains the spelling of a special token ("<eos>") is encoded as that token. A chat template that
ends a turn with another token than the tokenizer's end-of-text token (<|im_end|> beside <|endoftext|>) makes prompts
with the one and completions with the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from palaestra.data.dataset import DatasetError
from palaestra.data.text import ANSWERS, KINDS, Row, wrong

Tokenizer = Any  # a `transformers.PreTrainedTokenizerBase`; the package is in the extra `language`
Ids = list[int]


@dataclass(frozen=True)
class Encoded:
    """Rows as ids.

    Args:
        prompts: of each row, at least one id.
        completions: of each row none (prompts), one (demonstrations, labelled) or two (pairs: chosen, rejected), each
            ending with the end-of-text token.
    """

    prompts: list[Ids]
    completions: list[list[Ids]]

    @property
    def lengths(self) -> list[int]:
        """Ids of each row's prompt with its longest completion."""
        return [
            len(prompt) + max(map(len, completions), default=0)
            for prompt, completions in zip(self.prompts, self.completions, strict=True)
        ]


def check_tokenizer(tokenizer: Tokenizer, vocabulary: int) -> None:
    """That a tokenizer has what is needed, and fits a model.

    Args:
        tokenizer: of `transformers`.
        vocabulary: rows of the model's embedding. There may be more of them than ids: they are often rounded up.

    Raises:
        DatasetError: it has no end-of-text token, no padding token, or ids beyond the embedding.
    """
    name = tokenizer.name_or_path or "the tokenizer"
    if tokenizer.eos_token_id is None:
        remedy = 'name the one the model ends answers with in its tokenizer_config.json, "eos_token": "..."'
        raise DatasetError(f"{name}: it has no end-of-text token; {remedy}")
    if tokenizer.pad_token_id is None:
        remedy = (
            'name one in its tokenizer_config.json, "pad_token": "...": a token that no text has, or, where the '
            f"vocabulary has none, {tokenizer.eos_token!r}, which does no harm here, where masks go by length"
        )
        raise DatasetError(f"{name}: it has no padding token; {remedy}")
    token, largest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if largest >= vocabulary:
        what = f"its token {token!r} has the id {largest}, and the model has {vocabulary} embeddings"
        raise DatasetError(f"{name}: it does not match the model, since {what}; load both from one folder")


def prompt_ids(tokenizer: Tokenizer, prompt: str | list[dict[str, Any]]) -> Ids:
    """A prompt's ids, with a beginning-of-text token only if the tokenizer puts one, and then once.

    Args:
        tokenizer: of `transformers`.
        prompt: text, encoded as it is; or messages, through the chat template, up to where the assistant speaks.

    Raises:
        DatasetError: the tokenizer has no chat template, or its template refuses the messages, or nothing is left.
    """
    if isinstance(prompt, str):
        ids = _ids(tokenizer, prompt)
        begin = [tokenizer.bos_token_id] if tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] else []
        ids = ids if ids[:1] == begin else begin + ids
    else:
        if tokenizer.chat_template is None:
            raise DatasetError("messages need a chat template, and the tokenizer has none; give text, or a chat model")
        try:
            text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        except TemplateError as refused:
            raise DatasetError(f"the chat template refuses it ({refused}); change its messages") from refused
        ids = _ids(tokenizer, text)  # a template spells the beginning-of-text token itself
    if not ids:
        raise DatasetError("the tokenizer knows nothing of it; give text in the tokenizer's alphabet")
    return ids


def completion_ids(tokenizer: Tokenizer, text: str) -> Ids:
    """A completion's ids, ending with exactly one end-of-text token, whether the text spells it or not.

    Raises:
        DatasetError: the text goes on after an end-of-text token.
    """
    ids, end = _ids(tokenizer, text), tokenizer.eos_token_id
    while ids and ids[-1] == end:
        ids.pop()
    if end in ids:
        raise DatasetError(f"it goes on after the end-of-text token {tokenizer.eos_token!r}; remove that, or the rest")
    return [*ids, end]


def encoded(
    tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], kind: str, *, limit: int, file: str | Path
) -> Encoded:
    """Rows as ids, every one within the limit.

    Args:
        tokenizer: that `check_tokenizer` has passed.
        rows: as `checked` gives them.
        kind: of `KINDS`.
        limit: most ids of a prompt with its completion: the model's context, less what is to be sampled.
        file: where the rows are from, for errors.

    Raises:
        DatasetError: a row is longer than the limit, or cannot be encoded.
    """
    whole = _encoded(tokenizer, rows, kind, file)
    for number, (length, prompt) in enumerate(zip(whole.lengths, whole.prompts, strict=True), 1):
        if length > limit:
            what = f"it takes {length} tokens, {len(prompt)} of them the prompt's, and the limit is {limit}"
            raise wrong(file, number, "", what, "shorten it, remove it, or take a model with a longer context")
    return whole


def fitting(
    tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], kind: str, *, limit: int, file: str | Path
) -> tuple[list[Row], Encoded]:
    """As `encoded`, without the rows that are longer than the limit: those that are kept, and their ids.

    `len(rows)` less the length of what is kept is how many were dropped: tell it, since what is left is biased towards
    short answers.

    Raises:
        DatasetError: no row is short enough, or one cannot be encoded.
    """
    whole = _encoded(tokenizer, rows, kind, file)
    kept = [number for number, length in enumerate(whole.lengths) if length <= limit]
    if not kept:
        shortest = min(whole.lengths, default=0)
        what = f"no row is within the limit of {limit} tokens, and the shortest takes {shortest}"
        raise DatasetError(f"{file}: {what}; take a model with a longer context")
    ids = Encoded([whole.prompts[number] for number in kept], [whole.completions[number] for number in kept])
    return [dict(rows[number]) for number in kept], ids


def decoded(tokenizer: Tokenizer, ids: Sequence[Sequence[int]]) -> list[str]:
    """The texts of ragged answers, each up to its first end-of-text token, without special tokens."""
    end = tokenizer.eos_token_id
    return [
        tokenizer.decode(
            list(takewhile(lambda token: token != end, answer)),
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,  # which would take away the space before a full stop
        )
        for answer in ids
    ]


def _encoded(tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], kind: str, file: str | Path) -> Encoded:
    fields = [name for name in KINDS[kind] if name == "prompt" or name in ANSWERS]
    whole = [[_field_ids(tokenizer, row, name, number, file) for name in fields] for number, row in enumerate(rows, 1)]
    return Encoded([prompt for prompt, *_ in whole], [completions for _, *completions in whole])


def _field_ids(tokenizer: Tokenizer, row: Mapping[str, Any], field: str, number: int, file: str | Path) -> Ids:
    try:
        return (prompt_ids if field == "prompt" else completion_ids)(tokenizer, row[field])
    except DatasetError as mistake:  # which does not know where
        raise DatasetError(f"{file}, field {field!r}, row {number}: {mistake}") from mistake


def _ids(tokenizer: Tokenizer, text: str) -> Ids:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids  # verbose would warn of long texts
