"""Which tasks are admitted, by what was earned at them: how far each is from it, 0 where it is.

An admission reads `reward` [B] and `group` [B], rows of one task, such as the answers to one prompt, having one number,
and returns a number for each row, [B], the same for all of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from palaestra.batch import Columns
from palaestra.functional import groups

Admission = Callable[[Columns], Tensor]


def in_band(low: float, high: float, success: float = 0.0) -> Admission:
    """Tasks whose share of successes lies in [low, high]; others are as far as their share is from that.

    Args:
        low, high: 0 <= low <= high <= 1.
        success: a row succeeds that earned more.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low={low} and high={high} are no band of shares: give 0 <= low <= high <= 1")
    return partial(outside, low=low, high=high, success=success)


def outside(columns: Columns, low: float, high: float, success: float) -> Tensor:
    """How far the share of rows that earned more than `success` is from the band [low, high]: [B]."""
    share = groups.passing(columns["reward"], columns["group"], success)
    return torch.maximum(low - share, share - high).clamp(min=0.0)


def unmixed(columns: Columns) -> Tensor:
    """1 where all of a group earned the same, so that no advantage comes of it, and else 0: [B]."""
    return (groups.group_spread(columns["reward"], columns["group"]) == 0).float()
