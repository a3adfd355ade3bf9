"""States on disk: trees of tensors, arrays and plain values, as safetensors and JSON, exact and never pickled."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from palaestra.runs.errors import CheckpointError
from palaestra.runs.files import Fingerprint, sync_folder, write_file

# A nested dict (keys str or int), list or tuple of tensors of any dtype, numeric or bool NumPy arrays, int, float,
# bool, str and None. Any, because a type that says so would have to be narrowed at every access; saving checks it.
State: TypeAlias = Any

TENSORS, TREE = "state.safetensors", "state.json"

# What every safetensors since 0.5 can say. Any other dtype is stored as its bytes, on a last axis of its own.
_KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ARRAY_KINDS = {
    "<f8": "F64",
    "<f4": "F32",
    "<f2": "F16",
    "<i8": "I64",
    "<i4": "I32",
    "<i2": "I16",
    "|i1": "I8",
    "<u8": "U64",
    "<u4": "U32",
    "<u2": "U16",
    "|u1": "U8",
    "|b1": "BOOL",
}

# Beyond this other readers of JSON round to a double, and Python refuses integers of more than 4,300 digits.
_EXACT = 2**53


def save_state(folder: Path, state: State) -> dict[str, Fingerprint]:
    """Write a state into a folder as `state.safetensors` (what is big) and `state.json` (the tree), and fsync them.

    Restored exactly, but for these: tensors come back on the CPU, contiguous and without gradient; subclasses of dict
    and Tensor as dict and Tensor; two references to one tensor as two tensors.

    Args:
        folder: made when missing; a state in it is replaced.
        state: see `State`.

    Returns:
        Both files' names with size and hash.

    Raises:
        TypeError: a part of the state that cannot be stored, by its path in the tree.
        OSError: the disk is full or the folder is not writable.
    """
    leaves = _Leaves()
    tree = _encode(state, "", leaves)
    folder.mkdir(parents=True, exist_ok=True)
    fingerprints = {
        TENSORS: write_tensors(folder / TENSORS, leaves.named),
        TREE: write_file(folder / TREE, [json.dumps(tree, allow_nan=False).encode()]),
    }
    sync_folder(folder)
    return fingerprints


def load_state(folder: Path) -> State:
    """Return the state that `save_state` wrote into a folder.

    Raises:
        CheckpointError: a file is missing, cannot be read or holds no state.
    """
    remedy = "restore it from a copy, or use another checkpoint"
    path = folder / TENSORS
    try:
        tensors = safetensors.torch.load(path.read_bytes())
        path = folder / TREE
        return _decode(json.loads(path.read_bytes()), tensors)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})", remedy) from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(path, f"is no safetensors file ({error})", remedy) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise CheckpointError(path, f"is no JSON: {error.msg}", remedy, where) from error
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"holds no state ({error})", remedy) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor | np.ndarray[Any, Any]]) -> Fingerprint:
    """Write a safetensors file, fsynced and renamed into place, and return its size and hash.

    Written here rather than by safetensors so that it is hashed on the way, needs no second copy in memory, takes
    tensors that share memory, and reports a full disk as the OSError it is.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    # By falling alignment, so that every tensor of a mapped file begins at a multiple of its item's size.
    ordered = sorted(tensors.items(), key=lambda item: -_itemsize(item[1]))
    header: dict[str, object] = {}
    end = 0
    for name, value in ordered:
        kind, shape = _stored(value)
        start, end = end, end + _itemsize(value) * math.prod(value.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for _, value in ordered:
            yield _content(value)

    return write_file(path, chunks())


def stores_natively(tensor: Tensor) -> bool:
    """Return whether safetensors has a name for the tensor's dtype."""
    return tensor.dtype in _KINDS


@dataclass
class _Leaves:
    """The tensors and arrays of a tree, by unique names that resemble their paths."""

    named: dict[str, Tensor | np.ndarray[Any, Any]] = field(default_factory=dict)

    def add(self, path: str, value: Tensor | np.ndarray[Any, Any]) -> str:
        # safetensors reads UTF-8, which has no lone surrogates, and keeps `__metadata__` for itself.
        path = path.encode(errors="replace").decode()
        name, number = path, 1
        while name in self.named or name == "__metadata__":
            number += 1
            name = f"{path}#{number}"
        self.named[name] = value
        return name


def _encode(value: State, path: str, leaves: _Leaves) -> object:
    # Exact types: a bool is an int, np.float64 a float and a named tuple a tuple, and none would come back as it was.
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if -_EXACT <= value <= _EXACT else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if kind is list:
        return [_encode(item, f"{path}/{index}", leaves) for index, item in enumerate(value)]
    if kind is tuple:
        return {"tuple": [_encode(item, f"{path}/{index}", leaves) for index, item in enumerate(value)]}
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"state{path}: the key {key!r} is a {type(key).__name__}; use str or int")
        items = [(key, _encode(item, f"{path}/{key}", leaves)) for key, item in value.items()]
        if all(isinstance(key, str) for key in value):
            return {"dict": dict(items)}
        return {"items": [[_encode(key, path, leaves), item] for key, item in items]}
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.device.type == "meta" or value.is_quantized:
            raise TypeError(f"state{path}: a {value.layout} tensor on {value.device} has no plain values to store")
        name = leaves.add(path.removeprefix("/"), value)
        raw = {} if value.dtype in _KINDS else {"dtype": str(value.dtype).removeprefix("torch.")}
        return {"tensor": name, **raw}
    if kind is np.ndarray:
        if value.dtype.kind not in "biufc":
            raise TypeError(f"state{path}: an array of dtype {value.dtype} is neither numeric nor bool")
        return {"array": leaves.add(path.removeprefix("/"), value), "dtype": value.dtype.str}
    raise TypeError(
        f"state{path}: a {kind.__module__}.{kind.__qualname__} cannot be stored; use tensors, numeric arrays, "
        "int, float, bool, str, None, and dicts, lists and tuples of them"
    )


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> State:
    match node:
        case None | bool() | int() | float() | str():
            return node
        case list():
            return [_decode(item, tensors) for item in node]
        case {"dict": dict(items)}:
            return {key: _decode(item, tensors) for key, item in items.items()}
        case {"items": list(items)}:
            return {_decode(key, tensors): _decode(item, tensors) for key, item in items}
        case {"tuple": list(items)}:
            return tuple(_decode(item, tensors) for item in items)
        case {"int": str(text)}:
            return int(text, 16)
        case {"float": str(text)}:
            return float(text)
        case {"tensor": str(name), "dtype": str(dtype)}:
            return tensors[name].view(getattr(torch, dtype)).squeeze(-1)
        case {"tensor": str(name)}:
            return tensors[name]
        case {"array": str(name), "dtype": str(dtype)}:
            array = tensors[name].numpy()
            return array if dtype in _ARRAY_KINDS else array.view(dtype)[..., 0]
        case _:
            raise ValueError(f"unknown node {str(node)[:40]!r}")


def _stored(value: Tensor | np.ndarray[Any, Any]) -> tuple[str, list[int]]:
    kind = _KINDS.get(value.dtype) if isinstance(value, Tensor) else _ARRAY_KINDS.get(value.dtype.str)
    return (kind, [*value.shape]) if kind else ("U8", [*value.shape, _itemsize(value)])


def _itemsize(value: Tensor | np.ndarray[Any, Any]) -> int:
    return value.element_size() if isinstance(value, Tensor) else value.itemsize


def _content(value: Tensor | np.ndarray[Any, Any]) -> memoryview:
    # One axis and uint8, because a memoryview counts items and NumPy knows no bfloat16.
    if isinstance(value, Tensor):
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        return plain.reshape(-1).view(torch.uint8).numpy().data
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
