"""A state comes back as it was, bit for bit."""

import math
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from palaestra.runs.errors import CheckpointError
from palaestra.runs.states import load_state, save_state

TENSOR_TYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
    torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip
ARRAY_TYPES = [*"?bBhHiIlLqQefdgFD", ">f8", ">i4"]


def same(a, b) -> bool:
    """Equal in type, dtype, shape and bits; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        bits = [x.resolve_conj().contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return a.hex() == b.hex()
    return a == b


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(TENSOR_TYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    bits = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
    if dtype == torch.bool:
        bits = bits % 2
    return bits.view(dtype).reshape(shape)


shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
dtypes = st.sampled_from(ARRAY_TYPES).map(np.dtype)
leaves = (
    tensors()
    | arrays.arrays(dtypes, shapes)
    | st.integers()
    | st.integers(-(2**128), 2**128)
    | st.floats()
    | st.booleans()
    | st.text()
    | st.none()
)
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states)
def test_round_trip(tmp_path: Path, state):
    save_state(tmp_path, state)
    assert same(load_state(tmp_path), state)


def test_what_a_learner_holds(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    generator = np.random.default_rng(7)
    generators = [generator.bit_generator.state, np.random.Generator(np.random.MT19937(7)).bit_generator.state]
    state = {
        "optimiser": optimiser.state_dict(),
        "generators": generators,
        "torch": torch.Generator().manual_seed(7).get_state(),
        "huge": 10**5000,
        "zero": -0.0,
    }
    save_state(tmp_path, {**state, "model": OrderedDict(model.state_dict())})
    loaded = load_state(tmp_path)
    assert same(loaded.pop("model"), dict(model.state_dict()))
    assert same(loaded, state)
    expected = generator.random(5)
    generator.bit_generator.state = loaded["generators"][0]
    assert np.array_equal(generator.random(5), expected)
    loaded["optimiser"]["state"][0]["exp_avg"].add_(1)  # loaded tensors are one's own
    optimiser.load_state_dict(loaded["optimiser"])


def test_views_parameters_and_clashing_names(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "t": base.T,
        "row": base[1],
        "conj": torch.tensor([1 + 2j]).conj(),
        "strided": np.arange(6)[::2],
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "__metadata__": torch.ones(1),
        "a/b": torch.zeros(1),
        "a": {"b": torch.ones(1), 1: torch.ones(2), "1": torch.ones(3)},
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save_state(tmp_path, state)
    assert same(load_state(tmp_path), {**state, "parameter": torch.ones(2)})
    with safetensors.safe_open(tmp_path / "state.safetensors", framework="pt") as file:
        assert {"t", "row", "a/b", "a/b#2", "a/1", "a/1#2"} <= set(file.keys())
        assert torch.equal(file.get_tensor("t"), base.T)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"nets": [1, {"actor": {1, 2}}]}, "state/nets/1/actor: a builtins.set cannot be stored"),
        ({"x": np.float64(1)}, "state/x: a numpy.float64 cannot be stored"),
        ({"x": np.array(["a"])}, "state/x: an array of dtype <U1"),
        ({"x": np.array([None])}, "state/x: an array of dtype object"),
        ({"x": torch.ones(1).to_sparse()}, "state/x: a torch.sparse_coo tensor"),
        ({"x": torch.ones(1, device="meta")}, "state/x: a torch.strided tensor on meta"),
        ({"x": {True: 1}}, "state/x: the key True is a bool; use str or int"),
        ({"x": namedtuple("Point", "a")(1)}, "state/x: a "),
        (1j, "state: a builtins.complex"),
    ],
)
def test_anything_else_is_refused_by_its_path(tmp_path, state, says):
    with pytest.raises(TypeError) as caught:
        save_state(tmp_path, state)
    assert str(caught.value).startswith(says)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_state_is_located(tmp_path):
    save_state(tmp_path, {"x": torch.ones(3)})
    tree = (tmp_path / "state.json").read_text()
    for content, says in [
        (tree[:-5], "state.json, line 1, column"),
        (tree.replace('"tensor"', '"tensors"'), "state.json: holds no state (unknown node"),
        (tree.replace('"tensor": "x"', '"tensor": "y"'), "state.json: holds no state ('y')"),
    ]:
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(CheckpointError) as caught:
            load_state(tmp_path)
        assert says in str(caught.value)
    (tmp_path / "state.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"state.safetensors: is no safetensors file"):
        load_state(tmp_path)
    (tmp_path / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"state.safetensors: cannot be read \(No such file"):
        load_state(tmp_path)
