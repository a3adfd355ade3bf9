"""Run groups of seeds of every arm until a test decides, so that it can be stopped and continued at any moment.

What is known is on disk, in the runs of the arms: the test is made anew from their scores whenever it is asked.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from palaestra.algorithm import Algorithm, Unfit
from palaestra.comparison.arms import Arm, Made, arms_of, differing, slug
from palaestra.comparison.record import Record
from palaestra.comparison.report import report
from palaestra.comparison.summary import Curve, decisions, of_arm, verdict
from palaestra.envs.make import World
from palaestra.evaluation.measures import MEASURES
from palaestra.evaluation.sequential import SequentialComparator
from palaestra.expression import nearest
from palaestra.grounding import TEXT_ONLY, counted, grounded
from palaestra.machine import computing
from palaestra.processes import Job, Listen, far, in_processes
from palaestra.runs import Run, RunError
from palaestra.runs.files import to_json
from palaestra.training import as_options, resume, silent, train

# What `train` may be told of the arms' runs; the rest is the comparison's own.
TRAINING = (
    "environments", "episodes", "evaluate_every", "log_every", "checkpoint_every", "device", "precision",
    "deterministic", "compile", "together", "dataset", "model", "tokenizer", "prompts", "reward", "columns",
    "micro_batch",
)  # fmt: skip
PATIENCE = 10.0  # seconds that a run is waited for whose process has lost the one that began it


@dataclass(frozen=True)
class Comparison:
    """What came out. `summary` is JSON data: `plan`, `arms`, `decisions`, `verdict`, `provenance`, `seconds`, ..."""

    folder: Path
    summary: Mapping[str, Any]

    @property
    def arms(self) -> Mapping[str, Any]:
        """By name: `expression`, `seeds`, `scores` (one a seed), `iqm`, `interval`, `curve`, ..."""
        return self.summary["arms"]

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """Of each pair: `left, right, decision ("larger", "smaller" or "undecided"), groups, ...`."""
        return self.summary["decisions"]

    @property
    def verdict(self) -> str:
        """A sentence for each pair."""
        return " ".join(self.summary["verdict"])

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def __str__(self) -> str:
        return self.verdict


def compare(
    arms: Sequence[Made] | Mapping[str, Made],
    env: World | str | None = None,
    steps: int = 0,
    *,
    rounds: int | None = None,
    alpha: float = 0.05,
    group: int = 5,
    max_groups: int = 5,
    measure: str = "auc",
    score: str | None = None,
    against_first: bool = False,
    out: str | Path | None = None,
    threads: int | None = None,
    stamp: Mapping[str, Any] | None = None,
    listen: Listen = silent,
    **training: Any,
) -> Comparison:
    """Compare algorithms in a world with as few seeds as the data allow, and write a report.

    The same call again continues where it was stopped, and gives the verdict again when it was not. Seeds 0 to
    `group` - 1 are the first group, and so on. One score a seed: `measure` of its evaluations' mean `score`.

    Args:
        arms: expressions, algorithms, or functions `(seed, steps) -> {name: raw values}`; or a mapping from names.
        env: a Gymnasium id, an environment or a function that makes one; None where `dataset` is all that there is. For
            functions a phrase: what they play.
        steps: environment steps of each seed; on a dataset, updates; the budget of functions.
        rounds: in place of `steps`, for what collects answers of a language model in rounds.
        alpha: the probability, at most, of telling apart any arms that do not differ.
        group: seeds of each arm between two looks at the data.
        max_groups: looks at most.
        measure: "auc" (of the evaluations over environment steps), "final" or "best".
        score: which raw score of an evaluation, or of what functions give; "episode_return" when None, or
            "fitted_q_value" where algorithms learn from a dataset without an environment.
        against_first: compare every arm with the first alone, rather than every pair.
        out: the comparison's folder; "comparisons/ARMS-WORLD-HASH" when None.
        threads: of all processes together; as many as PyTorch has when None.
        stamp: JSON data that belongs to what is compared, such as hashes of code: another makes another comparison.
        listen: called with rows that say how far it is.
        training: further keywords of `train`: dataset (a file), environments, episodes, evaluate_every, device, ...

    Raises ValueError for arguments that do not fit, RunError where the folder holds something else or cannot be
    written, and where a run fails: when that is mended, the same call goes on.
    """
    own = arms_of(arms)
    clock, steps = ("steps", steps) if rounds is None else ("rounds", rounds)
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    if measure not in MEASURES:
        raise ValueError(f"there is no measure {measure!r}; {nearest(measure, MEASURES)}")
    if unknown := [name for name in training if name not in TRAINING]:
        raise ValueError(f"compare takes no {unknown[0]!r}; {nearest(unknown[0], TRAINING)}")
    training = {name: value for name, value in training.items() if value is not None}
    score = _fitting(own, env, training, score, {clock: steps})
    names = [arm.name for arm in own]
    pairs = [(name, names[0]) for name in names[1:]] if against_first else None
    test = SequentialComparator(names, comparisons=pairs, alpha=alpha, group=group, max_groups=max_groups)
    plan = {
        "arms": {arm.name: arm.about() for arm in own},
        "env": env if isinstance(env, str | None) else _named(env),
        "steps": steps,
        "alpha": alpha,
        "group": group,
        "max_groups": max_groups,
        "measure": measure,
        "score": score,
        "comparisons": [list(pair) for pair in test.comparisons],
        "training": dict(sorted(training.items())),
        "stamp": dict(stamp or {}),
    }
    folder = Path(out) if out is not None else _folder(own, plan)
    record = Record.begin(folder, plan)
    runs = _Runs(folder, own, env, steps, clock, training, threads or torch.get_num_threads(), listen)
    with record.writing():
        listen({"kind": "comparing", "folder": str(folder), "plan": plan})
        while test.needs:
            began = time.perf_counter()
            seeds = range(test.groups * group, (test.groups + 1) * group)
            needed = [arm for arm in own if arm.name in test.needs]
            listen({"kind": "group", "number": test.groups, "arms": list(test.needs), "steps": steps * group})
            runs.make(needed, seeds)
            test.update({arm.name: list(runs.scores(arm, seeds, score, measure).values()) for arm in needed})
            seconds = record.about["seconds"] + time.perf_counter() - began
            summary = _summary(record, own, test, runs)
            record.update(seconds=round(seconds, 3), decisions=summary["decisions"])
            listen({"kind": "looked", "groups": test.groups, "summary": summary})
        record.update(status="finished")
        comparison = Comparison(folder, _summary(record, own, test, runs))
        report(comparison.summary, folder)
    listen({"kind": "compared", "summary": comparison.summary, "report": str(comparison.report)})
    return comparison


class _Runs:
    """The runs of the arms, one for each group of seeds."""

    def __init__(
        self, folder: Path, arms: Sequence[Arm], env: Any, steps: int, clock: str, training: Mapping[str, Any],
        threads: int, listen: Listen,
    ) -> None:  # fmt: skip
        self.folders = {arm.name: folder / slug(arm, number) for number, arm in enumerate(arms, start=1)}
        self.env, self.steps, self.clock, self.training = env, steps, clock, training
        self.threads, self.listen = threads, listen
        self.made: dict[str, list[range]] = {arm.name: [] for arm in arms}

    def folder(self, arm: Arm, seeds: range) -> Path:
        return self.folders[arm.name] / f"seeds-{seeds[0]}-{seeds[-1]}"

    def make(self, arms: Sequence[Arm], seeds: range) -> None:
        """Run what has not been run of these seeds. RunError where a run fails, when the others have ended."""
        todo = [arm for arm in arms if not self._is_finished(arm, seeds)]
        apart = [arm for arm in todo if arm.in_any_process and isinstance(self.env, str | None)]
        if apart:
            workers = max(1, min(len(apart), self.threads))
            jobs = {arm.name: self._job(arm, seeds, max(1, self.threads // workers)) for arm in apart}
            for name, problem in in_processes(jobs, workers, self.listen).items():
                remedy = "when that is mended, the same command goes on"
                raise RunError(jobs[name].folder, f"{name} failed: {problem}", remedy)
        for arm in todo:
            if arm not in apart:
                self._trained(arm, seeds) if arm.is_trained else self._played(arm, seeds)
        for arm in arms:
            self.made[arm.name].append(seeds)

    def _is_finished(self, arm: Arm, seeds: range) -> bool:
        folder = self.folder(arm, seeds)
        return (folder / "run.json").exists() and Run.open(folder).about["status"] == "finished"

    def _job(self, arm: Arm, seeds: range, threads: int) -> Job:
        folder = self.folder(arm, seeds)
        if (folder / "run.json").exists():
            _left_alone(folder)
            return Job(folder, ["train", "--resume", str(folder), "--quiet"])
        options = {"env": self.env, self.clock: self.steps, "seeds": f"{seeds[0]}-{seeds[-1]}", "out": folder}
        options |= {"threads": threads, "log_every": max(1, self.steps // 50), **self.training}
        options["together"] = self._together(arm)
        return Job(folder, ["train", str(arm.made), *as_options(options), "--quiet"])

    def _together(self, arm: Arm) -> str:
        """As the arm's first group ran, which was decided by measuring: what depends on it must not change between."""
        first = next((run for run in sorted(self.folders[arm.name].glob("*/run.json"))), None)
        asked = str(self.training.get("together", "auto"))
        return asked if first is None else str(Run.open(first.parent).about["together"]).replace("alone", asked)

    def _trained(self, arm: Arm, seeds: range) -> None:
        folder = self.folder(arm, seeds)
        told = _tagged(self.listen, arm.name)
        if (folder / "run.json").exists():
            resume(folder, env=self.env, algorithm=arm.made, listen=told)  # type: ignore[arg-type]
            return
        training = {**self.training, "together": self._together(arm), "threads": self.threads}
        long = {self.clock: self.steps}
        train(arm.made, self.env, seeds=seeds, out=folder, listen=told, **long, **training)  # type: ignore[arg-type]

    def _played(self, arm: Arm, seeds: range) -> None:
        """A run of a function: an evaluation of each seed, written when it is there."""
        folder = self.folder(arm, seeds)
        if (folder / "run.json").exists():
            run = Run.open(folder)
        else:
            about = {"expression": arm.name, "env": self.env, "seeds": list(seeds), "steps": self.steps, **arm.about()}
            run = Run.create(folder, {**about, "expression": arm.name, "settings": about["calls"]})
        told = _tagged(self.listen, arm.name)
        assert callable(arm.made)
        with run.writing(), computing(self.threads):
            done = {row["seed"] for row in run.metrics()}
            for seed in seeds:
                if seed in done:
                    continue
                began = time.perf_counter()
                raw = {name: [float(value) for value in values] for name, values in arm.made(seed, self.steps).items()}
                now = {"env_steps": self.steps, "seconds": round(time.perf_counter() - began, 3)}
                row = {"kind": "evaluation", "seed": seed, **now, "scores": raw}
                run.log(row)
                told(row)
            run.update(status="finished")

    def curves(self, arm: Arm, seeds: range, score: str) -> dict[int, Curve]:
        """Of each seed, the mean score of every evaluation over environment steps. RunError where there is none."""
        folder = self.folder(arm, seeds)
        found: dict[int, dict[float, float]] = {seed: {} for seed in seeds}
        names: set[str] = set()
        for row in Run.open(folder).metrics():
            if row["kind"] != "evaluation":
                continue
            names |= set(row["scores"])
            if values := row["scores"].get(score):
                found[row["seed"]][float(far(row))] = sum(values) / len(values)
        for seed, curve in found.items():
            if not curve:
                remedy = f"choose one of {', '.join(sorted(names))}" if names else "evaluate more often"
                raise RunError(folder, f"seed {seed} has no score {score!r}", remedy)
        return {seed: (list(curve), list(curve.values())) for seed, curve in found.items()}

    def scores(self, arm: Arm, seeds: range, score: str, measure: str) -> dict[int, float]:
        return {seed: MEASURES[measure](*curve) for seed, curve in self.curves(arm, seeds, score).items()}

    def about(self, arm: Arm) -> dict[str, Any]:
        """How its seeds ran, and what they took: `together`, `seconds`, `teacher_steps`."""
        rows = [(run, run.metrics()) for run in (Run.open(self.folder(arm, seeds)) for seeds in self.made[arm.name])]
        taken = [max((row.get("seconds", 0.0) for row in metrics), default=0.0) for _, metrics in rows]
        taught = [row.get("teacher_steps", 0) for _, metrics in rows for row in metrics]
        ways = {str(run.about.get("together", "one after another")) for run, _ in rows}
        return {"together": ", ".join(sorted(ways)), "seconds": round(sum(taken), 3), "teacher_steps": sum(taught)}


