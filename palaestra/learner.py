"""Networks and losses -> `update`. The one reduction of the library is in `_sum`, and it is a sum.

An update is one pass over the losses in their order, each stepping before the next one's forward pass. For each loss:
its transforms, its noise, its `outputs`, the rows of its terms, `sum(coefficient * (share * weight * rows).sum())`,
the gradient for the parameters that it trains and for no others, one optimiser step, and what follows it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from palaestra.algorithm import Algorithm, Loss, Nets, Policy, Unfit, stateful
from palaestra.batch import Columns, Share, Spec, number_of_rows, pieces
from palaestra.functional.schedules import number

# The parts whose state is the learner's; tasks, initial states and buffers are kept where they are used.
REMEMBERED = (
    "policy", "exploration", "deployment", "collect", "transforms", "advantage", "losses", "after_update", "evaluation",
)  # fmt: skip
Batches = Mapping[str, Columns]
Summed = tuple[Tensor, dict[str, Tensor], dict[str, Columns]]  # the total, each term's part, columns given by stream


def generator(seed: int, stream: str, device: torch.device | str = "cpu") -> Generator:
    """The generator of one seed and one named stream: independent of every other's, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass
class _Plan:
    """What an update needs to know of a loss, looked up once."""

    name: str
    loss: Loss
    parameters: list[nn.Parameter]
    optimiser: torch.optim.Optimizer
    noise: tuple[tuple[str, str], ...]  # (stream, column)
    streams: tuple[str, ...]
    whole: bool  # a term lets rows interact: never split
    sum: Callable[[Batches, Mapping[str, Tensor]], Summed]


