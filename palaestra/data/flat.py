"""Logs without episodes of their own: a row a step, with flags that end an episode. D4RL's layout, and dictionaries.

    observations       o0 o1 o2 | p0 p1     as D4RL calls them; "obs" and the names of `Dataset` do as well
    actions            a0 a1 a2 | b0 b1
    rewards            r0 r1 r2 | s0 s1
    terminals          0  0  1  | 0  0      the world ended: there is no next observation that matters
    timeouts           0  0  0  | 0  1      the clock ended it: there is one
    next_observations  o1 o2 o3 | p1 p2     optional

What is next is read from the next row; the last row of an episode needs `next_observations`. Without them, a row that
timed out has no known next observation and is dropped (its observation is the final one of the row before), while
a terminal row keeps a copy of its own, which no target reads. A row whose next observation is not the next row's ends
its episode too, as truncated; so does the last row.

With `lengths` [E], arrays are a dataset's own columns [R, ...], a slot for each final observation.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from palaestra.data.dataset import NEEDED, Arrays, DatasetError
from palaestra.data.plan import PIECE, RESTORE, Column, Field, Findings, Plan, Spaces, believable, column, end

NAMES = {
    "observations": "obs", "observation": "obs", "next_observations": "next_obs", "next_observation": "next_obs",
    "actions": "action", "rewards": "reward", "terminals": "terminated", "terminations": "terminated",
    "timeouts": "truncated", "truncations": "truncated",
}  # fmt: skip
REMEDY = "give observations, actions, rewards, terminals and timeouts, each with a row a step"
Reader = Callable[[Column, Field, int, int], np.ndarray]


class Episodes(NamedTuple):
    """Rows begin to begin + rows of a file are an episode's; its steps are as many, or one less; it has its slots."""

    begin: np.ndarray
    rows: np.ndarray
    steps: np.ndarray
    first: np.ndarray


