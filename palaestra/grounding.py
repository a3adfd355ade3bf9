"""What a run learns from: chosen by what is given, counted as it counts, and found again for a run that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palaestra.algorithm import Algorithm, Unfit
from palaestra.data.dataset import DatasetError
from palaestra.data.tokens import KINDS, ROLLED
from palaestra.envs.make import World
from palaestra.ground import IN_MEMORY, Ground, ground_of
from palaestra.loops.rounds import ROLLOUT
from palaestra.runs import Run, RunError
from palaestra.speaker import reward_model_at
from palaestra.text_ground import TextGround, text_ground

TEXT_ONLY = ("tokenizer", "prompts", "reward", "columns", "micro_batch")  # keywords of what learns from texts


def grounded(value: Algorithm, env: Any, dataset: Any, **text: Any) -> Ground | TextGround:
    """What an algorithm learns from: a language model and texts where a model is given, else numbers."""
    if text.get("model") is not None:
        return text_ground(value, env=env, dataset=dataset, scorer=reward_model_at, **text)
    if counts_rounds(value) or any(buffer.layout in KINDS for buffer in value.buffers.values()):
        raise Unfit(f"{value} learns from texts: give a language model to begin with (--model)")
    if given := [name for name in TEXT_ONLY if text.get(name) is not None]:
        raise ValueError(f"{given[0]} is for language models: give a model too, or leave it out")
    return ground_of(value, env, dataset)


def counts_rounds(value: Algorithm) -> bool:
    """Whether an algorithm collects answers of a language model."""
    return ROLLOUT in value.buffers and value.buffers[ROLLOUT].layout in ROLLED


def counted(value: Algorithm, steps: int | None, rounds: int | None) -> int:
    """How much is asked for, of what the algorithm counts. ValueError where it counts something else."""
    if steps is not None and rounds is not None:
        raise ValueError("give steps or rounds, not both")
    if counts_rounds(value):
        if rounds is None:
            raise ValueError(f"{value} collects answers in rounds: say how many, with rounds (--rounds)")
        return rounds
    if rounds is not None:
        raise ValueError(f"{value} does not collect in rounds: give steps (--steps), of the environment or updates")
    if steps is None:
        raise ValueError("steps is missing: give environment steps, or updates of a dataset")
    return steps


def text_again(run: Run, value: Algorithm, given: Mapping[str, Any]) -> TextGround:
    """The language model and texts of a run; RunError where they are no longer there, or others."""
    about, json = run.about, run.folder / "run.json"
    known = {name: about[name] for name in ("model", "prompts", "reward", "dataset", "env")}
    for name, what in known.items():
        if str(what).endswith(IN_MEMORY) and given.get(name) is None:
            raise RunError(json, f"its {name} was made in memory", f"pal.resume(run, {name}=...)", f"field {name!r}")
    merged = known | {name: what for name, what in given.items() if what is not None}
    try:
        ground = text_ground(
            value, **merged, columns=about["columns"], micro_batch=about["micro_batch"], device=about["device"],
            scorer=reward_model_at,
        )  # fmt: skip
    except (ValueError, DatasetError) as wrong:
        raise RunError(json, str(wrong), "put back what it learnt from, or give it again", "field 'model'") from wrong
    for name in ("model_sha256", "dataset_sha256"):
        if ground.about()[name] != about[name]:
            raise RunError(
                json, f"its {name[:-7]} has changed since", "give the one it was begun with", f"field {name!r}"
            )
    return ground


def ground_again(
    run: Run, value: Algorithm, env: World | None, dataset: Any, model: Any, tokenizer: Any, prompts: Any, reward: Any
) -> Ground | TextGround:
    """What a run learns from; RunError where its dataset is no longer there, or another."""
    about = run.about
    if about.get("model") is not None:
        texts = {"env": env, "dataset": dataset, "model": model, "tokenizer": tokenizer, "prompts": prompts}
        return text_again(run, value, {**texts, "reward": reward})
    given = env if env is not None else about["env"]
    file = about.get("dataset")
    if file is None:
        return ground_of(value, given, None)
    json, field = run.folder / "run.json", "field 'dataset'"
    remedy = "give it again: --dataset FILE, or in Python pal.resume(run, dataset=...)"
    if dataset is None and file == IN_MEMORY:
        raise RunError(json, "its dataset was made in memory", remedy, field)
    try:
        ground = ground_of(value, given, file if dataset is None else dataset)
    except DatasetError as wrong:
        raise RunError(json, f"its dataset cannot be read: {wrong}", remedy, field) from wrong
    assert ground.dataset is not None
    if ground.dataset.hash != (begun_with := about["dataset_sha256"]):
        what = f"the dataset is {ground.dataset.hash[:12]}..., and the run was begun with {begun_with[:12]}..."
        raise RunError(json, what, "give the one that it was begun with", field)
    return ground
