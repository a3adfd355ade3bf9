"""An algorithm is a value: a frozen dataclass of fourteen parts. A method is a function from algorithm to algorithm.

`td3()` returns an `Algorithm`; a paper's method returns a changed copy. Which parts it changed is computed
(`changed_parts`), and the calls that made a value are written into it, so that `str(algorithm)` is an expression
that `palaestra.expression.parse` reads back.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Generator, Tensor, nn

from palaestra.batch import Columns, Obs, Share, Spec, each_row
from palaestra.optimisers import adam

# ---------------------------------------------------------------------------------------------- what parts are given


class Clock(nn.Module):
    """How far a run is, as 0-d tensors: `env_steps` taken and `updates` made. Schedules are functions of it."""

    env_steps: Tensor
    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("env_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))


class Nets(nn.ModuleDict):
    """The networks by name, with read-only `spec` (spaces, statistics) and `clock`: the handle of all that is slow."""

    spec: Spec
    clock: Clock

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.clock = Clock()
        self._walked: dict[str, list[Tensor]] = {}

    def __setitem__(self, name: str, network: nn.Module) -> None:
        self._walked.pop(name, None)
        super().__setitem__(name, network)

    def parameters_of(self, name: str) -> list[Tensor]:
        """Those of one network, each once.

        Walked through once, as that takes longer than to move a small network. Not for functions that are called with
        other parameters (`forward`): these are the network's own.
        """
        if name not in self._walked:
            self._walked[name] = list(self[name].parameters())
        return self._walked[name]

    def forward(self, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn(self, *args)`: so that `torch.func.functional_call` runs any function with other parameters."""
        return fn(self, *args)


Memory = Any  # nested dictionaries of tensors, rows first; zeros (or None) are a fresh memory
Factory = Callable[[Spec, Nets], nn.Module]
Policy = Callable[[Nets, Obs, Memory, Generator | None], tuple[Tensor, Columns, Memory]]
Scheduled = float | Callable[[Clock], Tensor]
OptimiserFactory = Callable[[list[nn.Parameter], float | Tensor], torch.optim.Optimizer]
Collect = Callable[[Nets, Policy, Any, int, Generator], Any]  # columns, or texts with columns and notes
Evaluate = Callable[[Nets, Policy, Any], dict[str, list[float]]]


class Store(Protocol):
    """What a layout reads: rows by index, in the order in which each environment produced them."""

    def names(self) -> Iterable[str]: ...
    def get(self, name: str, index: Tensor) -> Any: ...
    def next(self, index: Tensor) -> Tensor: ...
    def ends(self, index: Tensor) -> Tensor: ...


# Of rows by index [B], with the seed's stream of random numbers; of several seeds' rows side by side, as many for each,
# with a tuple of theirs.
Layout = Callable[[Store, Tensor, Any], Columns]


class Priority(Protocol):
    """How likely a row is drawn, as a factor: the priorities of a buffer multiply."""

    def insert(self, store: Store, index: Tensor) -> Tensor: ...
    def update(self, store: Store, index: Tensor, error: Tensor) -> Tensor | None: ...
    def weight(self, probability: Tensor, rows: int, clock: Clock) -> Tensor | None: ...


class TaskSampler(Protocol):
    def sample(self, nets: Nets, rng: Generator) -> Any: ...
    def update(self, tasks: list[Any], episodes: list[dict[str, float]]) -> None: ...


@dataclass(frozen=True)
class Start:
    """Where an episode starts: a physical state of the environment (or a prompt's prefix), and when it is cut off.

    That is after `time_limit` steps of its own, and at the latest when its seed has taken `until` environment steps.
    `obs` [1, ...] is what is seen there, where the environment itself cannot tell.
    """

    state: Any
    time_limit: int | None = None
    until: int | None = None
    obs: Any = None


