"""Prompts, the answers that a policy gives to them, and what these earn: the `collect` part of language models.

`generate` is a base; the others wrap a `Collect`, and are read from the inside out:
`in_groups(scored(generate))` gives several answers to each prompt, all of them scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from palaestra.algorithm import Nets, Policy, TaskSampler, Unfit, gives, stateful
from palaestra.batch import Columns, Obs
from palaestra.data.tokenising import decoded, prompt_ids
from palaestra.data.tokens import after_prompts, joined, padded, picked
from palaestra.networks.language import LanguageModel, Sampling, generated, pretrained_of
from palaestra.rewards.named import Reward
from palaestra.rewards.named import scored as scores_of
from palaestra.tasks.admission import Admission

Row = dict[str, Any]  # of a dataset of prompts: "prompt", and whatever its reward reads


@dataclass
class Texts:
    """Answers: `columns` for the learner, and beside each row a note in words.

    A note has the prompt's `row`, the `answer` as text, whether it came to its end (`ended`), and, once scored, its
    `rewards` by name. `thrown_away` counts answers that were sampled on the way to these and left out.
    """

    columns: Columns
    notes: list[dict[str, Any]]
    thrown_away: int = 0

    def __len__(self) -> int:
        return len(self.notes)

    def rows(self, index: Tensor) -> Texts:
        """Some of them."""
        return Texts(picked(self.columns, index), [self.notes[i] for i in index.tolist()])

    def to(self, device: torch.device) -> Texts:
        """The same on another device."""
        return replace(self, columns={name: value.to(device) for name, value in self.columns.items()})


def together(parts: Sequence[Texts]) -> Texts:
    """One of several, whose groups stay apart."""
    first, moved = 0, []
    for part in parts:
        group = part.columns["group"]
        moved.append({**part.columns, "group": group + first})
        first += int(group.max()) + 1 if len(part) else 0
    thrown = sum(part.thrown_away for part in parts)
    return Texts(joined(moved), [note for part in parts for note in part.notes], thrown)


def means(texts: Texts, columns: Columns) -> dict[str, float]:
    """Of a round: `reward` and each reward by its name, `length` of the answers, whatever numbers the notes tell (how
    many `ended`), how many others were `thrown_away`, and, where there is a reference of the policy that was sampled,
    the divergence from it, `kl`, in nats an answer."""
    by_name = {name: [note["rewards"][name] for note in texts.notes] for name in texts.notes[0].get("rewards", {})}
    numbers = [name for name, value in texts.notes[0].items() if isinstance(value, int | float)]
    answer = columns["answer"]
    found = {
        **{f"reward/{name}": float(np.mean(values)) for name, values in by_name.items()},
        "length": float(answer.sum(-1).float().mean()),
        **{name: float(np.mean([note[name] for note in texts.notes])) for name in numbers},
        "thrown_away": float(texts.thrown_away),
    }
    if "reward" in texts.columns:  # of all that was collected: a transform may have left rows out
        found["reward"] = float(texts.columns["reward"].mean())
    if "reference_logp" in columns and "sampled_logp" in columns:
        found["kl"] = float(((columns["sampled_logp"] - columns["reference_logp"]) * answer).sum(-1).mean())
    return found


class Prompts:
    """Where prompts come from, and what answers to them earn.

    Args:
        rows: all prompts that there are, which come in passes; or a function that makes one.
        rewards: by name; what an answer earns is their sum.
        tokenizer: of the policy.
        rng: in which order they come, or how they are made.
        tasks: chooses among `rows` in place of the passes.
    """

    def __init__(
        self,
        rows: Sequence[Row] | Callable[[np.random.Generator], Row],
        rewards: Mapping[str, Reward],
        tokenizer: Any,
        rng: Generator,
        tasks: TaskSampler | None = None,
    ) -> None:
        self.known, self.rewards, self.tokenizer, self.rng, self.tasks = rows, rewards, tokenizer, rng, tasks
        self.order: Tensor = torch.zeros(0, dtype=torch.int64)
        self.drawn = 0

    def draw(self, n: int, nets: Nets) -> list[Row]:
        """The next `n` prompts."""
        if callable(self.known):
            seeds = torch.randint(2**31, (n,), generator=self.rng).tolist()
            return [self.known(np.random.default_rng(seed)) for seed in seeds]
        if self.tasks is not None:
            return [self.known[int(self.tasks.sample(nets, self.rng))] for _ in range(n)]
        return [self.known[self._next()] for _ in range(n)]

    def _next(self) -> int:
        assert not callable(self.known)
        if self.drawn == len(self.order):
            self.order, self.drawn = torch.randperm(len(self.known), generator=self.rng), 0
        self.drawn += 1
        return int(self.order[self.drawn - 1])

    def score(self, rows: Sequence[Row], answers: Sequence[str]) -> dict[str, list[float]]:
        """By the name of each reward, one number an answer. RewardFailed where it gives another thing."""
        return scores_of(self.rewards, rows, answers)

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order.clone(), "drawn": self.drawn, "random": self.rng.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order, self.drawn = state["order"], int(state["drawn"])
        self.rng.set_state(state["random"])


@dataclass
class Repeated:
    """Prompts that come `times` in a row."""

    source: Any
    times: int

    def draw(self, n: int, nets: Nets) -> list[Row]:
        return [row for row in self.source.draw(n, nets) for _ in range(self.times)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


@dataclass
class Given:
    """Prompts that are known already, to be answered once."""

    rows: Sequence[Row]
    tokenizer: Any
    rewards: Mapping[str, Reward] = field(default_factory=dict)

    def draw(self, n: int, nets: Nets) -> list[Row]:
        return list(self.rows)

    def score(self, rows: Sequence[Row], answers: Sequence[str]) -> dict[str, list[float]]:
        return scores_of(self.rewards, rows, answers)


# ---------------------------------------------------------------------------------------------------------- policies


@gives("sampled_logp", "behaviour_logp")
def answering(
    nets: Nets, obs: Obs, memory: Any, rng: Generator | None, longest: int, sampling: Sampling
) -> tuple[Tensor, Columns, Any]:
    """A whole answer as one action: tokens [N, L] after prompts `obs["ids"]` [N, P]; the most likely ones without rng.

    Gives `answer` [N, L], whether a token is of the answer, `sampled_logp` under the policy, and `behaviour_logp` under
    what was drawn from.
    """
    assert isinstance(obs, dict)
    network = nets["policy"]
    assert isinstance(network, LanguageModel)
    end = pretrained_of(nets.spec, "answering").end
    columns = generated(network, obs["ids"], obs["attention"], longest, end, sampling, rng)
    return columns.pop("ids"), columns, memory


# ---------------------------------------------------------------------------------------------------------- collects


def generate(nets: Nets, policy: Policy, source: Any, n: int, rng: Generator | None, at_once: int = 512) -> Texts:
    """An answer to each of the next `n` prompts, `at_once` at a time. Every answer is a group of its own."""
    rows = source.draw(n, nets)
    device = next(nets["policy"].parameters()).device
    parts = []
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        ids, attention = padded([prompt_ids(source.tokenizer, row["prompt"]) for row in some], left=True)
        obs = {"ids": ids.to(device), "attention": attention.to(device)}
        action, columns, _ = policy(nets, obs, None, rng)
        done = after_prompts(obs["ids"], obs["attention"], {"ids": action, **columns})
        done["group"] = torch.arange(len(some), device=device)
        answers = [row[kept].tolist() for row, kept in zip(done["ids"], done["answer"], strict=True)]
        end = pretrained_of(nets.spec, "generate").end
        notes = [
            {"row": row, "answer": text, "ended": bool(tokens) and tokens[-1] == end}
            for row, text, tokens in zip(some, decoded(source.tokenizer, answers), answers, strict=True)
        ]
        parts.append(Texts(done, notes))
    return together(parts)


TextCollect = Callable[..., Texts]


def in_groups(collect: TextCollect, size: int) -> TextCollect:
    """`size` answers to each of `n` prompts, or so many times as many as `collect` gives to each; one `group` each."""
    return partial(_in_groups, collect=collect, size=size)


def _in_groups(
    nets: Nets, policy: Policy, source: Any, n: int, rng: Generator, collect: TextCollect, size: int
) -> Texts:
    texts = collect(nets, policy, Repeated(source, size), n, rng)
    return replace(texts, columns={**texts.columns, "group": texts.columns["group"] // size})


def scored(collect: TextCollect) -> TextCollect:
    """With `reward` [N], the sum of what the source's rewards say; each of them stands in the notes."""
    return partial(_scored, collect=collect)


