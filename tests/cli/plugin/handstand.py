"""A package of somebody else: one base algorithm and one method."""

from collections.abc import Sequence

from palaestra.algorithm import Algorithm, expressed, reschedule
from palaestra.algorithms.td3 import td3


def hasty(lr: float = 1e-2, start: int = 10, batch_size: int = 8, hidden: Sequence[int] = (8,)) -> Algorithm:
    """TD3 without delay, in a hurry."""
    return td3(lr=lr, policy_delay=1, start=start, batch_size=batch_size, hidden=hidden)


@expressed
def seldom_updated(algorithm: Algorithm, period: int = 2) -> Algorithm:
    """One update every `period` environment steps."""
    return reschedule(algorithm, updates=1 / period)
