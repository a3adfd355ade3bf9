"""A policy at work, and a folder of its own for it: what acting needs and nothing of the run.

FOLDER/
  weights.safetensors   the networks that acting reads, by name
  policy.json           expression, spaces, where it comes from; the weights' size and hash, and its own
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import safetensors.torch
import torch

from palaestra.algorithm import Nets
from palaestra.envs.border import Border, describe, undescribe
from palaestra.expression import parse
from palaestra.learner import Learner
from palaestra.runs.errors import RunError
from palaestra.runs.files import Fingerprint, damage, from_json, seal, sync_folder, to_json, write_file
from palaestra.runs.states import write_tensors

FORMAT = 1
WEIGHTS, ABOUT = "weights.safetensors", "policy.json"
_REMEDY = "restore it from a copy, or export it again"


class Deployed:
    """A trained policy at work: `act(obs)` gives the environment's own actions.

    A policy with memory remembers from call to call; `reset()` begins an episode. `env_steps` it was trained for;
    `problems` are newer checkpoints that were passed over because they are damaged.
    """

    def __init__(self, learner: Learner, border: Border, env_steps: int = 0, problems: Sequence[str] = ()) -> None:
        self.learner, self.border = learner, border
        self.env_steps, self.problems = env_steps, tuple(problems)
        self.policy = learner.deployed()
        self._memory: Any = None

    def reset(self) -> None:
        """Forget: a new episode begins."""
        self._memory = None

    def acted(self, batches: Sequence[Any], nets: Any = None) -> list[np.ndarray]:
        """The actions of a fresh policy in one batch of observations after the other."""
        memory, actions = None, []
        with torch.no_grad():
            for batch in batches:
                obs = self.border.obs(batch)
                action, _, memory = self.policy(self.learner.nets if nets is None else nets, obs, memory, None)
                actions.append(self.border.action(action))
        return actions

    def act(self, obs: Any) -> np.ndarray:
        """The most likely action for one observation, or for a batch of them (one more axis in front)."""
        single = self._is_single(obs)
        rows = self.border.obs(each_array(lambda x: np.asarray(x)[None], obs) if single else obs)
        with torch.no_grad():
            action, _, self._memory = self.policy(self.learner.nets, rows, self._memory, None)
        batch = self.border.action(action)
        return batch[0] if single else batch

    def _is_single(self, obs: Any) -> bool:
        space = self.border.observation
        if isinstance(obs, dict):
            key = next(iter(space.spaces))  # type: ignore[attr-defined]
            return np.shape(obs[key]) == space.spaces[key].shape  # type: ignore[attr-defined]
        if np.shape(obs) == space.shape:
            return True
        if np.shape(obs)[1:] == space.shape:
            return False
        raise ValueError(f"an observation of shape {np.shape(obs)} does not fit {space}, nor a batch of such")


def each_array(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of an array, or of every array of a dictionary."""
    return {key: function(entry) for key, entry in value.items()} if isinstance(value, dict) else function(value)


class Watched:
    """Networks that remember which of them were asked for."""

    def __init__(self, nets: Nets) -> None:
        self.nets = nets
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> torch.nn.Module:
        self.asked.add(name)
        return self.nets[name]

    def __contains__(self, name: str) -> bool:
        return name in self.nets

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nets, name)


