"""A language model at work: what a run learnt to say, and what its reward model says of others' answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from palaestra.data.tokenising import completion_ids, prompt_ids
from palaestra.data.tokens import picked, token_columns
from palaestra.evaluation.answers import AT_ONCE, score_of
from palaestra.learner import Learner, generator
from palaestra.networks.language import LanguageModel, Pretrained, language_spec
from palaestra.networks.pretrained import of_shape, plain, pretrained, save
from palaestra.rewards.named import Reward
from palaestra.rollout.texts import Given, Row, generate
from palaestra.runs import Run, RunError
from palaestra.runs.check import begun
from palaestra.runs.checkpoints import Checkpoints
from palaestra.stored import algorithm_of, same_run, unfitting
from palaestra.together import part, written

SHAPE = "model"  # of a run's folder: configuration and tokenizer


class Speaker:
    """A trained policy at work: `answer(prompt)`.

    `count` updates or rounds it was trained for; `problems` are newer checkpoints that were passed over as damaged.
    """

    def __init__(self, learner: Learner, tokenizer: Any, count: int = 0, problems: Sequence[str] = ()) -> None:
        self.learner, self.tokenizer = learner, tokenizer
        self.count, self.problems = count, tuple(problems)

    def answers(self, prompts: Sequence[str | list[dict[str, Any]]], seed: int | None = None) -> list[str]:
        """An answer to each prompt, text or messages: the most likely tokens, or drawn where there is a seed."""
        rows: list[Row] = [{"prompt": prompt} for prompt in prompts]
        rng = None if seed is None else generator(seed, "answering", self.learner.device)
        asked = Given(rows, self.tokenizer)
        texts = generate(self.learner.nets, self.learner.deployed(), asked, len(rows), rng)
        return [note["answer"] for note in texts.notes]

    def answer(self, prompt: str | list[dict[str, Any]], seed: int | None = None) -> str:
        """The answer to one prompt."""
        return self.answers([prompt], seed)[0]


def speaker(run: Path | Run, seed: int | None = None, device: str = "cpu") -> Speaker:
    """The policy of a run's last checkpoint. RunError where there is none, ValueError for a seed that it has not."""
    learner, begin, count, problems = _learnt(run, seed, device)
    return Speaker(learner, begin.tokenizer, count, problems)


def model_at(run: Path | Run, seed: int | None = None, device: str = "cpu") -> Pretrained:
    """What a run learnt to say, as a model to begin with; adapters are added to what they adapt."""
    folder = run.folder if isinstance(run, Run) else run
    learner, begin, _, _ = _learnt(run, seed, device)
    network = learner.nets["policy"]
    assert isinstance(network, LanguageModel)
    return pretrained(plain(network), begin.tokenizer, device, name=str(folder))


def export_model(run: Path | Run, folder: Path, seed: int | None = None) -> None:
    """Write what a run learnt to say as a folder that `transformers` reads."""
    learner, begin, _, _ = _learnt(run, seed, "cpu")
    network = learner.nets["policy"]
    assert isinstance(network, LanguageModel)
    save(network, begin.tokenizer, folder)


def reward_model_at(name: str) -> Reward | None:
    """The reward of a run of `reward-model`, or None where the name is not a run's folder."""
    if not (Path(name) / "run.json").is_file():
        return None
    learner, begin, _, _ = _learnt(Path(name), None, "cpu")
    if "reward" not in learner.nets:
        raise RunError(Path(name), "it has no reward model", "name a run of reward-model")
    return reward_by(learner, begin.tokenizer)


def reward_by(learner: Learner, tokenizer: Any) -> Reward:
    """What the reward model of a learner says of answers, some of them at a time."""

    def reward(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
        prompts = [prompt_ids(tokenizer, row["prompt"]) for row in rows]
        said = [[completion_ids(tokenizer, answer)] for answer in answers]
        columns = token_columns(prompts, said)
        with torch.no_grad():
            some = torch.arange(len(rows)).split(AT_ONCE)
            parts = [score_of(learner.nets["reward"], picked(columns, index)) for index in some]
        return [float(x) for part in parts for x in part]

    return reward


def _learnt(run: Path | Run, seed: int | None, device: str) -> tuple[Learner, Pretrained, int, list[str]]:
    run = begun(run if isinstance(run, Run) else Path(run))
    about = run.about
    seed = about["seeds"][0] if seed is None else seed
    if seed not in about["seeds"]:
        raise ValueError(f"{run.folder} has no seed {seed}; it has {written(about['seeds'])}")
    if about.get("model") is None:
        raise RunError(run.folder, "it is not a run of a language model", "name one that is")
    if about["together"] == "processes":
        return _learnt(part(run, seed), seed, device)
    checkpoints = Checkpoints(run.folder / "checkpoints")
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        raise RunError(run.folder, "it has no checkpoint yet", "wait for one, or train with --checkpoint-every")
    same_run(run, checkpoint)
    begin = of_shape(run.folder / SHAPE, device)
    learner = Learner(algorithm_of(run), language_spec(begin), (seed,), device=device, precision=about["precision"])
    state: Any = checkpoint.state
    try:
        learner.nets.load_state_dict(state["learner"]["nets"])
    except (LookupError, RuntimeError, TypeError) as wrong:
        raise unfitting(checkpoint, wrong) from wrong
    return learner, begin, checkpoint.count, list(map(str, checkpoints.problems))
