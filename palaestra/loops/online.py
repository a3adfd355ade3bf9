"""The online loop: collect, insert, update, for replay and rollout algorithms alike. Written to be copied.

`Online` is all that a run remembers, and can give and take it; `online` is the loop. Several seeds go through it
together: one learner with stacked networks, one vector environment, and of the rest one for each seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from palaestra.algorithm import Algorithm, Unfit, given_by, stateful
from palaestra.batch import Columns, each
from palaestra.data import mixture
from palaestra.data.dataset import Dataset
from palaestra.data.fixed import Fixed
from palaestra.data.layouts import once, sequences
from palaestra.data.replay import Replay, Rollout
from palaestra.envs.border import Border
from palaestra.faults import NotFinite
from palaestra.learner import Learner, as_tuple, generator, set_states
from palaestra.loops.filled import DATASET, filled
from palaestra.rollout.collect import step
from palaestra.rollout.source import Source
from palaestra.stacking import Streams
from palaestra.teachers.teacher import Policies

Record = Callable[[dict[str, Any]], None]
OF_THIS_PASS = (once, sequences)  # layouts of what was just collected and is then thrown away
ITS_OWN = ("policy", "exploration", "deployment", "collect", "advantage", "losses", "after_update", "evaluation")


def stacking_problem(algorithm: Algorithm) -> str | None:
    """Why the seeds of an algorithm cannot be stacked; None where nothing speaks against it."""
    if algorithm.schedule.stop is not None:
        return "its schedule stops each seed's passes at a time of its own"
    if algorithm.collect is not step:
        return "it collects in a way of its own"
    for name in ITS_OWN:
        part = getattr(algorithm, name)
        if stateful([loss.terms for loss in part.values()] if name == "losses" else part):
            return f"its {name} remembers something outside of the networks"
    for evaluate in algorithm.evaluation:
        if not getattr(evaluate, "one_each", False):
            return f"{getattr(evaluate, '__name__', 'its evaluation')} does not give one value for each environment"
    return None


class Online:
    """One run of an algorithm in an environment: the learner, the replays, the source, every random stream.

    With several `seeds` the copies of `env` are theirs in turn, as many for each. Unfit where they cannot be stacked.
    `policies` opens the runs that methods name as teachers; `dataset` fills the buffer called "dataset".
    """

    def __init__(
        self,
        algorithm: Algorithm,
        env: VectorEnv,
        seeds: Sequence[int] = (0,),
        *,
        device: str = "cpu",
        compile: bool = False,
        precision: str = "float32",
        policies: Policies | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        self.seeds = tuple(seeds)
        self.policies = policies
        if logged := logged_column(algorithm):
            raise Unfit(
                f"{algorithm} reads {logged}, which only a dataset has: train it on one, without an environment"
            )
        if len(self.seeds) > 1 and (problem := stacking_problem(algorithm)):
            raise Unfit(f"the seeds of {algorithm} cannot be stacked ({problem}): run them in processes, or one by one")
        self.source = Source(env, self._numbers("environment"), device=device)
        spec = self.source.border.spec
        self.learner = Learner(algorithm, spec, self.seeds, device=device, compile=compile, precision=precision)
        self.acting = self.learner.streams("acting", device)
        self.changing = self.learner.streams("collect transforms", device)
        self.drawing = self.learner.streams("drawing")  # replays draw on the host
        self.algorithm = algorithm = self.learner.algorithm  # a copy: two runs never share the state of a part
        if algorithm.tasks or algorithm.initial_states:
            nets = [self.learner.nets_of(seed) for seed in self.seeds]
            tasks = as_tuple(self.learner.streams("tasks"))
            self.source.choose(algorithm.tasks, algorithm.initial_states, nets, tasks)
        self.transforms = [t for t in algorithm.transforms if t.moment == "collect"]
        buffers, n = algorithm.buffers, len(self.seeds)
        self.replays: dict[str, Replay | Fixed] = {
            name: Replay(b, env.num_envs, device, n)
            for name, b in buffers.items()
            if b.layout not in OF_THIS_PASS and name != DATASET
        }
        if DATASET in buffers:
            if dataset is None:
                raise Unfit(f"{algorithm} draws from a dataset beside what it collects: give one")
            border = self.source.border
            same_spaces(Border(dataset.observation_space, dataset.action_space), border)
            self.replays |= filled(self.learner, dataset, border, (DATASET,))
        self.rollouts = {name: Rollout(b, device, n) for name, b in buffers.items() if b.layout in OF_THIS_PASS}
        terms = (term for loss in algorithm.losses.values() for term in loss.terms.values())
        self.streams = tuple(dict.fromkeys(term.stream for term in terms))  # in this order they are drawn
        self.policy = self.learner.policy()
        self.metrics: dict[str, Tensor] = {}

    @property
    def env_steps(self) -> int:
        return self.source.env_steps

    clock = "env_steps"  # what `count` counts

    @property
    def count(self) -> int:
        """How far it is: the environment steps taken, of each seed."""
        return self.env_steps

    def begin(self) -> dict[int, dict[str, float]]:
        """Begin the first episodes; of each seed, what the parts tell that prepared themselves for it."""
        return dict(zip(self.seeds, self.source.begin(self._numbers("teacher"), self.policies), strict=False))

    def close(self) -> None:
        """Close the environment."""
        self.source.env.close()

    def advance(self) -> None:
        """Collect once, and make the updates that this is worth."""
        if not self.source.begun:
            self.begin()
        a, nets, schedule = self.algorithm, self.learner.nets, self.algorithm.schedule
        before = self.env_steps
        # With several seeds the policy takes a generator for each, and `step`, which alone can then collect, passes on.
        try:
            steps = a.collect(nets, self.policy, self.source, schedule.collect, self.acting)  # type: ignore[arg-type]
        except NotFinite:
            self.learner.check_finite()  # an action is NaN because a loss was: name that
            raise
        steps = self._completed(steps)
        for replay in self.replays.values():
            if isinstance(replay, Replay):
                replay.insert(steps)
        if schedule.epochs:
            for rollout in self.rollouts.values():
                rollout.insert(steps)
            for batches in self._passes():
                self._update(batches)
                if schedule.stop is not None and schedule.stop(self.metrics):
                    break
        elif self.env_steps > schedule.start:
            taken = [max(0, n - schedule.start) for n in (before, self.env_steps)]
            for _ in range(_due(taken[1], schedule.updates) - _due(taken[0], schedule.updates)):
                self._update({stream: self._draw(stream, schedule.batch_size) for stream in self.streams})

    def _completed(self, steps: Columns) -> Columns:
        """Steps [T, S * N, ...] after the transforms of what is collected, with the columns of the advantage."""
        seeds = len(self.seeds)
        if seeds > 1:
            steps = each(lambda x: x.unflatten(1, (seeds, -1)), steps)
        with torch.no_grad():
            for transform in self.transforms:
                steps = self.learner.transformed(transform, steps, self.changing, dim=1 if seeds > 1 else 0)
            if self.algorithm.advantage is not None:
                steps = {**steps, **self.learner.each(self.algorithm.advantage, steps, dim=1 if seeds > 1 else 0)}
        return steps if seeds == 1 else each(lambda x: x.flatten(1, 2), steps)

    def _draw(self, stream: str, n: int) -> Columns:
        return mixture.sample(self.replays, stream, n, self.drawing, self.learner.clock)

    def _passes(self) -> Iterable[dict[str, Columns]]:
        schedule = self.algorithm.schedule
        for _ in range(schedule.epochs):
            passes = {name: r.minibatches(schedule.minibatches, self.drawing) for name, r in self.rollouts.items()}
            for pieces in zip(*passes.values(), strict=True):
                rolled = dict(zip(passes, pieces, strict=True))
                size = next(iter(rolled.values()))["weight"].shape[-1]
                yield rolled | {s: self._draw(s, size) for s in self.streams if s in self.replays}

    def _update(self, batches: Mapping[str, Columns]) -> None:
        self.metrics, given = self.learner.update(batches)
        for stream, columns in given.items():
            if stream in self.replays and "error" in columns:
                mixture.feed_back(self.replays, stream, batches[stream]["index"], columns["error"])
            self.metrics |= {f"{stream}/{k}": v for k, v in columns.items()}

    def evaluate(self, env: VectorEnv, number: int) -> dict[int, dict[str, list[float]]]:
        """The raw scores of each seed's deployed policy: an episode in each of its copies of `env`, freshly seeded."""
        return scores_of(self.learner, env, number)

    def _numbers(self, stream: str) -> int | list[int]:
        return _numbers(self.seeds, stream)

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "source": self.source.state_dict(),
            "replays": {name: replay.state_dict() for name, replay in self.replays.items()},
            "random": [[rng.get_state() for rng in as_tuple(streams)] for streams in self._streams()],
            "metrics": {name: value.clone() for name, value in self.metrics.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], rows: Mapping[str, Iterable[Any]]) -> None:
        """Continue from a state and the replays' segments."""
        self.learner.load_state_dict(state["learner"])
        self.source.load_state_dict(state["source"])
        for name, replay in self.replays.items():
            replay.load(state["replays"][name], rows[name])
        for streams, saved in zip(self._streams(), state["random"], strict=True):
            set_states(streams, saved)
        self.metrics = dict(state["metrics"])

    def _streams(self) -> tuple[Streams, ...]:
        return self.acting, self.drawing, self.changing


