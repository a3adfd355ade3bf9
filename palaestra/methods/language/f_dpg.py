"""f-DPG: answers become those of a target distribution, and a divergence of one's choice says how far they are from it.

    target: P / Z,  P(y|x) = a(y|x) exp(r(x, y) / beta),  a the reference;     t = pi / (P / Z)
    pseudo-reward R = -f'(t) in place of r, and at every token the advantage R - B

    f_dpg                    Jensen-Shannon         log(1 + 1 / t) - log 2
    f_dpg_forward_kl         KL(p || pi)            1 / t
    f_dpg_reverse_kl         KL(pi || p)            -log t - 1
    f_dpg_total_variation    total variation        -sign(log t) / 2
    pointwise_constraint     r becomes log r: where r is 0 or 1, P is a(y|x) r(x, y)

Z is the mean of P / pi over all answers so far, B that of R over the last ones. Reverse KL is what `rloo` makes small
with `kl_coefficient=beta`, forward KL is DPG and GDC.

Paper: Go et al., "Aligning Language Models with Preferences through f-divergence Minimization" (2023); beta is `beta`.

Traps: where P is 0 the reverse divergence is infinite: `pointwise_constraint` has a least log r. While Z is too small,
as before the first answer that satisfies, t is too: rewards are held within +-1000. `grpo` divides what an answer
learns by its length, which is the gradient of no divergence; `rloo` learns from whole answers. P knows the probability
of whole answers, so that top-k and top-p have no place in sampling. Those who clip ratios learn from a rollout once.

Differs from the paper: Z is of all prompts together, so that the target is one of prompts with their answers; the
authors' code has a Z for each prompt, which comes again. B counts the answers that it is taken from: that shortens the
gradient by 1 / window. Answers are the policy's own, not those of an earlier policy that was better. Distributional
constraints (GDC) are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor, nn

from palaestra.algorithm import (
    Algorithm,
    Nets,
    Transform,
    Unfit,
    above,
    add_networks,
    append_transform,
    collect_with,
    expressed,
    gives,
)  # fmt: skip
from palaestra.algorithms.texts import POLICY, ROLLOUT, of_answer, per_token
from palaestra.batch import Columns, Spec
from palaestra.data.tokens import rolled
from palaestra.functional import divergences
from palaestra.rollout.scorers import reference_logp
from palaestra.rollout.texts import TextCollect, Texts

TARGET = "target"  # the network
LEAST = -50.0  # of a logarithm: e^-50 is 0, and finite

PseudoReward = Callable[[Tensor], Tensor]  # of log t


class Target(nn.Module):
    """What is measured of the target: the sum of P / pi over `answers`, as a logarithm, and the last pseudo-rewards."""

    log_total: Tensor
    answers: Tensor
    last: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.register_buffer("log_total", torch.tensor(-torch.inf))
        self.register_buffer("answers", torch.tensor(0))
        self.register_buffer("last", torch.zeros(window))

    def weigh(self, log_weight: Tensor) -> Tensor:
        """`log Z`, 0-d, once answers of these `log P / pi` [B] are counted."""
        self.log_total.copy_(torch.logaddexp(self.log_total, log_weight.logsumexp(0)))
        self.answers.add_(len(log_weight))
        return self.log_total - self.answers.log()

    def remember(self, reward: Tensor) -> Tensor:
        """The baseline, 0-d, once these pseudo-rewards [B] are the last ones."""
        size = len(self.last)
        self.last.copy_(torch.cat([self.last, reward])[-size:])
        return self.last.sum() / self.answers.clamp(max=size)


def target(window: int, spec: Spec, nets: Nets) -> nn.Module:
    """The factory of `Target`, with the number of answers bound that the baseline is of."""
    return Target(window)


@gives("pseudo_reward")
def pseudo_rewarded(nets: Nets, b: Columns, rng: Generator, reward: PseudoReward, beta: float) -> Columns:
    """With `pseudo_reward` [B], less its baseline."""
    towards = nets[TARGET]
    assert isinstance(towards, Target)
    log_ratio = of_answer({**b, "log_ratio": b["reference_logp"] - b["sampled_logp"]}, "log_ratio")
    log_weight = log_ratio + b["reward"] / beta
    rewarded = reward(towards.weigh(log_weight) - log_weight)
    return {**b, "pseudo_reward": rewarded - towards.remember(rewarded)}


@gives("advantage")
def pseudo_advantage(nets: Nets, b: Columns) -> Columns:
    """The pseudo-reward at every token of the answer."""
    return per_token(b, b["pseudo_reward"])


def _towards(slug: str, algorithm: Algorithm, reward: PseudoReward, beta: float, window: int) -> Algorithm:
    above(0, beta=beta, window=window)
    rollout = algorithm.buffers.get(ROLLOUT)
    if rollout is None or rollout.layout is not rolled or list(algorithm.losses) != [POLICY]:
        raise Unfit(f"{slug} does not fit {algorithm}: it rewards answers where there is no critic; choose rloo")
    if "kl" in algorithm.losses[POLICY].terms:
        raise Unfit(f"{slug} has the reference in its target, and {algorithm} a term of it: kl_coefficient=0")
    if not any("reference_logp" in transform.gives for transform in algorithm.transforms):
        sampling = algorithm.policy.keywords["sampling"]  # type: ignore[attr-defined]
        algorithm = append_transform(algorithm, reference_logp(ROLLOUT, sampling.temperature))
    change = Transform(
        partial(pseudo_rewarded, reward=reward, beta=beta), "collect", ROLLOUT,
        ("reference_logp", "sampled_logp", "answer", "reward"), ("pseudo_reward",),
    )  # fmt: skip
    algorithm = append_transform(add_networks(algorithm, **{TARGET: partial(target, window)}), change)
    return replace(algorithm, advantage=pseudo_advantage)


@expressed
def f_dpg(algorithm: Algorithm, beta: float = 0.1, window: int = 1024) -> Algorithm:
    """Down the Jensen-Shannon divergence from the target; the authors' choice. On `rloo`, and others without a critic.

    Args:
        beta: nats of the reference that a reward of 1 is worth, as its inverse; above 0.
        window: answers that the baseline is the mean of.
    """
    return _towards("f-dpg", algorithm, divergences.jensen_shannon_reward, beta, window)


@expressed
def f_dpg_forward_kl(algorithm: Algorithm, beta: float = 0.1, window: int = 1024) -> Algorithm:
    """Down KL(p || pi), which wants all answers of the target: DPG (Parshakova et al. 2019) and GDC (Khalifa et al.).

    Args:
        beta, window: as for `f_dpg`.
    """
    return _towards("f-dpg-forward-kl", algorithm, divergences.forward_kl_reward, beta, window)


@expressed
def f_dpg_reverse_kl(algorithm: Algorithm, beta: float = 0.1, window: int = 1024) -> Algorithm:
    """Down KL(pi || p), which wants no answers but the target's: the usual penalised reward.

    Args:
        beta, window: as for `f_dpg`.
    """
    return _towards("f-dpg-reverse-kl", algorithm, divergences.reverse_kl_reward, beta, window)


@expressed
def f_dpg_total_variation(algorithm: Algorithm, beta: float = 0.1, window: int = 1024) -> Algorithm:
    """Down the total variation: an answer is worth more where the target is above the policy, by however much.

    Args:
        beta, window: as for `f_dpg`.
    """
    return _towards("f-dpg-total-variation", algorithm, divergences.total_variation_reward, beta, window)


def logged(collect: TextCollect) -> TextCollect:
    """Answers earn the logarithm of what was said of them, at least `LEAST`."""
    return partial(_logged, collect=collect)


def _logged(*given: object, collect: TextCollect) -> Texts:
    texts = collect(*given)
    reward = texts.columns["reward"]
    if (least := float(reward.min())) < 0:
        raise ValueError(f"a reward is {least:g}, and a constraint is never below 0: leave pointwise-constraint out")
    return Texts({**texts.columns, "reward": reward.log().clamp(min=LEAST)}, texts.notes)


@expressed
def pointwise_constraint(algorithm: Algorithm) -> Algorithm:
    """Answers earn the logarithm of their reward, which is to be in [0, 1]: 0 where it is satisfied, -50 where not.

    Beside `f_dpg` the target is then `a(y|x) r(x, y)^(1 / beta)`, in any order of the two. On what samples answers.
    """
    rollout = algorithm.buffers.get(ROLLOUT)
    if rollout is None or rollout.layout is not rolled:
        raise Unfit(f"pointwise-constraint does not fit {algorithm}, which samples no answers: choose rloo")
    return collect_with(algorithm, logged)