class InitialStates(Protocol):
    """`sample(task, env_steps, rng)` is asked at each reset, after so many environment steps of its seed.

    One with `prepare(play) -> {name: number}` is asked that once, before the first: `play(teacher, episodes, every)`
    gives episodes of a teacher in this environment (`palaestra.teachers`); the run's metrics say what it returns.
    """

    def sample(self, task: Any, env_steps: int, rng: Generator) -> Start | None: ...
    def observe(self, episode: dict[str, float]) -> None: ...


# ------------------------------------------------------------------------------------------------- what parts give

suppliers: dict[str, list[str]] = {}
F = TypeVar("F", bound=Callable[..., Any])


def gives(*columns: str) -> Callable[[F], F]:
    """Declare the columns that a layout, policy, transform or term adds to a batch."""

    def mark(function: F) -> F:
        function.gives = columns  # type: ignore[attr-defined]
        for column in columns:
            suppliers.setdefault(column, []).append(f"{function.__module__}.{function.__qualname__}")
        return function

    return mark


def given_by(part: Any) -> tuple[str, ...]:
    """The columns that a part says it gives; looks into `functools.partial` and tuples, which is how parts nest."""
    own = tuple(getattr(part, "gives", ()))
    if isinstance(part, functools.partial):
        inside: Iterable[Any] = (part.func, *part.args, *part.keywords.values())
    else:
        inside = part if isinstance(part, tuple) else ()
    return own + tuple(column for entry in inside for column in given_by(entry))


# ------------------------------------------------------------------------------------------------------- the parts


def no_columns(nets: Nets, batch: Columns) -> Columns:
    """The neutral `Loss.outputs`: terms run their own forward passes."""
    return {}


def identity(policy: Policy) -> Policy:
    """The neutral `exploration` and `deployment`."""
    return policy


def once(update: int) -> int:
    """The neutral `Loss.times`."""
    return 1


def delayed(period: int) -> Callable[[int], int]:
    """`Loss.times`: once every `period` updates (TD3's delayed policy)."""
    return functools.partial(_delayed, period=period)


def _delayed(update: int, period: int) -> int:
    return int(update % period == 0)


@dataclass(frozen=True)
class Term:
    """One equation: a number per row (or per step of a row), never reduced.

    `value(nets, batch)` returns rows [B] or [B, T], or `(rows, columns)`: the columns named in `gives` are detached
    and added to the batch of the losses that follow (the reserved column `error` [B] feeds priorities).
    `noise` names columns in whose shape it wants standard normal noise: `noise=("action",)` adds `action_noise`.
    """

    value: Callable[[Nets, Columns], Any]
    coefficient: Scheduled = 1.0
    stream: str = "replay"
    share: Share = each_row
    needs: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    across_rows: bool = False


@dataclass(frozen=True)
class Transform:
    """`fn(nets, batch, rng) -> batch`, without gradient, at its `moment`: "dataset", "collect" or "update"."""

    fn: Callable[[Nets, Columns, Generator], Columns]
    moment: str = "update"
    stream: str = "replay"
    needs: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.moment not in ("dataset", "collect", "update"):
            raise ValueError(f"Transform.moment is {self.moment!r}; it must be 'dataset', 'collect' or 'update'")


@dataclass(frozen=True)
class Loss:
    """What is minimised for the networks in `trains`: `sum(coefficient * (share * weight * rows).sum())` over terms."""

    terms: Mapping[str, Term]
    trains: tuple[str, ...]
    outputs: Callable[[Nets, Columns], Columns] = no_columns
    transforms: tuple[Transform, ...] = ()
    optimiser: OptimiserFactory = adam
    lr: Scheduled = 3e-4
    times: int | Callable[[int], int] = once
    clip_norm: float | None = None