def _summary(record: Record, arms: Sequence[Arm], test: SequentialComparator, runs: _Runs) -> dict[str, Any]:
    plan = record.about["plan"]
    curves = {
        arm.name: {
            seed: curve
            for seeds in runs.made[arm.name]
            for seed, curve in runs.curves(arm, seeds, plan["score"]).items()
        }
        for arm in arms
    }
    scores = {
        name: {seed: MEASURES[plan["measure"]](*curve) for seed, curve in own.items()} for name, own in curves.items()
    }
    summary = {
        **record.about,
        "groups": test.groups,
        "arms": {
            arm.name: {**plan["arms"][arm.name], **of_arm(scores[arm.name], curves[arm.name]), **runs.about(arm)}
            for arm in arms
        },
        "differing": {f"{arm.name} against {arms[0].name}": differing(arms[0], arm) for arm in arms[1:]},
        "decisions": decisions(test, {name: list(own.values()) for name, own in scores.items()}),
        "folder": str(record.folder),
        "report": str(record.folder / "report.html"),
    }
    return {**summary, "verdict": verdict(summary)}


def _fitting(
    arms: Sequence[Arm], env: Any, training: Mapping[str, Any], score: str | None, long: Mapping[str, int]
) -> str:
    """The score that is compared. Raises what training would raise, before there is a folder.

    An environment of one's own is not opened for it.
    """
    trained = [arm.made for arm in arms if isinstance(arm.made, Algorithm)]
    text = {name: training[name] for name in ("model", *TEXT_ONLY) if name in training}
    usual = "episode_return"
    if trained and isinstance(env, str | None):
        for arm in arms:
            if isinstance(arm.made, Algorithm):
                try:
                    counted(arm.made, long.get("steps"), long.get("rounds"))
                    ground = grounded(arm.made, env, training.get("dataset"), **text)
                    world = ground.world(1)
                    ground.begin(arm.made, (0,), world).close()
                    if (judge := ground.judge(world, 1)) is not None:
                        judge.close()
                except ValueError as wrong:
                    raise Unfit(f"{arm.name}: {wrong}") from wrong
                usual = ground.score()
    return score or usual


def _tagged(listen: Listen, name: str) -> Listen:
    return lambda row: listen({**row, "job": name})


def _left_alone(folder: Path) -> None:
    """Wait for a process that has just lost the one that began it; it ends by itself."""
    until = time.monotonic() + PATIENCE
    while Run.open(folder).writer() is not None and time.monotonic() < until:
        time.sleep(0.1)


def _named(env: Any) -> str:
    if isinstance(env, Callable) and not hasattr(env, "spec"):  # type: ignore[arg-type]
        return getattr(env, "__name__", type(env).__name__)
    spec = getattr(env, "spec", None)
    return spec.id if spec is not None else type(env).__name__


def _folder(arms: Sequence[Arm], plan: Mapping[str, Any]) -> Path:
    """The same for the same plan: so the same command finds what it began."""
    against = "-against-".join(slug(arm, number).partition("-")[2] for number, arm in enumerate(arms[:3], start=1))
    world = (plan["env"] or Path(plan["training"]["dataset"]).stem).replace("/", "-").replace(" ", "-")[:40]
    return Path("comparisons") / f"{against}-{world}-{hashlib.sha256(to_json(plan).encode()).hexdigest()[:8]}"
