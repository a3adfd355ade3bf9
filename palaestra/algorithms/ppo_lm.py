"""PPO for language models: each token is an action, a critic says what is to come, a reference is not to be left.

    R_t = -beta (log pi - log pi_ref)_t, and the answer's reward at its last token        A: GAE over its tokens
    policy: -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)
    critic: max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2) / 2

Papers: Ziegler et al., "Fine-Tuning Language Models from Human Preferences" (2019), with its controller of beta;
Stiennon et al., "Learning to summarize from human feedback" (2020). Details as in Huang et al., "The N Implementation
Details of RLHF with PPO" (2024).

Traps: the value of a token is said before the token is. Log-probabilities are of the temperature that is sampled at,
in the policy, its old self and the reference. Advantages are whitened over the tokens of the whole rollout, before it
is split. An answer that was cut off earns a fixed penalty.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor, nn

from palaestra.algorithm import (
    Algorithm,
    Nets,
    Term,
    Transform,
    Unfit,
    above,
    append_transform,
    between,
    collect_with,
    expressed,
    gives,
    no_columns,
)  # fmt: skip
from palaestra.algorithms.grpo import TOLD, surrogate
from palaestra.algorithms.texts import ROLLOUT, Learning, learnt_from_answers, spoken
from palaestra.batch import Columns, Spec, each_token
from palaestra.functional import tokens
from palaestra.networks.language import Sampling, language_model, token_scalars
from palaestra.rollout.scorers import old_logp, reference_logp
from palaestra.rollout.texts import penalised_without_end

CRITIC, CONTROL = "critic", "kl_control"  # networks


class KLControl(nn.Module):
    """The coefficient of the divergence, a measured number: every part of a run sees the same."""

    coefficient: Tensor

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.register_buffer("coefficient", torch.tensor(coefficient))


def kl_control(coefficient: float, spec: Spec, nets: Nets) -> nn.Module:
    """The factory of `KLControl`, with its first value bound."""
    return KLControl(coefficient)


def foreseen(nets: Nets, b: Columns) -> Tensor:
    """What the critic says before each token: [B, T], 0 before the first."""
    said: Tensor = nets[CRITIC](b["ids"], length=b["length"])
    return nn.functional.pad(said[:, :-1], (1, 0))


@gives("old_value")
def valued(nets: Nets, b: Columns, rng: Generator) -> Columns:
    """With `old_value` [B, T]: what the critic said before each token of the rollout."""
    some = torch.arange(len(b["ids"])).split(64)
    parts = [foreseen(nets, {name: b[name][index] for name in ("ids", "length")}) for index in some]
    return {**b, "old_value": torch.cat(parts)}


def token_rewards(nets: Nets, b: Columns) -> Tensor:
    """The divergence of each token, times its coefficient, and the answer's reward at its last token: [B, T]."""
    kl = (b["old_logp"] - b["reference_logp"]) * b["answer"]
    return tokens.at_last(b["answer"], b["reward"]) - nets[CONTROL].coefficient * kl


@gives("advantage", "lambda_return")
def token_credit(nets: Nets, b: Columns, gamma: float, lam: float) -> Columns:
    """`advantage`, whitened, and `lambda_return`: [B, T]."""
    mask, value = b["answer"], b["old_value"]
    advantage = tokens.token_advantage(token_rewards(nets, b), value, mask, gamma, lam)
    return {"advantage": tokens.masked_whitened(advantage, mask), "lambda_return": advantage + value * mask}


def clipped_value_error(nets: Nets, b: Columns, clip: float) -> tuple[Tensor, Columns]:
    """The larger error of the value and of the value held near what it was, halved: rows [B, T]. Gives `value` [B]."""
    value = foreseen(nets, b)
    held = b["old_value"] + (value - b["old_value"]).clamp(-clip, clip)
    rows = 0.5 * torch.maximum((value - b["lambda_return"]).square(), (held - b["lambda_return"]).square())
    return rows, {"value": tokens.masked_mean(value.detach(), b["answer"], 1)}