def logged_column(algorithm: Algorithm) -> str:
    """A column that a loss needs and that is read off a whole dataset; "" where there is none."""
    given = {
        moment: {c for t in algorithm.transforms if t.moment == moment for c in (*t.gives, *given_by(t.fn))}
        for moment in ("dataset", "collect")
    }
    needed = (n for loss in algorithm.losses.values() for term in loss.terms.values() for n in term.needs)
    return next((column for column in needed if column in given["dataset"] - given["collect"]), "")


def same_spaces(of_dataset: Border, of_env: Border) -> None:
    """Unfit where networks for the one would not fit the other."""
    if (of_dataset.spec.obs, of_dataset.spec.action) != (of_env.spec.obs, of_env.spec.action):
        there = f"{of_dataset.observation}, {of_dataset.action_space}"
        here = f"{of_env.observation}, {of_env.action_space}"
        raise Unfit(f"the dataset's spaces ({there}) are not the environment's ({here})")


def scores_of(learner: Learner, env: VectorEnv, number: int) -> dict[int, dict[str, list[float]]]:
    """The raw scores of each seed's deployed policy: an episode in each of its copies of `env`, seeded by `number`."""
    source = Source(env, _numbers(learner.seeds, f"evaluation {number}"), device=str(learner.device))
    policy = learner.deployed()
    scores: dict[str, list[float]] = {}
    for part in learner.algorithm.evaluation:
        scores |= part(learner.nets, policy, source)
    if len(learner.seeds) == 1:
        return {learner.seeds[0]: scores}
    return {
        seed: {name: values[i * source.group : (i + 1) * source.group] for name, values in scores.items()}
        for i, seed in enumerate(learner.seeds)
    }


