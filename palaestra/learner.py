"""Networks and losses -> `update`. The one reduction of the library is in `_sum`, and it is a sum.

An update is one pass over the losses in their order, each stepping before the next one's forward pass. For each loss:
its transforms, its noise, its `outputs`, the rows of its terms, `sum(coefficient * (share * weight * rows).sum())`,
the gradient for the parameters that it trains and for no others, one optimiser step, and what follows it.

With several seeds the parameters are stacked, and the same functions are mapped over them. Shape legend: `S` seeds;
then parameters, metrics and the columns of batches have a leading axis [S, ...], and with one seed they have not.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map_only

from palaestra.algorithm import Algorithm, Clock, Loss, Memory, Nets, Policy, Transform, Unfit, stateful
from palaestra.batch import Columns, Obs, Share, Spec, each, flatten, number_of_rows, pieces, unflatten
from palaestra.faults import NotFinite
from palaestra.finiteness import Finiteness
from palaestra.functional.schedules import number
from palaestra.machine import hold_memory
from palaestra.stacking import Stack, Streams

# The parts whose state is the learner's; tasks, initial states and buffers are kept where they are used.
REMEMBERED = (
    "policy", "exploration", "deployment", "collect", "transforms", "advantage", "losses", "after_update", "evaluation",
)  # fmt: skip
Batches = Mapping[str, Columns]
Summed = tuple[Tensor, dict[str, Tensor], dict[str, Columns]]  # the total, each term's part, columns given by stream
Learnt = tuple[Summed, Sequence[Tensor | None]]  # the sum, detached, and the gradient of each trained parameter
PRECISIONS = ("float32", "bf16")


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
    noise: dict[tuple[str, str], tuple[Generator, ...]]  # (stream, column): a generator for each seed
    streams: tuple[str, ...]
    whole: bool  # a term lets rows interact: never split
    learn: Callable[..., Learnt]  # from batches, and from the units where they are not those of the batches alone


class Learner:
    """The networks of an algorithm and how they learn, for one seed or for several at once.

    Args:
        algorithm: what is learnt; its parts are copied.
        spec: the spaces that networks are built for.
        seeds: of every random stream. Several are stacked: each learns as it would alone, to float tolerance.
        device: holds everything.
        compile: fuse each loss with `torch.compile`.
        precision: "float32", or "bf16" for the networks' forward passes; what comes out of them, losses, parameters and
            optimisers stay float32.

    Raises `UnmetNeed` or `KeyError` where the algorithm does not fit together, `Unfit` where it does not fit `spec`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        device: torch.device | str = "cpu",
        compile: bool = False,
        precision: str = "float32",
    ) -> None:
        algorithm.check()
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds are {tuple(seeds)}: give at least one, and each once")
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is unknown; it must be one of {', '.join(PRECISIONS)}")
        self.algorithm = algorithm = copy.deepcopy(algorithm)  # parts may be objects with state: it is this learner's
        self.seeds = tuple(seeds)
        self.device = torch.device(device)
        self.updates = 0
        built = [build(algorithm, spec, seed).to(self.device) for seed in self.seeds]
        self.stack = Stack(built) if len(built) > 1 else None
        if self.stack and self.device.type == "cpu":
            hold_memory()
        self.nets = self.stack.nets if self.stack else built[0]
        if precision == "bf16":
            for nets in {self.nets, *built}:
                _in_bfloat16(nets, self.device.type)
        # A transform with a state has one for each seed: the first is the algorithm's own.
        self._copies = {
            id(transform): (transform, *(copy.deepcopy(transform) for _ in built[1:]))
            for transform in self._transforms()
            if stateful(transform)
        }
        self._stateful = stateful([getattr(algorithm, name) for name in REMEMBERED])
        self._stateful += [part for _, *others in self._copies.values() for part in stateful(others)]
        self._transforming = self.streams("transforms", self.device)
        self._plans = {name: self._plan(name, loss, compile) for name, loss in algorithm.losses.items()}
        self._finiteness = Finiteness(algorithm.losses, self.lead, self.device)

    @property
    def lead(self) -> tuple[int, ...]:
        """The shape of one number of every seed: (S,), or () for a single one."""
        return (len(self.seeds),) if self.stack else ()

    @property
    def clock(self) -> Clock:
        """The clock as one seed sees it, with 0-d tensors; all seeds are equally far."""
        return self.stack.seeds[0].clock if self.stack else self.nets.clock

    def nets_of(self, seed: int) -> Nets:
        """The networks of one seed, in the same memory: they change as it learns."""
        return self.stack.seeds[self.seeds.index(seed)] if self.stack else self.nets

    def streams(self, name: str, device: torch.device | str = "cpu") -> Streams:
        """The named stream of random numbers of the seed, or of each of them."""
        drawn = tuple(generator(seed, name, device) for seed in self.seeds)
        return drawn if self.stack else drawn[0]

    def each(self, fn: Callable[..., Any], *args: Any, rngs: Streams | None = None, dim: int = 0) -> Any:
        """`fn(nets, *args)`, or `fn(nets, *args, rng)`, of every seed; see `Stack.each`. With one seed, just that."""
        if self.stack:
            return self.stack.each(fn, *args, rngs=rngs, dim=dim)  # type: ignore[arg-type]
        return fn(self.nets, *args) if rngs is None else fn(self.nets, *args, rngs)

    def transformed(self, transform: Transform, batch: Columns, rngs: Streams, dim: int = 0) -> Columns:
        """What a transform makes of a batch, of every seed; one with a state has a state for each of them."""
        if self.stack is None or id(transform) not in self._copies:
            changed: Columns = self.each(transform.fn, batch, rngs=rngs, dim=dim)
            return changed
        flat = {key: value.unbind(dim) for key, value in flatten(batch).items()}
        alone = [unflatten({key: values[i] for key, values in flat.items()}) for i in range(len(self.seeds))]
        done = [
            flatten(own.fn(nets, one, rng))
            for own, nets, one, rng in zip(self._copies[id(transform)], self.stack.seeds, alone, rngs, strict=True)  # type: ignore[arg-type]
        ]
        return unflatten({key: torch.stack([one[key] for one in done], dim) for key in done[0]})

    def _transforms(self) -> list[Transform]:
        inside = [transform for loss in self.algorithm.losses.values() for transform in loss.transforms]
        return [*self.algorithm.transforms, *inside]

    def _plan(self, name: str, loss: Loss, compile: bool) -> _Plan:
        trained = (p for net in loss.trains for p in self.nets[net].parameters() if p.requires_grad)
        parameters = list(dict.fromkeys(trained))  # each once, where networks share some
        if not parameters:
            raise Unfit(f"loss {name!r} trains {', '.join(loss.trains) or 'nothing'}, where no parameter is trained")
        lr = torch.tensor(0.0, device=self.device) if callable(loss.lr) else loss.lr
        # A generator for each loss and column, so that a loss that is added leaves the others' noise as it was.
        noise = {
            (t.stream, c): tuple(generator(s, f"noise/{name}/{t.stream}/{c}", self.device) for s in self.seeds)
            for t in loss.terms.values()
            for c in t.noise
        }

        def learnt(batches: Batches, units: Mapping[str, Tensor] | None = None) -> Learnt:
            total, parts, columns = self.each(partial(_sum, loss), batches, units)
            gradients = torch.autograd.grad(_of_all(total), parameters, allow_unused=True)
            return (total.detach(), parts, columns), gradients

        return _Plan(
            name,
            loss,
            parameters,
            loss.optimiser(parameters, lr),
            noise,
            tuple(dict.fromkeys(t.stream for t in loss.terms.values())),
            any(t.across_rows for t in loss.terms.values()),
            _fused(learnt, name) if compile else learnt,
        )

    @property
    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: plan.optimiser for name, plan in self._plans.items()}

    def policy(self) -> Policy:
        """How it acts while it learns. With several seeds the rows [S * N, ...] are theirs in turn, N each, and the
        last argument holds a generator for each."""
        return self._acting(self.algorithm.exploration(self.algorithm.policy))

    def deployed(self) -> Policy:
        """How it acts when nobody learns; rows as in `policy`."""
        return self._acting(self.algorithm.deployment(self.algorithm.policy))

    def _acting(self, policy: Policy) -> Policy:
        if self.stack is None:
            return policy
        seeds = len(self.seeds)

        def most_likely(nets: Nets, obs: Obs, memory: Memory) -> tuple[Tensor, Columns, Memory]:
            return policy(nets, obs, memory, None)

        def act(nets: Nets, obs: Obs, memory: Memory, rng: Any) -> tuple[Tensor, Columns, Memory]:
            rows = each(lambda x: x.view(seeds, -1, *x.shape[1:]), {"obs": obs, "memory": memory})
            result = self.each(policy if rng is not None else most_likely, rows["obs"], rows["memory"], rngs=rng)
            action, columns, memory = (each(lambda x: x.flatten(0, 1), part) for part in result)
            return action, columns, memory

        return act

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
        self._finiteness.remember(self.updates, metrics)
        return metrics, given

    def check_finite(self) -> None:
        """Raise `NotFinite` where a loss was NaN or infinite, with the first such update, or where a parameter is."""
        for seed, fault in zip(self.seeds, self._finiteness.faults(), strict=True):
            if fault:
                update, metric = fault
                whose = f" of seed {seed}" if self.stack else ""
                raise NotFinite(f"{metric} was not finite in update {update}{whose}")
        for name, parameter in self.nets.named_parameters():
            if not parameter.isfinite().all():
                raise NotFinite(f"parameter {name} is not finite after update {self.updates}")

    def _completed(self, stream: str, batch: Columns) -> Columns:
        """The batch with the columns that every batch has, after the algorithm's transforms."""
        clock = self.nets.clock
        batch = {**batch, "env_steps": clock.env_steps, "updates": clock.updates}
        if "weight" not in batch:
            rows = number_of_rows(batch, len(self.lead))
            batch["weight"] = torch.ones((*self.lead, rows), device=self.device)
        with torch.no_grad():
            for transform in self.algorithm.transforms:
                if transform.moment == "update" and transform.stream == stream:
                    batch = self.transformed(transform, batch, self._transforming)
        return batch

    def _step(self, plan: _Plan, ready: dict[str, Columns], split: int) -> Summed:
        loss, streams = plan.loss, plan.streams
        batches = {stream: dict(ready[stream]) for stream in streams}
        with torch.no_grad():
            for transform in loss.transforms:
                batch = batches[transform.stream]
                batches[transform.stream] = self.transformed(transform, batch, self._transforming)
            for (stream, column), rngs in plan.noise.items():
                batches[stream][f"{column}_noise"] = self._drawn(batches[stream][column].shape, rngs)
        if split == 1 or plan.whole:
            (total, parts, columns), gradients = plan.learn(batches)
            for parameter, gradient in zip(plan.parameters, gradients, strict=True):
                parameter.grad = _laid_out(gradient, parameter)
        else:
            with torch.no_grad():
                units = self.each(partial(_units, loss), batches)
            total, parts, columns = self._accumulated(plan, batches, units, split)
        if loss.clip_norm is not None:
            _clip(plan.parameters, loss.clip_norm, stacked=self.stack is not None)
        if callable(loss.lr):
            plan.optimiser.param_groups[0]["lr"].copy_(loss.lr(self.clock))
        plan.optimiser.step()
        return total, parts, columns

    def _drawn(self, shape: torch.Size, rngs: tuple[Generator, ...]) -> Tensor:
        """Standard normal noise; of several seeds, each one's own."""
        if self.stack is None:
            return torch.randn(shape, generator=rngs[0], device=self.device)
        return torch.stack([torch.randn(shape[1:], generator=rng, device=self.device) for rng in rngs])

    def _accumulated(self, plan: _Plan, batches: Batches, units: Mapping[str, Tensor], split: int) -> Summed:
        """The same sum, a piece of the rows at a time."""
        dim = len(self.lead)
        split = min(split, *(number_of_rows(batch, dim) for batch in batches.values()))
        batch_pieces = {stream: pieces(batch, split, dim) for stream, batch in batches.items()}
        unit_pieces = pieces(dict(units), split, dim)
        totals, parts, columns = [], [], []
        for parameter in plan.parameters:
            parameter.grad = None
        for i in range(split):
            batch = {stream: piece[i] for stream, piece in batch_pieces.items()}
            (total, part, column), gradients = plan.learn(batch, unit_pieces[i])
            for parameter, gradient in zip(plan.parameters, gradients, strict=True):
                if (piece := _laid_out(gradient, parameter)) is not None:
                    parameter.grad = piece if parameter.grad is None else parameter.grad + piece
            totals.append(total)
            parts.append(part)
            columns.append(column)
        return (
            torch.stack(totals).sum(0),
            {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]},
            {s: {k: torch.cat([c[s][k] for c in columns], dim) for k in columns[0][s]} for s in columns[0]},
        )

    def state_dict(self) -> dict[str, Any]:
        """All that learning depends on, copied: networks, clock, optimisers, counters and random streams."""
        return {
            "nets": {name: tensor.clone() for name, tensor in self.nets.state_dict().items()},
            "optimisers": {name: copy.deepcopy(o.state_dict()) for name, o in self.optimisers.items()},
            "updates": self.updates,
            "noise": {key: [rng.get_state() for rng in rngs] for key, rngs in self._noise().items()},
            "transforms": [rng.get_state() for rng in as_tuple(self._transforming)],
            "parts": [copy.deepcopy(part.state_dict()) for part in self._stateful],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, for a learner of the same algorithm and spec; RuntimeError otherwise."""
        self.nets.load_state_dict(state["nets"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(copy.deepcopy(state["optimisers"][name]))  # it keeps the tensors it is given
        self.updates = int(state["updates"])
        for key, rngs in self._noise().items():
            set_states(rngs, state["noise"][key])
        set_states(self._transforming, state["transforms"])
        for part, saved in zip(self._stateful, state["parts"], strict=True):
            part.load_state_dict(copy.deepcopy(saved))

    def _noise(self) -> dict[str, tuple[Generator, ...]]:
        return {f"{p.name}/{s}/{c}": rngs for p in self._plans.values() for (s, c), rngs in p.noise.items()}


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


def as_tuple(streams: Streams) -> tuple[Generator, ...]:
    """The generators of a stream, one a seed."""
    return streams if isinstance(streams, tuple) else (streams,)


def set_states(streams: Streams, states: Sequence[Tensor]) -> None:
    """Put the generators of a stream where `get_state` of each left off."""
    for rng, state in zip(as_tuple(streams), states, strict=True):
        rng.set_state(state)


def _in_bfloat16(nets: Nets, device: str) -> None:
    """Every network's forward pass in bfloat16 where PyTorch's autocast says so; what comes out is float32 again."""
    for net in nets.values():
        net.forward = partial(_cast, net.forward, device)


def _cast(forward: Callable[..., Any], device: str, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast(device, torch.bfloat16):
        result = forward(*args, **kwargs)
    return tree_map_only(Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, result)


def _fused(learn: Callable[..., Learnt], name: str) -> Callable[..., Learnt]:
    """A loss and its gradients as one compiled graph."""
    # Dynamo counts recompilations by code object, eight at most: each loss gets one of its own.
    learn.__code__ = learn.__code__.replace(co_name=f"learn_{name}")
    compiled = torch.compile(learn, dynamic=False)
    config = torch._dynamo.config
    # Without it the gradient stays outside, and each loss becomes two graphs that autograd calls in turn: an update of
    # `sac` takes 1.4 times as long. Older PyTorch does not have it.
    tracing = config.patch(trace_autograd_ops=True) if hasattr(config, "trace_autograd_ops") else nullcontext()

    def fused(*args: Any) -> Learnt:
        with tracing:
            return compiled(*args)

    return fused


def _laid_out(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor | None:
    """A gradient in its parameter's memory order: fused optimisers step through both side by side.

    Those of convolutions over channels-last images come in another order, and those of stacked layers.
    """
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _of_all(total: Tensor) -> Tensor:
    """One number to take the gradient of: seeds share no parameter, so that each gets its own."""
    return total.sum() if total.dim() else total


def _clip(parameters: Sequence[nn.Parameter], largest: float, stacked: bool) -> None:
    """`torch.nn.utils.clip_grad_norm_` without its bookkeeping; stacked, by each seed's own norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if stacked:
        norm = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    else:
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    if stacked:
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
    else:
        torch._foreach_mul_(gradients, scale)


def _units(loss: Loss, nets: Nets, batches: Batches) -> dict[str, Tensor]:
    """Of each term; terms that share a stream and a unit share the tensor."""
    once = {(term.stream, term.share) for term in loss.terms.values()}
    units = {(stream, share): _unit(share, batches[stream]) for stream, share in once}
    return {name: units[term.stream, term.share] for name, term in loss.terms.items()}


def _unit(share: Share, batch: Columns) -> Tensor:
    """How much each row (or token) counts: its share times its row's weight."""
    shares = share(batch)
    weight: Tensor = batch["weight"]
    return shares * (weight if shares.dim() == weight.dim() else weight.unsqueeze(-1))


def _sum(loss: Loss, nets: Nets, batches: Batches, units: Mapping[str, Tensor] | None) -> Summed:
    """The only reduction: the total, each term's part of it (detached), and the columns that terms gave (detached)."""
    parts: dict[str, Tensor] = {}
    given: dict[str, Columns] = {}
    total: Tensor | None = None
    complete: dict[str, Columns] = {}
    for stream, batch in batches.items():
        outputs = loss.outputs(nets, batch)
        complete[stream] = {**batch, **outputs} if outputs else batch
        given[stream] = {}
    if units is None:
        with torch.no_grad():
            units = _units(loss, nets, batches)
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
