"""Which of many rows is nearest to a key: a k-d tree that is read off a dataset once, and shared by all seeds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from palaestra.data.dataset import DatasetError


class Tree:
    """Rows [N, D] of numbers; none, and false, until some are `planted`. Distances are Euclidean, in float64.

    It is what it was planted with and no more: copies share the rows, and a checkpoint does not hold them. The keys of
    several seeds, in a map over them, are one query.
    """

    def __init__(self) -> None:
        self.index: Any = None

    def __bool__(self) -> bool:
        return self.index is not None

    def __len__(self) -> int:
        return 0 if self.index is None else int(self.index.n)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tree:
        other = Tree()
        other.index = self.index
        return other

    def plant(self, rows: Tensor) -> None:
        """Take `rows` [N, D] in the place of what was.

        Raises ValueError where a number is not finite, DatasetError where scipy is missing.
        """
        try:
            from scipy.spatial import KDTree
        except ImportError as missing:
            raise DatasetError("nearest neighbours need scipy: pip install 'palaestra[datasets]'") from missing
        if not rows.isfinite().all():
            raise ValueError("the rows of a tree have a number that is not finite: leave such rows out")
        self.index = KDTree(rows.double().cpu().numpy())

    def nearest(self, keys: Tensor, which: int = 1) -> Tensor:
        """The row that is nearest to each of `keys` [B, D], or `which`-th nearest (from 1 to N): [B, D], as `keys`.

        There is no gradient.
        """
        rows: Tensor = _Nearest.apply(keys, self.index, which)
        return rows


class _Nearest(Function):
    """Looks at numbers, which nothing that is mapped may do: so it says itself what a map of it is."""

    @staticmethod
    def forward(keys: Tensor, index: Any, which: int) -> Tensor:
        # Keys that are not finite belong to a run that is about to say so: scipy would speak first, and less clearly.
        asked = keys.detach().nan_to_num().double().cpu().numpy()
        _, found = index.query(asked, k=[which], workers=torch.get_num_threads())
        return torch.from_numpy(index.data[found[:, 0]]).to(keys)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], keys: Tensor, index: Any, which: int) -> tuple[Tensor, int]:
        of_all = keys.movedim(in_dims[0], 0)
        rows: Tensor = _Nearest.apply(of_all.flatten(0, 1), index, which)
        return rows.view(of_all.shape), 0