def flat(
    fields: Mapping[str, Field],
    file: Path | None,
    found: Findings,
    spaces: Spaces = (None, None),
    about: Mapping[str, Any] | None = None,
    extra: tuple[str, ...] | None = None,
) -> Plan:
    """The plan of a log.

    Args:
        fields: by name; of Dict observations "observations/KEY".
        file: where they come from, or None.
        found: told what is wrong.
        spaces: of observations and actions, where they are known.
        about: what is known besides.
        extra: names of further columns; None for every field that fits.
    """
    known = _known(fields, found)
    obs = [name for name in known if name.partition("/")[0] == "obs"]
    by_slots = "lengths" in fields
    for name in NEEDED if by_slots else NEEDED[:3]:
        if name not in known:
            merged = next((n for n in fields if n in ("done", "dones")), None)
            remedy = f"split {merged!r} into terminals and timeouts" if merged else REMEDY
            near = difflib.get_close_matches(name, fields, 1)
            hint = f" (is it {near[0]!r}?)" if near else ""
            found.wrong(name, f"it is missing{hint}: there are {', '.join(fields) or 'no fields'}", remedy)
    if not obs:
        found.wrong("obs", f"it is missing: there are {', '.join(fields) or 'no fields'}", REMEDY)
    found.stop()
    count = fields[known["reward"]].shape[0] if fields[known["reward"]].shape else 0
    if not count:
        found.wrong(known["reward"], "there is no row", RESTORE)
    for field in known.values():
        shape = fields[field].shape
        if not shape or shape[0] != count:
            found.wrong(field, f"it has shape {tuple(shape)}: {known['reward']!r} has {count} rows", RESTORE)
    found.stop()
    columns = _columns(fields, known, spaces, found)
    ignored = []
    for name in fields:
        if name not in known.values() and name != "lengths":
            fits = len(fields[name].shape) > 0 and fields[name].shape[0] == count and fields[name].dtype.kind in "biuf"
            if name in (extra or ()) or (extra is None and fits and "/" not in name):
                columns[name] = column(name, name, fields[name], None, fields[name].shape[1:])
            else:
                ignored.append(name)
    if file is not None:
        believable(count * sum(one.nbytes for one in columns.values()), file, found)
    nexts = {name: columns.pop(name) for name in list(columns) if name.partition("/")[0] == "next_obs"}
    read, again = _reader(found), _reader(Findings(found.file, collect=True))  # what is wrong is told once
    said = {**(about or {}), "dropped": 0, "cut": 0, "unended": 0}
    if ignored:
        said["ignored"] = ignored
    if by_slots:
        return _of_slots(fields, columns, spaces, said, read, found)

    terminated = read(columns["terminated"], fields[columns["terminated"].field], 0, count)
    truncated = np.zeros(count, bool)
    if "truncated" in columns:
        truncated = read(columns["truncated"], fields[columns["truncated"].field], 0, count)
    else:
        columns["truncated"] = Column("timeouts", (), np.dtype(bool))
        found.odd("timeouts", "it is missing: time limits cannot be told from steps that go on", "log timeouts too")
        said["timeouts"] = "missing"
    cut = _breaks(fields, columns, nexts, terminated | truncated, again)
    said["cut"], said["unended"] = int(cut.sum()), int(not (terminated[-1] or truncated[-1]))
    if cut.any():
        remedy = "log rows in the order in which they happened"
        field = next(iter(nexts.values())).field
        found.odd(field, "it is not the next row's observation", remedy, f"row {cut.argmax()}", int(cut.sum()))
    if said["unended"]:
        found.odd("timeouts", "the last episode has no end", "set the last row's timeouts to 1", f"row {count - 1}")
    ends = terminated | truncated | cut
    ends[-1] = True
    last = ends.nonzero()[0]
    begin = np.concatenate([[0], last[:-1] + 1])
    rows = last - begin + 1
    steps = rows - (0 if nexts else ~terminated[last])
    said["dropped"] = int((rows - steps).sum())
    if not steps.any():
        found.wrong("next_observations", "without it, no row has a known next observation", "log it")
        found.stop()
    first = np.cumsum(np.where(steps > 0, steps + 1, 0)) - np.where(steps > 0, steps + 1, 0)
    episodes = Episodes(begin, rows, steps, first)

    def fill(arrays: Arrays) -> None:
        for name, own in columns.items():
            given = {"terminated": terminated, "truncated": truncated}.get(name)
            for at, piece in _pieces(own, given if given is not None else fields[own.field], count, read):
                number, inside = _where(episodes, at, at + len(piece), whole=name in obs)
                slots = np.arange(at, at + len(piece)) - begin[number] + first[number]
                arrays[name][slots[inside]] = piece[inside]
        for name in obs:
            own = nexts.get(f"next_{name}", columns[name])
            for at, piece in _pieces(own, fields[own.field], count, read if nexts else again):
                number, inside = _where(episodes, at, at + len(piece), whole=True)
                final = np.arange(at, at + len(piece)) == (begin + steps)[number] - 1
                final &= inside & (steps == rows)[number]
                arrays[name][(first + steps)[number[final]]] = piece[final]
        end(arrays, steps[steps > 0])

    return Plan(steps[steps > 0], columns, fill, spaces, said)


def _known(fields: Mapping[str, Field], found: Findings) -> dict[str, str]:
    """By the dataset's name for it, the field that holds it."""
    known: dict[str, str] = {}
    for field in fields:
        head, slash, key = field.partition("/")
        name = NAMES.get(head, head) + slash + key
        if name.partition("/")[0] not in ("obs", "next_obs") and name not in NEEDED:
            continue
        if name in known:
            found.wrong(field, f"it is given twice: as {known[name]!r} too", "leave one out")
        known[name] = field
    return known


def _columns(fields: Mapping[str, Field], known: dict[str, str], spaces: Spaces, found: Findings) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    obs = {name.removeprefix("next_") for name in known if name.partition("/")[0] in ("obs", "next_obs")}
    wanted = {"obs"} if spaces[0] is None else {f"obs/{k}" for k in getattr(spaces[0], "spaces", ())} or {"obs"}
    if (spaces[0] is not None and obs != wanted) or ("obs" in obs and len(obs) > 1):
        needed = (
            f"the space {spaces[0]} needs {', '.join(sorted(wanted))}" if spaces[0] else "either one or a dictionary"
        )
        found.wrong("obs", f"there are {', '.join(sorted(obs))}: {needed}", REMEDY)
        found.stop()
    for name, field in known.items():
        head, _, key = name.removeprefix("next_").partition("/")
        space = spaces[0] if head == "obs" else spaces[1] if head == "action" else None
        if key and space is not None:
            space = space.spaces[key]  # type: ignore[attr-defined]
        try:
            columns[name] = column(name.removeprefix("next_"), field, fields[field], space)
        except DatasetError as wrong:
            found.wrong(field, str(wrong), RESTORE)
    found.stop()
    for name in [name for name in columns if name.startswith("next_")]:
        of = name.removeprefix("next_")
        if of not in columns or columns[name][1:] != columns[of][1:]:
            found.wrong(columns[name].field, "its rows are not like the observations'", RESTORE)
    if any(name.startswith("next_") for name in columns):
        for name in obs - {name.removeprefix("next_") for name in columns if name.startswith("next_")}:
            found.wrong(f"next_{name}", "it is missing: there are other next observations", REMEDY)
    found.stop()
    return columns


