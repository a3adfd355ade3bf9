"""RLIF: no reward but an expert's interventions: a step of the policy after which it stepped in was a bad one.

    r_t = -1 where the expert steps in at t + 1 and the policy acted at t, else 0; 0 in all of the dataset
    rlif:         steps in with probability 0.95 where Q*(s, a) < Q*(s, mu*(s)) - (1 - tolerance) |Q*(s, mu*(s))|,
                  else 0.05;  a ~ pi(.|s)
    rlif-random:  steps in with the same probability anywhere
    hg-dagger:    steps in as with rlif; a clone learns from the dataset and from what the expert does then

It then acts for `length` steps. The expert mu* clones the dataset's best episodes, Q* is what its actions are worth,
by fitted Q evaluation on all episodes: both are fitted to the dataset once, before the first step, and play the person
who watches. The policy does not see them. Of the dataset it is shown the expert's episodes, without rewards.

Paper: Luo, Dong, Zhai, Ma and Levine, "RLIF: Interactive Imitation Learning as Reinforcement Learning" (2024); delta is
`tolerance`, k `length`. `hg_dagger` is its baseline, of Kelly et al., "HG-DAgger" (2019).

Traps: nobody is paid for ending an episode early, but a step costs at most nothing: where ending is a failure that the
expert does not foresee, the policy learns to end. With interventions everywhere every policy is as bad. Q*
knows nothing of what is far from the dataset, and a policy flees to where nobody objects: with a dataset of the
expert's episodes alone it did. Give it one that has seen worse.

Differs from the paper: its experts and their critics were trained by reinforcement learning with the task's reward;
here both are fitted to what the expert did, so that an expert is as good as a clone of its data. The threshold is
relative to the size of a value, since `delta Q*` turns round where values are negative. All steps are kept; the
authors leave out most of the expert's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor, nn

from palaestra.algorithm import (
    Algorithm,
    Factory,
    Nets,
    Transform,
    above,
    add_networks,
    append_transform,
    between,
    explore_with,
    expressed,
    gives,
    reprioritise,
    with_layout,
)  # fmt: skip
from palaestra.batch import Columns, Obs, each
from palaestra.data.priorities import InProportion
from palaestra.data.whole import best_episodes, episodes
from palaestra.networks.actors import deterministic_actor
from palaestra.networks.critics import action_critic, said_by
from palaestra.networks.fitting import by_episode, cloning_error, drawing_from, fitted, untrained
from palaestra.rollout.intervention import Wants, blamed, intervened

HELD_OUT = 0.1
ROUNDS = 30  # of fitted Q evaluation
EXPERT, JUDGE = "expert", "judge"  # networks


def expert_action(nets: Nets, obs: Obs) -> Tensor:
    """`mu*(s)`."""
    action: Tensor = nets[EXPERT](obs)
    return action


def worse_than_expert(nets: Nets, obs: Obs, action: Tensor, rng: Generator, tolerance: float) -> Tensor:
    """Steps in nearly always where the action is worth less than the expert's, and seldom elsewhere: [B]."""
    worth, expert = (said_by(nets[JUDGE], obs, a)[0] for a in (action, expert_action(nets, obs)))
    worse = worth < expert - (1.0 - tolerance) * expert.abs()
    drawn = torch.rand(worse.shape, generator=rng, device=worse.device)
    return drawn < torch.where(worse, 0.95, 0.05)


def at_random(nets: Nets, obs: Obs, action: Tensor, rng: Generator, probability: float) -> Tensor:
    """Steps in with this probability: [B]."""
    return torch.rand(len(action), generator=rng, device=action.device) < probability


def judging_error(judge: nn.Module, b: Columns) -> Tensor:
    """From what the logged action is `worth`: rows [B]."""
    return (said_by(judge, b["obs"], b["action"])[0] - b["worth"]).square()


@gives("of_expert")
def fit_expert(
    nets: Nets,
    columns: Columns,
    rng: Generator,
    factories: dict[str, Factory],
    gamma: float,
    share: float,
    updates: int,
) -> Columns:
    """`of_expert` [R]: whether a step is of the best `share` of the episodes. Writes expert and judge into `nets`."""
    number = episodes(columns)
    shown = best_episodes(columns, max(1, round(share * (int(number[-1]) + 1))))[number]
    with drawing_from(rng):
        expert, judge = (factories[name](nets.spec, nets) for name in (EXPERT, JUDGE))
    logged = {"obs": columns["obs"], "action": columns["action"]}
    sides = by_episode({**columns, "valid": columns["valid"] & shown}, HELD_OUT, rng)
    fitted(expert, cloning_error, *_at(logged, sides), rng)
    sides = by_episode(columns, HELD_OUT, rng)
    following = each(lambda x: x.roll(-1, 0), columns["obs"])
    then = expert(following)
    worth = columns["reward"]
    for _ in range(ROUNDS):
        rows = {**logged, "worth": worth}
        fitted(judge.requires_grad_(), judging_error, *_at(rows, sides), rng, updates=updates)
        worth = columns["reward"] + gamma * ~columns["terminated"] * said_by(judge, following, then)[0]
    nets[EXPERT].load_state_dict(expert.state_dict())
    nets[JUDGE].load_state_dict(judge.state_dict())
    return {**columns, "of_expert": shown}


