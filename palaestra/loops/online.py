"""The online loop: collect, insert, update, for replay and rollout algorithms alike. Written to be copied.

`Online` is all that a run remembers, and can give and take it; `online` is the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gymnasium.vector import VectorEnv
from torch import Tensor

from palaestra.algorithm import Algorithm
from palaestra.batch import Columns
from palaestra.data import mixture
from palaestra.data.layouts import once
from palaestra.data.replay import Replay, Rollout
from palaestra.learner import Learner, generator
from palaestra.rollout.source import Source

Record = Callable[[dict[str, Any]], None]


class Online:
    """One run of an algorithm in an environment: the learner, the replays, the source, every random stream."""

    def __init__(
        self, algorithm: Algorithm, env: VectorEnv, seed: int = 0, *, device: str = "cpu", compile: bool = False
    ) -> None:
        self.seed = seed
        self.acting = generator(seed, "acting", device)
        self.changing = generator(seed, "collect transforms", device)
        self.drawing = generator(seed, "drawing")  # replays draw on the host
        self.source = Source(env, _number(seed, "environment"), device=device)
        self.learner = Learner(algorithm, self.source.border.spec, seed, device=device, compile=compile)
        self.algorithm = algorithm = self.learner.algorithm  # a copy: two runs never share the state of a part
        if algorithm.tasks or algorithm.initial_states:
            self.source.choose(algorithm.tasks, algorithm.initial_states, self.learner.nets, generator(seed, "tasks"))
        self.transforms = [t for t in algorithm.transforms if t.moment == "collect"]
        self.replays = {
            n: Replay(b, env.num_envs, device) for n, b in algorithm.buffers.items() if b.layout is not once
        }
        self.rollouts = {n: Rollout(b, device) for n, b in algorithm.buffers.items() if b.layout is once}
        self.streams = {t.stream for loss in algorithm.losses.values() for t in loss.terms.values()}
        self.policy = self.learner.policy()
        self.metrics: dict[str, Tensor] = {}

    @property
    def env_steps(self) -> int:
        return self.source.env_steps

    def advance(self) -> None:
        """Collect once, and make the updates that this is worth."""
        a, nets, schedule = self.algorithm, self.learner.nets, self.algorithm.schedule
        before = self.env_steps
        steps = a.collect(nets, self.policy, self.source, schedule.collect, self.acting)
        for transform in self.transforms:
            steps = transform.fn(nets, steps, self.changing)
        for replay in self.replays.values():
            replay.insert(steps)
        if schedule.epochs:
            columns = a.advantage(nets, steps) if a.advantage else {}
            for rollout in self.rollouts.values():
                rollout.insert({**steps, **columns})
            for batches in self._passes():
                self._update(batches)
                if schedule.stop is not None and schedule.stop(self.metrics):
                    break
        elif self.env_steps > schedule.start:
            taken = [max(0, n - schedule.start) for n in (before, self.env_steps)]
            for _ in range(_due(taken[1], schedule.updates) - _due(taken[0], schedule.updates)):
                self._update({stream: self._draw(stream, schedule.batch_size) for stream in self.streams})

    def _draw(self, stream: str, n: int) -> Columns:
        return mixture.sample(self.replays, stream, n, self.drawing, self.learner.nets.clock)

    def _passes(self) -> Iterable[dict[str, Columns]]:
        schedule = self.algorithm.schedule
        for _ in range(schedule.epochs):
            passes = {name: r.minibatches(schedule.minibatches, self.drawing) for name, r in self.rollouts.items()}
            for pieces in zip(*passes.values(), strict=True):
                rolled = dict(zip(passes, pieces, strict=True))
                size = len(next(iter(rolled.values()))["weight"])
                yield rolled | {s: self._draw(s, size) for s in self.streams if s in self.replays}

    def _update(self, batches: Mapping[str, Columns]) -> None:
        self.metrics, given = self.learner.update(batches)
        for stream, columns in given.items():
            if stream in self.replays and "error" in columns:
                mixture.feed_back(self.replays, stream, batches[stream]["index"], columns["error"])
            self.metrics |= {f"{stream}/{k}": v for k, v in columns.items()}

    def evaluate(self, env: VectorEnv, number: int) -> dict[str, list[float]]:
        """The scores of the deployed policy, raw: one episode in each environment of `env`, freshly seeded."""
        nets = self.learner.nets
        source = Source(env, _number(self.seed, f"evaluation {number}"), device=str(self.learner.device))
        return {
            k: v for part in self.algorithm.evaluation for k, v in part(nets, self.learner.deployed(), source).items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "source": self.source.state_dict(),
            "replays": {name: replay.state_dict() for name, replay in self.replays.items()},
            "random": [rng.get_state() for rng in (self.acting, self.drawing, self.changing)],
            "metrics": {name: value.clone() for name, value in self.metrics.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], rows: Mapping[str, Iterable[Any]]) -> None:
        """Continue from a state and the replays' segments."""
        self.learner.load_state_dict(state["learner"])
        self.source.load_state_dict(state["source"])
        for name, replay in self.replays.items():
            replay.load(state["replays"][name], rows[name])
        for rng, saved in zip((self.acting, self.drawing, self.changing), state["random"], strict=True):
            rng.set_state(saved)
        self.metrics = dict(state["metrics"])


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

    `record(row)` gets a "train" row every `log_every` steps (metrics fetched from the device, returns of the training
    episodes that ended) and an "evaluation" row every `evaluate_every`, `save(run)` is called every `checkpoint_every`
    steps and at the end, `tick(row)` after every collection. `seconds` were spent before.
    """
    began = time.perf_counter() - seconds
    while run.env_steps < steps:
        before = run.env_steps
        run.advance()
        done = run.env_steps >= steps
        now: dict[str, Any] = {"seed": run.seed, "env_steps": run.env_steps, "updates": run.learner.updates}
        now["seconds"] = round(time.perf_counter() - began, 3)
        tick(now)
        if _crossed(before, run.env_steps, log_every) or done:
            episodes = run.source.finished()
            raw = {key: [episode[key] for episode in episodes] for key in ("episode_return", "episode_length")}
            record({"kind": "train", **now, **_fetched(run.metrics), **raw})
        if evaluation is not None and (_crossed(before, run.env_steps, evaluate_every) or done):
            record({"kind": "evaluation", **now, "scores": run.evaluate(evaluation, run.env_steps)})
        if _crossed(before, run.env_steps, checkpoint_every) or done:
            save(run)


def _due(steps: int, ratio: float) -> int:
    """Updates that so many steps are worth; 10 steps at a ratio of 0.1 are one in spite of rounding."""
    return int(steps * ratio + 1e-9)


def _crossed(before: int, now: int, period: int) -> bool:
    return now // period > before // period


def _fetched(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The one synchronisation: means of what the last update gave."""
    return {name: value.float().mean().item() for name, value in metrics.items()}


def _number(seed: int, stream: str) -> int:
    """A seed for an environment, from the run's own."""
    return generator(seed, stream).initial_seed() % 2**31
