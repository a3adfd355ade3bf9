"""When did a loss stop being finite? Asked of many metrics at a time, as asking costs a fiftieth of a small update."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from palaestra.algorithm import Loss

NEVER = 2**62  # no update comes so late
AT_ONCE = 256  # metrics


class Finiteness:
    """Remembers an algorithm's losses, update by update, and finds the first that was NaN or infinite.

    Args:
        losses: of the algorithm, by name.
        lead: the shape of a metric: (S,) of several seeds, () of one.
        device: where metrics are. They stay there until somebody asks.
    """

    def __init__(self, losses: Mapping[str, Loss], lead: tuple[int, ...], device: torch.device) -> None:
        # The total comes last: where a term is not finite, it is the term that is named.
        self._metrics = [metric for name, loss in losses.items() for metric in (*_terms(name, loss), f"loss/{name}")]
        self._unseen: list[tuple[int, Tensor]] = []
        # An update and a place in the list as one number, so that the earliest is the smallest.
        self._worst = torch.full(lead, NEVER, device=device)

    def remember(self, update: int, metrics: Mapping[str, Tensor]) -> None:
        first = update * len(self._metrics)
        self._unseen += [(first + self._metrics.index(name), value) for name, value in metrics.items()]
        if len(self._unseen) >= AT_ONCE:
            self._look()

    def faults(self) -> list[tuple[int, str] | None]:
        """The first update in which a loss of each seed was not finite, and which; None where all were."""
        self._look()
        return [
            None if code == NEVER else (code // len(self._metrics), self._metrics[code % len(self._metrics)])
            for code in self._worst.view(-1).tolist()
        ]

    def _look(self) -> None:
        if not self._unseen:
            return
        codes, values = zip(*self._unseen, strict=True)
        self._unseen = []
        when = torch.tensor(codes, device=self._worst.device).view(-1, *[1] * self._worst.dim())
        seen = torch.where(torch.stack(values).isfinite(), NEVER, when).amin(0)
        self._worst = torch.minimum(self._worst, seen)


def _terms(name: str, loss: Loss) -> list[str]:
    return [f"loss/{name}/{term}" for term in loss.terms] if len(loss.terms) > 1 else []