def _at(columns: Columns, sides: tuple[Tensor, Tensor]) -> tuple[Columns, Columns]:
    """The rows to fit, and those held out."""
    fit, held_out = ({key: each(lambda x: x[rows], value) for key, value in columns.items()} for rows in sides)  # noqa: B023
    return fit, held_out


@expressed
def rlif(
    algorithm: Algorithm,
    tolerance: float = 0.975,
    length: int = 4,
    expert_share: float = 0.1,
    gamma: float = 0.99,
    hidden: Sequence[int] = (256, 256),
    fit_updates: int = 500,
) -> Algorithm:
    """Learns from when an expert steps in, and from no other reward. On what has prior data: `rlpd`, `sac+prior-data`.

    Args:
        tolerance: the share of the expert's value below which an action makes it step in, in [0, 1].
        length: steps that it then acts for.
        expert_share: of the dataset's episodes, those of highest return, in (0, 1]: they are the expert's.
        gamma: discount factor of the values that it judges by, in [0, 1].
        hidden: units of each hidden layer of the expert and of its values.
        fit_updates: most updates of each of the 30 rounds in which its values are fitted, of 256 rows.
    """
    between(0, 1, tolerance=tolerance)
    wants = partial(worse_than_expert, tolerance=tolerance)
    return _rewarded(_watched("rlif", algorithm, wants, length, expert_share, gamma, hidden, fit_updates))


@expressed
def rlif_random(
    algorithm: Algorithm,
    probability: float = 0.5,
    length: int = 4,
    expert_share: float = 0.1,
    gamma: float = 0.99,
    hidden: Sequence[int] = (256, 256),
    fit_updates: int = 500,
) -> Algorithm:
    """As `rlif`, with an expert that steps in without looking.

    Args:
        probability: that it steps in before a step of the policy, in [0, 1].
        length, expert_share, gamma, hidden, fit_updates: as for `rlif`.
    """
    between(0, 1, probability=probability)
    wants = partial(at_random, probability=probability)
    return _rewarded(_watched("rlif-random", algorithm, wants, length, expert_share, gamma, hidden, fit_updates))


@expressed
def hg_dagger(
    algorithm: Algorithm,
    tolerance: float = 0.975,
    length: int = 4,
    expert_share: float = 0.1,
    gamma: float = 0.99,
    hidden: Sequence[int] = (256, 256),
    fit_updates: int = 500,
) -> Algorithm:
    """A clone goes on learning from what an expert does when it steps in. On `bc+prior-data`.

    Args:
        tolerance, length, expert_share, gamma, hidden, fit_updates: as for `rlif`.
    """
    between(0, 1, tolerance=tolerance)
    wants = partial(worse_than_expert, tolerance=tolerance)
    watched = _watched("hg-dagger", algorithm, wants, length, expert_share, gamma, hidden, fit_updates)
    kept = replace(watched.buffers["replay"], keep=of_expert)
    return replace(watched, buffers={**watched.buffers, "replay": kept})


def of_expert(rows: Columns) -> Tensor:
    """`Buffer.keep`: the steps in which the expert acted, [N]."""
    acted: Tensor = rows["intervened"]
    return acted


def _rewarded(algorithm: Algorithm) -> Algorithm:
    return with_layout(with_layout(algorithm, "replay", blamed), "dataset", blamed)


def _watched(
    slug: str,
    algorithm: Algorithm,
    wants: Wants,
    length: int,
    share: float,
    gamma: float,
    hidden: Sequence[int],
    fit_updates: int,
) -> Algorithm:
    """With an expert that is fitted to the dataset and acts for `length` steps when it `wants` to."""
    above(0, length=length, expert_share=share, fit_updates=fit_updates)
    between(0, 1, gamma=gamma, expert_share=share)
    if "dataset" not in algorithm.buffers:
        raise ValueError(f"{slug} does not fit {algorithm}, which has no dataset to know an expert by: add +prior-data")
    factories = {EXPERT: deterministic_actor(hidden), JUDGE: action_critic(1, hidden)}
    algorithm = add_networks(algorithm, **{name: untrained(factory) for name, factory in factories.items()})
    fit = partial(fit_expert, factories=factories, gamma=gamma, share=share, updates=fit_updates)
    algorithm = append_transform(algorithm, Transform(fit, "dataset", "dataset", gives=("of_expert",)))
    algorithm = reprioritise(algorithm, "dataset", InProportion("of_expert"))
    return explore_with(algorithm, partial(intervened, expert=expert_action, wants=wants, steps=length))
