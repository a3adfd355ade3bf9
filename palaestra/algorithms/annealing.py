"""Learning rates that end at nothing, for any algorithm.

    lr(u) = lr * (1 - min(u / updates, 1)),  u updates into the run

The last policy is then what many updates have settled on, not what the newest one happened to make of it. As in Mnih et
al., "Asynchronous Methods for Deep Reinforcement Learning" (2016), section 5.1.

Traps: nothing is learnt after that many updates. They are counted, not environment steps, so that it is the same on a
dataset; with `start`, `updates` and minibatches there are fewer or more of them than steps.
"""

from __future__ import annotations

from palaestra.algorithm import Algorithm, above, expressed, with_lr
from palaestra.functional.schedules import linear


@expressed
def annealed_lr(algorithm: Algorithm, updates: int = 1_000_000) -> Algorithm:
    """The learning rate of every loss falls linearly to 0. On any base whose rates do not change already.

    Args:
        updates: over which it falls.
    """
    above(0, updates=updates)
    for name, loss in algorithm.losses.items():
        if callable(loss.lr):
            raise ValueError(f"annealed-lr does not fit {algorithm}: the rate of its loss {name!r} changes already")
        algorithm = with_lr(algorithm, name, linear(loss.lr, 0.0, updates, of="updates"))
    return algorithm
