"""A reward model: a number for a prompt and its answer, learnt from which of two was preferred.

    loss = -log sigma(r(chosen) - r(rejected) - margin) + c (r(chosen) + r(rejected))^2        r: at the last token

Sources: Bradley and Terry (1952); Stiennon et al., "Learning to summarize from human feedback" (2020); Touvron et al.,
"Llama 2" (2023), section 3.2.2, for the margin; Eisenstein et al., "Helping or Herding?" (2023), for the centring.

Traps: the number is read at the end-of-text token and never at padding. One pass over the pairs: in a second one the
margins grow and the accuracy falls. Rewards are known up to a constant for each prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from palaestra.algorithm import Algorithm, Nets, Term, between, expressed
from palaestra.algorithms.texts import Learning, learnt_from_texts
from palaestra.batch import Columns
from palaestra.data.tokens import pairs
from palaestra.evaluation.answers import ranking_accuracy, score_of
from palaestra.functional.preferences import bradley_terry
from palaestra.networks.language import token_scalars

REWARD = "reward"  # the network


def scores(nets: Nets, b: Columns) -> Columns:
    """What the model says of each answer, with gradient: `score` [B, 2]."""
    return {"score": score_of(nets[REWARD], b)}


def preferring(nets: Nets, b: Columns, link: Callable[..., Tensor]) -> tuple[Tensor, Columns]:
    """`link(r(chosen), r(rejected))`: rows [B]. Gives `margin` and whether it is `accurate`, [B] each."""
    chosen, rejected = b["score"].unbind(1)
    return link(chosen, rejected), {"margin": chosen - rejected, "accurate": (chosen > rejected).float()}


@expressed
def reward_model(
    margin: float = 0.0,
    smoothing: float = 0.0,
    centring: float = 0.01,
    lr: float = 1e-5,
    batch_size: int = 64,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> Algorithm:
    """A Bradley-Terry reward model on pairs (`prompt`, `chosen`, `rejected`); it begins as the language model.

    Args:
        margin: by which what was chosen is to be ahead.
        smoothing: how often a label is thought to be wrong, in [0, 1/2).
        centring: of the square of a pair's sum, which holds rewards near 0.
        lr: largest learning rate; below a million parameters 3e-4 and more.
        batch_size: pairs of an update.
        warm_up: updates in which the learning rate rises from 0.
        decay_over: updates over which it falls to 0 again; it does not when None.
        weight_decay: of AdamW.
        clip_norm: largest norm of a gradient; not clipped when None.
    """
    between(0, 0.5, smoothing=smoothing)
    link = partial(bradley_terry, margin=margin, smoothing=smoothing, centring=centring)
    term = Term(partial(preferring, link=link), stream="pairs", needs=("answer",), gives=("margin", "accurate"))
    learning = Learning(lr, warm_up, decay_over, weight_decay, clip_norm)
    losses = {REWARD: learning.loss({"preference": term}, trains=(REWARD,), outputs=scores)}
    networks = {REWARD: token_scalars()}
    return learnt_from_texts(pairs, losses, batch_size, 1, (ranking_accuracy,), networks=networks)