@dataclass(frozen=True)
class Buffer:
    """What is kept, and what a row is. `keep(rows) -> [N] bool` chooses; `shares` draws parts of a batch elsewhere."""

    layout: Layout
    keep: Callable[[Columns], Tensor] | None = None
    priority: tuple[Priority, ...] = ()
    capacity: int = 1_000_000
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AfterUpdate:
    """`fn(nets, batch, optimisers)` after the steps of loss `follows`, without gradient.

    `times(update)`, as a loss's, decides whether in this update: `delayed(500)` copies a target every 500 updates.
    """

    fn: Callable[[Nets, Columns, Mapping[str, torch.optim.Optimizer]], None]
    follows: str
    times: Callable[[int], int] = once


@dataclass(frozen=True)
class Schedule:
    """How much of everything, in plain numbers.

    After `start` environment steps, each collection of `collect` steps in every environment is followed by `updates`
    gradient updates for each environment step taken. With `epochs > 0` (on-policy) it is followed instead by that many
    passes, in `minibatches` pieces each, over what was just collected, which is then thrown away; `stop(metrics)`
    may end the passes early.
    """

    batch_size: int = 256
    start: int = 0
    collect: int = 1
    updates: float = 1.0
    epochs: int = 0
    minibatches: int = 1
    stop: Callable[[Mapping[str, Tensor]], bool] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Algorithm:
    """A reinforcement-learning algorithm: fourteen parts, each the answer to one question. See docs: algorithms."""

    networks: Mapping[str, Factory]
    policy: Policy
    buffers: Mapping[str, Buffer]
    losses: Mapping[str, Loss]
    schedule: Schedule
    collect: Collect
    evaluation: tuple[Evaluate, ...]
    exploration: Callable[[Policy], Policy] = identity
    deployment: Callable[[Policy], Policy] = identity
    tasks: TaskSampler | None = None
    initial_states: tuple[InitialStates, ...] = ()
    transforms: tuple[Transform, ...] = ()
    advantage: Callable[[Nets, Columns], Columns] | None = None
    after_update: tuple[AfterUpdate, ...] = ()
    # How the value came to be: the calls, and which method set each part that can hold only one.
    calls: tuple[Call, ...] = ()
    owners: Mapping[str, str] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Algorithm) and not changed_parts(self, other)

    def __hash__(self) -> int:
        return hash((tuple(self.networks), tuple(self.losses), tuple(self.buffers)))  # equal values, equal hashes

    def __str__(self) -> str:
        return "+".join(map(str, self.calls)) or "(an algorithm made by hand)"

    __repr__ = __str__

    def check(self) -> None:
        """Raise `UnmetNeed` where a term or transform reads a column that nothing gives, KeyError for a wrong name."""
        _check(self)


PARTS = (
    "networks", "policy", "exploration", "deployment", "collect", "tasks", "initial_states", "buffers", "transforms",
    "advantage", "losses", "after_update", "schedule", "evaluation",
)  # fmt: skip


def same(left: Any, right: Any) -> bool:
    """Whether two parts are the same value: partials and closures are compared by what they hold, not by identity."""
    if left is right:
        return True
    numbers = (int, float)
    if isinstance(left, numbers) and isinstance(right, numbers):  # 0 and 0.0 are one setting, True and 1 are not
        return left == right and isinstance(left, bool) is isinstance(right, bool)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if type(left) is not type(right):
        return False
    if isinstance(left, Mapping):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, functools.partial):
        return same((left.func, left.args, left.keywords), (right.func, right.args, right.keywords))
    if isinstance(left, Tensor):
        return left.shape == right.shape and bool((left == right).all())
    if inspect.isfunction(left):
        cells = [[cell.cell_contents for cell in f.__closure__ or ()] for f in (left, right)]
        return left.__code__ is right.__code__ and same(cells[0], cells[1])
    if is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))
    equal: Any = type(left).__eq__
    if equal is object.__eq__ and hasattr(left, "__dict__"):  # no equality of its own: compare what it holds
        return same(vars(left), vars(right))
    return bool(left == right)


