"""Minari's HDF5 layout: a group an episode, an observation more than steps.

    main_data.hdf5   episode_0/observations [T + 1, ...], or a group of them for a Dict space
                     episode_0/actions [T, ...], rewards, terminations, truncations [T], infos/...
    metadata.json    spaces, the environment's specification, totals, and what authors say of it

Version 0.5 of the package keeps both in a folder NAME-v0/data; earlier ones kept the metadata in the HDF5 file's
attributes. A file written here has it in both, and opens by itself. Images are stored as they are, not as JPEG, which
loses; those that the package stored as JPEG are decoded.
"""

from __future__ import annotations

import io
import json
import re
from array import array as array_of
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from palaestra.data.dataset import NEEDED, Arrays, Dataset, DatasetError
from palaestra.data.hdf5 import array, attributes, believe_strings, h5py, is_variable, member
from palaestra.data.plan import RESTORE, Column, Field, Findings, Plan, Spaces, believable, column, copy, end, seal
from palaestra.envs.border import describe, undescribe

FIELDS = {"obs": "observations", "action": "actions", "reward": "rewards"}
FLAGS = ("terminations", "truncations")
# What the metadata may say of where data are from, by Minari's names.
ORIGIN = (
    "dataset_id", "algorithm_name", "author", "author_email", "code_permalink", "description", "requirements",
    "ref_min_score", "ref_max_score", "num_episodes_average_score", "minari_version",
)  # fmt: skip

# Besides: what the file is to hold; and what logs in other layouts call their environment.
TOTALS = ("total_episodes", "total_steps")
KNOWN = (
    *ORIGIN, *TOTALS, "observation_space", "action_space", "env_spec", "env", "env_id", "env_name", "palaestra",
)  # fmt: skip


def metadata(file: Any, path: Path, found: Findings) -> dict[str, Any]:
    """What the HDF5 file's attributes and the `metadata.json` beside it say."""
    said = attributes(file, KNOWN)
    if "palaestra" not in said and "episode_0" in file and "palaestra" in file["episode_0"].attrs:
        remedy = f"{RESTORE}, or if the change is meant, remove that of 'episode_0' too"
        found.wrong("palaestra", "it is missing, and the file was written here", remedy)
    beside = path.with_name("metadata.json")
    if beside.exists():
        try:
            told = json.loads(beside.read_text())
            if not isinstance(told, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as wrong:
            found.wrong("metadata.json", f"it is no JSON ({wrong})", RESTORE)
            found.stop()
        if "palaestra" in said and told.get("palaestra") != said["palaestra"]:
            found.wrong("metadata.json", "it says something else of the dataset than the HDF5 file", RESTORE)
        said |= told
    return said


def env_of(said: Mapping[str, Any]) -> str | None:
    """The id of the environment that the metadata name. The rest of a specification is code to run: it is not read."""
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(said["env_spec"])["id"])
    return None


def spaces_of(said: Mapping[str, Any], found: Findings) -> Spaces:
    """The spaces that the metadata describe."""

    def parsed(name: str) -> gym.Space[Any] | None:
        if said.get(name) is None:
            return None
        try:
            text = said[name]
            return undescribe(_ours(json.loads(text) if isinstance(text, str) else text))
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as wrong:
            found.wrong(name, f"it is no space that is handled ({type(wrong).__name__}: {wrong})", RESTORE)
            found.stop()
            return None

    return parsed("observation_space"), parsed("action_space")


def _ours(space: Mapping[str, Any]) -> dict[str, Any]:
    inner = space.get("subspaces")
    if inner is not None and not isinstance(inner, dict):
        raise ValueError("a Tuple: use Box, Discrete, MultiDiscrete, MultiBinary or a flat Dict of them")
    inner = {key: _ours(value) for key, value in (inner or {}).items()}
    return {"start": 0 if space["type"] == "Discrete" else None, **space, "space": space["type"], "spaces": inner}


