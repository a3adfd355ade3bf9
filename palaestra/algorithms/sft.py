"""SFT: a language model learns to say what demonstrations say (supervised fine-tuning).

    loss = -sum_{i,t} m_it log pi(y_it | x_i, y_i<t) / sum_{i,t} m_it        m: the tokens of the answer, its end too

Source: Ouyang et al., "Training language models to follow instructions with human feedback" (2022), section 3.5.

Traps: the mean is over all tokens of an update, however it is split: means of means weigh short answers more. Prompts
are not learnt from. The end-of-text token is.
"""

from __future__ import annotations

from torch import Tensor

from palaestra.algorithm import Algorithm, Nets, Term, expressed
from palaestra.algorithms.texts import Learning, learnt_from_texts
from palaestra.batch import Columns, each_token
from palaestra.data.tokens import demonstrations
from palaestra.evaluation.answers import answer_rewards, log_probability


def negative_logp(nets: Nets, b: Columns) -> Tensor:
    """`-log pi` of each token: rows [B, T]."""
    rows: Tensor = -b["logp"]
    return rows


@expressed
def sft(
    lr: float = 2e-5,
    batch_size: int = 64,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    longest: int = 256,
) -> Algorithm:
    """Supervised fine-tuning on demonstrations (`prompt`, `completion`); every token counts the same.

    The defaults are usual for models of billions of parameters; below a million, `lr=1e-3`.

    Args:
        lr: largest learning rate.
        batch_size: demonstrations of an update.
        warm_up: updates in which the learning rate rises from 0.
        decay_over: updates over which it falls to 0 again, along half a cosine; it does not when None.
        weight_decay: of AdamW.
        clip_norm: largest norm of a gradient; not clipped when None.
        longest: tokens of an answer when it is asked.
    """
    learning = Learning(lr, warm_up, decay_over, weight_decay, clip_norm)
    term = Term(negative_logp, stream="demonstrations", share=each_token("answer"), needs=("answer",))
    losses = {"policy": learning.loss({"imitation": term})}
    return learnt_from_texts(demonstrations, losses, batch_size, longest, (log_probability, answer_rewards))