def stateful(part: Any) -> list[Any]:
    """The objects within a part that have a `state_dict`, in order, each once: what a checkpoint has to remember."""
    if hasattr(part, "state_dict") and not isinstance(part, type):
        return [part]
    inside: Iterable[Any] = ()
    if isinstance(part, Mapping):
        inside = part.values()
    elif isinstance(part, list | tuple):
        inside = part
    elif isinstance(part, functools.partial):
        inside = (part.func, *part.args, *part.keywords.values())
    elif is_dataclass(part) and not isinstance(part, type):
        inside = (getattr(part, f.name) for f in fields(part))
    found = {id(entry): entry for branch in inside for entry in stateful(branch)}
    return list(found.values())


def changed_parts(before: Algorithm, after: Algorithm) -> tuple[str, ...]:
    """The names of the parts that differ, in the order of the catalogue."""
    return tuple(name for name in PARTS if not same(getattr(before, name), getattr(after, name)))


# -------------------------------------------------------------------------------------- how a value came to be


@dataclass(frozen=True)
class Call:
    """One call of an expression: `td3(lr=0.001)`. Only keywords that differ from the defaults are kept.

    `parts` are those that the call changed, as computed when it was made; none for a base.
    """

    slug: str
    keywords: tuple[tuple[str, Any], ...] = ()
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.keywords)
        return f"{self.slug}({inside})" if inside else self.slug


BY_HAND = "a change made by hand"
CHANGED_BY_HAND = Call("(changed by hand)")
# The base or method that is being applied, and the places that had an owner before it began.
_writer: ContextVar[tuple[str, frozenset[str]]] = ContextVar("writer", default=(BY_HAND, frozenset()))


def slug_of(function: Callable[..., Any]) -> str:
    return function.__name__.replace("_", "-")


