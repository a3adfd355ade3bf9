"""What other models, or this one before it learnt, say of texts: columns, computed once, and read by no term as models.

Each is a transform of what was collected, `(nets, batch, rng) -> batch`, of rows [B, T] or pairs [B, 2, T].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Algorithm, Nets, Transform, Unfit, gives
from palaestra.batch import Columns
from palaestra.networks.language import LanguageModel, reference

AT_ONCE = 64  # rows, or pairs, of a pass

Reference = Callable[[Nets], AbstractContextManager[LanguageModel]]


def of_tokens(network: Any, ids: Tensor, length: Tensor | None = None, **asked: Any) -> dict[str, Tensor]:
    """What a language model says of tokens of any leading shape [..., T], some rows at a time, without gradient.

    `length` [...], where it is given, is how many tokens of a row there are: of the others less is computed.
    """
    lengths = repeat(None) if length is None else length.split(AT_ONCE)
    parts = [network(some, length=own, **asked) for some, own in zip(ids.split(AT_ONCE), lengths, strict=False)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@gives("reference_logp")
def referred(nets: Nets, batch: Columns, rng: Generator, temperature: float, model: Reference = reference) -> Columns:
    """With `reference_logp` of each token: under the model that the policy began as, unless another one is named."""
    with model(nets) as network:
        said = of_tokens(network, batch["ids"], batch["length"], temperature=temperature)
    return {**batch, "reference_logp": said["logp"]}


@gives("old_logp")
def recomputed(nets: Nets, batch: Columns, rng: Generator, temperature: float) -> Columns:
    """With `old_logp` of each token: under the policy as it is now, by the pass that it learns with."""
    said = of_tokens(nets["policy"], batch["ids"], batch["length"], temperature=temperature)
    return {**batch, "old_logp": said["logp"]}


def reference_logp(stream: str, temperature: float = 1.0) -> Transform:
    """The column `reference_logp` of a stream."""
    return Transform(partial(referred, temperature=temperature), "collect", stream, ("ids",), ("reference_logp",))


def old_logp(temperature: float = 1.0) -> Transform:
    """The column `old_logp` of a rollout."""
    return Transform(partial(recomputed, temperature=temperature), "collect", "rollout", ("ids",), ("old_logp",))


def refer_to(algorithm: Algorithm, model: Reference) -> Algorithm:
    """Transforms that ask the reference, those with a keyword `model`, ask this one. Unfit where there is none."""
    if not any(map(_asks, algorithm.transforms)):
        raise Unfit(f"{algorithm} asks no reference: choose one that does, as grpo where kl_coefficient is above 0")
    losses = {
        name: replace(loss, transforms=_asking(loss.transforms, model)) for name, loss in algorithm.losses.items()
    }
    return replace(algorithm, transforms=_asking(algorithm.transforms, model), losses=losses)


def _asks(transform: Transform) -> bool:
    return "model" in inspect.signature(transform.fn).parameters


def _asking(transforms: tuple[Transform, ...], model: Reference) -> tuple[Transform, ...]:
    ask: Any = partial(partial, model=model)
    return tuple(replace(each, fn=ask(each.fn)) if _asks(each) else each for each in transforms)
