"""LoRA: a language model learns in low-rank adapters beside its layers; the layers stay as they were.

    W x becomes W x + (scale / rank) B A x        A [rank, in], B [out, rank]; B begins at zero

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022), whose alpha is `scale`.

Traps: what the policy began as is itself with its adapters off, so that a reference needs no second model. A learning
rate ten times that of all parameters is usual. To average adapted models, average what they amount to, not A and B.
"""

from __future__ import annotations

from collections.abc import Sequence

from palaestra.algorithm import Algorithm, Unfit, above, expressed, replace_network
from palaestra.algorithms.texts import POLICY
from palaestra.networks.language import adapted


@expressed
def lora(algorithm: Algorithm, rank: int = 16, scale: float = 32.0, modules: Sequence[str] | None = None) -> Algorithm:
    """The policy learns in adapters. On every base of language models that has one; needs `peft`.

    Args:
        rank: of the matrices that are learnt.
        scale: of what they add, divided by the rank.
        modules: names of the layers that get one; all that multiply by a matrix, but for the last, when None.
    """
    above(0, rank=rank, scale=scale)
    if POLICY not in algorithm.networks:
        raise Unfit(f"lora adapts the policy of a language model, and {algorithm} has none")
    return replace_network(algorithm, POLICY, adapted(algorithm.networks[POLICY], rank, scale, modules))
