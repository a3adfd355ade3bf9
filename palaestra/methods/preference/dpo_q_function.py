"""A policy that learnt from preferences is a Q-function: the deployed one searches with beams, by likelihood alone.

In the token MDP (a state is a prompt with the tokens so far, an action the next token) with a penalty beta on the
divergence from the reference,

    Q(s, a) = r(s, a) + beta log pi_ref(a | s) + V(s'),   V(s) = beta log sum_a exp(Q(s, a) / beta),   V(end) = 0
    pi(a | s) = exp((Q(s, a) - V(s)) / beta)

so that r(s, a) = beta log(pi / pi_ref)(a | s) + V(s) - V(s'): beta log(pi / pi_ref) of a token is its reward but for a
potential, which every reward may be shaped by without changing pi. Of a whole answer V(s_0) alone is left, and two
answers to one prompt share it: that is DPO's loss. And for a beginning y_<k of an answer

    sum_{i<k} (r + beta log pi_ref) + V(s_k) = beta log pi(y_<k | x) + V(s_0)

so that a search which keeps the likeliest beginnings keeps those whose return so far and value are the highest.

Paper: Rafailov, Hejna, Park and Finn, "From r to Q*: Your Language Model is Secretly a Q-Function" (2024).

Traps: only the sum of token rewards is identified; one token's is that of one reward of many. Dividing by the length
breaks the equivalence. All of it asks that an answer's tokens alone change the state, and that answers come to an end.
The likeliest answers are short ones: wide beams may be worse. Where the reference was fine-tuned on the chosen answers,
their log-ratio falls while DPO learns, since E_ref[log(pi / ref)] = -KL(ref || pi): see `gains`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from palaestra.algorithm import (
    Algorithm,
    Nets,
    Policy,
    Unfit,
    above,
    also_evaluate,
    deploy_with,
    expressed,
    gives,
    identity,
)  # fmt: skip
from palaestra.algorithms.texts import POLICY
from palaestra.batch import Columns, Obs
from palaestra.networks.language import LanguageModel, pretrained_of
from palaestra.rollout.scorers import of_tokens
from palaestra.rollout.texts import answering

Score = Callable[[Tensor, Tensor], Tensor]


# ----------------------------------------------------------------------------------------- what a policy's numbers say


def implicit_token_reward(b: Columns, beta: float) -> Tensor:
    """`beta (log pi - log pi_ref)` of each token of an answer, 0 elsewhere: [..., T], as `logp`, `reference_logp` and
    `answer` are."""
    reward: Tensor = beta * (b["logp"] - b["reference_logp"]) * b["answer"]
    return reward


def logits_as_q(logits: Tensor, beta: float) -> Tensor:
    """Q of each token as the next one: [..., V], up to a number of each state, which no choice depends on."""
    return beta * logits


def soft_value(q: Tensor, beta: float) -> Tensor:
    """`beta log sum_a exp(Q(s, a) / beta)`: [..., V] -> [...]."""
    return beta * (q / beta).logsumexp(-1)


def gains(nets: Nets, policy: Policy, source: Any) -> dict[str, list[float]]:
    """Of pairs that were held out: `chosen_gain` and `rejected_gain`, log pi - log pi_ref of the answer, in nats."""
    found: dict[str, list[float]] = {}
    device = next(nets.parameters()).device
    for rows in source.held_out.values():
        b = {name: column.to(device) for name, column in rows.rows(torch.arange(len(rows))).items()}
        with torch.no_grad():
            gained = implicit_token_reward({**b, **of_tokens(nets[POLICY], b["ids"], b["length"])}, beta=1.0).sum(-1)
        found |= {"chosen_gain": gained[:, 0].tolist(), "rejected_gain": gained[:, 1].tolist()}
    return found


# ---------------------------------------------------------------------------------------------------------- the search


def likelihood(logp: Tensor, length: Tensor) -> Tensor:
    """The log-probability of a beginning, in nats."""
    return logp


def mean_likelihood(logp: Tensor, length: Tensor) -> Tensor:
    """The log-probability of a beginning, divided by its tokens."""
    return logp / length


def searched(
    network: LanguageModel,
    ids: Tensor,
    attention: Tensor,
    longest: int,
    end: int,
    beams: int,
    score: Score = likelihood,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """The best answer that a search with `beams` finds to each prompt [B, P], padded on the left.

    Of all beginnings with one token more, and the answers that are at their end, the `beams` with the highest `score`
    go on, until all of them have ended or are of `longest` tokens.

    Args:
        network, ids, attention, longest, end: as for `generated`.
        beams: beginnings of each answer that are kept, at least 1; with 1 the likeliest token is taken at each place.
        score: `score(logp, length)` of beginnings, their log-probability and number of tokens.
        temperature: of the policy.

    Returns:
        `ids`, `answer` and `sampled_logp` [B, L], as `generated`.
    """
    with torch.no_grad():
        return _searched(network, ids, attention, longest, end, beams, score, temperature)


def _searched(
    network: LanguageModel,
    ids: Tensor,
    attention: Tensor,
    longest: int,
    end: int,
    beams: int,
    score: Score,
    temperature: float,
) -> dict[str, Tensor]:
    row = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    # Of each beginning [B, K]: its tokens and what was said of them [B, K, L], how many they are, whether it has ended.
    tokens = torch.full((len(ids), 1, longest), end, device=ids.device)
    logp = torch.zeros(tokens.shape, device=ids.device)
    length = torch.zeros_like(tokens[..., 0])
    ended = torch.zeros_like(length, dtype=torch.bool)
    attention = attention.long()
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    said = network.body(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True)
    for t in range(longest):
        following = network.logits(said.last_hidden_state[:, -1], temperature).log_softmax(-1)
        nothing = torch.full_like(following[0], -torch.inf)
        nothing[end] = 0.0  # an answer that has ended is certain to stay as it is
        following = torch.where(ended.unsqueeze(-1), nothing, following.unflatten(0, ended.shape))
        worth = score(logp.sum(-1, keepdim=True) + following, (length + ~ended).unsqueeze(-1)).flatten(1)
        best = worth.topk(min(beams, worth.shape[1])).indices  # the highest comes first
        parent, token = best // len(nothing), best % len(nothing)
        place = (row * ended.shape[1] + parent).flatten()
        tokens, logp, length, ended = (of[row, parent] for of in (tokens, logp, length, ended))
        tokens[..., t], logp[..., t] = token, following.flatten(1).gather(1, best)
        length, ended = length + ~ended, ended | (token == end)
        if t + 1 == longest or ended.all():
            break
        cache = said.past_key_values
        cache.batch_select_indices(place)
        attention = nn.functional.pad(attention[place], (0, 1), value=1)
        said = network.body(
            input_ids=token.reshape(-1, 1),
            attention_mask=attention,
            position_ids=attention.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
    answer = torch.arange(longest, device=ids.device) < length[:, :1]
    return {"ids": tokens[:, 0], "answer": answer, "sampled_logp": logp[:, 0]}


@gives("sampled_logp", "behaviour_logp")
def searching(
    nets: Nets, obs: Obs, memory: Any, rng: Generator | None, policy: Policy, beams: int, score: Score
) -> tuple[Tensor, Columns, Any]:
    """Asked for its most likely answer, the policy searches for it; asked to draw one, it draws as before."""
    if rng is not None:
        return policy(nets, obs, memory, rng)
    assert isinstance(obs, dict)
    network, said = nets[POLICY], policy.keywords  # type: ignore[attr-defined]
    assert isinstance(network, LanguageModel)
    end, temperature = pretrained_of(nets.spec, "a search").end, said["sampling"].temperature
    found = searched(network, obs["ids"], obs["attention"], said["longest"], end, beams, score, temperature)
    return found.pop("ids"), {**found, "behaviour_logp": found["sampled_logp"]}, memory


def by_search(policy: Policy, beams: int, score: Score) -> Policy:
    """A policy that answers with what a search finds."""
    return partial(searching, policy=policy, beams=beams, score=score)


def _deployed(slug: str, algorithm: Algorithm, beams: int, score: Score) -> Algorithm:
    above(0, beams=beams)
    answers = POLICY in algorithm.networks and getattr(algorithm.policy, "func", None) is answering
    if not answers or algorithm.deployment is not identity:
        raise Unfit(f"{slug} does not fit {algorithm}: it deploys a language model that answers as it learnt to")
    return deploy_with(algorithm, partial(by_search, beams=beams, score=score))


@expressed
def dpo_q_function(algorithm: Algorithm, beams: int = 5) -> Algorithm:
    """Deployed, the policy gives the likeliest answer that a beam search finds. On `dpo`, and what answers in texts.

    Args:
        beams: beginnings of an answer that are kept, at least 1; with 1 the likeliest token is taken at each place.
    """
    return _deployed("dpo-q-function", algorithm, beams, likelihood)


@expressed
def length_normalised_search(algorithm: Algorithm, beams: int = 5) -> Algorithm:
    """As `dpo-q-function`, by the mean log-probability of a token: longer answers are no longer at a disadvantage.

    Args:
        beams: as for `dpo-q-function`.
    """
    return _deployed("length-normalised-search", algorithm, beams, mean_likelihood)


@expressed
def gains_evaluated(algorithm: Algorithm) -> Algorithm:
    """An evaluation tells too how much the answers of pairs that were held out gained over the reference. On `dpo`."""
    buffer = algorithm.buffers.get("pairs")
    if buffer is None or not any("reference_logp" in transform.gives for transform in algorithm.transforms):
        raise Unfit(f"gains-evaluated does not fit {algorithm}, which has no pairs beside a reference: choose dpo")
    return also_evaluate(algorithm, gains)
