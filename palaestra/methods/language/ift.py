"""IFT: a model that learns from demonstrations reads its own predictions mixed into them, and early tokens answer for
the losses of later ones.

    y'_t = argmax pi(. | x, y_<t)                                              first pass, without gradient
    e_t = (1 - lambda) E(y_t) + lambda E(y'_t)        for the tokens of the answer; the prompt is read as it is
    l_t = -log pi(y_t | e_<t)                                                  second pass
    w_t = n F_t / sum_t F_t,   F_t = sum_{i >= t} gamma^(i - t) l_i            n tokens of the answer, its end too
    loss = mean over answers of (1/n) sum_t w_t l_t

Paper: Hua et al., "Intuitive Fine-Tuning: Towards Unifying SFT and RLHF into a Single Process" (2024). Its lambda is
`blend`. The authors' `l_i / n` in F changes nothing: n cancels.

Traps: y'_t is predicted for place t, from tokens before t alone, and stands where y_t is read. The gradient passes
through the weights too, as in the authors' code: what lowers a late loss also lowers the weight of all before it.
With `blend=0, gamma=0` it is `sft` where every answer counts the same, however long; `sft` itself counts every token
the same, and is equal where all answers are as long.

Differs from the paper: the authors' code reads embeddings from a copy without gradient, which takes the policy's values
after every step. What it holds when it is read are the live ones, so there is no copy here; but the gradient reaches
them, as it does in `sft`. A model whose input embeddings are not its output's would never learn them otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Generator, Tensor

from palaestra.algorithm import Algorithm, Nets, Transform, between, expressed, gives, replace_term
from palaestra.algorithms.sft import negative_logp
from palaestra.algorithms.texts import POLICY, spoken
from palaestra.batch import Columns, each_answer
from palaestra.functional.tokens import discounted_future
from palaestra.rollout.scorers import of_tokens

STREAM, TERM = "demonstrations", "imitation"


@gives("predicted")
def guessed(nets: Nets, b: Columns, rng: Generator) -> Columns:
    """With `predicted` [B, T]: in the answer the token that is likeliest after those before it, elsewhere the own."""
    said = of_tokens(nets[POLICY], b["ids"], likeliest=True)
    return {**b, "predicted": said["likeliest"].where(b["answer"], b["ids"])}


def blended(embedding: Callable[[Tensor], Tensor], ids: Tensor, predicted: Tensor, blend: float) -> Tensor:
    """`(1 - blend) E(ids) + blend E(predicted)`, of tokens [B, T]: [B, T, D]."""
    return embedding(ids).lerp(embedding(predicted), blend)


def read_blended(nets: Nets, b: Columns, blend: float) -> Columns:
    """`logp` [B, T] of the tokens, where embeddings blended with those of `predicted` are read before them."""
    ids = b["ids"]
    said: Columns = nets[POLICY](ids, embedded=partial(blended, ids=ids, predicted=b["predicted"], blend=blend))
    return said


def responsible(nets: Nets, b: Columns, gamma: float) -> Tensor:
    """`w_t l_t`: rows [B, T]."""
    loss = negative_logp(nets, b)
    return loss * discounted_future(loss, b["answer"], gamma)


def responsible_detached(nets: Nets, b: Columns, gamma: float) -> Tensor:
    """`w_t l_t` with weights that ask for no gradient: rows [B, T]."""
    loss = negative_logp(nets, b)
    return loss * discounted_future(loss.detach(), b["answer"], gamma)


@expressed
def ift(algorithm: Algorithm, blend: float = 0.2, gamma: float = 0.95) -> Algorithm:
    """Intuitive fine-tuning, with the gradient of the weights. On `sft`; an update costs another forward pass.

    Args:
        blend: how much of what is read is what the model would have said, in [0, 1]; the paper's lambda.
        gamma: how much of its loss a token leaves to the one before, in [0, 1]; with 0 all weights are 1.
    """
    return _intuitive("ift", algorithm, blend, gamma, responsible)


@expressed
def ift_detached(algorithm: Algorithm, blend: float = 0.2, gamma: float = 0.95) -> Algorithm:
    """Intuitive fine-tuning whose weights are taken as they are: no gradient passes through them. On `sft`.

    Args:
        blend, gamma: as for `ift`.
    """
    return _intuitive("ift-detached", algorithm, blend, gamma, responsible_detached)


def _intuitive(slug: str, algorithm: Algorithm, blend: float, gamma: float, rows: Callable[..., Tensor]) -> Algorithm:
    between(0, 1, blend=blend, gamma=gamma)
    loss = algorithm.losses.get(POLICY)
    term: Any = None if loss is None else loss.terms.get(TERM)
    if loss is None or term is None or term.stream != STREAM or loss.outputs is not spoken:
        raise ValueError(f"{slug} does not fit {algorithm}: it changes how sft reads demonstrations; try it on sft")
    value = partial(rows, gamma=gamma) if gamma else term.value  # a discount of 0 would weight by the own loss
    term = replace(term, value=value, share=each_answer("answer"), needs=(*term.needs, "predicted"))
    changed = replace_term(algorithm, POLICY, TERM, term)
    guess = Transform(guessed, stream=STREAM, needs=("ids", "answer"), gives=("predicted",))
    loss = replace(
        changed.losses[POLICY],
        outputs=partial(read_blended, blend=blend),
        transforms=(*loss.transforms, guess),
    )
    return replace(changed, losses={**changed.losses, POLICY: loss})