class Learner:
    """The networks of an algorithm and how they learn. `device` holds everything; `compile` fuses each loss.

    Raises `UnmetNeed` or `KeyError` where the algorithm does not fit together, `Unfit` where it does not fit `spec`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        spec: Spec,
        seed: int = 0,
        *,
        device: torch.device | str = "cpu",
        compile: bool = False,
    ) -> None:
        algorithm.check()
        self.algorithm = algorithm = copy.deepcopy(algorithm)  # parts may be objects with state: it is this learner's
        self._stateful = stateful([getattr(algorithm, name) for name in REMEMBERED])
        self._seed = seed
        self.device = torch.device(device)
        self.updates = 0
        self.nets = build(algorithm, spec, seed).to(self.device)
        # A generator for each loss and column, so that a loss that is added leaves the others' noise as it was.
        self._noise: dict[str, Generator] = {}
        self._transforming = generator(seed, "transforms", self.device)
        self._plans = {name: self._plan(name, loss, compile) for name, loss in algorithm.losses.items()}

    def _plan(self, name: str, loss: Loss, compile: bool) -> _Plan:
        parameters = [p for net in loss.trains for p in self.nets[net].parameters()]
        if not parameters:
            raise Unfit(f"loss {name!r} trains {', '.join(loss.trains) or 'nothing'}, where there is no parameter")
        lr = torch.tensor(0.0, device=self.device) if callable(loss.lr) else loss.lr
        noise = tuple(dict.fromkeys((t.stream, column) for t in loss.terms.values() for column in t.noise))
        for stream, column in noise:
            key = f"noise/{name}/{stream}/{column}"
            self._noise[key] = generator(self._seed, key, self.device)

        def summed(batches: Batches, units: Mapping[str, Tensor]) -> Summed:
            return _sum(loss, self.nets, batches, units)

        if compile:  # Dynamo counts recompilations by code object, eight at most: each loss gets one of its own
            summed.__code__ = summed.__code__.replace(co_name=f"summed_{name}")
        return _Plan(
            name,
            loss,
            parameters,
            loss.optimiser(parameters, lr),
            noise,
            tuple(dict.fromkeys(t.stream for t in loss.terms.values())),
            any(t.across_rows for t in loss.terms.values()),
            torch.compile(summed, dynamic=False) if compile else summed,
        )

    @property
    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: plan.optimiser for name, plan in self._plans.items()}

    def policy(self) -> Policy:
        """How it acts while it learns."""
        return self.algorithm.exploration(self.algorithm.policy)

    def deployed(self) -> Policy:
        """How it acts when nobody learns."""
        return self.algorithm.deployment(self.algorithm.policy)

    def update(self, batches: Batches, split: int = 1) -> tuple[dict[str, Tensor], dict[str, Columns]]:
        """One update on one batch a stream. Returns metrics (0-d tensors on the device) and what terms gave a stream.

        `split` computes it in that many pieces of the rows, to save memory: the gradient is the same.
        """
        self.updates += 1
        self.nets.clock.updates.fill_(self.updates)
        metrics: dict[str, Tensor] = {}
        given: dict[str, Columns] = {stream: {} for stream in batches}
        ready = {stream: self._completed(stream, batch) for stream, batch in batches.items()}
        for name, plan in self._plans.items():
            times = plan.loss.times
            for _ in range(times(self.updates) if callable(times) else times):
                total, parts, columns = self._step(plan, ready, split)
                metrics[f"loss/{name}"] = total
                if len(parts) > 1:
                    metrics |= {f"loss/{name}/{term}": part for term, part in parts.items()}
                for stream, new in columns.items():
                    ready[stream].update(new)
                    given[stream].update(new)
                with torch.no_grad():
                    for after in self.algorithm.after_update:
                        if after.follows == name and after.times(self.updates):
                            after.fn(self.nets, ready[plan.streams[0]], self.optimisers)
        return metrics, given

    def _completed(self, stream: str, batch: Columns) -> Columns:
        """The batch with the columns that every batch has, after the algorithm's transforms."""
        clock = self.nets.clock
        batch = {**batch, "env_steps": clock.env_steps, "updates": clock.updates}
        if "weight" not in batch:
            batch["weight"] = torch.ones(number_of_rows(batch), device=self.device)
        with torch.no_grad():
            for transform in self.algorithm.transforms:
                if transform.moment == "update" and transform.stream == stream:
                    batch = transform.fn(self.nets, batch, self._transforming)
        return batch

    def _step(self, plan: _Plan, ready: dict[str, Columns], split: int) -> Summed:
        loss, streams = plan.loss, plan.streams
        batches = {stream: dict(ready[stream]) for stream in streams}
        with torch.no_grad():
            for transform in loss.transforms:
                batches[transform.stream] = transform.fn(self.nets, batches[transform.stream], self._transforming)
            for stream, column in plan.noise:
                rng = self._noise[f"noise/{plan.name}/{stream}/{column}"]
                shape = batches[stream][column].shape
                batches[stream][f"{column}_noise"] = torch.randn(shape, generator=rng, device=self.device)
            units = {name: _unit(term.share, batches[term.stream]) for name, term in loss.terms.items()}
        if split == 1 or plan.whole:
            total, parts, columns = plan.sum(batches, units)
            gradients = torch.autograd.grad(total, plan.parameters, allow_unused=True)
            for parameter, gradient in zip(plan.parameters, gradients, strict=True):
                parameter.grad = gradient
            total = total.detach()
        else:
            total, parts, columns = self._accumulated(plan, batches, units, split)
        if loss.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(plan.parameters, loss.clip_norm)
        if callable(loss.lr):
            plan.optimiser.param_groups[0]["lr"].copy_(loss.lr(self.nets.clock))
        plan.optimiser.step()
        return total, parts, columns

    def _accumulated(self, plan: _Plan, batches: Batches, units: Mapping[str, Tensor], split: int) -> Summed:
        """The same sum, a piece of the rows at a time."""
        split = min(split, *map(number_of_rows, batches.values()))
        batch_pieces = {stream: pieces(batch, split) for stream, batch in batches.items()}
        unit_pieces = pieces(dict(units), split)
        totals, parts, columns = [], [], []
        for parameter in plan.parameters:
            parameter.grad = None
        for i in range(split):
            total, part, column = plan.sum({stream: piece[i] for stream, piece in batch_pieces.items()}, unit_pieces[i])
            gradients = torch.autograd.grad(total, plan.parameters, allow_unused=True)
            for parameter, gradient in zip(plan.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            totals.append(total.detach())
            parts.append(part)
            columns.append(column)
        return (
            torch.stack(totals).sum(),
            {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]},
            {s: {k: torch.cat([c[s][k] for c in columns]) for k in columns[0][s]} for s in columns[0]},
        )

    def state_dict(self) -> dict[str, Any]:
        """All that learning depends on, copied: networks, clock, optimisers, counters and random streams."""
        return {
            "nets": {name: tensor.clone() for name, tensor in self.nets.state_dict().items()},
            "optimisers": {name: copy.deepcopy(o.state_dict()) for name, o in self.optimisers.items()},
            "updates": self.updates,
            "noise": {key: rng.get_state() for key, rng in self._noise.items()},
            "transforms": self._transforming.get_state(),
            "parts": [copy.deepcopy(part.state_dict()) for part in self._stateful],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, for a learner of the same algorithm and spec; RuntimeError otherwise."""
        self.nets.load_state_dict(state["nets"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(copy.deepcopy(state["optimisers"][name]))  # it keeps the tensors it is given
        self.updates = int(state["updates"])
        for key, rng in self._noise.items():
            rng.set_state(state["noise"][key])
        self._transforming.set_state(state["transforms"])
        for part, saved in zip(self._stateful, state["parts"], strict=True):
            part.load_state_dict(copy.deepcopy(saved))


def build(algorithm: Algorithm, spec: Spec, seed: int) -> Nets:
    """The networks of an algorithm, in order, drawn from the seed's own stream of random numbers."""
    nets = Nets(spec)
    with torch.random.fork_rng(
        devices=[]
    ):  # modules draw from the global generator: give it the seed's, then give back
        torch.random.set_rng_state(generator(seed, "networks").get_state())
        for name, factory in algorithm.networks.items():
            nets[name] = factory(spec, nets)
    return nets


def _unit(share: Share, batch: Columns) -> Tensor:
    """How much each row (or token) counts: its share times its row's weight."""
    shares = share(batch)
    weight: Tensor = batch["weight"]
    return shares * (weight if shares.dim() == weight.dim() else weight.unsqueeze(-1))


def _sum(loss: Loss, nets: Nets, batches: Batches, units: Mapping[str, Tensor]) -> Summed:
    """The only reduction: the total, each term's part of it (detached), and the columns that terms gave (detached)."""
    parts: dict[str, Tensor] = {}
    given: dict[str, Columns] = {}
    total: Tensor | None = None
    complete: dict[str, Columns] = {}
    for stream, batch in batches.items():
        outputs = loss.outputs(nets, batch)
        complete[stream] = {**batch, **outputs} if outputs else batch
        given[stream] = {}
    for name, term in loss.terms.items():
        rows = term.value(nets, complete[term.stream])
        if isinstance(rows, tuple):
            rows, columns = rows
            given[term.stream].update({key: value.detach() for key, value in columns.items()})
        part = (units[name] * rows).sum()
        coefficient = number(term.coefficient, nets.clock)
        if not (isinstance(coefficient, float | int) and coefficient == 1):
            part = coefficient * part
        parts[name] = part.detach()
        total = part if total is None else total + part
    assert total is not None, "a loss has at least one term"
    return total, parts, given
