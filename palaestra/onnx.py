"""A policy as an ONNX model: from the arrays that the environment gives to the actions that it takes.

Inputs are `obs`, or the keys of a Dict observation, in the environment's own dtypes and with any number of rows; the
output is `action`. A policy with memory takes `memory...` as well, zeros when an episode begins, and gives
`next_memory...`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from palaestra.batch import flatten, unflatten
from palaestra.deployed import FORMAT, Deployed, describe, new_folder, observations, write_about
from palaestra.runs.errors import RunError
from palaestra.runs.files import write_file

MODEL = "policy.onnx"
TOLERANCE = 1e-4  # of half the range of a continuous action; choices must be the same
ROWS = 16


class Acting(nn.Module):
    """`forward(*arrays)`: observations and memory as tensors, to the environment's actions and the next memory."""

    def __init__(self, deployed: Deployed) -> None:
        super().__init__()
        self.nets, self.border = deployed.learner.nets, deployed.border
        self.policy, self.algorithm = deployed.policy, str(deployed.learner.algorithm)
        space = self.border.observation
        self.keys = list(space.spaces) if isinstance(space, gym.spaces.Dict) else ["obs"]
        example = self.border.obs(observations(space, ROWS))
        with torch.no_grad():
            memory = self.policy(self.nets, example, None, None)[2]
        remembered = {} if memory is None else flatten({"memory": memory})
        self.remembered = list(remembered)
        self.fresh = [torch.zeros_like(value) for value in remembered.values()]

    @property
    def inputs(self) -> list[str]:
        return [*self.keys, *(name.replace("/", ".") for name in self.remembered)]

    @property
    def outputs(self) -> list[str]:
        return ["action", *(f"next_{name.replace('/', '.')}" for name in self.remembered)]

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        space = self.border.observation
        raw = dict(zip(self.keys, arrays, strict=False))
        if isinstance(space, gym.spaces.Dict):
            obs: Any = {key: _obs(raw[key], one) for key, one in space.spaces.items()}
        else:
            obs = _obs(raw["obs"], space)
        memory = None
        if len(arrays) > len(self.keys):
            memory = unflatten(dict(zip(self.remembered, arrays[len(self.keys) :], strict=True)))["memory"]
        action, _, memory = self.policy(self.nets, obs, memory, None)
        remembered = flatten({"memory": memory}) if self.remembered else {}
        return (self._action(action), *(remembered[name] for name in self.remembered))

    def _action(self, action: Tensor) -> Tensor:
        """As `Border.action`."""
        border, space = self.border, self.border.action_space
        if isinstance(space, gym.spaces.Box):
            half, middle, low, high = (
                torch.from_numpy(x) for x in (border.half, border.middle, border.low, border.high)
            )
            bounded = torch.minimum(torch.maximum(action.double() * half + middle, low), high)
            return bounded.to(_dtype(space))
        if not border.joint:
            return action + int(space.start)  # type: ignore[attr-defined]
        entries = []
        for size in reversed(border.joint):
            entries.append(action % size)
            action = action // size
        start = torch.as_tensor(np.asarray(getattr(space, "start", 0), np.int64))
        return (torch.stack(entries[::-1], -1) + start).to(_dtype(space))


def _dtype(space: gym.Space[Any]) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, space.dtype)).dtype


def _obs(raw: Tensor, space: gym.Space[Any]) -> Tensor:
    """As `Border.obs`."""
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return raw.long() - torch.as_tensor(np.asarray(space.start, np.int64))
    return raw if raw.dtype == torch.uint8 and not isinstance(space, gym.spaces.MultiBinary) else raw.float()


def _arrays(acting: Acting, rows: int, seed: int) -> list[np.ndarray]:
    space = acting.border.observation
    batch = observations(space, rows, seed)
    batch = batch if isinstance(batch, dict) else {"obs": batch}
    return [batch[key] for key in acting.keys]


