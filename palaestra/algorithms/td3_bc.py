"""TD3+BC: td3 on logged data, its actor held to the logged actions and its observations standardised.

    actor: -lambda Q_1(s, mu(s)) + mean_A (mu(s) - a)^2,   lambda = improvement / mean_B |Q_1(s, mu(s))|

Paper: Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning" (2021); `improvement` is alpha.

Traps: the squared distance is a mean over the action's entries too: a sum would weigh it A times as much. lambda reads
the critic at the actor's own actions, and has no gradient. Observations are standardised when the policy acts as well,
by the dataset's mean and deviation, which are saved with the networks.

Differs from the paper: standardised observations are cut off at 10 deviations, and 1e-8 is added to the variance where
the paper adds 1e-3 to the deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from palaestra.algorithm import Algorithm, Nets, Term, above, expressed
from palaestra.algorithms.normalisation import normalised_obs
from palaestra.algorithms.td3 import td3
from palaestra.batch import Columns
from palaestra.networks.encoders import Encoder
from palaestra.networks.mlp import Activation


def value_and_cloning(nets: Nets, b: Columns, improvement: float, target: str = "action") -> Tensor:
    """Fujimoto and Gu 2021, eq. 3 and 5: rows [B]. The scale of the values is the whole batch's.

    `target` is the column of the actions that are cloned.
    """
    action = nets["actor"](b["obs"])
    q = nets["critic"](b["obs"], action, first=1)[0]
    scale = improvement / q.detach().abs().mean()
    return (action - b[target]).square().mean(-1) - scale * q


@expressed
def td3_bc(
    lr: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    improvement: float = 2.5,
    policy_delay: int = 2,
    exploration_noise: float = 0.1,
    target_noise: float = 0.2,
    target_clip: float = 0.5,
    batch_size: int = 256,
    critics: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Algorithm:
    """Twin delayed deep deterministic policy gradient with behaviour cloning, for a dataset.

    Args:
        improvement: how much the critic's value counts against the distance from the logged action.

    The others as `td3`; `exploration_noise` counts only where it goes on learning in an environment.
    """
    above(0, improvement=improvement)
    base = td3(
        lr=lr, gamma=gamma, tau=tau, policy_delay=policy_delay, exploration_noise=exploration_noise,
        target_noise=target_noise, target_clip=target_clip, batch_size=batch_size, start=0, critics=critics,
        hidden=hidden, activation=activation, encoder=encoder,
    )  # fmt: skip
    term = Term(partial(value_and_cloning, improvement=improvement), across_rows=True)
    actor = replace(base.losses["actor"], terms={"value_and_cloning": term})
    return normalised_obs(replace(base, losses={**base.losses, "actor": actor}))
