"""Intervention: an expert acts for a few steps, when it wants to, in place of the policy that learns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Memory, Nets, Policy, Store, gives
from palaestra.batch import Columns, Obs
from palaestra.data.layouts import STEP, transition

Expert = Callable[[Nets, Obs], Tensor]  # its actions for observations [B, ...]
Wants = Callable[[Nets, Obs, Tensor, Generator], Tensor]  # [B]: whether it steps in, given what the policy would do


@gives("intervened", "stepped_in")
def intervened(policy: Policy, expert: Expert, wants: Wants, steps: int) -> Policy:
    """While it explores, an expert takes over for `steps` steps wherever it `wants` to; then the policy acts again.

    Gives `intervened` [B], whether the expert acts, and `stepped_in` [B], whether it began to with this step: it may
    begin anew as soon as it has ended.
    """

    def act(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
        if rng is None:
            return policy(nets, obs, memory, None)
        remembered = memory or {}
        action, columns, inner = policy(nets, obs, remembered.get("policy"), rng)
        left = remembered.get("left", torch.zeros(len(action), dtype=torch.long, device=action.device))
        stepped_in = (left == 0) & wants(nets, obs, action, rng)
        left = torch.where(stepped_in, steps, left)
        acts = left > 0
        action = torch.where(acts.view(-1, *[1] * (action.dim() - 1)), expert(nets, obs), action)
        kept = {"left": (left - 1).clamp(min=0)} | ({} if inner is None else {"policy": inner})
        return action, {**columns, "intervened": acts, "stepped_in": stepped_in}, kept

    return act


@gives(*STEP)
def blamed(store: Store, index: Tensor, rng: Generator) -> Columns:
    """A step of the policy is worth -1 where an expert stepped in right after it, every other step 0.

    So are all steps where nobody could step in: those of a dataset, and an episode's last. No other reward is read.
    """
    batch = transition(store, index, rng)
    reward = torch.zeros_like(batch["reward"])
    if "stepped_in" in batch:
        following = store.next(index)
        after = store.get("stepped_in", following) & ~store.ends(following)
        reward = torch.where(after & ~batch["intervened"], -1.0, reward)
    return {**batch, "reward": reward}
