"""The loop of rounds: collect answers with the current policy, learn from them, again; or learn from texts there are.

`Rounds` is all that a run remembers, and can give and take it; `rounds` is the loop. Written to be copied. An algorithm
whose schedule has epochs collects in rounds, and throws away what it has learnt from; another one makes updates from
the rows of a dataset. What is evaluated before the first update is where the model began.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Algorithm, Unfit
from palaestra.batch import Columns, Spec
from palaestra.data.tokens import TokenRows, picked, rows_of
from palaestra.evaluation.answers import Asked
from palaestra.learner import Learner, generator, set_states
from palaestra.loops.online import Record, crossed, fetched
from palaestra.rollout.texts import means

AT_ONCE = 64  # rows that a transform sees at a time when a dataset is prepared
SHOWN = 4  # answers of an evaluation that a run keeps in words
ROLLOUT = "rollout"  # the buffer of what was just collected


def collects(algorithm: Algorithm) -> bool:
    """Whether it learns from what it has just collected."""
    return algorithm.schedule.epochs > 0


def unfitting(algorithm: Algorithm) -> str | None:
    """What an algorithm asks for that means nothing where texts are learnt from; None where there is nothing."""
    if algorithm.initial_states:
        return "it chooses where episodes of an environment begin"
    if any(transform.moment == "dataset" for transform in algorithm.transforms):
        return "it prepares a dataset of steps"
    for name, buffer in algorithm.buffers.items():
        if buffer.priority or buffer.keep or buffer.shares:
            return f"rows of {name} are all kept, and drawn in passes"
    return None


class Rounds:
    """One run of an algorithm that learns from answers, or from texts: the learner, the rows, every random stream.

    Args:
        algorithm: what is learnt.
        spec: of the language model that it begins with.
        seeds: one.
        source: makes what the algorithm collects from, with a generator of its own; None where nothing is collected.
        rows: columns of a dataset, by buffer.
        asked: what it is judged by.
        held_out: columns of a dataset that it is judged by, by buffer.
        micro_batch: rows of a forward pass with gradient, at most; the gradient is that of all of them.

    Raises `Unfit` where there are several seeds, or where what the algorithm learns from is missing.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        source: Callable[[Generator], Any] | None = None,
        rows: Mapping[str, Columns] | None = None,
        asked: Asked | None = None,
        held_out: Mapping[str, Columns] | None = None,
        device: str = "cpu",
        compile: bool = False,
        precision: str = "float32",
        micro_batch: int | None = None,
    ) -> None:
        self.seeds = tuple(seeds)
        if len(self.seeds) > 1:
            raise Unfit("the seeds of language models are not stacked: run them in processes, or one by one")
        if problem := unfitting(algorithm):
            raise Unfit(f"{algorithm} does not learn from texts: {problem}")
        self.learner = Learner(algorithm, spec, self.seeds, device=device, compile=compile, precision=precision)
        self.algorithm = algorithm = self.learner.algorithm  # a copy: two runs never share the state of a part
        self.device, self.micro_batch = device, micro_batch
        self.acting, self.changing = (self.learner.streams(n, device) for n in ("acting", "collect transforms"))
        self.drawing = self.learner.streams("drawing")
        self.transforms = [t for t in algorithm.transforms if t.moment == "collect"]
        self.source = None if source is None else source(generator(self.seeds[0], "prompts"))
        if collects(algorithm) and self.source is None:
            raise Unfit(f"{algorithm} learns from answers of its own: give prompts with a reward, or an environment")
        own = {name: rows[name] if rows and name in rows else None for name in algorithm.buffers if name != ROLLOUT}
        if missing := [name for name, columns in own.items() if columns is None]:
            raise Unfit(f"{algorithm} learns from a dataset of {missing[0]}: give one")
        self.rows = {name: self._prepared(name, columns) for name, columns in own.items() if columns is not None}
        self.asked = asked
        if asked is not None:
            asked.held_out = {name: self._prepared(name, columns) for name, columns in (held_out or {}).items()}
        terms = (term for loss in algorithm.losses.values() for term in loss.terms.values())
        self.streams = tuple(dict.fromkeys(term.stream for term in terms))  # in this order they are drawn
        self.policy = self.learner.policy()
        self.metrics: dict[str, Tensor] = {}
        self.told: dict[str, float] = {}  # of the last round
        self.rounds = self.answers = 0
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)  # of answers that were learnt from

    replays: Mapping[str, Any] = {}  # nothing that a checkpoint has to hold: rows are those of the dataset

    @property
    def clock(self) -> str:
        """What `count` counts."""
        return "rounds" if collects(self.algorithm) else "updates"

    @property
    def count(self) -> int:
        """How far it is: rounds, or the updates made."""
        return self.rounds if collects(self.algorithm) else self.learner.updates

    def close(self) -> None:
        """Nothing is open."""

    def advance(self) -> None:
        """A round; without collecting, an update."""
        if not collects(self.algorithm):
            self._update({stream: self._draw(stream, self.algorithm.schedule.batch_size) for stream in self.streams})
            return
        columns = self._collected()
        for batches in self._passes(columns):
            self._update(batches)
            if (stop := self.algorithm.schedule.stop) is not None and stop(self.metrics):
                break
        self.rounds += 1

    def _collected(self) -> Columns:
        """The answers of a round, after the transforms of what is collected, with the columns of the advantage."""
        a, nets = self.algorithm, self.learner.nets
        texts = a.collect(nets, self.policy, self.source, a.schedule.collect, self.acting)  # type: ignore[arg-type]
        self.answers += len(texts) + texts.thrown_away
        nets.clock.env_steps.fill_(self.answers)
        with torch.no_grad():
            columns = self._transformed(ROLLOUT, texts.columns)
            self.told = means(texts, columns)
            if a.advantage is not None:  # which may choose among the rows: then it gives all columns of what is kept
                columns = {**columns, **a.advantage(nets, columns)}
        if a.tasks is not None:
            a.tasks.update([note["row"] for note in texts.notes], [note["rewards"] for note in texts.notes])
        return columns

    def _transformed(self, stream: str, columns: Columns) -> Columns:
        for transform in self.transforms:
            if transform.stream == stream:
                columns = self.learner.transformed(transform, columns, self.changing)
        return columns

    def _prepared(self, name: str, columns: Columns) -> TokenRows:
        """The rows of a dataset, after the transforms of what is collected."""
        kept = TokenRows()
        with torch.no_grad():
            for index in torch.arange(rows_of(columns)).split(AT_ONCE):
                some = {key: value.to(self.device) for key, value in picked(columns, index).items()}
                kept.insert({key: value.cpu() for key, value in self._transformed(name, some).items()})
        return kept

    def _draw(self, stream: str, n: int) -> Columns:
        store = self.rows[stream]
        index = store.draw(n, self.drawing)  # type: ignore[arg-type]
        layout: Any = self.algorithm.buffers[stream].layout
        batch = layout(store, index, self.drawing)
        return {key: value.to(self.device) for key, value in {**batch, "index": index}.items()}

    def _passes(self, columns: Columns) -> Iterator[dict[str, Columns]]:
        schedule, n = self.algorithm.schedule, rows_of(columns)
        for _ in range(schedule.epochs):
            order = torch.randperm(n, generator=self.drawing)  # type: ignore[arg-type]
            for index in order.tensor_split(min(schedule.minibatches, n)):
                beside = {s: self._draw(s, len(index)) for s in self.streams if s != ROLLOUT}
                yield {ROLLOUT: picked(columns, index.to(self.device)), **beside}

    def _update(self, batches: Mapping[str, Columns]) -> None:
        most = max(rows_of(batch) for batch in batches.values())
        pieces = 1 if self.micro_batch is None else math.ceil(most / self.micro_batch)
        self.metrics, given = self.learner.update(batches, split=pieces)
        self.tokens += torch.stack([batch["answer"].sum() for batch in batches.values()]).sum()
        for stream, columns in given.items():
            self.metrics |= {f"{stream}/{key}": value for key, value in columns.items()}

    def evaluate(self, judge: Any = None, number: int = 0) -> dict[int, dict[str, list[float]]]:
        """The raw scores of the deployed policy, by what it is `asked`."""
        policy = self.learner.deployed()
        scores: dict[str, list[float]] = {}
        for part in self.algorithm.evaluation:
            scores |= part(self.learner.nets, policy, self.asked)
        return {self.seeds[0]: scores}

    def shown(self) -> list[dict[str, Any]]:
        """Some answers of the last evaluation: `prompt`, `answer`, `rewards`."""
        texts = None if self.asked is None else self.asked.texts
        notes = [] if texts is None else texts.notes[:SHOWN]
        return [{"prompt": n["row"]["prompt"], "answer": n["answer"], "rewards": n["rewards"]} for n in notes]

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "source": {} if self.source is None else self.source.state_dict(),
            "rows": {name: rows.state_dict() for name, rows in self.rows.items()},
            "random": [rng.get_state() for rng in self._streams()],
            "counts": [self.rounds, self.answers],
            "tokens": self.tokens.clone(),
            "metrics": {name: value.clone() for name, value in self.metrics.items()},
            "told": dict(self.told),
        }

    def load_state_dict(self, state: Mapping[str, Any], rows: Mapping[str, Iterable[Any]]) -> None:
        """Continue from a state."""
        self.learner.load_state_dict(state["learner"])
        if self.source is not None:
            self.source.load_state_dict(state["source"])
        for name, kept in self.rows.items():
            kept.load_state_dict(state["rows"][name])
        for rng, saved in zip(self._streams(), state["random"], strict=True):
            set_states(rng, [saved])
        self.rounds, self.answers = map(int, state["counts"])
        self.tokens = state["tokens"].to(self.device)
        self.metrics, self.told = dict(state["metrics"]), dict(state["told"])

    def _streams(self) -> tuple[Generator, ...]:
        return self.acting, self.changing, self.drawing  # type: ignore[return-value]


