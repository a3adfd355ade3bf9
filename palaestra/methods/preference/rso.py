"""RSO: pairs to prefer in are drawn, by rejection, from about the policy that is best for a reward, not from the first.

    pi_r(y | x) ~ pi_0(y | x) exp(r(x, y) / c)       pi_0: what the policy began as, sampled; c: `kl_coefficient`
    of N candidates from pi_0, pass after pass until n are accepted: y, if u < exp((r(y) - max r of those left) / c)
    pairs of the accepted, two and two at random: chosen is whichever has the larger reward

Paper: Liu et al., "Statistical Rejection Sampling Improves Preference Optimization" (2024). Its beta of the sampler is
`kl_coefficient`, its gamma the `beta` of `dpo` (sigmoid-norm) or of `+hinge-link` (hinge-norm); on `slic` it is the
paper's hinge. "rso-sample-rank" is `rso`, "sft-sample-rank" is `sft_sample_rank`, and "direct" is the base alone.

All rounds draw from pi_0: each makes a share of the paper's dataset, with new prompts, and `rounds=1` makes all of it
at once. Rewards need only be known up to a constant for each prompt.

Traps: what is accepted has the law pi_r while one pass is enough, n below N times the mean of exp((r - max r) / c); a
run tells the `passes`, and n = N accepts everything. `kl_coefficient` is not how strongly the loss holds the policy,
and a very small one finds what the reward model is wrong about. Two answers that earned the same prefer nothing: such a
pair has weight 0. What a run counts as answers are pairs, not candidates.

Differs from the paper: r is the reward of the source, for one a run of `reward-model`, where the paper's is the logit
with which a pairwise ranker prefers y to a random answer of pi_0. Equal candidates count as often as they come, so that
the law is that of pi_0; in the paper's listing they are keys of a dictionary, and count once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from palaestra.algorithm import (
    Algorithm,
    Buffer,
    Nets,
    Policy,
    above,
    collect_with,
    expressed,
    replace_policy,
    reschedule,
)  # fmt: skip
from palaestra.algorithms.texts import POLICY, ROLLOUT
from palaestra.data.tokens import TOKENS, picked, rolled_pairs
from palaestra.networks.actors import instead
from palaestra.networks.language import Sampling, reference
from palaestra.rollout.texts import TextCollect, Texts, answering, in_groups

PAIRS = "pairs"
Gather = Callable[[TextCollect], TextCollect]
Pairing = Callable[[Tensor, Generator], Tensor]  # rewards [G, n] -> places of pairs [G, P, 2], the better one first


def statistical_rejection(reward: Tensor, number: int, kl_coefficient: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """Which of the candidates of a group are accepted, by their rewards [G, N].

    Returns their places [G, number], in their order, and in which pass the last of them was accepted, from 1 on [G].
    A pass accepts the best that is left for certain, so there are `number` of them at most.
    """
    never = reward.shape[1]
    taken = torch.full_like(reward, never, dtype=torch.int64)
    for turn in range(number):
        left = taken == never
        best = reward.masked_fill(~left, -torch.inf).amax(1, keepdim=True)
        likely = ((reward - best) / kl_coefficient).exp()
        drawn = torch.rand(reward.shape, generator=rng, device=reward.device)
        taken = torch.where(left & (drawn < likely), turn, taken)
        if (taken < never).sum(1).min() >= number:
            break
    order = taken.argsort(dim=1, stable=True)[:, :number]
    return order, taken.gather(1, order)[:, -1] + 1


def first_round(reward: Tensor, rng: Generator) -> Tensor:
    """Two and two at random, each one in one pair; of an odd number one is left out: [G, n] -> [G, n // 2, 2]."""
    return better_first(reward, torch.rand(reward.shape, generator=rng, device=reward.device).argsort(1))


def tournament(reward: Tensor, rng: Generator) -> Tensor:
    """`first_round`, then the better ones two and two again, until one is left: [G, n] -> [G, n - 1, 2], n = 2^k."""
    rounds = [first_round(reward, rng)]
    while rounds[-1].shape[1] > 1:
        rounds.append(better_first(reward, rounds[-1][..., 0]))
    return torch.cat(rounds, 1)


def better_first(reward: Tensor, place: Tensor) -> Tensor:
    """Neighbours among places [G, m] as pairs [G, m // 2, 2], the one with the larger reward [G, n] first."""
    pairs = place[:, : place.shape[1] // 2 * 2].unflatten(1, (-1, 2))
    first, second = reward.gather(1, pairs.flatten(1)).view_as(pairs).unbind(-1)
    return torch.where((first >= second)[..., None], pairs, pairs.flip(-1))


# ---------------------------------------------------------------------------------------------------------- collects


def from_reference(collect: TextCollect) -> TextCollect:
    """Answers of the model that the policy began as, in place of the policy's."""
    return partial(_from_reference, collect=collect)


def _from_reference(nets: Nets, policy: Policy, source: Any, n: int, rng: Generator, collect: TextCollect) -> Texts:
    with reference(nets) as model:
        return collect(instead(nets, policy=model), policy, source, n, rng)


def rejecting(collect: TextCollect, number: int, kl_coefficient: float) -> TextCollect:
    """Of each group the `number` that `statistical_rejection` accepts; notes tell in how many `passes`."""
    return partial(_rejecting, collect=collect, number=number, kl_coefficient=kl_coefficient)


def _rejecting(
    nets: Nets,
    policy: Policy,
    source: Any,
    n: int,
    rng: Generator,
    collect: TextCollect,
    number: int,
    kl_coefficient: float,
) -> Texts:
    texts = collect(nets, policy, source, n, rng)
    place, passes = statistical_rejection(by_prompt(texts, n), number, kl_coefficient, rng)
    kept = texts.rows(of_all(place, len(texts)).flatten())
    counts = passes.repeat_interleave(number).tolist()
    return Texts(kept.columns, [{**note, "passes": count} for note, count in zip(kept.notes, counts, strict=True)])


def paired(collect: TextCollect, pairing: Pairing) -> TextCollect:
    """The answers to each prompt in pairs: columns [P, 2, T], and `weight` [P], 0 where both earned the same.

    A pair's note is that of the chosen one, with the other one's text as `rejected`.
    """
    return partial(_paired, collect=collect, pairing=pairing)


def _paired(
    nets: Nets, policy: Policy, source: Any, n: int, rng: Generator, collect: TextCollect, pairing: Pairing
) -> Texts:
    texts = collect(nets, policy, source, n, rng)
    index = of_all(pairing(by_prompt(texts, n), rng), len(texts)).flatten(0, 1)
    columns = picked({name: texts.columns[name] for name in (*TOKENS, "reward")}, index)
    chosen, rejected = columns["reward"].unbind(1)
    notes = [{**texts.notes[i], "rejected": texts.notes[j]["answer"]} for i, j in index.tolist()]
    return Texts({**columns, "weight": (chosen > rejected).float()}, notes)


def by_prompt(texts: Texts, prompts: int) -> Tensor:
    """The rewards of as many answers to each prompt: [G, n]."""
    reward: Tensor = texts.columns["reward"]
    return reward.unflatten(0, (prompts, -1))


def of_all(place: Tensor, rows: int) -> Tensor:
    """Places within groups [G, ...] as indices of all `rows`, which lie group by group."""
    groups = len(place)
    first = torch.arange(groups, device=place.device) * (rows // groups)
    return place + first.view(-1, *[1] * (place.dim() - 1))


# ----------------------------------------------------------------------------------------------------------- methods


@expressed
def rso(
    algorithm: Algorithm,
    kl_coefficient: float = 0.5,
    candidates: int = 64,
    accepted: int = 8,
    prompts: int = 64,
    epochs: int = 1,
    temperature: float = 0.7,
    top_k: int | None = 40,
) -> Algorithm:
    """Pairs of what statistical rejection accepts. On `dpo` and what else learns from pairs; its updates stay as large.

    Args:
        kl_coefficient: c above, in units of the reward: towards 0 the best candidates are accepted, and where it is
            large the first ones.
        candidates: N, for each prompt.
        accepted: n, of each prompt, at least 2 and at most N.
        prompts: of a round.
        epochs: passes over a round's pairs.
        temperature, top_k: of sampling.
    """
    gather = _best_of(candidates, accepted, kl_coefficient)
    return _sampled("rso", algorithm, gather, first_round, accepted, prompts, epochs, Sampling(temperature, top_k))


@expressed
def rso_tournament(
    algorithm: Algorithm,
    kl_coefficient: float = 0.5,
    candidates: int = 64,
    accepted: int = 8,
    prompts: int = 64,
    epochs: int = 1,
    temperature: float = 0.7,
    top_k: int | None = 40,
) -> Algorithm:
    """`rso` with the better ones paired again, round by round: nearly twice as many pairs.

    Args:
        kl_coefficient, candidates, accepted, prompts, epochs, temperature, top_k: as for `rso`.
    """
    gather, sampling = _best_of(candidates, accepted, kl_coefficient), Sampling(temperature, top_k)
    return _sampled("rso-tournament", algorithm, gather, tournament, accepted, prompts, epochs, sampling)


@expressed
def sft_sample_rank(
    algorithm: Algorithm,
    answers: int = 8,
    prompts: int = 64,
    epochs: int = 1,
    temperature: float = 0.7,
    top_k: int | None = 40,
) -> Algorithm:
    """Pairs of what the model that the policy began as answers, none of it rejected.

    Args:
        answers: to each prompt, at least 2.
        prompts, epochs, temperature, top_k: as for `rso`.
    """
    above(1, answers=answers)
    gather, sampling = partial(in_groups, size=answers), Sampling(temperature, top_k)
    return _sampled("sft-sample-rank", algorithm, gather, first_round, answers, prompts, epochs, sampling)


def _best_of(candidates: int, accepted: int, kl_coefficient: float) -> Gather:
    above(0, kl_coefficient=kl_coefficient)
    above(1, accepted=accepted)
    if accepted > candidates:
        raise ValueError(f"accepted is {accepted}; it must not be more than candidates, {candidates}")
    return lambda collect: rejecting(in_groups(collect, candidates), accepted, kl_coefficient)


def _sampled(
    slug: str,
    algorithm: Algorithm,
    gather: Gather,
    pairing: Pairing,
    kept: int,
    prompts: int,
    epochs: int,
    sampling: Sampling,
) -> Algorithm:
    """Learning from pairs of the `kept` answers to each prompt that are gathered, in place of a dataset's."""
    above(0, prompts=prompts, epochs=epochs, temperature=sampling.temperature, top_k=sampling.top_k)
    policy = algorithm.policy
    if PAIRS not in algorithm.buffers or POLICY not in algorithm.networks or not isinstance(policy, partial):
        raise ValueError(f"{slug} does not fit {algorithm}: it gives pairs to what learns from them; try it on dpo")

    def moved(part: Any) -> Any:
        return replace(part, stream=ROLLOUT) if part.stream == PAIRS else part

    losses = {
        name: replace(
            loss,
            terms={key: moved(term) for key, term in loss.terms.items()},
            transforms=tuple(map(moved, loss.transforms)),
        )
        for name, loss in algorithm.losses.items()
    }
    buffers = {name: buffer for name, buffer in algorithm.buffers.items() if name != PAIRS}
    changed = replace(
        algorithm,
        losses=losses,
        buffers={**buffers, ROLLOUT: Buffer(rolled_pairs)},
        transforms=tuple(map(moved, algorithm.transforms)),
    )
    changed = replace_policy(changed, partial(answering, **{**policy.keywords, "sampling": sampling}))
    changed = collect_with(changed, lambda collect: paired(gather(from_reference(collect)), pairing))
    pairs = prompts * pairing(torch.zeros(1, kept), Generator()).shape[1]
    minibatches = math.ceil(pairs / algorithm.schedule.batch_size)
    return reschedule(changed, collect=prompts, epochs=epochs, minibatches=minibatches)