@expressed
def ppo_lm(
    kl_coefficient: float = 0.05,
    clip: float = 0.2,
    value_clip: float = 0.2,
    gamma: float = 1.0,
    lam: float = 0.95,
    without_end: float | None = None,
    lr: float = 3e-6,
    critic_lr: float | None = None,
    prompts: int = 512,
    epochs: int = 4,
    minibatches: int = 1,
    temperature: float = 1.0,
    longest: int = 256,
    warm_up: int = 0,
    decay_over: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> Algorithm:
    """Proximal policy optimisation of tokens, with a critic that begins as the language model and says 0.

    Args:
        kl_coefficient: of a token's divergence from the reference, in its reward.
        clip: how far from 1 a ratio of probabilities is rewarded to move.
        value_clip: how far a value may move from what it was, in units of rewards.
        gamma: discount factor of a token, in [0, 1].
        lam: how far advantages look ahead, in [0, 1].
        without_end: what an answer earns that was cut off; what its rewards say when None.
        lr: largest learning rate; below a million parameters 1e-4 to 1e-3.
        critic_lr: of the critic; as `lr` when None.
        prompts: of a round, with an answer each.
        epochs: passes over a round's answers.
        minibatches: updates of a pass.
        temperature: of sampling, and of the policy that is learnt.
        longest: tokens of an answer, with its end.
        warm_up: updates in which the learning rates rise from 0.
        decay_over: updates over which they fall to 0 again; they do not when None.
        weight_decay: of AdamW.
        clip_norm: largest norm of a gradient, of each of the two; not clipped when None.
    """
    between(0, 1, gamma=gamma, lam=lam)
    above(0, clip=clip, value_clip=value_clip, critic_lr=critic_lr)
    learning = Learning(lr, warm_up, decay_over, weight_decay, clip_norm)
    policy = Term(
        partial(surrogate, low=clip, high=clip), stream=ROLLOUT, share=each_token("answer"),
        needs=("advantage", "answer", "old_logp"), gives=TOLD,
    )  # fmt: skip
    critic = Term(
        partial(clipped_value_error, clip=value_clip), stream=ROLLOUT, share=each_token("answer"),
        needs=("lambda_return", "old_value"), gives=("value",),
    )  # fmt: skip
    valuing = replace(learning, lr=critic_lr or lr)
    algorithm = learnt_from_answers(
        {
            "policy": learning.loss({"surrogate": policy}, outputs=partial(spoken, temperature=temperature)),
            "critic": valuing.loss({"value": critic}, trains=(CRITIC,), outputs=no_columns),
        },
        partial(token_credit, gamma=gamma, lam=lam),
        prompts=prompts, answers=1, longest=longest, sampling=Sampling(temperature), epochs=epochs,
        minibatches=minibatches,
        transforms=(
            reference_logp(ROLLOUT, temperature),
            old_logp(temperature),
            Transform(valued, "collect", ROLLOUT, ("ids",), ("old_value",)),
        ),
        networks={
            "policy": language_model(),
            CRITIC: token_scalars(0.0),
            CONTROL: partial(kl_control, kl_coefficient),
        },
    )  # fmt: skip
    if without_end is not None:
        algorithm = collect_with(algorithm, partial(penalised_without_end, penalty=without_end))
    return algorithm


def steered(nets: Nets, b: Columns, rng: Generator, target: float, horizon: float) -> Columns:
    """Moves the coefficient, by a fifth of itself at most for a horizon of answers; the batch stays as it is."""
    kl = ((b["old_logp"] - b["reference_logp"]) * b["answer"]).sum(-1).mean()
    error = (kl / target - 1).clamp(-0.2, 0.2)
    coefficient = nets[CONTROL].coefficient
    assert isinstance(coefficient, Tensor)
    coefficient.mul_(1 + error * len(b["ids"]) / horizon)
    return b


@expressed
def adaptive_kl(algorithm: Algorithm, target: float = 6.0, horizon: float = 10_000.0) -> Algorithm:
    """The coefficient of the divergence follows its target, Ziegler et al. 2019, section 2.2. On `ppo-lm`.

    Args:
        target: divergence from the reference, in nats an answer.
        horizon: answers in which the coefficient changes by a fifth of itself, at most.
    """
    above(0, target=target, horizon=horizon)
    if CONTROL not in algorithm.networks:
        raise Unfit(f"adaptive-kl steers the coefficient of ppo-lm, and {algorithm} has none")
    change = partial(steered, target=target, horizon=horizon)
    needs = ("old_logp", "reference_logp")
    return append_transform(algorithm, Transform(change, "collect", ROLLOUT, needs))