def rounds(
    run: Rounds,
    steps: int,
    evaluation: None = None,
    *,
    evaluate_every: int = 10,
    log_every: int = 1,
    checkpoint_every: int = 50,
    record: Record = lambda row: None,
    save: Callable[[Rounds], None] = lambda run: None,
    tick: Record = lambda row: None,
    seconds: float = 0.0,
) -> None:
    """Advance `run` until it counts `steps` rounds (or updates); `record`, `save` and `tick` are called as by `online`.

    `record` gets an "evaluation" row before the first update too; with each of them come `texts`, some answers in
    words. Raises `NotFinite` rather than record or save what was learnt from numbers that are not finite.
    """
    began = time.perf_counter() - seconds

    def now() -> dict[str, Any]:
        counts = {"rounds": run.rounds, "answers": run.answers} if run.clock == "rounds" else {}
        return {**counts, "updates": run.learner.updates, "seconds": round(time.perf_counter() - began, 3)}

    def judge() -> None:
        for seed, scores in run.evaluate(evaluation, run.count).items():
            if scores:
                shown = run.shown()
                record({"kind": "evaluation", "seed": seed, **now(), "scores": scores, "texts": shown})

    if run.count == 0:
        judge()
    while run.count < steps:
        before = run.count
        run.advance()
        done = run.count >= steps
        tick(now())
        log, check = (crossed(before, run.count, period) or done for period in (log_every, checkpoint_every))
        if log or check:
            run.learner.check_finite()
        if log:
            told = {**fetched(run.metrics, 1)[0], "tokens": int(run.tokens), **run.told}
            record({"kind": "train", "seed": run.seeds[0], **now(), **told})
        if crossed(before, run.count, evaluate_every) or done:
            judge()
        if check:
            save(run)