def _reader(found: Findings) -> Reader:
    def read(own: Column, source: Field, begin: int, end: int) -> np.ndarray:
        return own.cast(np.asarray(source[begin:end]), found, lambda row: f"row {begin + row}")

    return read


def _pieces(own: Column, source: Field, count: int, read: Reader) -> Iterator[tuple[int, np.ndarray]]:
    rows = max(1, PIECE // max(8, own.nbytes))
    for at in range(0, count, rows):
        yield at, read(own, source, at, min(count, at + rows))


def _breaks(
    fields: Mapping[str, Field],
    columns: Mapping[str, Column],
    nexts: Mapping[str, Column],
    ends: np.ndarray,
    read: Reader,
) -> np.ndarray:
    """Rows, within an episode, whose next observation is not the next row's: bool [N]."""
    cut = np.zeros(len(ends), bool)
    for name, own in nexts.items():
        now = columns[name.removeprefix("next_")]
        for at, piece in _pieces(own, fields[own.field], len(ends) - 1, read):
            after = read(now, fields[now.field], at + 1, at + 1 + len(piece))
            differ = (piece != after) & ((piece == piece) | (after == after))  # NaN is a problem of its own
            cut[at : at + len(piece)] |= differ.reshape(len(piece), -1).any(1)
    return cut & ~ends


def _where(episodes: Episodes, begin: int, end: int, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """The episode of each row of a piece, and whether the row (`whole`: its observation) is kept."""
    low, high = np.searchsorted(episodes.begin, [begin, end - 1], side="right") - 1
    edges = np.append(np.maximum(episodes.begin[low : high + 1], begin), end)
    number = np.repeat(np.arange(low, high + 1), np.diff(edges))
    kept = (episodes.rows if whole else episodes.steps)[number] > np.arange(begin, end) - episodes.begin[number]
    return number, kept & (episodes.steps[number] > 0)


def _of_slots(
    fields: Mapping[str, Field],
    columns: dict[str, Column],
    spaces: Spaces,
    about: dict[str, Any],
    read: Reader,
    found: Findings,
) -> Plan:
    count = fields[columns["reward"].field].shape[0]
    own = Column("lengths", (), np.dtype(np.int64))
    shape = fields["lengths"].shape
    if len(shape) != 1 or not 0 < shape[0] <= count or fields["lengths"].dtype.kind not in "iu":
        found.wrong("lengths", f"it has shape {shape}: how many steps each episode has is needed", RESTORE)
        found.stop()
    lengths = read(own, fields["lengths"], 0, shape[0])
    if lengths.min() < 1 or lengths.max() > count or lengths.sum() + len(lengths) != count:
        found.wrong("lengths", f"they do not add up to {count} slots, one more than steps for each episode", RESTORE)
        found.stop()
    finals = np.cumsum(lengths + 1) - 1

    def fill(arrays: Arrays) -> None:
        for name, own in columns.items():
            for at, piece in _pieces(own, fields[own.field], count, read):
                arrays[name][at : at + len(piece)] = piece
            if name.partition("/")[0] != "obs":
                arrays[name][finals] = 0
        ended = arrays["terminated"] | arrays["truncated"]
        if not ended[finals - 1].all():
            about["unended"] = int((~ended[finals - 1]).sum())
            place = f"episode {ended[finals - 1].argmin()}"
            found.odd("truncated", "an episode has no end", "set it at its last step", place, about["unended"])
        ended[finals - 1] = False
        if ended.any():
            number = np.searchsorted(finals, ended.argmax())
            found.wrong("lengths", "an episode goes on after its end", RESTORE, f"episode {number}", int(ended.sum()))
        end(arrays, lengths)

    return Plan(lengths, columns, fill, spaces, about)
