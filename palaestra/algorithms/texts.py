"""What the bases of language models share: how a policy answers, what its terms read, and two ways to learn.

From texts: `learnt_from_texts` makes updates from the rows of a dataset. From answers: `learnt_from_answers` collects
in rounds, several answers to each prompt, and passes over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from palaestra.algorithm import (
    Algorithm,
    Buffer,
    Evaluate,
    Factory,
    Layout,
    Loss,
    Nets,
    Schedule,
    Term,
    Transform,
    Unfit,
    above,
    between,
    expressed,
)  # fmt: skip
from palaestra.batch import Columns
from palaestra.data.tokens import rolled
from palaestra.evaluation.answers import answer_rewards, drawn_rewards
from palaestra.functional.schedules import warmed
from palaestra.networks.language import Sampling, language_model
from palaestra.optimisers import adamw
from palaestra.rollout.texts import answering, generate, in_groups, scored

POLICY, ROLLOUT = "policy", "rollout"


def spoken(nets: Nets, b: Columns, temperature: float = 1.0, entropy: bool = False) -> Columns:
    """What all terms read: `logp` (and `entropy`) of each token, in one pass over rows of any shape [..., T]."""
    said: Columns = nets[POLICY](b["ids"], length=b["length"], temperature=temperature, entropy=entropy)
    return said


@dataclass(frozen=True)
class Learning:
    """How a language model's parameters change: AdamW, a warm-up, half a cosine.

    Args:
        lr: the largest learning rate.
        warm_up: updates in which it rises from 0.
        decay_over: updates after which it is 0 again; it stays when None.
        weight_decay: share of itself that a parameter loses in an update, times the learning rate.
        clip_norm: largest norm of a gradient; not clipped when None.
    """

    lr: float
    warm_up: int = 0
    decay_over: int | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def loss(
        self,
        terms: Mapping[str, Term],
        trains: tuple[str, ...] = (POLICY,),
        outputs: Callable[[Nets, Columns], Columns] = spoken,
        transforms: tuple[Transform, ...] = (),
    ) -> Loss:
        """A loss that is learnt so."""
        above(0, lr=self.lr, clip_norm=self.clip_norm, decay_over=self.decay_over)
        return Loss(
            terms,
            trains,
            outputs,
            transforms,
            optimiser=partial(adamw, weight_decay=self.weight_decay),
            lr=warmed(self.lr, self.warm_up, self.decay_over),
            clip_norm=self.clip_norm,
        )


def learnt_from_texts(
    layout: Layout,
    losses: Mapping[str, Loss],
    batch_size: int,
    longest: int,
    evaluation: tuple[Evaluate, ...],
    transforms: tuple[Transform, ...] = (),
    networks: Mapping[str, Factory] | None = None,
) -> Algorithm:
    """Updates from the rows of a dataset, which is called as its layout is; answers are of `longest` tokens at most."""
    above(0, batch_size=batch_size, longest=longest)
    return Algorithm(
        networks={POLICY: language_model()} if networks is None else networks,
        policy=partial(answering, longest=longest, sampling=Sampling()),
        collect=scored(generate),
        buffers={layout.__name__: Buffer(layout)},
        losses=losses,
        transforms=transforms,
        schedule=Schedule(batch_size=batch_size),
        evaluation=evaluation,
    )


def learnt_from_answers(
    losses: Mapping[str, Loss],
    advantage: Callable[[Nets, Columns], Columns],
    *,
    prompts: int,
    answers: int,
    longest: int,
    sampling: Sampling,
    epochs: int,
    minibatches: int,
    transforms: tuple[Transform, ...] = (),
    networks: Mapping[str, Factory] | None = None,
) -> Algorithm:
    """Rounds: `answers` to each of so many `prompts`, and passes over them."""
    above(0, prompts=prompts, answers=answers, longest=longest, epochs=epochs, minibatches=minibatches)
    above(0, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    between(0, 1, top_p=sampling.top_p)
    return Algorithm(
        networks={POLICY: language_model()} if networks is None else networks,
        policy=partial(answering, longest=longest, sampling=sampling),
        collect=in_groups(scored(generate), answers),
        buffers={ROLLOUT: Buffer(rolled)},
        advantage=advantage,
        losses=losses,
        transforms=transforms,
        schedule=Schedule(collect=prompts, epochs=epochs, minibatches=minibatches),
        evaluation=(answer_rewards,),
    )


def of_answer(b: Columns, column: str) -> Tensor:
    """The sum of a column over the tokens of each answer: [B], or [B, K]."""
    total: Tensor = (b[column] * b["answer"]).sum(-1)
    return total


def per_token(b: Columns, advantage: Tensor) -> Columns:
    """The column `advantage` [B, T] of one number an answer [B]."""
    columns: dict[str, Any] = {"advantage": advantage[:, None] * b["answer"]}
    return columns


@expressed
def drawn_answers(algorithm: Algorithm, seed: int = 0) -> Algorithm:
    """Evaluations draw an answer to each prompt, as the policy does when it learns, and not the most likely one.

    What reinforcement learning changes first is how often an answer is right, and only then which is the likeliest.

    Args:
        seed: of the draws, the same ones at each evaluation.
    """
    if answer_rewards not in algorithm.evaluation:
        raise Unfit(f"drawn-answers does not fit {algorithm}, which is not judged by its answers: try it on grpo")
    drawn = partial(drawn_rewards, seed=seed)
    return replace(algorithm, evaluation=tuple(drawn if it is answer_rewards else it for it in algorithm.evaluation))