def expressed(function: F, name: str | None = None) -> F:
    """Make a base (`td3(...) -> Algorithm`) or a method (`(algorithm, ...) -> Algorithm`) part of expressions.

    The call is written into the algorithm it returns, and conflicts between two methods can name both. `name` is what
    expressions call it, where that is not the function's own.
    """
    slug = name or slug_of(function)
    if getattr(function, "expressed", None) == slug:
        return function
    function = inspect.unwrap(function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Algorithm:
        bound = signature.bind(*args, **kwargs)
        given = next((v for v in bound.arguments.values() if isinstance(v, Algorithm)), None)
        keywords = tuple(
            (key, value)
            for key, value in bound.arguments.items()
            if not isinstance(value, Algorithm) and not same(value, signature.parameters[key].default)
        )
        token = _writer.set((slug, frozenset(given.owners if given else ())))
        try:
            result: Algorithm = function(*args, **kwargs)
        finally:
            _writer.reset(token)
        parts = changed_parts(given, result) if given else ()
        calls = (*(given.calls if given else ()), Call(slug, keywords, parts))
        owners = result.owners if given else {}
        return replace(result, calls=calls, owners=owners)

    wrapper.expressed = slug  # type: ignore[attr-defined]
    return cast(F, wrapper)


class Conflict(ValueError):
    """Two methods want a part that can hold only one."""


class UnmetNeed(ValueError):
    """A term reads a column that no part gives."""


class Unfit(ValueError):
    """An algorithm cannot be built for these spaces."""


def between(low: float, high: float, **settings: float | None) -> None:
    """ValueError for a setting that is not in [low, high]; None is not judged."""
    for name, value in settings.items():
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must be between {low:g} and {high:g}")


def above(low: float, **settings: float | None) -> None:
    """ValueError for a setting that is not larger than `low`; None is not judged."""
    for name, value in settings.items():
        if value is not None and not value > low:
            raise ValueError(f"{name} is {value}; it must be larger than {low:g}")


def _owned(algorithm: Algorithm, *places: str) -> dict[str, str]:
    """The owners after the running method has taken `places`; a Conflict if another has one of them, or what is in it.

    What another method changed within a place (a keyword of a term that is now replaced) would be lost without a word.
    """
    method, taken = _writer.get()
    for place in places:
        within = (p for p in algorithm.owners if p == place or p.startswith(f"{place}."))
        for held in within:
            holder = algorithm.owners[held]
            if holder == method and held not in taken:
                continue
            raise Conflict(
                f"{method} and {holder} both set {held}, which holds only one: leave one of them out, "
                f"or write one method that does both"
            )
    return {**algorithm.owners, **dict.fromkeys(places, method)}


# ------------------------------------------------------------------------------------------------ how parts merge


def _changed(algorithm: Algorithm, **parts: Any) -> Algorithm:
    """A copy with other parts. Outside of a method the change is written down as one that no expression can name."""
    if _writer.get()[0] == BY_HAND and algorithm.calls[-1:] != (CHANGED_BY_HAND,):
        parts["calls"] = (*algorithm.calls, CHANGED_BY_HAND)
    return replace(algorithm, **parts)


def _of(kind: str, mapping: Mapping[str, Any], name: str) -> Any:
    if name not in mapping:
        raise KeyError(f"no {kind} is called {name!r}; there are: {', '.join(mapping) or 'none'}")
    return mapping[name]


def _with_loss(algorithm: Algorithm, name: str, **changes: Any) -> Algorithm:
    loss = replace(_of("loss", algorithm.losses, name), **changes)
    return _changed(algorithm, losses={**algorithm.losses, name: loss})


def _with_buffer(algorithm: Algorithm, name: str, **changes: Any) -> Algorithm:
    buffer = replace(_of("buffer", algorithm.buffers, name), **changes)
    return _changed(algorithm, buffers={**algorithm.buffers, name: buffer})


def add_networks(algorithm: Algorithm, **networks: Factory) -> Algorithm:
    """More networks, built after those there are; a name that is taken is a Conflict."""
    if taken := [name for name in networks if name in algorithm.networks]:
        raise Conflict(f"network {taken[0]!r} exists already: choose another name, or use replace_network")
    return _changed(algorithm, networks={**algorithm.networks, **networks})


def replace_network(algorithm: Algorithm, name: str, factory: Factory) -> Algorithm:
    _of("network", algorithm.networks, name)
    owners = _owned(algorithm, f"networks.{name}")
    return _changed(algorithm, networks={**algorithm.networks, name: factory}, owners=owners)


def replace_policy(algorithm: Algorithm, policy: Policy) -> Algorithm:
    return _changed(algorithm, policy=policy, owners=_owned(algorithm, "policy"))


def add_loss(algorithm: Algorithm, name: str, loss: Loss) -> Algorithm:
    """One more loss, minimised after those there are."""
    if name in algorithm.losses:
        raise Conflict(f"loss {name!r} exists already: choose another name, or use add_term")
    return _changed(algorithm, losses={**algorithm.losses, name: loss})


def add_term(algorithm: Algorithm, loss: str, name: str, term: Term) -> Algorithm:
    """One more term in a loss."""
    terms = _of("loss", algorithm.losses, loss).terms
    if name in terms:
        raise Conflict(f"loss {loss!r} has a term {name!r} already: choose another name, or use replace_term")
    return _with_loss(algorithm, loss, terms={**terms, name: term})


def replace_term(algorithm: Algorithm, loss: str, name: str, term: Term) -> Algorithm:
    terms = _of("loss", algorithm.losses, loss).terms
    _of(f"term of loss {loss!r}", terms, name)
    owners = _owned(algorithm, f"losses.{loss}.{name}")
    return _changed(_with_loss(algorithm, loss, terms={**terms, name: term}), owners=owners)


def rebind(algorithm: Algorithm, loss: str, term: str, **keywords: Any) -> Algorithm:
    """Swap keywords of the plain function behind a term: `rebind(a, "critic", "td", regression=hl_gauss(...))`."""
    terms = _of("loss", algorithm.losses, loss).terms
    old = _of(f"term of loss {loss!r}", terms, term)
    names = inspect.signature(old.value).parameters
    for keyword in keywords:
        _of(f"keyword of term {term!r} of loss {loss!r}", names, keyword)
    owners = _owned(algorithm, *(f"losses.{loss}.{term}.{keyword}" for keyword in keywords))
    value = old.value
    bound: Any
    if isinstance(value, functools.partial):  # one partial, not two, so that equal algorithms are equal values
        bound = functools.partial(value.func, *value.args, **{**value.keywords, **keywords})
    else:
        bound = functools.partial(value, **keywords)
    new = {**terms, term: replace(old, value=bound)}
    return _changed(_with_loss(algorithm, loss, terms=new), owners=owners)


def with_lr(algorithm: Algorithm, loss: str, lr: Scheduled) -> Algorithm:
    """The learning rate of a loss: a number, or what it is at a time. Two methods that set one are a Conflict."""
    owners = _owned(algorithm, f"losses.{loss}.lr")
    return _changed(_with_loss(algorithm, loss, lr=lr), owners=owners)


def add_buffer(algorithm: Algorithm, name: str, buffer: Buffer) -> Algorithm:
    if name in algorithm.buffers:
        raise Conflict(f"buffer {name!r} exists already: choose another name")
    return _changed(algorithm, buffers={**algorithm.buffers, name: buffer})


def with_layout(algorithm: Algorithm, buffer: str, layout: Layout) -> Algorithm:
    """What a row of a buffer is. Two methods that lay out one buffer are a Conflict."""
    owners = _owned(algorithm, f"buffers.{buffer}.layout")
    return _changed(_with_buffer(algorithm, buffer, layout=layout), owners=owners)


def reprioritise(algorithm: Algorithm, buffer: str, priority: Priority) -> Algorithm:
    """How likely each row is drawn: multiplies with the priorities there are."""
    old = _of("buffer", algorithm.buffers, buffer).priority
    return _with_buffer(algorithm, buffer, priority=(*old, priority))


def mix(algorithm: Algorithm, buffer: str, **shares: float) -> Algorithm:
    """Fixed shares of every batch of `buffer` come from other buffers: `mix(a, "replay", demos=0.5)`."""
    for name in shares:
        _of("buffer", algorithm.buffers, name)
    merged = {**_of("buffer", algorithm.buffers, buffer).shares, **shares}
    if any(share <= 0 for share in merged.values()) or sum(merged.values()) >= 1 or buffer in merged:
        raise ValueError(f"the shares {merged} of {buffer!r} must be positive, less than 1 in all, and not its own")
    owners = _owned(algorithm, *(f"buffers.{buffer}.shares.{name}" for name in shares))
    return _changed(_with_buffer(algorithm, buffer, shares=merged), owners=owners)


def prepend_transform(algorithm: Algorithm, transform: Transform) -> Algorithm:
    """A transform that runs before those there are."""
    return _changed(algorithm, transforms=(transform, *algorithm.transforms))


def append_transform(algorithm: Algorithm, transform: Transform) -> Algorithm:
    """A transform that runs after those there are."""
    return _changed(algorithm, transforms=(*algorithm.transforms, transform))


def with_reward(algorithm: Algorithm, reward: Callable[[Nets, Columns, Generator], Tensor]) -> Algorithm:
    """Rows are rewarded by `reward(nets, batch, rng) -> [B]`, each time they are drawn."""
    return append_transform(algorithm, Transform(functools.partial(_rewarded, reward=reward)))


def _rewarded(nets: Nets, batch: Columns, rng: Generator, reward: Callable[..., Tensor]) -> Columns:
    return {**batch, "reward": reward(nets, batch, rng)}


def first_state(algorithm: Algorithm, states: InitialStates) -> Algorithm:
    """Ask `states` where an episode starts before asking those there are; None passes the question on."""
    return _changed(algorithm, initial_states=(states, *algorithm.initial_states))


def _nested(policy: Policy, outer: Callable[[Policy], Policy], inner: Callable[[Policy], Policy]) -> Policy:
    return outer(inner(policy))


def _nest(outer: Callable[[Policy], Policy], inner: Callable[[Policy], Policy]) -> Callable[[Policy], Policy]:
    return outer if inner is identity else functools.partial(_nested, outer=outer, inner=inner)


def explore_with(algorithm: Algorithm, exploration: Callable[[Policy], Policy]) -> Algorithm:
    """Wrap how the policy acts while it learns; the newest wrapper is the outermost."""
    return _changed(algorithm, exploration=_nest(exploration, algorithm.exploration))


def deploy_with(algorithm: Algorithm, deployment: Callable[[Policy], Policy]) -> Algorithm:
    """Wrap how the policy acts when nobody learns; the newest wrapper is the outermost."""
    return _changed(algorithm, deployment=_nest(deployment, algorithm.deployment))


def collect_with(algorithm: Algorithm, wrapper: Callable[[Collect], Collect]) -> Algorithm:
    """Wrap how experience is produced; the newest wrapper is the outermost."""
    return _changed(algorithm, collect=wrapper(algorithm.collect))


def with_tasks(algorithm: Algorithm, tasks: TaskSampler) -> Algorithm:
    return _changed(algorithm, tasks=tasks, owners=_owned(algorithm, "tasks"))


def also_after(algorithm: Algorithm, after: AfterUpdate) -> Algorithm:
    """One more thing to do after the steps of a loss."""
    _of("loss", algorithm.losses, after.follows)
    return _changed(algorithm, after_update=(*algorithm.after_update, after))


def reschedule(algorithm: Algorithm, **changes: Any) -> Algorithm:
    """Replace fields of the schedule."""
    owners = _owned(algorithm, *(f"schedule.{name}" for name in changes))
    return _changed(algorithm, schedule=replace(algorithm.schedule, **changes), owners=owners)


def also_evaluate(algorithm: Algorithm, evaluate: Evaluate) -> Algorithm:
    return _changed(algorithm, evaluation=(*algorithm.evaluation, evaluate))


# --------------------------------------------------------------------------------------------------- the last look

ALWAYS = ("weight", "index", "env_steps", "updates")


def _check(algorithm: Algorithm) -> None:
    for name, loss in algorithm.losses.items():
        for net in loss.trains:
            _of(f"network that loss {name!r} trains", algorithm.networks, net)
    for after in algorithm.after_update:
        _of("loss that an after_update follows", algorithm.losses, after.follows)
    columns = {stream: {*ALWAYS, *given_by(b.layout)} for stream, b in algorithm.buffers.items()}
    acting = {c for part in (algorithm.policy, algorithm.exploration, algorithm.advantage) for c in given_by(part)}
    for present in columns.values():
        present |= acting

    def require(what: str, stream: str, needs: tuple[str, ...]) -> set[str]:
        present: set[str] = _of(f"buffer that {what} draws from", columns, stream)
        for need in needs:
            if need not in present:
                known = ", ".join(suppliers.get(need, ())) or "no part that is loaded"
                raise UnmetNeed(
                    f"{what} needs column {need!r}, and nothing gives it: stream {stream!r} has "
                    f"{', '.join(sorted(present))}; {need!r} could come from: {known}"
                )
        return present

    for number, transform in enumerate(algorithm.transforms):
        require(f"transform {number}", transform.stream, transform.needs).update(transform.gives)
    for name, loss in algorithm.losses.items():
        for number, transform in enumerate(loss.transforms):
            what = f"transform {number} of loss {name!r}"
            require(what, transform.stream, transform.needs).update(transform.gives)
        for term_name, term in loss.terms.items():
            require(f"term {term_name!r} of loss {name!r}", term.stream, (*term.needs, *term.noise))
        for term in loss.terms.values():
            columns[term.stream].update(term.gives)
