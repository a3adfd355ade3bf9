"""Many seeds at once: networks with a leading axis of seeds, and a function of one seed that is run for all of them.

Shape legend: `S` seeds. Parameters and buffers of stacked networks are [S, ...]; so are the columns of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from palaestra.algorithm import Nets

TENSOR = object()  # stands where a tensor was
Streams = Generator | tuple[Generator, ...]  # of one seed, or of each of several


class Stack:
    """The networks of several seeds as one module, `nets`; `seeds[i]` are those of the i-th, in the same memory."""

    def __init__(self, seeds: Sequence[Nets]) -> None:
        self.seeds = tuple(seeds)
        self.nets = copy.deepcopy(self.seeds[0])
        places = zip(_tensors(self.nets), *map(_tensors, self.seeds), strict=True)
        with torch.no_grad():
            for whole, *parts in places:
                whole.data = torch.stack([part.data for part in parts])
                for part, row in zip(parts, whole.data, strict=True):
                    part.data = row
        self.state = dict(self.nets.named_parameters()) | dict(self.nets.named_buffers())
        self._index = torch.arange(len(self.seeds), device=next(iter(self.state.values())).device)

    def each(self, fn: Callable[..., Any], *args: Any, rngs: Sequence[Generator] | None = None, dim: int = 0) -> Any:
        """`fn(nets, *args)` for every seed, or `fn(nets, *args, rng)` where `rngs` holds a generator for each.

        Every tensor in `args` has the axis of seeds at `dim`, and so has every tensor that comes back; what is not a
        tensor is the same for all. RuntimeError where `fn` cannot be mapped (it looks at a number, or draws otherwise
        than by `rng` and a shape).
        """
        flat, structure = tree_flatten(args)
        given = [value for value in flat if isinstance(value, Tensor)]
        shape: Any = None

        def one(state: dict[str, Tensor], seed: Tensor, *tensors: Tensor) -> list[Tensor]:
            nonlocal shape
            rest = iter(tensors)
            own = tree_unflatten([next(rest) if isinstance(value, Tensor) else value for value in flat], structure)
            if rngs is None:
                result = functional_call(self.nets, state, (fn, *own))
            else:
                with EachItsOwn(rngs, seed):
                    result = functional_call(self.nets, state, (fn, *own, rngs[0]))
            out, structure_out = tree_flatten(result)
            shape = [TENSOR if isinstance(value, Tensor) else value for value in out], structure_out
            return [value for value in out if isinstance(value, Tensor)]

        mapped = torch.vmap(
            one,
            in_dims=(0, 0, *([dim] * len(given))),
            out_dims=dim,
            randomness="error" if rngs is None else "same",
        )
        out = iter(mapped(self.state, self._index, *given))
        blanks, structure_out = shape
        return tree_unflatten([next(out) if value is TENSOR else value for value in blanks], structure_out)


class EachItsOwn(TorchFunctionMode):
    """Within a map over seeds: a draw from the first of `rngs` is one from every seed's own, of the same shape."""

    def __init__(self, rngs: Sequence[Generator], seed: Tensor) -> None:
        super().__init__()
        self.rngs, self.seed = rngs, seed

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is not self.rngs[0]:
            return func(*args, **kwargs)
        drawn = torch.stack([func(*args, **{**kwargs, "generator": rng}) for rng in self.rngs])
        return drawn.index_select(0, self.seed.view(1)).squeeze(0)


def _tensors(nets: Nets) -> list[Tensor]:
    return [*nets.parameters(), *nets.buffers()]
