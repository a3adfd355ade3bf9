"""What a policy remembers: a recurrent network between what is seen and what is decided.

Shape legend: `B` rows, `T` steps, `H` numbers that are remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from palaestra.algorithm import Factory, Nets
from palaestra.batch import Obs, Space, Spec, each
from palaestra.networks.encoders import NOT_FEATURES, Encoder, by_space


class Gated(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) behind an encoder. It remembers [B, H], zeros where nothing was seen.

    `h' = (1 - z) * n + z * h`, with `r, z = sigmoid(...)` of what is seen and of `h`, and `n = tanh(x_n + r * h_n)`.
    Written out because PyTorch's own cell cannot be mapped over seeds.
    """

    def __init__(self, obs: Space | Mapping[str, Space], size: int, encoder: Encoder | None) -> None:
        super().__init__()
        self.size = size
        self.encoder = (encoder or by_space)(obs)
        self.seen = nn.Linear(int(self.encoder.size), 3 * size)  # type: ignore[arg-type]
        self.remembered = nn.Linear(size, 3 * size)
        for layer in (self.seen, self.remembered):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, obs: Obs, hidden: Tensor) -> Tensor:
        """What is remembered after `obs` [B, ...], from what was before it [B, H]: [B, H]."""
        return self.after(self.seen(self.encoder(obs)), hidden)

    def after(self, seen: Tensor, hidden: Tensor) -> Tensor:
        reset, keep, new = seen.chunk(3, -1)
        reset_h, keep_h, new_h = self.remembered(hidden).chunk(3, -1)
        candidate = torch.tanh(new + (reset + reset_h).sigmoid() * new_h)
        return torch.lerp(candidate, hidden, (keep + keep_h).sigmoid())

    def unrolled(self, obs: Obs, hidden: Tensor, first: Tensor) -> Tensor:
        """What is remembered after each of `obs` [B, T, ...], from `hidden` [B, H] on: [B, T, H].

        It forgets where `first` [B, T] says that an episode begins.
        """
        rows, steps = first.shape
        seen = self.seen(self.encoder(each(lambda x: x.flatten(0, 1), obs))).view(rows, steps, -1)
        goes_on = (~first).to(hidden.dtype).unsqueeze(-1)
        after = []
        for t in range(steps):
            hidden = self.after(seen[:, t], hidden * goes_on[:, t])
            after.append(hidden)
        return torch.stack(after, 1)


def gated(size: int, encoder: Encoder | None = None) -> Factory:
    return partial(_gated, size=size, encoder=encoder)


def _gated(spec: Spec, nets: Nets, size: int, encoder: Encoder | None) -> nn.Module:
    return Gated(spec.obs, size, encoder)


def features(obs: Obs, hidden: Tensor) -> dict[str, Tensor]:
    """What is remembered, as an observation: with the keys that are no features (`action_mask`, `critic_obs`)."""
    others = {key: obs[key] for key in NOT_FEATURES if key in obs} if isinstance(obs, dict) else {}
    return {"features": hidden, **others}


def on_features(factory: Factory) -> Factory:
    """A network that reads what is remembered in the place of what is seen."""
    return partial(_on_features, factory=factory)


def _on_features(spec: Spec, nets: Nets, factory: Factory) -> nn.Module:
    size = int(nets["memory"].size)  # type: ignore[arg-type]
    others = {key: spec.obs[key] for key in NOT_FEATURES if key in spec.obs} if isinstance(spec.obs, Mapping) else {}
    return factory(Spec({"features": Space((size,)), **others}, spec.action, spec.statistics), nets)
