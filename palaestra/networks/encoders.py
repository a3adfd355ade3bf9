"""From an observation to features [B, size]: chosen by the space, one encoder a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palaestra.algorithm import Unfit
from palaestra.batch import Obs, Space

NOT_FEATURES = ("action_mask", "critic_obs")  # keys of a Dict observation with a meaning of their own
Encoder = Callable[[Space | Mapping[str, Space]], nn.Module]


class Vector(nn.Module):
    """Numbers as they are (bytes as shares of 255): any shape [B, ...] becomes [B, size]."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.size = math.prod(space.shape)
        self.flat = len(space.shape) != 1
        self.bytes = space.dtype == torch.uint8

    def forward(self, obs: Tensor) -> Tensor:
        obs = obs.float() / 255.0 if self.bytes else obs
        return obs.reshape(obs.shape[0], self.size) if self.flat else obs


class OneHot(nn.Module):
    """Each discrete entry becomes as many indicators as it has values."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.choices = space.choices
        self.size = sum(space.choices)

    def forward(self, obs: Tensor) -> Tensor:
        entries = obs.reshape(obs.shape[0], -1).unbind(1)
        hot = [F.one_hot(entry, n) for entry, n in zip(entries, self.choices, strict=True)]
        return torch.cat(hot, 1).float()


class Convolutional(nn.Module):
    """A small convolutional network for uint8 images [B, H, W, C] (or [B, C, H, W] where C is the smallest side).

    Images of 36 pixels or more are read by the three layers of Mnih et al. (2015); smaller ones by two of 3x3.
    """

    def __init__(self, space: Space, size: int = 256) -> None:
        super().__init__()
        self.channels_first = space.shape[0] < space.shape[2]
        channels, *sides = space.shape if self.channels_first else (space.shape[2], *space.shape[:2])
        if min(sides) >= 36:
            layers = [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
        elif min(sides) >= 5:
            layers = [(32, 3, 1), (64, 3, 1)]
        else:
            raise Unfit(f"images of {sides} pixels are too small for the convolutional encoder: pass encoder=")
        stack: list[nn.Module] = []
        for width, kernel, stride in layers:
            stack += [nn.Conv2d(channels, width, kernel, stride), nn.ReLU()]
            channels = width
            sides = [(side - kernel) // stride + 1 for side in sides]
        self.convolutions = nn.Sequential(*stack, nn.Flatten())
        self.project = nn.Linear(channels * math.prod(sides), size)
        self.size = size

    def forward(self, obs: Tensor) -> Tensor:
        image = obs if self.channels_first else obs.permute(0, 3, 1, 2)
        return self.project(self.convolutions(image.float() / 255.0)).relu()


class Concatenated(nn.Module):
    """The features of every key of a Dict observation, side by side, in the order of the keys."""

    def __init__(self, spaces: Mapping[str, Space]) -> None:
        super().__init__()
        self.keys = [key for key in spaces if key not in NOT_FEATURES]
        self.encoders = nn.ModuleList(by_space(spaces[key]) for key in self.keys)
        self.size = sum(int(encoder.size) for encoder in self.encoders)  # type: ignore[arg-type, misc]

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return torch.cat([encoder(obs[key]) for key, encoder in zip(self.keys, self.encoders, strict=True)], 1)


def by_space(space: Space | Mapping[str, Space]) -> nn.Module:
    """The encoder that fits a space; its `size` is the number of features."""
    if isinstance(space, Mapping):
        return Concatenated(space)
    if space.discrete:
        return OneHot(space)
    return Convolutional(space) if space.image else Vector(space)


def action_mask(obs: Obs) -> Tensor | None:
    """The actions that are allowed [B, A], where the observation says so under `action_mask`."""
    return obs.get("action_mask") if isinstance(obs, dict) else None


def as_numbers(space: Space | Mapping[str, Space], obs: Obs) -> Tensor:
    """All that an observation says, side by side [B, size]: numbers as they are, symbols as indicators."""
    spaces = space if isinstance(space, Mapping) else {"": space}
    said = obs if isinstance(obs, dict) else {"": obs}
    return torch.cat([(OneHot if of.discrete else Vector)(of)(said[key]) for key, of in spaces.items()], 1)