def _scored(nets: Nets, policy: Policy, source: Any, n: int, rng: Generator, collect: TextCollect) -> Texts:
    texts = collect(nets, policy, source, n, rng)
    by_name = source.score([note["row"] for note in texts.notes], [note["answer"] for note in texts.notes])
    notes = [
        {**note, "rewards": {name: values[i] for name, values in by_name.items()}} for i, note in enumerate(texts.notes)
    ]
    total = [sum(note["rewards"].values()) for note in notes]
    reward = torch.tensor(total, dtype=torch.float32, device=texts.columns["ids"].device)
    return replace(texts, columns={**texts.columns, "reward": reward}, notes=notes)


def penalised_without_end(collect: TextCollect, penalty: float) -> TextCollect:
    """An answer that was cut off earns `penalty` in place of what was said of it."""
    return partial(_penalised_without_end, collect=collect, penalty=penalty)


def _penalised_without_end(
    nets: Nets, policy: Policy, source: Any, n: int, rng: Generator, collect: TextCollect, penalty: float
) -> Texts:
    texts = collect(nets, policy, source, n, rng)
    reward = texts.columns["reward"]
    ended = torch.tensor([note["ended"] for note in texts.notes], device=reward.device)
    return replace(texts, columns={**texts.columns, "reward": torch.where(ended, reward, penalty)})


