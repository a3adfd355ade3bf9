"""How good a language model is: what its answers earn, and what it says of texts that it did not learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from palaestra.algorithm import Nets, Policy
from palaestra.data.tokens import TokenRows
from palaestra.functional.tokens import masked_mean
from palaestra.rollout.texts import Given, Texts, generate, scored

AT_ONCE = 64  # rows of a forward pass that needs no gradient
REWARD = "reward"  # the score's name; the rewards that it is the sum of stand beside it by theirs


@dataclass
class Asked:
    """What a language model is judged by.

    Args:
        prompts: rows to answer, none where there is no reward.
        rewards: by name.
        tokenizer: of the model.
        held_out: rows of a dataset that were not learnt from, by buffer.
        texts: what it answered last.
    """

    prompts: Sequence[dict[str, Any]]
    rewards: Mapping[str, Any]
    tokenizer: Any
    held_out: Mapping[str, TokenRows] = field(default_factory=dict)
    texts: Texts | None = None


def answer_rewards(nets: Nets, policy: Policy, source: Asked) -> dict[str, list[float]]:
    """Of the most likely answer to each prompt: the `reward`, and, where there are several, each by its name."""
    return _earned(nets, policy, source, None)


def drawn_rewards(nets: Nets, policy: Policy, source: Asked, seed: int = 0) -> dict[str, list[float]]:
    """As `answer_rewards`, of an answer to each prompt that is drawn as the policy draws when it learns."""
    return _earned(nets, policy, source, torch.Generator(next(nets.parameters()).device).manual_seed(seed))


def _earned(nets: Nets, policy: Policy, source: Asked, rng: torch.Generator | None) -> dict[str, list[float]]:
    if not source.prompts:
        return {}
    asked = Given(source.prompts, source.tokenizer, source.rewards)
    source.texts = texts = scored(generate)(nets, policy, asked, len(source.prompts), rng)
    found = {REWARD: texts.columns["reward"].tolist()}
    if len(source.rewards) > 1:
        found |= {name: [note["rewards"][name] for note in texts.notes] for name in source.rewards}
    return found


def log_probability(nets: Nets, policy: Policy, source: Asked) -> dict[str, list[float]]:
    """Of answers that were held out: the mean over their tokens, in nats."""
    found = [
        masked_mean(nets["policy"](batch["ids"])["logp"], batch["answer"], -1)
        for rows in source.held_out.values()
        for batch in _batches(nets, rows)
    ]
    return {"log_probability": torch.cat(found).tolist()} if found else {}


def preference_accuracy(nets: Nets, policy: Policy, source: Asked) -> dict[str, list[float]]:
    """Of pairs that were held out: whether the one that was chosen has gained more on the reference than the other.

    Where no reference was asked, whether it is the more likely one.
    """
    found = []
    for rows in source.held_out.values():
        for batch in _batches(nets, rows):
            flat = batch["ids"].flatten(0, 1)
            logp = nets["policy"](flat)["logp"].view_as(batch["ids"])
            gained = ((logp - batch.get("reference_logp", 0)) * batch["answer"]).sum(-1)
            found.append((gained[:, 0] > gained[:, 1]).float())
    return {"accuracy": torch.cat(found).tolist()} if found else {}


def ranking_accuracy(nets: Nets, policy: Policy, source: Asked) -> dict[str, list[float]]:
    """Of pairs that were held out: whether the reward model says more of the one that was chosen."""
    found = []
    for rows in source.held_out.values():
        for batch in _batches(nets, rows):
            score = score_of(nets["reward"], batch)
            found.append((score[:, 0] > score[:, 1]).float())
    return {"accuracy": torch.cat(found).tolist()} if found else {}


def score_of(network: Any, batch: dict[str, Any]) -> torch.Tensor:
    """What a reward model says at the last token of each row: [B], or [B, K] of several answers."""
    ids, length = batch["ids"], batch["length"]
    numbers = network(ids, length=length)
    last: torch.Tensor = numbers.gather(-1, length.unsqueeze(-1) - 1).squeeze(-1)
    return last


def _batches(nets: Nets, rows: TokenRows) -> Any:
    device = next(nets.parameters()).device
    for index in torch.arange(len(rows)).split(AT_ONCE):
        yield {name: value.to(device) for name, value in rows.rows(index).items()}
