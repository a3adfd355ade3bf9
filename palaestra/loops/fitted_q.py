"""What a policy is worth where there is no simulator: fitted Q evaluation on the dataset that it learnt from.

    Q <- argmin sum (Q(s, a) - (r + gamma (1 - terminated) Q_target(s', pi(s'))))^2        worth: Q(s_0, pi(s_0))

Papers: Le, Voloshin and Yue, "Batch Policy Learning under Constraints" (2019), algorithm 3; Paine et al.,
"Hyperparameter Selection for Offline Reinforcement Learning" (2020), who find that it ranks policies better than their
own critics do.

Traps: it extrapolates where the policy does what the data never did, and then it is too kind. It says which of two
policies may be better; it is no return that anybody was paid.

Differs from the papers: one network that is always a little behind its newest self, in place of one fit to the end for
each iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from palaestra.algorithm import AfterUpdate, Algorithm, Buffer, Loss, Memory, Nets, Schedule, Term
from palaestra.batch import Columns, Obs, Space
from palaestra.data.dataset import Dataset
from palaestra.data.fixed import Fixed
from palaestra.data.layouts import transition
from palaestra.data.values import with_actions
from palaestra.envs.border import Border
from palaestra.functional.targets import bellman
from palaestra.learner import Learner, generator
from palaestra.networks.critics import action_critic, copy_of, each_action_critic, follow
from palaestra.rollout.collect import step

BATCH, TAU, FIRST_STATES = 256, 0.01, 100


def worth(critic: torch.nn.Module, obs: Obs, action: Tensor) -> Tensor:
    """`Q(s, a)` [B] of actions [B, A] or of choices [B]."""
    if action.dtype == torch.int64:
        return critic(obs)[0].take_along_dim(action.unsqueeze(-1), -1).squeeze(-1)
    value: Tensor = critic(obs, action)[0]
    return value


def td(nets: Nets, b: Columns, gamma: float) -> Tensor:
    """The squared error against the target with the column `next_action`: rows [B]."""
    with torch.no_grad():
        value = worth(nets["target_critic"], b["next_obs"], b["next_action"])
        target = bellman(b["reward"], b["terminated"], value, gamma)
    return (worth(nets["critic"], b["obs"], b["action"]) - target).square()


def nobody(nets: Nets, obs: Obs, memory: Memory, rng: torch.Generator | None) -> tuple[Tensor, Columns, Memory]:
    raise RuntimeError("fitted Q evaluation judges another's actions and has none of its own")


def fitted_q(action: Space, gamma: float, hidden: Sequence[int] = (64, 64), lr: float = 1e-3) -> Algorithm:
    """The evaluation as an algorithm: a critic whose target is not its own best action but the column `next_action`."""
    critic = each_action_critic if action.discrete else action_critic
    return Algorithm(
        networks={"critic": critic(1, hidden, "relu", None), "target_critic": copy_of("critic")},
        policy=nobody,
        collect=step,
        buffers={"replay": Buffer(transition)},
        losses={"critic": Loss({"td": Term(partial(td, gamma=gamma))}, trains=("critic",), lr=lr)},
        after_update=(AfterUpdate(partial(follow, pairs={"target_critic": "critic"}, tau=TAU), follows="critic"),),
        schedule=Schedule(batch_size=BATCH),
        evaluation=(),
    )


def fitted_q_value(
    learner: Learner,
    seed: int,
    dataset: Dataset,
    border: Border,
    number: int,
    gamma: float = 0.99,
    updates: int = 1_000,
) -> dict[str, list[float]]:
    """`{"fitted_q_value": [...]}`: what the policy of one of a learner's seeds is worth in the dataset's first states.

    Discounted, of the first states of at most 100 episodes, spread over the dataset; episodes without actions, labelled
    or not, do not count. `number` tells this evaluation's random stream from others'. A policy with memory cannot be
    asked for single actions: then there is nothing.
    """
    nets, policy = learner.nets_of(seed), learner.algorithm.deployment(learner.algorithm.policy)

    def chosen(obs: Obs) -> tuple[Tensor, Memory]:
        action, _, memory = policy(nets, obs, None, None)
        return action, memory

    dataset = with_actions(dataset)
    judge = Learner(fitted_q(border.spec.action, gamma), border.spec, (seed,), device=learner.device)
    rows = Fixed(judge.algorithm.buffers["replay"], dataset, border)
    drawing = generator(seed, f"evaluation {number}")
    with torch.no_grad():
        episodes = torch.linspace(0, dataset.episodes - 1, min(FIRST_STATES, dataset.episodes)).long()
        first = rows.get("obs", torch.from_numpy(dataset.first)[episodes].to(border.device))
        action, memory = chosen(first)
    if memory is not None:
        return {}
    for _ in range(updates):
        batch = rows.sample(BATCH, drawing)
        with torch.no_grad():
            batch["next_action"] = chosen(batch["next_obs"])[0]
        judge.update({"replay": batch})
    with torch.no_grad():
        return {"fitted_q_value": worth(judge.nets["critic"], first, action).tolist()}