def filtered(collect: TextCollect, keep: Callable[[Texts, Generator], Tensor]) -> TextCollect:
    """Only the rows [K] that `keep(texts, rng)` names, by index."""
    return partial(_filtered, collect=collect, keep=keep)


def _filtered(
    nets: Nets,
    policy: Policy,
    source: Any,
    n: int,
    rng: Generator,
    collect: TextCollect,
    keep: Callable[[Texts, Generator], Tensor],
) -> Texts:
    texts = collect(nets, policy, source, n, rng)
    kept = keep(texts, rng)
    return replace(texts.rows(kept), thrown_away=texts.thrown_away + len(texts) - len(kept.unique()))


def answers_to_each(collect: Any) -> int:
    """How many answers a collect gives to each prompt, as far as `in_groups` says."""
    inside = collect.keywords if isinstance(collect, partial) else vars(collect) if is_dataclass(collect) else {}
    own = inside["size"] if isinstance(collect, partial) and collect.func is _in_groups else 1
    return own * answers_to_each(inside["collect"]) if "collect" in inside else own


@dataclass
class UntilFull:
    """Collects until `n` groups are admitted; what is left over waits for the next time.

    What waited was answered by an earlier policy. A rollout that is learnt from once and in one piece keeps no record
    of its old log-probabilities, and takes it for the present policy's; `importance-corrected` does not.

    Args:
        collect: of groups.
        outside: how far each row's group is from being admitted, [N], by `palaestra.tasks.admission`.
        most: times that it collects, at most; then the groups that are not admitted fill up, the nearest first.
        waiting: groups that are left over.
    """

    collect: TextCollect
    outside: Admission
    most: int = 8
    waiting: list[Texts] = field(default_factory=list)

    def __call__(self, nets: Nets, policy: Policy, source: Any, n: int, rng: Generator) -> Texts:
        if isinstance(source, Repeated):
            raise Unfit("more answers are asked for than those by which prompts are admitted: admit them last")
        device = next(nets["policy"].parameters()).device
        kept = [texts.to(device) for texts in self.waiting]
        spare: list[tuple[float, Texts]] = []
        thrown = 0
        for _ in range(self.most):
            if len(kept) >= n:
                break
            texts = self.collect(nets, policy, source, n, rng)
            thrown += texts.thrown_away
            for far, group in groups_of(texts, self.outside(texts.columns)):
                if far > 0:
                    spare.append((far, group))
                else:
                    kept.append(group)
        spare.sort(key=itemgetter(0))
        missing = max(0, n - len(kept))
        kept += [group for _, group in spare[:missing]]
        thrown += sum(len(group) for _, group in spare[missing:])
        self.waiting = kept[n:]
        return replace(together(kept[:n]), thrown_away=thrown)

    def state_dict(self) -> dict[str, Any]:
        inside = [part.state_dict() for part in stateful(self.collect)]
        return {"waiting": [(texts.columns, texts.notes) for texts in self.waiting], "collect": inside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.waiting = [Texts(columns, notes) for columns, notes in state["waiting"]]
        for part, saved in zip(stateful(self.collect), state["collect"], strict=True):
            part.load_state_dict(saved)


def groups_of(texts: Texts, values: Tensor) -> list[tuple[float, Texts]]:
    """Each group by itself, with what `values` [N] says of its first row."""
    found = []
    for group in texts.columns["group"].unique():
        index = (texts.columns["group"] == group).nonzero()[:, 0]
        own = texts.rows(index)
        own.columns["group"] = torch.zeros_like(own.columns["group"])
        found.append((float(values[index[0]]), own))
    return found
