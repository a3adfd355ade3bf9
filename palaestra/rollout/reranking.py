"""Re-ranking: of several actions that a policy draws, the one that is taken is chosen by what each is worth.

    a_1, ..., a_K ~ pi(.|s);   P(a_k is taken) = softmax_k(sharpness * value(s, a_k))

Any policy that draws by the `rng` it is given can be wrapped, whoever trained it: `frozen` gives it the networks of its
own. Its rows are asked K times in one call, each with its own copy of what was remembered. What it remembers of the
action that is taken is kept, and the rest forgotten, so that memory moves on once a step, with what was done.

A policy is deployed with `rng=None`, which asks for its most likely action: K times the same. So a re-ranked policy
draws then too, from a stream of its own that begins anew with every `reranked(...)`, which is with every evaluation and
whenever a policy is loaded: all of these are the same again, and no two steps of one are. The stream is NumPy's: where
many seeds act at once PyTorch draws nothing without their generators. All of them get the numbers that each would get
alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from palaestra.algorithm import Memory, Nets, Policy, Unfit
from palaestra.batch import Columns, Obs, each
from palaestra.functional.distributions import categorical_sample

Value = Callable[[Nets, Obs, Tensor], Tensor]


class Drawing(TorchFunctionMode):
    """Within it draws by `rng` are counted; where that was None, `rng` is one whose draws come from `numbers`.

    ValueError for a draw of the latter by another function than `torch.rand` or `torch.randn`.
    """

    def __init__(self, rng: Generator | None, numbers: np.random.Generator) -> None:
        super().__init__()
        self.rng = Generator() if rng is None else rng
        self.own: dict[Any, Any] = {torch.rand: numbers.random, torch.randn: numbers.standard_normal}
        self.given = rng is not None
        self.draws = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not self.rng:
            return func(*args, **kwargs)
        self.draws += 1
        if self.given:
            return func(*args, **kwargs)
        if func not in self.own:
            raise ValueError(f"a re-ranked policy draws by {func.__name__}; draw by torch.rand or torch.randn")
        size = args if isinstance(args[0], int) else tuple(args[0])
        drawn: Tensor = torch.from_numpy(self.own[func](size, np.float32))
        return drawn.to(kwargs.get("device"), kwargs.get("dtype"))


def frozen(policy: Policy, nets: Nets) -> Policy:
    """A policy with these networks, whoever asks it: one that was loaded, to be re-ranked by a value learnt elsewhere.

    It acts in [-1, 1], as all do, and so it must have been trained in an environment with the same bounds of actions.
    """

    def act(_: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
        return policy(nets, obs, memory, rng)

    return act


def reranked(policy: Policy, value: Value, candidates: int, sharpness: float) -> Policy:
    """`policy`, which draws so many actions and takes one by its value; with one, or sharpness 0, it is `policy`.

    Args:
        policy: draws by `torch.rand` or `torch.randn` with `rng`. Unfit, when it acts, where it draws nothing.
        value: `value(nets, obs, action) -> [B]` of observations and actions [B, ...] in [-1, 1].
        candidates: K, at least 1.
        sharpness: in one over the unit of values, at least 0; with infinity the best is taken.
    """
    numbers = np.random.default_rng(0)

    def act(nets: Nets, obs: Obs, memory: Memory, rng: Generator | None) -> tuple[Tensor, Columns, Memory]:
        def each_time(x: Tensor) -> Tensor:
            return x.unsqueeze(1).expand(-1, candidates, *x.shape[1:]).flatten(0, 1)

        many = each(each_time, {"obs": obs, "memory": memory})
        with Drawing(rng, numbers) as drawing:
            action, columns, memory = policy(nets, many["obs"], many["memory"], drawing.rng)
            if not drawing.draws:
                raise Unfit("this policy draws no actions, so that there is nothing to re-rank: it must be stochastic")
            worth = value(nets, many["obs"], action).unflatten(0, (-1, candidates))
            if candidates == 1 or math.isinf(sharpness):
                choice = worth.argmax(-1)
            else:
                choice = categorical_sample(sharpness * worth, drawing.rng)

        def taken(x: Tensor) -> Tensor:
            x = x.unflatten(0, (-1, candidates))
            return x.take_along_dim(choice.view(-1, *[1] * (x.dim() - 1)), 1).squeeze(1)

        kept = each(taken, {"action": action, "columns": columns, "memory": memory})
        return kept["action"], kept["columns"], kept["memory"]

    return act