def write(deployed: Deployed, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write a policy into a new folder as `policy.onnx` and `policy.json`, and return what the latter says.

    The model is run in onnxruntime on random observations of several numbers of rows, with memory carried over, and
    its actions must be PyTorch's: `difference` is the largest, in the environment's units.

    Raises:
        ValueError: the packages of the `onnx` extra are not installed.
        RunError: the folder exists or cannot be written, or the policy cannot be exported.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (the exporter of PyTorch needs it)
    except ModuleNotFoundError as missing:
        raise ValueError(f"an ONNX export needs {missing.name}; pip install 'palaestra[onnx]'") from missing
    acting = Acting(deployed).eval()
    _compare_memories(acting, folder)
    with new_folder(folder) as temporary:
        model = _exported(acting, folder)
        fingerprint = write_file(temporary / MODEL, [model])
        onnx.checker.check_model(onnx.load_model_from_string(model), full_check=True)
        try:
            session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            difference = _difference(acting, session, folder)
        except RunError:
            raise
        except Exception as wrong:  # onnxruntime has errors of its own, without a common class
            raise _unfit(acting, wrong, folder) from wrong
        body = {
            "format": FORMAT,
            "kind": "onnx",
            **about,
            "expression": str(deployed.learner.algorithm),
            "spaces": {
                "obs": describe(deployed.border.observation),
                "action": describe(deployed.border.action_space),
            },
            "inputs": [_signature(value) for value in session.get_inputs()],
            "outputs": [_signature(value) for value in session.get_outputs()],
            "difference": difference,
            "files": {MODEL: fingerprint._asdict()},
        }
        write_about(temporary, body)
    return body


def _compare_memories(acting: Acting, folder: Path) -> None:
    """RunError where the first action is not what it would be after zeros, which is what ONNX begins with."""
    arrays = [torch.from_numpy(array) for array in _arrays(acting, ROWS, 0)]
    with torch.no_grad():
        (first, *_), (other, *_) = acting(*arrays), acting(*arrays, *acting.fresh)
    if not torch.equal(first, other):
        raise RunError(folder, f"zeros are not a fresh memory of {acting.algorithm}", "export it as policy")


def _signature(value: Any) -> dict[str, Any]:
    return {"name": value.name, "type": value.type, "shape": list(value.shape)}


def _exported(acting: Acting, folder: Path) -> bytes:
    example = tuple(torch.from_numpy(array) for array in _arrays(acting, ROWS, 0)) + tuple(acting.fresh)
    rows = Dim("rows")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of the exporter about its own parts
            program = torch.onnx.export(
                acting,
                example,
                input_names=acting.inputs,
                output_names=acting.outputs,
                dynamic_shapes={"arrays": tuple({0: rows} for _ in example)},
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        return bytes(program.model_proto.SerializeToString())
    except Exception as wrong:  # whatever the policy does that ONNX cannot
        raise _unfit(acting, wrong.__cause__ or wrong, folder) from wrong


def _unfit(acting: Acting, cause: BaseException, folder: Path) -> RunError:
    reason = " ".join(str(cause).split())[:200]
    what = f"{acting.algorithm} cannot be exported to ONNX: {type(cause).__name__}: {reason}"
    return RunError(folder, what, "export it as policy")


def _difference(acting: Acting, session: Any, folder: Path) -> float:
    """The largest difference between the two, over batches of several sizes, each a walk of three steps."""
    largest, space = 0.0, acting.border.action_space
    for rows in (1, 3, 64):
        mine = [torch.zeros(rows, *value.shape[1:], dtype=value.dtype) for value in acting.fresh]
        theirs = [value.numpy() for value in mine]
        for step in range(3):
            arrays = _arrays(acting, rows, step)
            with torch.no_grad():
                action, *mine = acting(*map(torch.from_numpy, arrays), *mine)
            given = session.run(None, dict(zip(acting.inputs, [*arrays, *theirs], strict=True)))
            theirs = given[1:]
            gap = np.abs(given[0].astype(np.float64) - action.numpy().astype(np.float64))
            allowed = TOLERANCE * acting.border.half if isinstance(space, gym.spaces.Box) else 0.0
            if (gap > allowed).any():
                what = f"the ONNX model differs from PyTorch by {gap.max():.3g} in an action"
                raise RunError(folder, what, "export it as policy, and report this")
            largest = max(largest, float(gap.max()))
    return largest
