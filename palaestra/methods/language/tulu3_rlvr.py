"""RLVR: a language model earns what a program can verify, and nothing else; and DPO whose gains are means of tokens.

    dpo-norm      -log sigma(beta (g_w / n_w - g_l / n_l))      g: gain over the reference, n: tokens of the answer
    tulu3-rlvr    R = reward v, v in [0, 1] what a verifier says; fixed where the answer was cut off

Both are stages of one recipe: fine-tuning, length-normalised DPO, then PPO with such rewards, whose critic begins as a
reward model that was learnt from preferences and whose score is not added. `palaestra stages tulu3-rlvr --out FOLDER`
runs it (`palaestra/staged/tulu3_rlvr.toml`).

Paper: Lambert et al., "Tulu 3: Pushing Frontiers in Open Language Model Post-Training" (2024).

Traps: this beta, 5, is of means, and no more than that of `dpo` on answers of 50 tokens. Where rewards are 10, values
are too: a `value_clip` of 0.2 lets the critic go 0.2 of them a round. The critic's reward model must have the same
tokens.

Differs from the paper: rollouts are not collected while the last ones are learnt from.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Generator

from palaestra.algorithm import Algorithm, Nets, Policy, Unfit, above, collect_with, expressed, rebind
from palaestra.algorithms.dpo import a_token, gain
from palaestra.algorithms.texts import ROLLOUT
from palaestra.data.tokens import rolled
from palaestra.functional.preferences import logistic
from palaestra.rollout.texts import TextCollect, Texts, penalised_without_end


def worth(collect: TextCollect, reward: float) -> TextCollect:
    """Every answer earns `reward` times what was said of it."""
    return partial(_worth, collect=collect, reward=reward)


def _worth(
    nets: Nets, policy: Policy, source: Any, n: int, rng: Generator, collect: TextCollect, reward: float
) -> Texts:
    texts = collect(nets, policy, source, n, rng)
    return Texts({**texts.columns, "reward": reward * texts.columns["reward"]}, texts.notes)


@expressed
def tulu3_rlvr(algorithm: Algorithm, reward: float = 10.0, without_end: float | None = -10.0) -> Algorithm:
    """Verified answers earn a fixed reward, those that were cut off a fixed penalty. On `ppo-lm`, or what samples.

    The paper: `lr=3e-7, kl_coefficient=0.05`, and a critic that begins as a reward model.

    Args:
        reward: of an answer that its verifier gives 1; the paper's alpha.
        without_end: what an answer earns that was cut off, whatever is said of it; just that when None.
    """
    above(0, reward=reward)
    if ROLLOUT not in algorithm.buffers or algorithm.buffers[ROLLOUT].layout is not rolled:
        raise Unfit(f"tulu3-rlvr does not fit {algorithm}: it rewards answers that are learnt from, as those of ppo-lm")
    verified = collect_with(algorithm, partial(worth, reward=reward))
    if without_end is None:
        return verified
    return collect_with(verified, partial(penalised_without_end, penalty=without_end))


@expressed
def dpo_norm(algorithm: Algorithm, beta: float = 5.0) -> Algorithm:
    """Gains over the reference are divided by an answer's tokens: long answers gain nothing by being long. On `dpo`.

    Args:
        beta: how strongly the policy is held to the reference, a token.
    """
    above(0, beta=beta)
    terms = algorithm.losses["policy"].terms
    if "preference" not in terms or "reference_logp" not in terms["preference"].needs:
        raise Unfit(f"dpo-norm does not fit {algorithm}: it changes how dpo compares two answers with its reference")
    mean = partial(a_token, amount=gain)
    return rebind(algorithm, "policy", "preference", link=partial(logistic, beta=beta), amount=mean)
