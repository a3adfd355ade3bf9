"""Go on with a sentence about a thing. What it is worth is how kind it is, and its probability is known exactly.

The grammar, a prompt and a demonstration:

    sentence    clause, conjunction clause, ...
    clause      determiner adjective noun verb [adverb] adjective

    the old film was        truly charming but our plain hotel seemed dull
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from palaestra.envs.text.task import Row, TextTask


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POSITIVE = _words("good great lovely charming brilliant superb pleasant kind delightful warm happy elegant")
NEGATIVE = _words("bad awful dreadful dull ugly poor boring rude nasty cold sad clumsy")
NEUTRAL = _words("old new small large local quiet long short plain early late common")
PROMPT = 4  # words of a sentence that are given
SHORTEST, LONGEST = 5, 6  # words of a clause
END = (None,)


@dataclass(frozen=True)
class Grammar:
    """Sentences of `length[0]` to `length[1]` words. Wherever several words may stand, each is as likely.

    An adverb stands in half of the clauses. After a clause the sentence goes on while it is too short, ends where
    another clause might make it too long, and ends with probability 1/2 otherwise. All kinds of words are disjoint: a
    sentence can be read in one way alone.
    """

    length: tuple[int, int]
    determiners: tuple[str, ...] = ("the", "this", "that", "our")
    adjectives: tuple[str, ...] = (*POSITIVE, *NEGATIVE, *NEUTRAL)
    nouns: tuple[str, ...] = _words(
        "film book hotel meal garden song city teacher game story room party walk play painting friend shop lecture "
        "train dress"
    )
    verbs: tuple[str, ...] = ("was", "is", "seemed", "looked")
    adverbs: tuple[str, ...] = ("very", "quite", "rather", "truly", "somewhat", "really")
    conjunctions: tuple[str, ...] = ("and", "but", "while", "because", "though")

    def __post_init__(self) -> None:
        least, most = self.length
        if least < SHORTEST or most < least + LONGEST:  # a sentence could be too short, and a clause more too long
            raise ValueError(
                f"length={self.length}: give the least, at least {SHORTEST}, and the most, at least {LONGEST} more"
            )

    @property
    def words(self) -> tuple[str, ...]:
        """All of them, in a fixed order."""
        kinds = self.determiners, self.adjectives, self.nouns, self.verbs, self.adverbs, self.conjunctions
        return tuple(word for kind in kinds for word in kind)

    def sentence(self, rng: np.random.Generator) -> str:
        """A random sentence."""
        said: list[str] = []
        while True:
            options = self._next(said)
            kind = options[int(rng.random() >= options[0][1])][0]  # there are two at most
            word = kind[rng.integers(len(kind))]
            if word is None:
                return " ".join(said)
            said.append(word)

    def log_probabilities(self, sentence: str) -> list[float]:
        """Of every word given those before it, and of the end after the last; -inf where one cannot stand.

        Their sum is the sentence's log-probability; without the first `PROMPT` numbers, its answer's given its prompt.
        """
        said, found = sentence.split(" "), []
        for place, word in enumerate([*said, None]):
            likely = sum(odds / len(kind) for kind, odds in self._next(said[:place]) if word in kind)
            found.append(math.log(likely) if likely else -math.inf)
        return found

    def log_probability(self, sentence: str) -> float:
        """Of a whole sentence; -inf where it is none."""
        return sum(self.log_probabilities(sentence))

    def _next(self, said: Sequence[str]) -> list[tuple[tuple[str | None, ...], float]]:
        """The kinds of words that may follow, with their probabilities; None is the end."""
        clause = (self.determiners, self.adjectives, self.nouns, self.verbs)
        within: list[str] = []  # the words of the present clause
        for word in said:
            within = [] if word in self.conjunctions else [*within, word]
        if len(within) < len(clause):
            return [(clause[len(within)], 1.0)]
        if len(within) == len(clause):
            return [(self.adverbs, 0.5), (self.adjectives, 0.5)]
        if within[-1] in self.adverbs:
            return [(self.adjectives, 1.0)]
        if len(said) < self.length[0]:
            return [(self.conjunctions, 1.0)]
        if len(said) + 1 + LONGEST > self.length[1]:
            return [(END, 1.0)]
        return [(END, 0.5), (self.conjunctions, 0.5)]


def sent(length: tuple[int, int] = (10, 20)) -> TextTask:
    """Sentences to be gone on with after four words. Only the answer is judged, not the adjective that was given.

    Args:
        length: least and most words of a sentence, at least 5 and six more than the least; (32, 40) is long.

    Gold is "kindness", logistic(positive - negative adjectives); "count" is that difference itself, which has no bound,
    and "two_positive" is 1 where at least two are positive.
    """
    grammar = Grammar(length)
    rewards = {"kindness": kindness, "count": count, "two_positive": two_positive}
    sample, longest = partial(_sample, grammar=grammar), length[1] - PROMPT + 1
    return TextTask("sent", grammar.words, " ", sample, rewards, longest, log_probabilities=grammar.log_probabilities)


def count(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """Positive less negative adjectives."""
    return [float(_number(answer, POSITIVE) - _number(answer, NEGATIVE)) for answer in answers]


def kindness(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """logistic(positive - negative adjectives), in (0, 1); 1/2 where there are as many of both."""
    return [(1 + math.tanh(difference / 2)) / 2 for difference in count(rows, answers)]  # exp(-x) would overflow


def two_positive(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """1 where at least two adjectives are positive."""
    return [float(_number(answer, POSITIVE) >= 2) for answer in answers]


def _number(text: str, words: Sequence[str]) -> int:
    return sum(word in words for word in text.split())


def _sample(rng: np.random.Generator, grammar: Grammar) -> Row:
    words = grammar.sentence(rng).split(" ")
    return {"prompt": " ".join(words[:PROMPT]), "answer": " ".join(words[PROMPT:])}
