"""A causal transformer, and one that reads trajectories: returns to go, observations and actions in turn.

Vaswani et al., "Attention Is All You Need" (2017), with normalisation before each layer as in Radford et al., "Language
Models are Unsupervised Multitask Learners" (2019). Chen et al., "Decision Transformer" (2021), for the tokens.

Shape legend: `B` rows, `T` steps, `L` tokens, `D` numbers of a token.

What is padded stands on the right: a token reads only what is before it, so that padding changes nothing and needs no
mask of its own.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from palaestra.algorithm import Factory, Nets
from palaestra.batch import Obs, Spec, each
from palaestra.networks.encoders import Encoder, by_space
from palaestra.networks.mlp import Activation, activation_of

EACH = slice(None)  # all tokens
OBS = slice(1, None, 3)  # an observation's token is the second of a step's three


def causal_attention(query: Tensor, key: Tensor, value: Tensor, said: slice = EACH) -> Tensor:
    """`softmax(query key^T / sqrt(d)) value`, each token's over itself and those before it: all are [..., L, d].

    Where only some tokens are `said`, `query` and what comes out are theirs alone. Written out because PyTorch's own on
    a CPU cannot be mapped over seeds but one by one, which took twice the time.
    """
    tokens = key.shape[-2]
    unseen = torch.full((tokens, tokens), float("-inf"), dtype=query.dtype, device=query.device).triu(1)[said]
    return (query * query.shape[-1] ** -0.5 @ key.mT + unseen).softmax(-1) @ value


class Block(nn.Module):
    """Attention to this token and those before it, then a perceptron of one layer, each added: [B, L, D] -> same.

    Of the tokens that are `said` alone, where the others are not asked for.
    """

    def __init__(self, size: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layer = nn.LayerNorm(size), nn.LayerNorm(size)
        self.read, self.attended = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.widen, self.narrow = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.activation = activation_of(activation)

    def forward(self, x: Tensor, said: slice = EACH) -> Tensor:
        read = self.read(self.before_attention(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in read)  # [B, heads, L, d]
        found = causal_attention(query[:, :, said], key, value, said)
        x = x[:, said] + self.attended(found.transpose(1, 2).flatten(2))
        rows = self.before_layer(x).flatten(0, 1)  # of [B, L, D] a linear layer gives a view, dear to change in place
        return x + self.narrow(self.activation(self.widen(rows))).view_as(x)


class Trajectories(nn.Module):
    """What is said at each observation's token, of what came before and of it: [B, T, outputs].

    Three tokens a step, the return to go, the observation and the action, each with the step's embedding added. Weights
    are drawn from a normal distribution with deviation 0.02, as Radford et al. (2019) do.
    """

    def __init__(
        self,
        spec: Spec,
        outputs: int,
        size: int,
        layers: int,
        heads: int,
        longest: int,
        activation: Activation,
        encoder: Encoder | None,
    ) -> None:
        super().__init__()
        if size % heads:
            raise ValueError(f"size={size} cannot be shared by heads={heads}: give a multiple")
        self.encoder, self.act = (encoder or by_space)(spec.obs), by_space(spec.action)
        self.of_return = nn.Linear(1, size)
        self.of_obs = nn.Linear(int(self.encoder.size), size)  # type: ignore[arg-type]
        self.of_action = nn.Linear(int(self.act.size), size)  # type: ignore[arg-type]
        self.of_step = nn.Embedding(longest, size)
        self.first, self.last = nn.LayerNorm(size), nn.LayerNorm(size)
        self.blocks = nn.ModuleList(Block(size, heads, activation) for _ in range(layers))
        self.head = nn.Linear(size, outputs)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and not name.startswith("encoder."):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)

    def forward(self, return_to_go: Tensor, obs: Obs, action: Tensor, step: Tensor) -> Tensor:
        """From `return_to_go` and `step` [B, T], `obs` [B, T, ...] and `action` [B, T, ...]."""
        shape = step.shape
        seen = self.encoder(each(lambda x: x.flatten(0, 1), obs)).unflatten(0, shape)
        done = self.act(action.flatten(0, 1)).unflatten(0, shape)
        tokens = (self.of_return(return_to_go.unsqueeze(-1)), self.of_obs(seen), self.of_action(done))
        when = self.of_step(step.clamp(max=self.of_step.num_embeddings - 1))
        x = self.first((torch.stack(tokens, 2) + when.unsqueeze(2)).flatten(1, 2))
        *inner, outer = self.blocks
        for block in inner:
            x = block(x)
        return self.head(self.last(outer(x, OBS)))


def trajectories(
    size: int = 128,
    layers: int = 3,
    heads: int = 1,
    longest: int = 1_000,
    activation: Activation = "relu",
    encoder: Encoder | None = None,
) -> Factory:
    """A `Trajectories` that says an action's entries, or a number for each choice, of at most `longest` steps."""
    return partial(
        _trajectories, size=size, layers=layers, heads=heads, longest=longest, activation=activation, encoder=encoder
    )


def _trajectories(spec: Spec, nets: Nets, **settings: object) -> nn.Module:
    outputs = spec.action.choices[0] if spec.action.discrete else spec.action.shape[0]
    return Trajectories(spec, outputs, **settings)  # type: ignore[arg-type]
