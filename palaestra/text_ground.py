"""What a language model learns from: a model to begin with, prompts whose answers are rewarded, a dataset of texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from palaestra.algorithm import Algorithm, Unfit, given_by
from palaestra.batch import Columns
from palaestra.data.text import checked, digest, read_rows, wrong
from palaestra.data.tokenising import Encoded, encoded
from palaestra.data.tokens import KINDS, ROLLED, picked, rows_of, token_columns
from palaestra.envs.text.task import TextEnv, TextTask
from palaestra.envs.text.task import rows as drawn_rows
from palaestra.evaluation.answers import REWARD, Asked
from palaestra.factories.language import PREFIX, tiny_model
from palaestra.learner import generator
from palaestra.loops.rounds import Rounds, collects
from palaestra.networks.language import Pretrained, language_spec
from palaestra.networks.pretrained import IN_MEMORY, pretrained, save_shape
from palaestra.processes import Listen
from palaestra.rewards.named import Reward, reward_of
from palaestra.rollout.texts import Prompts
from palaestra.speaker import SHAPE, model_at

HELD_OUT, MOST_HELD_OUT = 0.05, 256  # of a dataset's rows, those that are judged by and not learnt from
ASKED = 2**32  # from here on seeds of the prompts that a policy is judged by: no seed of a run is so large
EPISODES = 100  # prompts of an evaluation

Rows = str | Path | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TextGround:
    """What there is to learn from.

    Args:
        model: to begin with.
        task: makes prompts; None where they are rows of a dataset, or where there are none.
        prompts: rows of a dataset of prompts.
        rewards: by name; what an answer earns is their sum.
        texts: rows to learn from, by buffer, tokenised.
        env: the environment's id.
        about_texts: what run.json says of model, prompts, rewards and texts.
        micro_batch: rows of a forward pass with gradient, at most.
    """

    model: Pretrained
    task: TextTask | None
    prompts: Sequence[Mapping[str, Any]]
    rewards: Mapping[str, Reward]
    texts: Mapping[str, Columns]
    env: str | None
    collects: bool
    by_name: bool
    about_texts: Mapping[str, Any] = field(default_factory=dict)
    micro_batch: int | None = None
    given: Mapping[str, Any] = field(default_factory=dict)  # as `train` takes it

    steps_worlds = False

    @property
    def episodes(self) -> int:
        """Prompts of an evaluation, where nothing is said."""
        return EPISODES

    def spaces(self, world: Any) -> dict[str, Any]:
        """Tokens, and how many there are."""
        return {"tokens": int(self.model.model.config.vocab_size)}

    def world(self, copies: int) -> None:
        """No vector environment: prompts are drawn, and answers rewarded, many at a time."""

    def judge(self, world: Any, copies: int) -> None:
        """What a run is judged by is its own."""

    def begin(
        self,
        algorithm: Algorithm,
        seeds: Sequence[int],
        world: Any,
        episodes: int = EPISODES,
        asked_seed: int = 0,
        **machine: Any,
    ) -> Rounds:
        """A run in memory. `machine` is what `Rounds` takes; `asked_seed` makes the prompts that it is judged by."""
        train, asked = self._prompts(episodes, asked_seed)
        learnt, held = {}, {}
        for name, columns in self.texts.items():
            learnt[name], held[name] = _split(columns)
        tokenizer = self.model.tokenizer
        source = None
        if train:
            source = partial(_source, rows=train, rewards=self.rewards, tokenizer=tokenizer, tasks=algorithm.tasks)
        return Rounds(
            algorithm, language_spec(self.model), seeds, source=source, rows=learnt,
            asked=Asked(asked, self.rewards, tokenizer), held_out=held, micro_batch=self.micro_batch, **machine,
        )  # fmt: skip

    def _prompts(self, episodes: int, seed: int) -> tuple[Any, list[Any]]:
        """Those to learn from, and those to be judged by."""
        if self.task is not None:
            return self.task.sample, drawn_rows(self.task, episodes, ASKED + seed)
        if not self.prompts:
            return None, []
        n = len(self.prompts)
        order = torch.randperm(n, generator=generator(0, "held-out prompts")).tolist()
        held = min(episodes, max(1, n // 10)) if n > 1 else 0
        asked = [dict(self.prompts[i]) for i in order[:held]] or [dict(self.prompts[0])]
        return [dict(self.prompts[i]) for i in order[held:]], asked

    def keep(self, folder: Path) -> None:
        """What a run's folder needs to be loaded without the model that it began with: its shape."""
        save_shape(self.model, folder / SHAPE)

    def score(self) -> str:
        """The usual score of an evaluation."""
        if self.task is not None or self.prompts:
            return REWARD
        return "accuracy" if "pairs" in self.texts else "log_probability"

    def about(self) -> dict[str, Any]:
        """What run.json says of it."""
        return {"offline": False, "counts": "rounds" if self.collects else "updates", **self.about_texts}


