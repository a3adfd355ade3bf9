"""The offline loop: draw from a dataset, update. Written to be copied.

`Offline` is all that a run remembers, and can give and take it; `offline` is the loop. Several seeds go through it
together: one learner with stacked networks, and of the draws and priorities one for each seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gymnasium.vector import VectorEnv
from torch import Tensor

from palaestra.algorithm import Algorithm, Unfit
from palaestra.data import mixture
from palaestra.data.dataset import Dataset
from palaestra.data.mixture import Rows
from palaestra.envs.border import Border
from palaestra.learner import Learner, as_tuple, set_states
from palaestra.loops.filled import filled
from palaestra.loops.fitted_q import fitted_q_value
from palaestra.loops.online import Record, crossed, fetched, scores_of, stacking_problem


class Offline:
    """One run of an algorithm on a dataset: the learner, the buffers, every random stream.

    Raises `Unfit` where the algorithm learns from what it has just collected, or where seeds cannot be stacked.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        dataset: Dataset,
        seeds: Sequence[int] = (0,),
        *,
        device: str = "cpu",
        compile: bool = False,
        precision: str = "float32",
    ) -> None:
        self.seeds, self.dataset = tuple(seeds), dataset
        if algorithm.schedule.epochs:
            raise Unfit(
                f"{algorithm} learns from what it has just collected, and not from a dataset: try iql or td3-bc"
            )
        if len(self.seeds) > 1 and (problem := stacking_problem(algorithm)):
            raise Unfit(f"the seeds of {algorithm} cannot be stacked ({problem}): run them in processes, or one by one")
        self.border = Border(dataset.observation_space, dataset.action_space, device)
        self.learner = Learner(
            algorithm, self.border.spec, self.seeds, device=device, compile=compile, precision=precision
        )
        self.algorithm = self.learner.algorithm
        self.drawing = self.learner.streams("drawing")
        terms = (term for loss in self.algorithm.losses.values() for term in loss.terms.values())
        self.streams = tuple(dict.fromkeys(term.stream for term in terms))  # in this order they are drawn
        self.replays: dict[str, Rows] = dict(filled(self.learner, dataset, self.border, self.algorithm.buffers))
        self.metrics: dict[str, Tensor] = {}

    clock = "updates"  # what `count` counts

    @property
    def count(self) -> int:
        """How far it is: the updates made."""
        return self.learner.updates

    def close(self) -> None:
        """Nothing is open."""

    def advance(self) -> None:
        """Make one update."""
        n = self.algorithm.schedule.batch_size
        drawn = {s: mixture.sample(self.replays, s, n, self.drawing, self.learner.clock) for s in self.streams}
        self.metrics, given = self.learner.update(drawn)
        for stream, columns in given.items():
            if "error" in columns:
                mixture.feed_back(self.replays, stream, drawn[stream]["index"], columns["error"])
            self.metrics |= {f"{stream}/{key}": value for key, value in columns.items()}

    def evaluate(self, env: VectorEnv | None, number: int) -> dict[int, dict[str, list[float]]]:
        """The raw scores of each seed's deployed policy in `env`; without one, what a Q-function fitted to the dataset
        says that its first states are worth."""
        if env is not None:
            return scores_of(self.learner, env, number)
        return {seed: fitted_q_value(self.learner, seed, self.dataset, self.border, number) for seed in self.seeds}

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "replays": {name: replay.state_dict() for name, replay in self.replays.items()},
            "random": [rng.get_state() for rng in as_tuple(self.drawing)],
            "metrics": {name: value.clone() for name, value in self.metrics.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], rows: Mapping[str, Iterable[Any]]) -> None:
        """Continue from a state. ValueError where it was written with another dataset."""
        for name, replay in self.replays.items():
            replay.load(state["replays"][name], ())
        self.learner.load_state_dict(state["learner"])
        set_states(self.drawing, state["random"])
        self.metrics = dict(state["metrics"])


def offline(
    run: Offline,
    steps: int,
    evaluation: VectorEnv | None = None,
    *,
    evaluate_every: int = 1_000,
    log_every: int = 1_000,
    checkpoint_every: int = 10_000,
    record: Record = lambda row: None,
    save: Callable[[Offline], None] = lambda run: None,
    tick: Record = lambda row: None,
    seconds: float = 0.0,
) -> None:
    """Advance `run` until `steps` updates are made; `record`, `save` and `tick` are called as by `online`.

    Rows count "updates" and no environment steps. Raises `NotFinite` rather than record or save what was learnt from
    numbers that are not finite.
    """
    began = time.perf_counter() - seconds
    while run.count < steps:
        before = run.count
        run.advance()
        done = run.count >= steps
        now = {"updates": run.count, "seconds": round(time.perf_counter() - began, 3)}
        tick(now)
        log, check = (crossed(before, run.count, period) or done for period in (log_every, checkpoint_every))
        if log or check:
            run.learner.check_finite()
        if log:
            for seed, metrics in zip(run.seeds, fetched(run.metrics, len(run.seeds)), strict=True):
                record({"kind": "train", "seed": seed, **now, **metrics})
        if crossed(before, run.count, evaluate_every) or done:
            for seed, scores in run.evaluate(evaluation, run.count).items():
                record({"kind": "evaluation", "seed": seed, **now, "scores": scores})
        if check:
            save(run)
