"""Rows of tokens: a prompt and what answers it, padded on the right in batches, without padding where they are kept.

Shape legend: `R` rows kept, `B` of a batch, `K` answers of a row (2 in a pair, the chosen one first), `T` tokens. A
row of one answer has columns [B, T], one of several [B, K, T], all with the same columns:

    ids      the tokens of the prompt, then of the answer, then 0
    answer   whether a token is of the answer: its end-of-text is, the prompt and the padding are not
    length   tokens of prompt and answer, [B] or [B, K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from palaestra.algorithm import gives
from palaestra.batch import Columns


def padded(rows: Sequence[Sequence[int]], value: int = 0, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Lists of tokens as one tensor [B, T], and which of its entries are tokens."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max()) if len(rows) else 0
    index = torch.arange(width)
    there = index >= width - lengths[:, None] if left else index < lengths[:, None]
    ids = torch.full((len(rows), width), value)
    ids[there] = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    return ids, there


def token_columns(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]) -> Columns:
    """Columns of prompts and as many answers to each of them: [B, T] of one answer, [B, K, T] of several."""
    count = len(answers[0]) if answers else 1
    texts = [[*prompt, *answer] for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    begins = torch.tensor([len(prompt) for prompt in prompts for _ in range(count)])
    ids, there = padded(texts)
    columns: Columns = {
        "ids": ids,
        "answer": there & (torch.arange(ids.shape[1]) >= begins[:, None]),
        "length": there.sum(1),
    }
    return columns if count == 1 else {key: value.unflatten(0, (-1, count)) for key, value in columns.items()}


def after_prompts(prompts: Tensor, attention: Tensor, answers: Columns) -> Columns:
    """The columns of prompts [B, P], which are padded on the left, and of what was generated after them [B, L].

    Columns of the answers beside `ids` and `answer` are kept, with 0 where the prompt is.
    """
    before = prompts.shape[1]
    there = torch.cat([attention.bool(), answers["answer"]], 1)
    length = there.sum(1)
    shift = before - attention.sum(1)
    index = torch.arange(there.shape[1], device=prompts.device) + shift[:, None]
    index = index.clamp(max=there.shape[1] - 1)[:, : int(length.max())]
    inside = torch.arange(index.shape[1], device=prompts.device) < length[:, None]
    columns: Columns = {"length": length}
    for name, value in answers.items():
        front = prompts if name == "ids" else torch.zeros_like(prompts, dtype=value.dtype)
        columns[name] = torch.cat([front, value], 1).gather(1, index) * inside
    return columns


def joined(parts: Sequence[Columns]) -> Columns:
    """One batch of several, padded to the longest of their rows."""
    width = max(part["ids"].shape[-1] for part in parts)

    def wide(part: Columns, name: str) -> Tensor:
        value: Tensor = part[name]
        missing = width - part["ids"].shape[-1]
        return torch.nn.functional.pad(value, (0, missing)) if of_tokens(part, name) and missing else value

    return {name: torch.cat([wide(part, name) for part in parts]) for name in parts[0]}


def of_tokens(columns: Mapping[str, Tensor], name: str) -> bool:
    """Whether a column has an entry for each token."""
    return columns[name].shape == columns["ids"].shape


def picked(columns: Columns, index: Tensor) -> Columns:
    """Some rows of a batch, without the padding that none of them needs. 0-d columns are kept as they are."""
    rows = {name: value[index] if value.dim() else value for name, value in columns.items()}
    width = int(rows["length"].max())
    tokens = [name for name in rows if of_tokens(rows, name)]
    return {name: value[..., :width] if name in tokens else value for name, value in rows.items()}


class TokenRows:
    """Rows of tokens, without padding; what an algorithm learns from when nothing is sampled.

    Rows are drawn in passes: each once, in an order of its own, before any of them comes again.
    """

    def __init__(self) -> None:
        self.columns: Columns = {}
        self.starts = torch.zeros(0, dtype=torch.int64)  # of each answer, in the tokens of all of them
        self.tokens: frozenset[str] = frozenset()  # columns with an entry for each token
        self.order = torch.zeros(0, dtype=torch.int64)
        self.drawn = 0

    def __len__(self) -> int:
        return len(self.columns["length"]) if self.columns else 0

    def insert(self, batch: Columns) -> None:
        """Keep the rows of a batch; all batches have the same columns."""
        there = torch.arange(batch["ids"].shape[-1]) < batch["length"][..., None]
        new = {name: value[there] if of_tokens(batch, name) else value for name, value in batch.items()}
        self.columns = {name: torch.cat([self.columns[name], new[name]]) if self.columns else new[name] for name in new}
        lengths = self.columns["length"].flatten()
        self.starts = (lengths.cumsum(0) - lengths).view_as(self.columns["length"])
        self.tokens = frozenset(name for name in new if of_tokens(batch, name))

    def rows(self, index: Tensor) -> Columns:
        """The columns of some rows, padded to the longest of them."""
        length = self.columns["length"][index]
        position = torch.arange(int(length.max()))
        there = position < length[..., None]
        place = (self.starts[index][..., None] + position).clamp(max=len(self.columns["ids"]) - 1)
        return {
            name: value[place] * there if name in self.tokens else value[index] for name, value in self.columns.items()
        }

    def draw(self, n: int, rng: Generator) -> Tensor:
        """The index [n] of the next rows of the passes."""
        taken = []
        while n > 0:
            if self.drawn == len(self.order):
                self.order, self.drawn = torch.randperm(len(self), generator=rng), 0
            taken.append(self.order[self.drawn : self.drawn + n])
            self.drawn += len(taken[-1])
            n -= len(taken[-1])
        return torch.cat(taken)

    def state_dict(self) -> dict[str, Any]:
        """How far the passes are; the rows themselves are not of the state."""
        return {"order": self.order.clone(), "drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order, self.drawn = state["order"], int(state["drawn"])


# ----------------------------------------------------------------------------------------------------------- layouts

TOKENS = ("ids", "answer", "length")


@gives(*TOKENS)
def demonstrations(store: Any, index: Tensor, rng: Generator) -> Columns:
    """A prompt and the answer to imitate: [B, T]."""
    return dict(store.rows(index))


@gives(*TOKENS, "desirable")
def labelled(store: Any, index: Tensor, rng: Generator) -> Columns:
    """A prompt and an answer [B, T], and whether it is a good one: `desirable` [B]."""
    return dict(store.rows(index))


@gives(*TOKENS)
def pairs(store: Any, index: Tensor, rng: Generator) -> Columns:
    """A prompt with the answer that was chosen and the one that was rejected: [B, 2, T]."""
    return dict(store.rows(index))


@gives(*TOKENS, "reward")
def scored_pairs(store: Any, index: Tensor, rng: Generator) -> Columns:
    """A prompt with two answers [B, 2, T], and what each of them earned: `reward` [B, 2]."""
    return dict(store.rows(index))


@gives(*TOKENS, "reward", "group", "sampled_logp", "behaviour_logp")
def rolled(store: Any, index: Tensor, rng: Generator) -> Columns:
    """An answer that the policy gave [B, T], its `reward` [B], its prompt's number `group` [B], and what was said of
    its tokens when they were sampled, [B, T]: `sampled_logp` and `behaviour_logp`."""
    return dict(store.rows(index))


@gives(*TOKENS, "reward")
def rolled_pairs(store: Any, index: Tensor, rng: Generator) -> Columns:
    """A prompt with two answers that were sampled, the better one first [B, 2, T], and the `reward` of each [B, 2]."""
    return dict(store.rows(index))


ROLLED = (rolled, rolled_pairs)  # of what was just collected, which is no dataset
KINDS: dict[Any, str] = {  # of rows of a dataset
    demonstrations: "demonstrations",
    labelled: "labelled",
    pairs: "pairs",
    scored_pairs: "pairs",
}


def rows_of(columns: Columns) -> int:
    """How many rows a batch of tokens has."""
    return len(columns["length"])


def exchanged(columns: Columns) -> Columns:
    """Each prompt with the answer of the row before it (the first with the last's): columns [B, T]."""
    ids, answer, length = (columns[name] for name in ("ids", "answer", "length"))
    count = answer.sum(-1)
    begin = length - count
    new = begin + count.roll(1)
    place = torch.arange(int(new.max()), device=ids.device)
    of_prompt, there = place < begin[:, None], place < new[:, None]
    own = ids.gather(1, place.expand(len(ids), -1).clamp(max=ids.shape[1] - 1))
    other = (place - begin[:, None] + begin.roll(1)[:, None]).clamp(0, ids.shape[1] - 1)
    return {
        "ids": torch.where(of_prompt, own, ids.roll(1, 0).gather(1, other)) * there,
        "answer": there & ~of_prompt,
        "length": new,
    }