def _source(rng: Generator, rows: Any, rewards: Mapping[str, Reward], tokenizer: Any, tasks: Any) -> Prompts:
    return Prompts(rows, rewards, tokenizer, rng, tasks)


def _split(columns: Columns) -> tuple[Columns, Columns]:
    """Rows to learn from, and rows to be judged by: the same ones for every seed. Of fewer than 20, all are learnt."""
    n = rows_of(columns)
    order = torch.randperm(n, generator=generator(0, "held-out texts"))
    held = min(MOST_HELD_OUT, int(n * HELD_OUT))
    if not held:
        return columns, picked(columns, torch.arange(min(n, MOST_HELD_OUT)))
    return picked(columns, order[held:]), picked(columns, order[:held])


# ------------------------------------------------------------------------------------------------------------ reading


def text_ground(
    algorithm: Algorithm,
    *,
    model: Any,
    tokenizer: Any = None,
    env: Any = None,
    prompts: Rows | None = None,
    reward: str | Sequence[str] | Mapping[str, Reward] | None = None,
    dataset: Rows | None = None,
    columns: Mapping[str, str] | None = None,
    micro_batch: int | None = None,
    device: str = "cpu",
    scorer: Callable[[str], Reward | None] = lambda name: None,
    listen: Listen = lambda row: None,
) -> TextGround:
    """What an algorithm of language models learns from, of what was given.

    Args:
        algorithm: that learns.
        model: a folder, a name, `palaestra/TASK` for a tiny one that is made here, or a model of `transformers`.
        tokenizer: of `transformers`, for a model that is an object.
        env: an environment of texts: its id, one that was made, or a `TextTask`.
        prompts: a file, or rows, with a column `prompt` and what its reward reads.
        reward: names, or functions by name. Of an environment, its own first one when None.
        dataset: a file, or rows, of texts to learn from.
        columns: our names of columns to the file's.
        micro_batch: rows of a forward pass with gradient, at most.
        device: holds the model.
        scorer: makes a reward of a name that is a run's folder.
        listen: told when a tiny model is made.

    Raises ValueError where something is missing or unknown, DatasetError where a file or a row is not as it must be.
    """
    name = str(model) if isinstance(model, str | Path) else None
    if name is not None and name.startswith(PREFIX):
        model = tiny_model(name, listen=listen)
    elif isinstance(model, str | Path) and (Path(model) / "run.json").is_file():
        model = model_at(Path(model), device=device)
    begin = model if isinstance(model, Pretrained) else pretrained(model, tokenizer, device)
    task, env_name = (None, None) if env is None else task_of(env)
    if task is not None and prompts is not None:
        raise ValueError("give an environment or prompts, not both")
    longest = algorithm.policy.keywords.get("longest", 1) if isinstance(algorithm.policy, partial) else 1
    asked, asked_file = _read(prompts, columns, "prompts")
    if begin.context <= longest and (task is not None or asked):
        raise ValueError(
            f"longest={longest} leaves no room for a prompt, since {begin.name} reads {begin.context} tokens in all: "
            "give a smaller one"
        )
    if asked:
        encoded(begin.tokenizer, asked, "prompts", limit=begin.context - longest, file=asked_file)
    rewards = _rewards(reward, task, scorer)
    if asked and not rewards:
        raise ValueError(
            "prompts are given without a reward: say --reward exact_match, module:function, or file.py:function"
        )
    texts, file, sha, count = _texts(algorithm, begin, dataset, columns)
    by_name = isinstance(name, str) and (env is None or isinstance(env, str)) and not isinstance(reward, Mapping)
    by_name = by_name and all(isinstance(given, str | Path | None) for given in (prompts, dataset))
    about = {
        "model": begin.name if name is None else name,
        "model_sha256": begin.fingerprint,
        "prompts": None if prompts is None else asked_file,
        "reward": IN_MEMORY if isinstance(reward, Mapping) else list(rewards) if reward is None else _listed(reward),
        "columns": dict(columns) if columns else None,
        "dataset": file,
        "dataset_sha256": sha,
        "dataset_steps": count,
        "micro_batch": micro_batch,
    }
    collecting = collects(algorithm)
    given = {
        "model": begin, "env": env, "prompts": prompts, "reward": reward, "dataset": dataset, "columns": columns,
        "micro_batch": micro_batch,
    }  # fmt: skip
    return TextGround(begin, task, asked, rewards, texts, env_name, collecting, by_name, about, micro_batch, given)