def _numbers(seeds: Sequence[int], stream: str) -> int | list[int]:
    """A seed for an environment, from the run's own, or from each of them."""
    numbers = [generator(seed, stream).initial_seed() % 2**31 for seed in seeds]
    return numbers if len(numbers) > 1 else numbers[0]


def online(
    run: Online,
    steps: int,
    evaluation: VectorEnv | None = None,
    *,
    evaluate_every: int = 1_000,
    log_every: int = 1_000,
    checkpoint_every: int = 10_000,
    record: Record = lambda row: None,
    save: Callable[[Online], None] = lambda run: None,
    tick: Record = lambda row: None,
    seconds: float = 0.0,
) -> None:
    """Advance `run` until `steps` environment steps are taken.

    `record(row)` gets a "prepared" row of each seed where a part prepared itself before the first episode, a "train"
    row of each seed every `log_every` steps (metrics fetched from the device, returns of the training episodes that
    ended) and an "evaluation" row every `evaluate_every`, `save(run)` is called every `checkpoint_every` steps and at
    the end, `tick(row)` after every collection. `seconds` were spent before. Raises `NotFinite` rather than record or
    save what was learnt from numbers that are not finite.
    """
    began = time.perf_counter() - seconds
    if not run.source.begun:
        for seed, told in run.begin().items():
            if told:
                record({"kind": "prepared", "seed": seed, "env_steps": 0, "updates": 0, **told})
    while run.env_steps < steps:
        before = run.env_steps
        run.advance()
        done = run.env_steps >= steps
        now: dict[str, Any] = {"env_steps": run.env_steps, "updates": run.learner.updates}
        now["seconds"] = round(time.perf_counter() - began, 3)
        tick(now)
        log, check = (crossed(before, run.env_steps, period) or done for period in (log_every, checkpoint_every))
        if log or check:
            run.learner.check_finite()
        if log:
            episodes = run.source.finished()
            for i, (seed, metrics) in enumerate(zip(run.seeds, fetched(run.metrics, len(run.seeds)), strict=True)):
                own = [episode for episode in episodes if episode["environment"] // run.source.group == i]
                raw = {key: [episode[key] for episode in own] for key in ("episode_return", "episode_length")}
                record({"kind": "train", "seed": seed, **now, **metrics, **raw})
        if evaluation is not None and (crossed(before, run.env_steps, evaluate_every) or done):
            for seed, scores in run.evaluate(evaluation, run.env_steps).items():
                record({"kind": "evaluation", "seed": seed, **now, "scores": scores})
        if check:
            save(run)


def _due(steps: int, ratio: float) -> int:
    """Updates that so many steps are worth; 10 steps at a ratio of 0.1 are one in spite of rounding."""
    return int(steps * ratio + 1e-9)


def crossed(before: int, now: int, period: int) -> bool:
    """Whether a multiple of `period` lies behind `before` and not behind `now`."""
    return now // period > before // period


def fetched(metrics: Mapping[str, Tensor], seeds: int) -> list[dict[str, float]]:
    """The one synchronisation: of each seed, means of what the last update gave."""
    means = {name: value.float().view(seeds, -1).mean(1).tolist() for name, value in metrics.items()}
    return [{name: values[i] for name, values in means.items()} for i in range(seeds)]
