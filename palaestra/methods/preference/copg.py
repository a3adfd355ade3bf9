"""CoPG: a policy learns from pairs of answers, whoever gave them, how much more one of them earned than the other.

    g(y) = sum_t log pi(y_t | .) - log pi_ref(y_t | .)
    a pair       -(R(y) - R(y') - beta / 2 (g(y) - g(y'))) (g(y) - g(y'))
    all pairs    -2 (a_i - mean of the others' a) g_i,   a = R - beta / 2 g       of a group of answers to one prompt

The gradient of a pair is -(R_beta(y) - R_beta(y')) grad(log pi(y) - log pi(y')) with R_beta = R - beta g: a policy
gradient in which each answer's regularised reward is the other's baseline. It needs no importance ratios, and rests at
pi_ref exp(R / beta) / Z, whatever the answers were drawn from. Up to a constant it is the square of R - R' - beta (g -
g'), and, of a group, the variance of R - beta g, both divided by (2 beta) and beta.

Paper: Flet-Berliac et al., "Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a
supervised-friendly fashion" (2024).

Traps: beta is in units of the reward: scale rewards over the whole dataset, and beta with them, never pair by pair. The
gradient passes through both factors, which is why beta is halved: detach neither. Sums, not means, over tokens. Answers
that no pair has may gain as they may with DPO: look at `kl` of fresh samples. A group whose answers are spread over
several minibatches is compared where they meet.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from palaestra.algorithm import (
    Algorithm,
    Nets,
    Term,
    Unfit,
    above,
    append_transform,
    expressed,
    replace_term,
    with_layout,
)  # fmt: skip
from palaestra.algorithms.dpo import gain
from palaestra.algorithms.texts import POLICY, ROLLOUT
from palaestra.batch import Columns
from palaestra.data.tokens import pairs, rolled, scored_pairs
from palaestra.functional.groups import leave_one_out
from palaestra.functional.preferences import contrastive
from palaestra.rollout.scorers import reference_logp


def contrasted(nets: Nets, b: Columns, beta: float) -> tuple[Tensor, Columns]:
    """Of pairs: rows [B]. Gives the `margin` g - g', in nats, and the `reward_gap` R - R', [B] each."""
    (chosen, rejected), (earned, other) = gain(b).unbind(1), b["reward"].unbind(1)
    told = {"margin": chosen - rejected, "reward_gap": earned - other}
    return contrastive(chosen, rejected, told["reward_gap"], beta), told


def contrasted_in_groups(nets: Nets, b: Columns, beta: float) -> tuple[Tensor, Columns]:
    """Of single answers: rows [B], whose mean over a group is that of `contrastive` over all its pairs.

    Gives `gain` [B], in nats. An answer without another to its prompt counts 0.
    """
    gained = gain(b)
    return -2 * leave_one_out(b["reward"] - 0.5 * beta * gained, b["group"]) * gained, {"gain": gained}


@expressed
def copg(algorithm: Algorithm, beta: float = 0.1) -> Algorithm:
    """Contrastive policy gradient on pairs of a dataset with `chosen_reward` and `rejected_reward`. On `dpo`.

    Which of the two is called chosen does not matter.

    Args:
        beta: how strongly the policy is held to the reference, in units of the reward a nat.
    """
    above(0, beta=beta)
    buffer, loss = algorithm.buffers.get("pairs"), algorithm.losses.get(POLICY)
    term = loss.terms.get("preference") if loss else None
    if buffer is None or buffer.layout is not pairs or term is None or "reference_logp" not in term.needs:
        raise Unfit(f"copg does not fit {algorithm}, which has no pairs beside a reference: choose dpo")
    term = replace(
        term, value=partial(contrasted, beta=beta), needs=(*term.needs, "reward"), gives=("margin", "reward_gap")
    )
    return replace_term(with_layout(algorithm, "pairs", scored_pairs), POLICY, "preference", term)


@expressed
def copg_groups(algorithm: Algorithm, beta: float = 0.1) -> Algorithm:
    """Contrastive policy gradient on all pairs of a group of the policy's own answers. On `grpo` and `rloo`.

    Neither the base's advantage, its clip nor its `kl_coefficient` counts any more.

    Args:
        beta: as for `copg`.
    """
    above(0, beta=beta)
    buffer, loss = algorithm.buffers.get(ROLLOUT), algorithm.losses.get(POLICY)
    alone = getattr(algorithm.collect, "keywords", {}).get("size") == 1
    if buffer is None or buffer.layout is not rolled or list(algorithm.losses) != [POLICY] or alone:
        raise Unfit(f"copg-groups does not fit {algorithm}: choose grpo or rloo, with at least 2 answers to a prompt")
    assert loss is not None
    term = Term(
        partial(contrasted_in_groups, beta=beta), stream=ROLLOUT, needs=("answer", "reward", "group", "reference_logp"),
        gives=("gain",), across_rows=True,
    )  # fmt: skip
    changed = replace_term(algorithm, POLICY, "surrogate", term)
    terms = {name: own for name, own in changed.losses[POLICY].terms.items() if name != "kl"}
    changed = replace(changed, losses={POLICY: replace(loss, terms=terms)}, advantage=None)
    if any("reference_logp" in transform.gives for transform in changed.transforms):
        return changed
    temperature = changed.policy.keywords["sampling"].temperature  # type: ignore[attr-defined]
    return append_transform(changed, reference_logp(ROLLOUT, temperature))
