"""Models of the actions that a dataset holds: which there are, given an observation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from palaestra.algorithm import Factory, Nets
from palaestra.batch import Obs, Spec
from palaestra.functional.distributions import Normal
from palaestra.networks.actors import continuous_size
from palaestra.networks.encoders import Encoder, by_space
from palaestra.networks.mlp import MLP, Activation


class ConditionalVAE(nn.Module):
    """An action through `latents` numbers that describe it, given an observation: made again from a draw of them.

    Sohn, Lee and Yan, "Learning Structured Output Representation using Deep Conditional Generative Models" (2015). The
    logarithm of the standard deviation is within [-4, 15], as in Fujimoto, Meger and Precup, "Off-Policy Deep
    Reinforcement Learning without Exploration" (2019).
    """

    def __init__(
        self,
        spec: Spec,
        actions: int,
        latents: int,
        hidden: Sequence[int],
        activation: Activation,
        encoder: Encoder | None,
    ) -> None:
        super().__init__()
        self.latents = latents
        self.encoder = (encoder or by_space)(spec.obs)
        size = int(self.encoder.size)  # type: ignore[arg-type]
        self.describe = MLP((size + actions, *hidden, 2 * latents), activation)
        self.generate = MLP((size + latents, *hidden, actions), activation)

    def forward(self, obs: Obs, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`action` [B, A] again, in [-1, 1], by standard normal `noise` [B, latents]; and what it takes to describe it.

        That is the KL divergence of the numbers from standard normal ones, their mean: [B], in nats.
        """
        features = self.encoder(obs)
        mean, log_std = self.describe(torch.cat((features, action), -1)).chunk(2, -1)
        latent = Normal(mean, log_std.clamp(-4.0, 15.0))
        drawn = torch.addcmul(mean, latent.log_std.exp(), noise)
        zeros = torch.zeros_like(mean)
        divergence = latent.kl(Normal(zeros, zeros)) / self.latents
        return self.generate(torch.cat((features, drawn), -1)).tanh(), divergence


def conditional_vae(
    latents: int = 2,
    hidden: Sequence[int] = (750, 750),
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Factory:
    """A `ConditionalVAE` of continuous actions, with `latents` numbers for each of their entries."""
    return partial(_conditional_vae, latents=latents, hidden=hidden, activation=activation, encoder=encoder)


def _conditional_vae(spec: Spec, nets: Nets, latents: int, **body: object) -> nn.Module:
    actions = continuous_size(spec, "a variational autoencoder of actions")
    return ConditionalVAE(spec, actions, latents * actions, **body)  # type: ignore[arg-type]
