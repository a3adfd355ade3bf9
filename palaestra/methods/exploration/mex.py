"""MEX: the critic is not only fitted to its targets, it also pays where it does not favour the policy's own action.

    critic: base - optimism * sum_i [Q_i(s, pi(s)) - log sum_{a' in proposals} exp Q_i(s, a')]
    proposals: the row's own action, pi(s') and a uniformly random action, all of them valued at s

Paper: Liu et al., "One Objective to Rule Them All: A Maximization Objective Fusing Estimation and Planning for
Exploration" (2023), model-free; eta is `optimism`.

The logarithm is a baseline. Without it (`mex_without_baseline`) values rise everywhere; with it those of the policy's
actions rise above others'. It is conservative Q-learning's regulariser with the opposite sign.

Traps: the term is linear in values and the base's squared: `optimism` has to grow with the size of rewards, and where
it is too large values rise without bound.

Differs from the paper: its base is td3; on others a policy that draws stands for its most likely action. In the
authors' code the second critic's baseline holds a value of the first one; here each has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from palaestra.algorithm import Algorithm, Nets, Policy, Term, add_term, expressed
from palaestra.algorithms.normalisation import acting
from palaestra.batch import Columns
from palaestra.networks.critics import action_critic


def planned(nets: Nets, b: Columns, policy: Policy, of: str = "obs") -> Tensor:
    """The policy's most likely action, as a number: [B, A]."""
    with torch.no_grad():
        return policy(nets, b[of], None, None)[0]


def negative_value(nets: Nets, b: Columns, policy: Policy) -> Tensor:
    """`-sum_i Q_i(s, pi(s))`: rows [B]."""
    return -nets["critic"](b["obs"], planned(nets, b, policy)).sum(0)


def value_gap(nets: Nets, b: Columns, policy: Policy) -> Tensor:
    """`sum_i [log sum exp Q_i(s, proposals) - Q_i(s, pi(s))]`: rows [B]. `action_noise` makes the random action."""
    uniform = torch.erf(b["action_noise"] / 2**0.5)  # of a standard normal number: uniform in [-1, 1]
    proposals = (b["action"], planned(nets, b, policy, "next_obs"), uniform)
    values = torch.stack([nets["critic"](b["obs"], action) for action in proposals])
    return values.logsumexp(0).sum(0) + negative_value(nets, b, policy)


@expressed
def mex(algorithm: Algorithm, optimism: float = 1e-3) -> Algorithm:
    """The critic pays where the policy's own action is not worth more than others. On `td3`, `ddpg` and `sac`.

    Args:
        optimism: how much that counts beside the squared error, at least 0; with 0 it is the base.
    """
    return _optimistic("mex", algorithm, value_gap, optimism, noise=("action",))


@expressed
def mex_without_baseline(algorithm: Algorithm, optimism: float = 1e-3) -> Algorithm:
    """The critic is rewarded for the value of the policy's action, whatever others are worth.

    Arguments as `mex`, and on the same bases.
    """
    return _optimistic("mex-without-baseline", algorithm, negative_value, optimism)


def _optimistic(
    slug: str, algorithm: Algorithm, rows: Callable[..., Tensor], optimism: float, noise: tuple[str, ...] = ()
) -> Algorithm:
    critic, policy = algorithm.networks.get("critic"), algorithm.policy
    if not isinstance(critic, partial) or critic.func is not action_critic().func:  # type: ignore[attr-defined]
        raise ValueError(f"{slug} does not fit {algorithm}: it needs a critic of (s, a), as that of td3 or sac")
    if optimism < 0:
        raise ValueError(f"{slug}: optimism is {optimism}; it must be at least 0")
    if isinstance(policy, partial) and policy.func is acting:
        policy = policy.keywords["policy"]  # of observations that are standardised, as those of rows are
    return add_term(algorithm, "critic", "optimism", Term(partial(rows, policy=policy), optimism, noise=noise))