def observations(space: gym.Space[Any], number: int, seed: int = 0) -> Any:
    """Random observations [number, ...], the same for one seed; in every one an action is allowed."""
    space = copy.deepcopy(space)
    space.seed(seed)
    rows = [space.sample() for _ in range(number)]
    if not isinstance(space, gym.spaces.Dict):
        return np.stack(rows)
    batch = {key: np.stack([row[key] for row in rows]) for key in space.spaces}
    if "action_mask" in batch:
        batch["action_mask"][..., 0] = 1
    return batch


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write in that gets its name when all is in it; RunError where there is one of this name already."""
    if folder.exists():
        raise RunError(folder, "exists already", "choose another --out")
    temporary = folder.with_name(f".tmp-{folder.name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise RunError(
            folder, f"cannot be written ({error.strerror})", "free space, or choose another --out"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(deployed: Deployed, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write a policy into a new folder and return what its `policy.json` says: `about`, and what loading needs.

    It is loaded again from there, and must give the same actions bit for bit before the folder has its name.

    Raises:
        RunError: the folder exists or cannot be written, or what was written acts otherwise.
    """
    learner, border = deployed.learner, deployed.border
    tried = [observations(border.observation, 8, seed) for seed in range(3)]
    watched = Watched(learner.nets)
    before = deployed.acted(tried, watched)
    weights = {
        name: tensor
        for name, tensor in learner.nets.state_dict().items()
        if name.partition(".")[0] in ("clock", *watched.asked)
    }
    body = {
        "format": FORMAT,
        "kind": "policy",
        **about,
        "expression": str(learner.algorithm),
        "spaces": {"obs": describe(border.observation), "action": describe(border.action_space)},
        "nets": sorted(watched.asked),
    }
    with new_folder(folder) as temporary:
        fingerprint = write_tensors(temporary / WEIGHTS, weights)
        body["files"] = {WEIGHTS: fingerprint._asdict()}
        write_about(temporary, body)
        try:
            after = read(temporary).acted(tried)
        except LookupError:
            after = []
        if not after or not all(map(np.array_equal, before, after)):
            what = "what was written does not act as the run does: its policy reads networks in a way that was not seen"
            raise RunError(folder, what, "export it as onnx, or load the run")
    return body


def read(folder: Path, device: str = "cpu") -> Deployed:
    """The policy in a folder that `write` made.

    Raises:
        RunError: a file is missing, damaged or edited, or is of a later version.
    """
    body = read_about(folder)
    if body["kind"] != "policy":
        raise RunError(folder, f"holds a policy as {body['kind']}", "run it with onnxruntime, or load the run", "")
    try:
        border = Border(undescribe(body["spaces"]["obs"]), undescribe(body["spaces"]["action"]), device)
        learner = Learner(parse(body["expression"]), border.spec, device=device)
        for name in [name for name in learner.nets if name not in ("clock", *body["nets"])]:
            del learner.nets[name]  # whoever asks for one is told, rather than given random weights
        missing, unexpected = learner.nets.load_state_dict(
            safetensors.torch.load((folder / WEIGHTS).read_bytes()), strict=False
        )
        if unexpected or any(name.partition(".")[0] in body["nets"] for name in missing):
            raise ValueError(f"its weights lack {', '.join(missing)} or have {', '.join(unexpected)}")
    except (LookupError, RuntimeError, TypeError, ValueError) as wrong:
        remedy = "load it with the version and the packages that it was exported with"
        raise RunError(folder, f"cannot be built: {wrong}", remedy) from wrong
    return Deployed(learner, border, int(body["env_steps"]))


def write_about(folder: Path, body: dict[str, Any]) -> None:
    """Write `policy.json`, sealed with its own hash."""
    body = from_json(to_json(body))
    write_file(folder / ABOUT, [to_json({**body, "sha256": seal(body)}, indent=2).encode() + b"\n"])
    sync_folder(folder)


def read_about(folder: Path) -> dict[str, Any]:
    """Return what `policy.json` says, after comparing the sizes and hashes of all files.

    Raises:
        RunError: a file is missing, damaged or edited, or is of a later version.
    """
    path = folder / ABOUT
    try:
        body = from_json(path.read_bytes())
        sealed = body.pop("sha256")
    except OSError as error:
        raise RunError(path, f"cannot be read ({error.strerror})", _REMEDY) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise RunError(path, "truncated or changed: no description of a policy", _REMEDY) from error
    if seal(body) != sealed:
        raise RunError(path, "changed: its content is not what it was sealed with", _REMEDY)
    if body["format"] > FORMAT:
        what = f"{body['format']} is newer than the {FORMAT} that this palaestra reads"
        raise RunError(path, what, "update palaestra", "field 'format'")
    for name, expected in body["files"].items():
        try:
            what = damage(folder / name, Fingerprint(**expected)) or ""
        except OSError as error:
            what = f"cannot be read ({error.strerror})"
        if what:
            raise RunError(folder / name, what, _REMEDY)
    return dict(body)
