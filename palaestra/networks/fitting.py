"""Networks that are fitted to a dataset once, before a run begins: models of it, and what labels it.

For transforms whose moment is "dataset". Their random numbers come from a stream of the dataset's, so that every seed
of a run, and a run that is resumed, gets the same networks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Generator, Tensor, nn

from palaestra.algorithm import Factory, Nets
from palaestra.batch import Columns, Spec, each, number_of_rows
from palaestra.faults import NotFinite
from palaestra.optimisers import adam

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def drawing_from(rng: Generator) -> Iterator[None]:
    """Modules draw their first parameters from the global generator: within, these come from `rng`."""
    with torch.random.fork_rng(devices=[]):
        seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))
        torch.random.set_rng_state(Generator().manual_seed(seed).get_state())
        yield


def by_episode(columns: Columns, share: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """The slots of steps of a dataset's `columns`, as (fitted on, held out): whole episodes, about `share` held out.

    At least one episode is on either side, of those that have steps; of a single one, its steps are.
    """
    number = columns["first"].long().cumsum(0) - 1
    present = number[columns["valid"]].unique()
    if len(present) == 1:
        number = torch.arange(len(number), device=number.device)
        present = number[columns["valid"]]
    order = present[torch.randperm(len(present), generator=rng, device=rng.device).to(present.device)]
    out = torch.zeros(len(number), dtype=torch.bool, device=number.device)
    out[order[: min(max(1, round(share * len(order))), len(order) - 1)]] = True
    steps, held = columns["valid"], out[number]
    return (steps & ~held).nonzero()[:, 0], (steps & held).nonzero()[:, 0]


def fitted(
    module: Module,
    rows: Callable[[Module, Columns], Tensor],
    train: Columns,
    held_out: Columns,
    rng: Generator,
    *,
    updates: int = 5_000,
    batch_size: int = 256,
    lr: float = 1e-3,
    check_every: int = 100,
    patience: int = 10,
) -> Module:
    """`module`, as it did best on rows that it was not fitted on; it is changed in place.

    Args:
        rows: `rows(module, batch)` [B], whose mean Adam makes small.
        train, held_out: columns [R, ...].
        updates: at most; it ends after `patience` looks at `held_out`, one every `check_every`, without a better one.

    Raises ValueError where one of the two has no row, NotFinite where the loss is not finite.
    """
    counts = number_of_rows(train), number_of_rows(held_out)
    if not all(counts):
        raise ValueError(f"a network is fitted on {counts[0]} rows and judged on {counts[1]}: both need at least one")
    optimiser = adam(list(module.parameters()), lr)
    best, kept, since = float("inf"), copy.deepcopy(module.state_dict()), 0
    for update in range(1, updates + 1):
        index = torch.randint(counts[0], (batch_size,), generator=rng, device=rng.device)
        batch = {key: each(lambda x: x[index], value) for key, value in train.items()}  # noqa: B023
        optimiser.zero_grad()
        with torch.enable_grad():
            rows(module, batch).mean().backward()
        optimiser.step()
        if update % check_every == 0 or update == updates:
            with torch.no_grad():
                now = float(rows(module, held_out).mean())
            if not math.isfinite(now):
                raise NotFinite(
                    f"the loss of a network that is fitted to the dataset is {now} after {update:,} updates: look for "
                    "what is not finite in it with palaestra dataset check"
                )
            since = 0 if now < best else since + 1
            if now < best:
                best, kept = now, copy.deepcopy(module.state_dict())
            if since >= patience:
                break
    module.load_state_dict(kept)
    return module.requires_grad_(False)


def cloning_error(actor: nn.Module, rows: Columns) -> Tensor:
    """`mean_A (actor(obs) - action)^2`, for `fitted`: [B]."""
    return (actor(rows["obs"]) - rows["action"]).square().mean(-1)


def untrained(factory: Factory) -> Factory:
    """The network of a factory, as one that no loss trains: what is fitted is written into it."""
    return partial(_untrained, factory=factory)


def _untrained(spec: Spec, nets: Nets, factory: Factory) -> nn.Module:
    return factory(spec, nets).requires_grad_(False)