def theirs(space: gym.Space[Any]) -> dict[str, Any]:
    """A space as Minari's metadata describe it."""
    if isinstance(space, gym.spaces.Dict):
        return {"type": "Dict", "subspaces": {key: theirs(inner) for key, inner in space.spaces.items()}}
    said = describe(space)
    said["type"] = said.pop("space")
    if isinstance(space, gym.spaces.Box):
        said |= {"low": space.low.tolist(), "high": space.high.tolist()}
    elif not isinstance(space, gym.spaces.MultiBinary):
        said["dtype"] = str(space.dtype)
    return said


def origin(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata say of where data are from."""
    return {key: said[key] for key in ORIGIN if said.get(key) not in (None, "", [])}


# -------------------------------------------------------------------------------------------------------- reading


def plan(
    file: Any,
    path: Path,
    said: Mapping[str, Any],
    found: Findings,
    spaces: Spaces,
    about: Mapping[str, Any],
    extra: tuple[str, ...] = (),
) -> Plan:
    """The plan of an open HDF5 file in Minari's layout.

    Args:
        file: the `h5py.File`.
        path: where it is.
        said: its metadata.
        found: told what is wrong.
        spaces: of observations and actions, where they are known.
        about: what is known besides.
        extra: names of further columns, from `infos`.
    """
    numbers = sorted(int(name.removeprefix("episode_")) for name in file if re.fullmatch(r"episode_\d{1,9}", name))
    if numbers != list(range(len(numbers))):
        missing = next(n for n, number in enumerate(numbers) if n != number)
        found.wrong(f"episode_{missing}", f"it is missing: there are {len(numbers)} others", RESTORE)
    total = said.get("total_episodes", len(numbers))
    if total != len(numbers):
        found.wrong("total_episodes", f"it says {total!r}, and there are {len(numbers)} episodes", RESTORE)

    terminated, truncated, steps = bytearray(), bytearray(), 0
    pieces = array_of(
        "q"
    )  # of each episode its group's number, its first step, the one after its last, the group's steps
    cut = unended = 0
    for number in numbers:
        try:
            flags = _flags(file, number, found)
        except DatasetError as wrong:
            if not found.collect:
                raise
            found.wrong("", str(wrong), RESTORE, f"episode {number}")
            continue
        ends = flags[0] | flags[1]
        steps += len(ends)
        if not ends[-1]:
            unended += 1
            found.odd("truncations", "an episode has no end", "set it at the last step", f"episode {number}")
        ends[-1] = True
        last = ends.nonzero()[0]
        if len(last) > 1:
            cut += len(last) - 1
            place = f"episode {number}, step {last[0]}"
            found.odd("terminations", "an episode goes on after its end", "begin another there", place, len(last) - 1)
        for begin, stop in zip([0, *last[:-1] + 1], last + 1, strict=True):
            pieces.extend((number, int(begin), int(stop), len(ends)))
        terminated += flags[0].tobytes()
        truncated += flags[1].tobytes()
    if not pieces:
        found.wrong("", "there is no whole episode", RESTORE)
        found.stop()
    if said.get("total_steps", steps) != steps:
        found.wrong("total_steps", f"it says {said['total_steps']!r}, and there are {steps} steps", RESTORE)
    table = np.frombuffer(pieces, np.int64).reshape(-1, 4)
    lengths = table[:, 2] - table[:, 1]
    columns = _columns(file, f"episode_{pieces[0]}", spaces, extra, found)
    ignored = [] if extra or "infos" not in file[f"episode_{pieces[0]}"] else ["infos"]
    own = dict(about) | {"dropped": 0, "cut": cut, "unended": unended} | ({"ignored": ignored} if ignored else {})
    slots = int(lengths.sum()) + len(lengths)
    believable(slots * sum(one.nbytes for one in columns.values()), path, found)

    def fill(arrays: Arrays) -> None:
        is_step = np.ones(slots, bool)
        is_step[np.cumsum(lengths + 1) - 1] = False
        arrays["terminated"][is_step] = np.frombuffer(terminated, bool)
        arrays["truncated"][is_step] = np.frombuffer(truncated, bool)
        slot = 0
        logged = {name: one for name, one in columns.items() if name not in ("terminated", "truncated")}
        for number, begin, stop, length in map(np.ndarray.tolist, table):
            group = member(file, f"episode_{number}")
            for name, one in logged.items():
                more = name.partition("/")[0] == "obs"
                target = arrays[name][slot : slot + stop - begin + more]
                try:
                    source = _field(group, one, length + more)
                    copy(source, begin, target, one, found, number)
                except DatasetError as wrong:
                    if not found.collect:
                        raise _placed(wrong, one.field, number, found) from wrong
                    found.wrong(one.field, str(wrong), RESTORE, f"episode {number}")
            slot += stop - begin + 1
        end(arrays, lengths)

    return Plan(lengths, columns, fill, spaces, own)


def _placed(wrong: DatasetError, field: str, number: int, found: Findings) -> DatasetError:
    if hasattr(wrong, "problem"):
        return wrong
    try:
        found.wrong(field, str(wrong), RESTORE, f"episode {number}")
    except DatasetError as placed:
        return placed
    return wrong


def _flags(file: Any, number: int, found: Findings) -> list[np.ndarray]:
    """Terminations and truncations of an episode, bool [T] each."""
    group = member(file, f"episode_{number}")
    flags = []
    for name in FLAGS:
        try:
            source = array(group, name)
            one = column("terminated", name, source, None)
            if len(source.shape) > 2 or not 0 < source.shape[0] < 1 << 31:
                raise DatasetError(f"it has shape {source.shape}: a flag a step is needed")
            believable(source.shape[0], found.file, found)
            flags.append(one.cast(source[:], found, lambda step: f"episode {number}, step {step}"))
            if len(flags[-1]) != len(flags[0]):
                raise DatasetError(f"it has {len(flags[-1])} steps, and {FLAGS[0]} have {len(flags[0])}")
        except DatasetError as wrong:
            raise _placed(wrong, name, number, found) from wrong
    says = attributes(group, ["total_steps"]).get("total_steps", len(flags[0]))
    if says != len(flags[0]):
        found.wrong("total_steps", f"it says {says!r}: there are {len(flags[0])} steps", RESTORE, f"episode {number}")
    return flags


def _columns(file: Any, group: str, spaces: Spaces, extra: tuple[str, ...], found: Findings) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    before = found.wrongs

    def add(name: str, field: str, space: gym.Space[Any] | None) -> None:
        try:
            source = array(file, f"{group}/{field}")
            if is_variable(source.dtype):
                believe_strings(file)
            source = _decoded(source, space)
            shape = source.shape[1:] if name in extra else None
            columns[name] = column(name, field, source, space, shape)
        except DatasetError as wrong:
            found.wrong(field, str(wrong), RESTORE, group.replace("_", " "))

    inner: dict[str, gym.Space[Any] | None] | None = None
    if isinstance(spaces[0], gym.spaces.Dict):
        inner = {**spaces[0].spaces}
    if spaces[0] is None and hasattr(observed := member(file[group], "observations"), "keys"):
        inner = dict.fromkeys(observed)
    if inner is None:
        add("obs", "observations", spaces[0])
    else:
        for key, space in inner.items():
            add(f"obs/{key}", f"observations/{key}", space)
    add("action", "actions", spaces[1])
    add("reward", "rewards", None)
    for name in extra:
        add(name, f"infos/{name}", None)
    found.stop(before)
    flags = {name: Column(field, (), np.dtype(bool)) for name, field in zip(NEEDED[2:], FLAGS, strict=True)}
    return columns | flags


def _field(group: Any, own: Column, wanted: int) -> Field:
    source = array(group, own.field)
    if own.dtype == np.uint8 and _is_encoded(source.shape, own.shape):
        source = _Images(source, own.shape)
    shape, dtype = source.shape, source.dtype
    if shape[:1] != (wanted,):
        raise DatasetError(f"it has shape {tuple(shape)}: {wanted} rows are needed")
    if dtype.kind not in "biuf":
        raise DatasetError(f"it has dtype {dtype}: numbers are needed")
    if shape[1:] != own.shape and [d for d in shape[1:] if d != 1] != [d for d in own.shape if d != 1]:
        raise DatasetError(f"its rows have shape {tuple(shape[1:])}, and {own.shape} is right")
    return source


# --------------------------------------------------------------------------------------------------------- images


def _is_encoded(stored: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether rows that are images are stored as a string of bytes each."""
    return len(image) in (2, 3) and 1 <= len(stored) <= 2


def _decoded(source: Field, space: gym.Space[Any] | None) -> Field:
    image = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and _is_encoded(source.shape, space.shape)
    return _Images(source, space.shape) if image and space is not None and space.shape is not None else source


class _Images:
    """Encoded images as the array that they are decoded to."""

    def __init__(self, source: Field, shape: tuple[int, ...]) -> None:
        self.source, self.shape, self.dtype = source, (*source.shape[:1], *shape), np.dtype(np.uint8)

    def __getitem__(self, rows: slice) -> np.ndarray:
        from PIL import Image  # matplotlib brings it

        found = []
        for content in self.source[rows]:
            with Image.open(io.BytesIO(np.asarray(content, np.uint8).tobytes()), formats=("JPEG",)) as image:
                if (image.height, image.width) != self.shape[1:3]:
                    raise DatasetError(f"an image has size {image.height} by {image.width}, not {self.shape[1:3]}")
                found.append(np.asarray(image).reshape(self.shape[1:]))
        return np.stack(found)


# -------------------------------------------------------------------------------------------------------- writing


def write(dataset: Dataset, path: Path, name: str) -> None:
    """The HDF5 file and, where `path` is called `main_data.hdf5`, the metadata beside it.

    Args:
        dataset: what is written.
        path: of the file, which is replaced.
        name: that Minari's metadata give the dataset, less its version.
    """
    sealed = seal(dataset)
    spaces = {"observation_space": dataset.observation_space, "action_space": dataset.action_space}
    said = {"total_episodes": dataset.episodes, "total_steps": dataset.steps}
    with h5py(path).File(path, "w") as file:
        file.attrs.update(said)
        try:
            file.attrs["palaestra"] = np.bytes_(sealed)  # of fixed length: it survives what `believe_strings` is about
        except (OSError, RuntimeError, ValueError) as wrong:
            remedy = "leave out what is long in its `about`"
            raise DatasetError(
                f"{path}: what is said of the dataset takes {len(sealed)} bytes, and 64,000 fit; {remedy}"
            ) from wrong
        for number, episode in enumerate(dataset):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": len(episode["reward"])})
            if number == 0:
                group.attrs["palaestra"] = np.bytes_(dataset.hash)  # so that it is missed if the file's own is lost
            for key, rows in episode.items():
                group.create_dataset(_theirs(key, dataset), data=rows)
    if path.name == "main_data.hdf5":
        told = {
            **_origin(dataset, name),
            **said,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "dataset_size": round(path.stat().st_size / 1e6, 1),
            **{key: json.dumps(theirs(space)) for key, space in spaces.items()},
            "palaestra": sealed,
        }
        path.with_name("metadata.json").write_text(json.dumps(told, default=str))


def _theirs(name: str, dataset: Dataset) -> str:
    if name in dataset.obs_names:
        return FIELDS["obs"] + name.removeprefix("obs")
    return {**FIELDS, "terminated": FLAGS[0], "truncated": FLAGS[1]}.get(name, f"infos/{name}")


def _origin(dataset: Dataset, name: str) -> dict[str, Any]:
    """What Minari wants to know: an id, the oldest version of it that reads the layout, the environment, the source."""
    known = dataset.about.get("provenance") or {}
    said = {key: known[key] for key in ORIGIN if key in known} if isinstance(known, Mapping) else {}
    plain = re.sub(r"[^-_\w]+", "-", name).strip("-") or "dataset"
    images = any(one.dtype == np.uint8 and one.ndim > 2 for one in dataset.columns.values())
    said["dataset_id"] = plain if re.fullmatch(r".+-v\d+", plain) else f"{plain}-v0"
    said["minari_version"] = "0.5.4" if images else "0.5.0"  # images that are no JPEG are as young as that
    if isinstance(env := dataset.about.get("env"), str):
        from palaestra.envs.registration import register

        register()
        with suppress(gym.error.Error, TypeError, ImportError):  # ids that are not known here, what is no JSON
            said["env_spec"] = gym.spec(env).to_json()
    return said