def task_of(env: Any) -> tuple[TextTask, str]:
    """The task of an environment of texts, and its name. Unfit where it is one of numbers."""
    if isinstance(env, TextTask):
        return env, f"{env.name} {IN_MEMORY}"
    if isinstance(env, str):
        from palaestra.envs.make import make_vector

        made = make_vector(env, 1)
        inside: Any = made.envs[0].unwrapped if hasattr(made, "envs") else made
    else:
        inside = getattr(env, "unwrapped", env)
    if not isinstance(inside, TextEnv):
        raise Unfit(
            f"{env if isinstance(env, str) else type(inside).__name__} is no environment of texts: try palaestra/Add-v0"
        )
    return inside.task, env if isinstance(env, str) else f"{inside.task.name} {IN_MEMORY}"


def _read(rows: Rows | None, columns: Mapping[str, str] | None, kind: str) -> tuple[list[dict[str, Any]], str]:
    if rows is None:
        return [], ""
    if isinstance(rows, str | Path):
        return checked(read_rows(rows, columns), kind, str(rows)), str(Path(rows).absolute())
    return checked(list(rows), kind, IN_MEMORY), IN_MEMORY


def _listed(reward: str | Sequence[str]) -> list[str]:
    return [reward] if isinstance(reward, str) else list(reward)


def _rewards(
    reward: str | Sequence[str] | Mapping[str, Reward] | None,
    task: TextTask | None,
    scorer: Callable[[str], Reward | None],
) -> dict[str, Reward]:
    if isinstance(reward, Mapping):
        return dict(reward)
    if reward is None:
        return dict(list(task.rewards.items())[:1]) if task is not None else {}
    own = dict(task.rewards) if task is not None else {}
    return {name: own.get(name.replace("-", "_")) or scorer(name) or reward_of(name) for name in _listed(reward)}


def _texts(
    algorithm: Algorithm, begin: Pretrained, dataset: Rows | None, columns: Mapping[str, str] | None
) -> tuple[dict[str, Columns], str | None, str | None, int | None]:
    """By buffer, and the file, its hash and its number of rows."""
    wanted = {name: KINDS.get(b.layout) for name, b in algorithm.buffers.items() if b.layout not in ROLLED}
    if unfit := [name for name, kind in wanted.items() if kind is None]:
        raise Unfit(
            f"{algorithm} learns from {unfit[0]}, which is no dataset of texts: give an environment, not a model"
        )
    if dataset is None or not wanted:
        if dataset is not None:
            raise Unfit(f"{algorithm} learns from answers of its own: give --prompts or --env, not --dataset")
        return {}, None, None, None
    found: dict[str, Columns] = {}
    for name, kind in wanted.items():
        rows, file = _read(dataset, columns, str(kind))
        whole = encoded(begin.tokenizer, rows, str(kind), limit=begin.context, file=file)
        found[name] = columns_of(whole, rows)
        if "reward" in given_by(algorithm.buffers[name].layout):
            found[name]["reward"] = pair_rewards(rows, file)
    return found, file, digest(rows), len(rows)


def columns_of(whole: Encoded, rows: Sequence[Mapping[str, Any]]) -> Columns:
    """The columns of tokenised rows; labels become `desirable`."""
    columns = token_columns(whole.prompts, whole.completions)
    if rows and "label" in rows[0]:
        columns["desirable"] = torch.tensor([bool(row["label"]) for row in rows])
    return columns


def pair_rewards(rows: Sequence[Mapping[str, Any]], file: str | Path) -> torch.Tensor:
    """What the answers of each pair earned, `chosen_reward` and `rejected_reward`: [R, 2]."""
    fields = ("chosen_reward", "rejected_reward")
    for number, row in enumerate(rows, 1):
        for name in fields:
            value = row.get(name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                what = "it is missing" if value is None else "it is no finite number"
                raise wrong(file, number, name, what, f"give what that answer earned, or --columns {name}=NAME")
    return torch.tensor([[float(row[name]) for name in fields] for row in rows])
