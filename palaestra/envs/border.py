"""The border between a Gymnasium environment and the library: arrays to columns, actions back, other spaces refused.

Inside, numbers are float32, images uint8, choices int64 from 0, and continuous actions are in [-1, 1].
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from palaestra.algorithm import Unfit
from palaestra.batch import Obs, Space, Spec
from palaestra.envs.text.space import Language

MOST_JOINT_CHOICES = 4096
OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, or a flat Dict of them"


class Border:
    """Conversions for one pair of single-environment spaces; `spec` is what networks are built for.

    Raises `Unfit`, naming the space and what would fit, for any other space.
    """

    def __init__(self, observation: gym.Space[Any], action: gym.Space[Any], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.observation, self.action_space = observation, action
        obs: Space | dict[str, Space]
        if isinstance(observation, gym.spaces.Dict):
            obs = {key: _space(space, f"observation[{key!r}]") for key, space in observation.spaces.items()}
        else:
            obs = _space(observation, "observation")
        self.spec = Spec(obs, self._action_space(action))

    def _action_space(self, space: gym.Space[Any]) -> Space:
        self.joint: tuple[int, ...] = ()
        if isinstance(space, gym.spaces.Box):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise Unfit(
                    f"the action space {space} has no bounds: wrap the environment, for example with "
                    "gymnasium.wrappers.RescaleAction(ClipAction(env), -1, 1)"
                )
            if len(space.shape) != 1 or space.shape[0] == 0:
                raise Unfit(
                    f"the action space {space} has shape {space.shape}: a vector is needed; flatten it in a wrapper"
                )
            self.low, self.high = space.low.astype(np.float64), space.high.astype(np.float64)
            self.half, self.middle = (self.high - self.low) / 2, (self.high + self.low) / 2
            return Space(space.shape)
        if isinstance(space, gym.spaces.Discrete):
            return Space((), torch.int64, (int(space.n),))
        if isinstance(space, gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
            binary = isinstance(space, gym.spaces.MultiBinary)
            if len(space.shape) != 1:
                raise Unfit(
                    f"the action space {space} has shape {space.shape}: a vector is needed; flatten it in a wrapper"
                )
            self.joint = (2,) * space.shape[0] if binary else tuple(map(int, space.nvec))  # type: ignore[union-attr]
            if math.prod(self.joint) > MOST_JOINT_CHOICES:
                raise Unfit(
                    f"the action space {space} has {math.prod(self.joint)} joint choices, and at most "
                    f"{MOST_JOINT_CHOICES} are handled as one: reduce them in a wrapper"
                )
            return Space((), torch.int64, (math.prod(self.joint),))
        raise Unfit(f"the action space {space} is not handled: use Box, Discrete, MultiDiscrete or MultiBinary")

    def obs(self, raw: Any) -> Obs:
        """Batched arrays [N, ...] as a tensor, or a dictionary of tensors for a Dict space."""
        if isinstance(self.observation, gym.spaces.Dict):
            return {key: self._tensor(raw[key], space) for key, space in self.observation.spaces.items()}
        return self._tensor(raw, self.observation)

    def _tensor(self, raw: Any, space: gym.Space[Any]) -> Tensor:
        array = np.asarray(raw)
        if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            array = array.astype(np.int64) - np.asarray(space.start, np.int64)
        elif array.dtype != np.uint8 or isinstance(space, gym.spaces.MultiBinary):
            array = array.astype(np.float32)
        else:
            array = array.copy()  # astype copies too: environments may write into the array they returned
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def action(self, action: Tensor) -> np.ndarray:
        """The environment's actions [N, ...] from the library's."""
        array = action.detach().cpu().numpy()
        space = self.action_space
        if isinstance(space, gym.spaces.Box):
            bounded = np.minimum(np.maximum(array * self.half + self.middle, self.low), self.high)
            return bounded.astype(space.dtype)
        if self.joint:
            array = np.stack(np.unravel_index(array, self.joint), -1)
            start = getattr(space, "start", 0)
            return (array + start).astype(space.dtype)
        assert isinstance(space, gym.spaces.Discrete)
        return array + int(space.start)

    def inner_action(self, action: Any) -> Tensor:
        """The library's actions [N, ...] from the environment's: the inverse of `action`."""
        array = np.asarray(action)
        space = self.action_space
        if isinstance(space, gym.spaces.Box):
            half = np.where(self.half > 0, self.half, 1.0)
            return torch.from_numpy(((array - self.middle) / half).astype(np.float32)).to(self.device)
        array = array.astype(np.int64) - np.asarray(getattr(space, "start", 0), np.int64)
        if self.joint:
            array = np.ravel_multi_index(tuple(np.moveaxis(array, -1, 0)), self.joint)
        return torch.from_numpy(np.asarray(array)).to(self.device)

    def with_final(self, obs: Obs, info: dict[str, Any], done: np.ndarray) -> Obs:
        """`obs` with the rows of `done` replaced by `info["final_obs"]` (AutoresetMode.SAME_STEP)."""
        finals = info["final_obs"]
        rows = done.nonzero()[0]
        if isinstance(self.observation, gym.spaces.Dict) and not isinstance(finals, dict):
            finals = {key: [None if f is None else f[key] for f in finals] for key in self.observation.spaces}
        if isinstance(finals, dict):
            picked: Any = {key: np.stack([np.asarray(value[i]) for i in rows]) for key, value in finals.items()}
        else:
            picked = np.stack([np.asarray(finals[i]) for i in rows])
        final = self.obs(picked)
        index = torch.from_numpy(rows).to(self.device)
        if isinstance(obs, dict):
            assert isinstance(final, dict)
            return {key: value.index_copy(0, index, final[key]) for key, value in obs.items()}
        assert isinstance(final, Tensor)
        return obs.index_copy(0, index, final)


def _space(space: gym.Space[Any], where: str) -> Space:
    if isinstance(space, gym.spaces.Box):
        image = space.dtype == np.uint8 and len(space.shape) == 3
        return Space(space.shape, torch.uint8 if image or space.dtype == np.uint8 else torch.float32)
    if isinstance(space, gym.spaces.Discrete):
        return Space((), torch.int64, (int(space.n),))
    if isinstance(space, gym.spaces.MultiDiscrete):
        if len(space.shape) != 1:
            raise Unfit(f"the {where} space {space} is not a vector: flatten it in a wrapper")
        return Space(space.shape, torch.int64, tuple(map(int, space.nvec)))
    if isinstance(space, gym.spaces.MultiBinary):
        return Space(space.shape)
    raise Unfit(f"the {where} space {space} is not handled: use {OBSERVATIONS} (gymnasium.wrappers.FlattenObservation)")


def describe(space: gym.Space[Any]) -> dict[str, Any]:
    """A space as JSON data, so that a policy can be loaded where its environment is not."""
    if isinstance(space, gym.spaces.Dict):
        return {"space": "Dict", "spaces": {key: describe(s) for key, s in space.spaces.items()}}
    if isinstance(space, gym.spaces.Box):
        low, high = (np.asarray(b, np.float64) for b in (space.low, space.high))
        bounds = [b.flat[0] if (b == b.flat[0]).all() else b.tolist() for b in (low, high)]
        bounds = [str(b) if isinstance(b, float) and math.isinf(b) else b for b in bounds]
        return {
            "space": "Box",
            "low": bounds[0],
            "high": bounds[1],
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if isinstance(space, gym.spaces.Discrete):
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {"space": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, gym.spaces.MultiBinary):
        return {"space": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.n)}
    if isinstance(space, Language):
        return {"space": "Language", "max_length": space.max_length}
    raise Unfit(f"the space {space} is not handled: use {OBSERVATIONS}")


def undescribe(about: dict[str, Any]) -> gym.Space[Any]:
    """The inverse of `describe`."""
    kind = about["space"]
    if kind == "Dict":
        return gym.spaces.Dict({key: undescribe(s) for key, s in about["spaces"].items()})
    if kind == "Box":
        low, high = (np.broadcast_to(np.asarray(about[k], np.float64), about["shape"]) for k in ("low", "high"))
        dtype = np.dtype(about["dtype"])
        return gym.spaces.Box(low.astype(dtype), high.astype(dtype), tuple(about["shape"]), dtype.type)
    if kind == "Discrete":
        return gym.spaces.Discrete(about["n"], start=about["start"])
    if kind == "MultiDiscrete":
        return gym.spaces.MultiDiscrete(about["nvec"], start=about["start"])
    if kind == "MultiBinary":
        return gym.spaces.MultiBinary(about["n"])
    if kind == "Language":
        return Language(about["max_length"])
    raise ValueError(f"unknown space {kind!r} in a policy's description")
