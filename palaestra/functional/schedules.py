"""Numbers that change as a run goes on: functions of its clock, tensors in and out, so that they never recompile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor


def linear(begin: float, end: float, duration: float, of: str = "env_steps") -> Callable[[Any], Tensor]:
    """From `begin` to `end` over the first `duration` environment steps (or `of="updates"`), then constant."""
    return partial(_linear, begin=begin, end=end, duration=duration, of=of)


def _linear(clock: Any, begin: float, end: float, duration: float, of: str) -> Tensor:
    part: Tensor = getattr(clock, of) / duration
    return torch.clamp(part, max=1.0) * (end - begin) + begin


def number(value: float | Callable[[Any], Tensor], clock: Any) -> float | Tensor:
    """The value of a schedule now; a plain number is its own."""
    return value(clock) if callable(value) else value


def cosine(begin: float, end: float, duration: float, of: str = "updates") -> Callable[[Any], Tensor]:
    """From `begin` to `end` along half a cosine over the first `duration` updates (or `of="env_steps"`), then constant.

    Loshchilov and Hutter, "SGDR" (2017), eq. 5, without restarts.
    """
    return partial(_cosine, begin=begin, end=end, duration=duration, of=of)


def _cosine(clock: Any, begin: float, end: float, duration: float, of: str) -> Tensor:
    part: Tensor = torch.clamp(getattr(clock, of) / duration, max=1.0)
    return (begin - end) * 0.5 * (1.0 + torch.cos(part * torch.pi)) + end


def warmed(peak: float, warm_up: int, decay_over: int | None = None) -> float | Callable[[Any], Tensor]:
    """Rises linearly to `peak` over the first `warm_up` updates; then along half a cosine to 0 at update `decay_over`.

    Without either it is the plain number; without `decay_over` it stays at the peak.
    """
    if not warm_up and decay_over is None:
        return peak
    return partial(_warmed, peak=peak, warm_up=warm_up, decay_over=decay_over)


def _warmed(clock: Any, peak: float, warm_up: int, decay_over: int | None) -> Tensor:
    made: Tensor = clock.updates.float()
    rising = torch.clamp(made / max(1, warm_up), max=1.0)
    if decay_over is None:
        return peak * rising
    falling = torch.clamp((made - warm_up) / max(1, decay_over - warm_up), 0.0, 1.0)
    return peak * rising * 0.5 * (1.0 + torch.cos(falling * torch.pi))
