"""Measured numbers as buffers of a module: checkpointed with the networks, and changed only by who measures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from palaestra.algorithm import Factory, Nets, Unfit
from palaestra.batch import Obs, Space, Spec

SMALLEST_VARIANCE = 1e-8


class RunningStatistics(nn.Module):
    """Mean and variance of every row seen so far, in float64; 0 and 1 before the first.

    Batches are merged as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979): the result is that of all rows at once, in whatever batches they came.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def measure(self, rows: Tensor, counted: Tensor) -> None:
        """Take in `rows` [..., *shape] where `counted` [...] is true."""
        axes = tuple(range(counted.dim()))
        chosen = counted.reshape(*counted.shape, *[1] * self.mean.dim()).to(torch.float64)
        rows, number = rows.to(torch.float64), chosen.sum()
        mean = (chosen * rows).sum(axes) / number.clamp(min=1)
        variance = (chosen * (rows - mean).square()).sum(axes) / number.clamp(min=1)
        share = number / (self.count + number).clamp(min=1)
        gap = mean - self.mean
        self.variance.add_(share * (variance + (1 - share) * gap.square() - self.variance))
        self.mean.add_(share * gap)
        self.count.add_(number)

    def scale(self) -> Tensor:
        """One over the standard deviation."""
        return (self.variance + SMALLEST_VARIANCE).rsqrt()

    def standardised(self, rows: Tensor, clip: float) -> Tensor:
        """`(rows - mean) / std`, cut off at `clip` on both sides; same shape and dtype as `rows`."""
        return ((rows - self.mean) * self.scale()).clamp(-clip, clip).to(rows.dtype)


class ObsStatistics(nn.Module):
    """Standardises the numbers of an observation; images, symbols and `action_mask` stay as they are.

    Numbers are the spaces of floats with at most two axes. Raises Unfit where there is none.
    """

    def __init__(self, spaces: Space | Mapping[str, Space], clip: float) -> None:
        super().__init__()
        of = spaces if isinstance(spaces, Mapping) else {"": spaces}
        self.keys = [key for key, space in of.items() if key != "action_mask" and _numbers(space)]
        if not self.keys:
            raise Unfit("normalised-obs finds no vector of numbers in the observation: leave it out")
        self.clip = clip
        self.of_key = nn.ModuleList(RunningStatistics(of[key].shape) for key in self.keys)

    def _numbers(self, obs: Obs) -> dict[str, Tensor]:
        return obs if isinstance(obs, dict) else {"": obs}

    def forward(self, obs: Obs) -> Obs:
        numbers = self._numbers(obs)
        found = {
            key: statistics.standardised(numbers[key], self.clip)  # type: ignore[operator]
            for key, statistics in zip(self.keys, self.of_key, strict=True)
        }
        return {**obs, **found} if isinstance(obs, dict) else found[""]

    def measure(self, obs: Obs, counted: Tensor) -> None:
        """Take in observations [..., *shape] where `counted` [...] is true."""
        for key, statistics in zip(self.keys, self.of_key, strict=True):
            statistics.measure(self._numbers(obs)[key], counted)  # type: ignore[operator]


def _numbers(space: Space) -> bool:
    return space.dtype.is_floating_point and not space.discrete and len(space.shape) < 3


def obs_statistics(clip: float = 10.0) -> Factory:
    return partial(_obs_statistics, clip=clip)


def _obs_statistics(spec: Spec, nets: Nets, clip: float) -> nn.Module:
    return ObsStatistics(spec.obs, clip)


def running_statistics(spec: Spec, nets: Nets) -> nn.Module:
    """The factory of the statistics of one number."""
    return RunningStatistics()


class MeasuredNumber(nn.Module):
    """One number that somebody measures: `value`, 1 until then."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(()))


def measured_number(spec: Spec, nets: Nets) -> nn.Module:
    """The factory of one measured number."""
    return MeasuredNumber()


class ReturnRange(nn.Module):
    """The smallest and the largest return of a dataset's episodes, 0 and 1 until they are measured: `low`, `high`.

    Called, it gives returns [...] in the unit that a network reads: `unit`, or where that is None, the larger size of
    the two.
    """

    low: Tensor
    high: Tensor

    def __init__(self, unit: float | None) -> None:
        super().__init__()
        self.unit = unit
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))

    def measure(self, returns: Tensor) -> None:
        """Take those of the episodes [E] in the place of what was."""
        self.low.copy_(returns.min())
        self.high.copy_(returns.max())

    def forward(self, returns: Tensor) -> Tensor:
        largest = torch.maximum(self.low.abs(), self.high.abs())
        return returns / (torch.where(largest > 0, largest, 1.0) if self.unit is None else self.unit)


def return_range(unit: float | None = None) -> Factory:
    return partial(_return_range, unit=unit)


def _return_range(spec: Spec, nets: Nets, unit: float | None) -> nn.Module:
    return ReturnRange(unit)
