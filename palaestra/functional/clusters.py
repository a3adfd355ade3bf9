"""Numbers in groups. Shape legend: `M` numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def clusters(values: Tensor, number: int) -> Tensor:
    """The group of each of the numbers [M], 0 for the lowest: k-means on the line, int64 [M].

    Groups are runs of the sorted numbers, so that the best ones are found exactly, by dynamic programming over where
    the last run begins (Wang and Song, "Ckmeans.1d.dp", 2011). There are `number` groups, or as many as there are
    different numbers; none is empty. Time: `number` M^2.
    """
    found, where, count = torch.unique(values.double(), return_inverse=True, return_counts=True)
    n, k = len(found), min(number, len(found))
    found = found - found.mean()  # the squares below are then small
    sums = torch.stack([count, count * found, count * found.square()]).cumsum(1)
    sums = torch.cat([torch.zeros(3, 1, dtype=sums.dtype), sums], 1)
    least = torch.full((k + 1, n + 1), torch.inf, dtype=torch.float64)  # the squared error of m groups of the first j
    begin = torch.zeros(k + 1, n + 1, dtype=torch.int64)  # of the last of them
    least[0, 0] = 0.0
    for j in range(1, n + 1):
        size, total, squares = sums[:, j : j + 1] - sums[:, :j]
        error = squares - total.square() / size
        least[1:, j], begin[1:, j] = (least[:-1, :j] + error).min(1)
    group = torch.zeros(n, dtype=torch.int64)
    end = n
    for m in range(k, 0, -1):
        start = int(begin[m, end])
        group[start:end] = m - 1
        end = start
    return group[where]
