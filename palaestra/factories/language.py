"""Tiny language models, made here: a tokenizer of a task's symbols, and a model that learnt from its demonstrations.

Each takes a minute or two on one core, and is kept in the cache under the hash of everything that it is made of.
`palaestra/add` is the name of the one for the task "add"; so are `palaestra/countdown`, `palaestra/sent`, ...
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from palaestra.data.files import cache
from palaestra.data.tokenising import completion_ids, prompt_ids
from palaestra.data.tokens import token_columns
from palaestra.envs.text.task import TextTask, rows
from palaestra.expression import nearest, parse
from palaestra.learner import generator
from palaestra.loops.rounds import Rounds
from palaestra.machine import computing
from palaestra.networks.language import Pretrained, language_spec
from palaestra.networks.pretrained import library, pretrained, save
from palaestra.processes import Listen
from palaestra.runs.files import seal

PREFIX = "palaestra/"
PAD, END = "<pad>", "<end>"


@dataclass(frozen=True)
class Tiny:
    """How a tiny model is made.

    Args:
        task: what it learns; a function that makes it, and its settings.
        updates: of supervised fine-tuning.
        hidden, layers, heads: of the model, a Llama whose inner layers are four times as wide.
        lr, batch_size, demonstrations: of its training.
        context: tokens of a prompt and its answer, at most.
    """

    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    updates: int = 1_000
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    lr: float = 2e-3
    batch_size: int = 64
    demonstrations: int = 20_000
    context: int = 64


# How far each is trained leaves it something to learn: between a quarter and a half of its answers are right.
TINY = {
    "add": Tiny("add:add", updates=700),
    "marked-add": Tiny("add:marked_add"),
    "countdown": Tiny("countdown:countdown"),
    "sent": Tiny("sent:sent"),
    "sort": Tiny("sort:sort"),
    "key-value": Tiny("recall:key_value"),
    # Half of its answers are wrong because half of what it was shown is: RL has something to sharpen.
    "chain-sum": Tiny(
        "chain:chain_sum",
        {"steps": (1, 5), "checks": 0.3, "mistakes": 0.2},
        updates=1_200,
        layers=2,
        lr=3e-3,
        context=96,
    ),
}


def task_of(tiny: Tiny) -> TextTask:
    """The task that a tiny model is made for."""
    from importlib import import_module

    module, _, function = tiny.task.partition(":")
    made: TextTask = getattr(import_module(f"palaestra.envs.text.{module}"), function)(**tiny.settings)
    return made


def tokenizer_of(task: TextTask) -> Any:
    """A tokenizer with a token for each symbol of a task, one for padding and one for the end of a text."""
    transformers = library()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = {symbol: number for number, symbol in enumerate((PAD, END, *task.symbols))}
    inside = Tokenizer(models.WordLevel(words, unk_token=PAD))
    if task.separator:
        inside.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        inside.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        inside.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inside, pad_token=PAD, eos_token=END)


def untrained(task: TextTask, tiny: Tiny, seed: int = 0) -> Pretrained:
    """The model before it has learnt anything."""
    transformers = library()
    tokenizer = tokenizer_of(task)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=tiny.hidden, intermediate_size=4 * tiny.hidden,
        num_hidden_layers=tiny.layers, num_attention_heads=tiny.heads, max_position_embeddings=tiny.context,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    from palaestra.networks.fitting import drawing_from

    with drawing_from(generator(seed, "networks")):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return pretrained(model, tokenizer)


def learnt(begin: Pretrained, task: TextTask, tiny: Tiny, seed: int, listen: Listen) -> Rounds:
    """Supervised fine-tuning on demonstrations."""
    shown = rows(task, tiny.demonstrations, seed)
    columns = token_columns(
        [prompt_ids(begin.tokenizer, row["prompt"]) for row in shown],
        [[completion_ids(begin.tokenizer, row["answer"])] for row in shown],
    )
    algorithm = parse(
        f"sft(lr={tiny.lr}, batch_size={tiny.batch_size}, warm_up=20, decay_over={tiny.updates}, "
        f"longest={task.longest})"
    )
    run = Rounds(algorithm, language_spec(begin), (seed,), rows={"demonstrations": columns})
    while run.count < tiny.updates:
        run.advance()
        listen({"kind": "tick", "updates": run.count, "seconds": 0.0})
    run.learner.check_finite()
    return run


def tiny_model(name: str, seed: int = 0, listen: Listen = lambda row: None) -> Path:
    """The folder of the tiny model of this name, which is made where it is not there yet.

    Raises ValueError where there is none of this name.
    """
    name = name.removeprefix(PREFIX)
    if name not in TINY:
        raise ValueError(f"there is no tiny model {PREFIX}{name}; {nearest(name, TINY)}")
    return made(TINY[name], seed, name, listen)


def made(tiny: Tiny, seed: int = 0, name: str = "model", listen: Listen = lambda row: None) -> Path:
    """The folder of a tiny model, taken from the cache where it was made before."""
    transformers = library()
    of = {
        "tiny": {key: getattr(tiny, key) for key in tiny.__dataclass_fields__},
        "seed": seed,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    folder = cache().parent / "models" / f"{name}-{seal(of)[:16]}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    listen({"kind": "warning", "text": f"making the model {PREFIX}{name}, once: {tiny.updates:,} updates"})
    task = task_of(tiny)
    with computing(threads=1):  # whoever asks for it, with however many threads, gets the same
        run = learnt(untrained(task, tiny, seed), task, tiny, seed, listen)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        save(run.learner.nets["policy"], run.learner.nets.spec.pretrained.tokenizer, made)  # type: ignore[arg-type, attr-defined]
        with suppress(OSError):  # another process was faster
            made.rename(folder)
    return folder
