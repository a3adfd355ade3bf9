"""Texts of unlike length through a language model as one row of tokens: no padding, and what they share only once.

All that a model of `transformers` does token by token, it does to tokens in one row; in its attention alone texts stand
apart. So nothing is computed of padding, and a beginning that several texts share, such as the prompt of a pair or of a
group of answers, is passed once: what follows it cannot change it. What is said, and its gradient, are those of texts
that pass alone.

Shape legend: `B` texts, `T` tokens of the longest, `N` tokens that are passed, `H` heads, `D` features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

ATTENTION = "palaestra_packed"  # our attention's name in `transformers`
CLOSE = 1e-3  # how far features may be from those of texts that pass alone


@dataclass(frozen=True, eq=False)
class Packing:
    """Where tokens that are passed stand in texts [B, T].

    Args:
        place: [B, T], which of the `N` tokens each is; where a text has ended, any of them.
        first: [N], the entry of `B * T` that each was taken from.
    """

    place: Tensor
    first: Tensor

    @property
    def position(self) -> Tensor:
        """Of each token in its text: [1, N]."""
        return (self.first % self.place.shape[1]).unsqueeze(0)

    @property
    def before(self) -> Tensor:
        """Which token stands before each: [N]; any where none does."""
        return self.place.flatten().index_select(0, (self.first - 1).clamp(min=0))

    def packed(self, values: Tensor) -> Tensor:
        """[B, T, ...] as one row: [1, N, ...]."""
        return values.flatten(0, 1).index_select(0, self.first).unsqueeze(0)

    def spread(self, row: Tensor) -> Tensor:
        """The inverse: [1, N, ...] as [B, T, ...], with anything where a text has ended."""
        return row[0].index_select(0, self.place.flatten()).unflatten(0, self.place.shape)


def packing(ids: Tensor, length: Tensor) -> Packing:
    """Of texts [B, T], padded on the right, of `length` [B]; one at least has a token.

    In the order of a dictionary a text shares with those before it what it shares with the last of them.
    """
    index = partial(torch.arange, device=ids.device)
    there = index(ids.shape[1]) < length.unsqueeze(1)
    texts, which = ids.masked_fill(~there, -1).unique(dim=0, return_inverse=True)
    there = texts >= 0
    alike = ((texts[1:] == texts[:-1]) & there[1:]).cumprod(1).bool()
    shared = torch.cat([torch.zeros_like(there[:1]), alike])
    passed = there & ~shared
    owner = (index(len(texts)).unsqueeze(1) * ~shared).cummax(0).values  # the text that a token is passed with
    place = (passed.flatten().cumsum(0) - 1).clamp(min=0).view_as(texts).gather(0, owner)
    a_row = torch.empty_like(which[: len(texts)]).scatter_(0, which, index(len(ids)))  # of each text: all are alike
    first = (a_row.unsqueeze(1) * ids.shape[1] + index(ids.shape[1]))[passed]
    return Packing(place[which], first)


def packs(body: Any) -> bool:
    """Whether the body of a model of `transformers` understands texts alike packed and alone: all of its layers take
    another attention in place of PyTorch's, as it says, pass on where tokens stand, and see no window."""
    config = body.config
    windowed = getattr(config, "sliding_window", None) is not None
    kinds = getattr(config, "layer_types", None) or ("full_attention",)
    if not body._supports_attention_backend or config._attn_implementation != "sdpa":
        return False
    if windowed or set(kinds) != {"full_attention"}:
        return False
    ids = torch.tensor([[0, 1, 0], [0, 0, 1]], device=body.device)
    pack = packing(ids, torch.full_like(ids[:, 0], ids.shape[1]))
    with torch.no_grad():
        alone = body(input_ids=ids, use_cache=False).last_hidden_state
        return torch.allclose(alone, pack.spread(packed_features(body, ids, pack)), atol=CLOSE, rtol=CLOSE)


def packed_features(body: Any, ids: Tensor, pack: Packing) -> Tensor:
    """Of the tokens of texts [B, T] that are passed: [1, N, D]."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
    body.config._attn_implementation = ATTENTION
    try:
        out = body(input_ids=pack.packed(ids), position_ids=pack.position, packing=pack, use_cache=False)
    finally:
        body.config._attn_implementation = "sdpa"
    features: Tensor = out.last_hidden_state
    return features


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, packing: Packing | None = None, **others: Any
) -> tuple[Tensor, None]:
    """PyTorch's causal attention of heads [1, H, N, D], as `transformers` calls it, within each text: [1, N, H, D].

    A layer that passes nothing on attends to all; a model with such layers is not packed.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packing is None:
        out, _ = sdpa_attention_forward(module, query, key, value, mask, **others)
        return out, None
    query, key, value = (packing.spread(heads.transpose(1, 2)).transpose(1, 2) for heads in (query, key, value))
    out, _ = sdpa_attention_forward(module, query, key, value, None, **others)
    return packing.packed(out), None
