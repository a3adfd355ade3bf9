"""Steps of an answer, and what a process reward model says of them: columns with an entry for each token.

A step ends with a token in which the separator stands, the last one with the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Nets, Policy
from palaestra.faults import RewardFailed
from palaestra.functional.tokens import masked_mean
from palaestra.rewards.named import function_of
from palaestra.rollout.texts import Row, TextCollect, Texts

StepScorer = Callable[[Row, str], Sequence[float]]  # of a prompt's row and an answer: a number for each of its steps


@dataclass
class StepsScored:
    """A collect whose answers have `step_end` [B, T], whether a step ends with the token, and `step_score` [B, T], what
    is said of that step, 0 elsewhere. Notes tell an answer's `steps`, and the mean `step_score`.

    Args:
        collect: of answers.
        scores: a `StepScorer`, or its name, "package.module:function" or "file.py:function".
        separator: of steps, as text.
    """

    collect: TextCollect
    scores: str | StepScorer
    separator: str

    def __post_init__(self) -> None:
        self.scorer = function_of(self.scores, "step scorer") if isinstance(self.scores, str) else self.scores

    def __call__(self, nets: Nets, policy: Policy, source: Any, n: int, rng: Generator) -> Texts:
        texts = self.collect(nets, policy, source, n, rng)
        ids, answer = texts.columns["ids"], texts.columns["answer"]
        ends = step_ends(ids, answer, *spelling(source.tokenizer, ids[answer].unique(), self.separator))
        said = [
            self._said(note, number) for note, number in zip(texts.notes, ends.sum(1).tolist(), strict=True)
        ]  # in the order in which their ends stand in `ends`
        score = torch.zeros(ids.shape, device=ids.device)
        score[ends] = torch.tensor([value for own in said for value in own], device=ids.device)
        mean = masked_mean(score, ends, 1).tolist()
        notes = [
            {**note, "steps": len(own), "step_score": value}
            for note, own, value in zip(texts.notes, said, mean, strict=True)
        ]
        return replace(texts, columns={**texts.columns, "step_end": ends, "step_score": score}, notes=notes)

    def _said(self, note: dict[str, Any], steps: int) -> list[float]:
        values = [float(value) for value in self.scorer(note["row"], note["answer"])]
        if len(values) != steps or not all(map(math.isfinite, values)):
            raise RewardFailed(
                f"the step scorer gave {str(values)[:60]} for the {steps} steps of {note['answer'][:40]!r}, which end "
                f"with {self.separator!r}: let it return a finite number for each"
            )
        return values


def spelling(tokenizer: Any, tokens: Tensor, separator: str) -> tuple[Tensor, Tensor]:
    """Those of the tokens [V] in which the separator stands, and those that have nothing but white space in them."""
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in tokens.tolist()]
    ends = torch.tensor([separator in text for text in texts], device=tokens.device)
    blank = torch.tensor([not text.strip() for text in texts], device=tokens.device)
    return tokens[ends], tokens[blank & ~ends]


def step_ends(ids: Tensor, answer: Tensor, separators: Tensor, blank: Tensor) -> Tensor:
    """Whether a step ends with the token: [B, T].

    Every separator of the answer ends one; so does the answer's last token, unless what follows the last separator is
    `blank`, as the end-of-text is.
    """
    separating = answer & torch.isin(ids, separators)
    within = answer & ~separating & ~torch.isin(ids, blank)
    behind = within & (separating.flip(1).cumsum(1).flip(1) == 0)  # the last separator
    last = answer & (answer.cumsum(1) == answer.sum(1, keepdim=True))
    return separating | (last & behind.any(1, keepdim=True))
