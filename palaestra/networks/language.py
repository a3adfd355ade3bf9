"""Causal language models as networks: log-probabilities of tokens, numbers read off them, adapters, and sampling.

Shape legend: `B` rows, `T` tokens of a row (prompt and answer), `P` of the prompts, `L` of the answers, `V` of the
vocabulary, `D` features. Every column of tokens is aligned with `ids`: entry `t` of `logp` is the log-probability of
`ids[:, t]` after the tokens before it (0 for the first), which the model says one position earlier.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from palaestra.algorithm import Factory, Nets, Unfit
from palaestra.batch import Space, Spec
from palaestra.networks.packing import packed_features, packing, packs

LOGITS = 1 << 22  # entries of logits that are held at a time: 16 MB of float32
CLOSE = 1e-3  # how far our logits may be from those that the model gives itself


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A causal language model with its tokenizer; both are read and never changed.

    Args:
        model: of `transformers`, in evaluation mode; nothing of it is trained.
        tokenizer: of `transformers`, with an end-of-text and a padding token.
        name: where it came from: a path, a name, or "(in memory)".
        fingerprint: the hash of its weights.
    """

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together, at most."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2**31)

    @property
    def end(self) -> int:
        """The end-of-text token."""
        return int(self.tokenizer.eos_token_id)


@dataclass(frozen=True, kw_only=True)
class LanguageSpec(Spec):
    """What language models are built for: an observation and an action are tokens, and there is one to begin with."""

    pretrained: Pretrained


def language_spec(pretrained: Pretrained) -> LanguageSpec:
    """The spec of everything that begins with this model."""
    token = Space((), torch.int64, (int(pretrained.model.config.vocab_size),))
    return LanguageSpec(obs=token, action=token, pretrained=pretrained)


def pretrained_of(spec: Spec, what: str) -> Pretrained:
    """The model to begin with; Unfit where there is none, because the algorithm is given an environment of numbers."""
    if not isinstance(spec, LanguageSpec):
        raise Unfit(f"{what} begins with a language model: give one with --model, and prompts or a dataset of texts")
    return spec.pretrained


class LanguageModel(nn.Module):
    """A causal language model of `transformers`: what it says of the tokens that there are, and of the next one.

    Dropout is off, for good: log-probabilities of the same tokens must not differ from one pass to the next.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()
        self.forward_logits(torch.tensor([[0, 1, 0]], device=model.device))
        self.packs = packs(self.body)

    @property
    def body(self) -> Any:
        """The model without what turns features into logits."""
        return self.model.base_model

    def train(self, mode: bool = True) -> LanguageModel:
        """Stays in evaluation mode."""
        return super().train(False)

    def features(
        self, ids: Tensor, attention: Tensor | None = None, embedded: Callable[[Any], Tensor] | None = None
    ) -> Tensor:
        """[B, T, D]. `attention` [B, T] is 0 where there is padding, which may stand on either side; None where none
        stands before a token. `embedded(embedding)` [B, T, D] is read in place of `embedding(ids)`, `embedding` being
        the model's own layer.
        """
        read = {"input_ids": ids} if embedded is None else {"inputs_embeds": embedded(self.body.get_input_embeddings())}
        return _features(self.body, attention, **read)

    def logits(self, features: Tensor, temperature: float = 1.0) -> Tensor:
        """Of the next token after each of these features [..., D]: float32 [..., V]."""
        logits: Tensor = self.model.get_output_embeddings()(features).float()
        config = self.model.config
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if scaling := getattr(config, "logits_scaling", None):
            logits = logits / scaling
        return logits if temperature == 1 else logits / temperature

    def forward(
        self,
        ids: Tensor,
        attention: Tensor | None = None,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        likeliest: bool = False,
        embedded: Callable[[Any], Tensor] | None = None,
        length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`logp` of each token given those before it and, on request, of what was expected there the `entropy`, in
        nats, and the `likeliest` token, int64.

        Shapes [..., T]. The logits of the whole batch are never held: pieces of them are computed, and computed again
        for the gradient. Where the `length` [...] of texts that are padded on the right is given, and nothing but it,
        nothing is computed of padding (it says 0 there), and what several texts begin with once: see `packing`.
        """
        ask = partial(self._in_pieces, temperature=temperature, entropy=entropy, likeliest=likeliest)
        rows = ids.flatten(0, -2)
        if length is not None and self.packs:
            said = self._packed(rows, length.flatten(), ask)
        else:
            features = self.features(rows, attention, embedded)
            said = ask(features[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
            said = {name: nn.functional.pad(v.unflatten(0, (len(rows), -1)), (1, 0)) for name, v in said.items()}
        if length is not None:
            place = torch.arange(rows.shape[1], device=ids.device)
            known = (place > 0) & (place < length.reshape(-1, 1))
            said = {name: value.masked_fill(~known, 0) for name, value in said.items()}
        return {name: value.view_as(ids) for name, value in said.items()}

    @torch.compiler.disable  # it would be compiled again for every number of tokens
    def _packed(
        self, rows: Tensor, length: Tensor, ask: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """As `forward`, with anything where a text has ended, and for the first token."""
        pack = packing(rows, length)
        features = packed_features(self.body, rows, pack)[0]
        said = ask(features.index_select(0, pack.before), pack.packed(rows)[0])
        return {name: pack.spread(value.unsqueeze(0)) for name, value in said.items()}

    def _in_pieces(
        self, before: Tensor, token: Tensor, temperature: float, entropy: bool, likeliest: bool
    ) -> dict[str, Tensor]:
        """Of each token [N] after the features [N, D] before it, a few at a time."""
        size = max(1, LOGITS // int(self.model.config.vocab_size))
        said = partial(self._said, temperature=temperature, entropy=entropy, likeliest=likeliest)
        if len(before) <= size:
            return said(before, token)
        pieces = zip(before.split(size), token.split(size), strict=True)
        parts = [checkpoint(said, *piece, use_reentrant=False) for piece in pieces]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _said(
        self, before: Tensor, token: Tensor, temperature: float, entropy: bool, likeliest: bool
    ) -> dict[str, Tensor]:
        logp = self.logits(before, temperature).log_softmax(-1)
        said = {"logp": logp.gather(-1, token.unsqueeze(-1)).squeeze(-1)}
        if entropy:
            said["entropy"] = -(logp.exp() * logp).sum(-1)
        if likeliest:
            said["likeliest"] = logp.argmax(-1)
        return said

    def forward_logits(self, ids: Tensor) -> Tensor:
        """[B, T, V], of a few tokens. Unfit where the model computes its own logits in a way that is not known here."""
        with torch.no_grad():
            ours, own = self.logits(self.features(ids)), self.model(input_ids=ids, use_cache=False).logits
        if not torch.allclose(ours, own.float(), atol=CLOSE, rtol=CLOSE):
            kind = type(self.model).__name__
            raise Unfit(f"{kind} makes its logits in a way that is not known here: they differ by more than {CLOSE}")
        return ours


class TokenScalars(nn.Module):
    """A number after each token, read off the features of a language model: [B, T]. Values and rewards.

    Stiennon et al., "Learning to summarize from human feedback" (2020): the head begins with a standard deviation of
    `1 / sqrt(D + 1)`; with `head_std=0` it begins at zero.
    """

    def __init__(self, model: Any, head_std: float | None = None) -> None:
        super().__init__()
        self.body = model.base_model.eval()
        size = model.get_output_embeddings().weight.shape[1]
        self.head = nn.Linear(size, 1)
        nn.init.normal_(self.head.weight, std=(size + 1) ** -0.5 if head_std is None else head_std)
        nn.init.zeros_(self.head.bias)
        self.packs = packs(self.body)

    def train(self, mode: bool = True) -> TokenScalars:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, ids: Tensor, attention: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        """Of each token and what stands before it: float32 [..., T]. `attention` and `length` as for `LanguageModel`,
        but that anything may be said of padding."""
        rows = ids.flatten(0, -2)
        if length is not None and self.packs:
            return self._packed(rows, length.flatten()).view_as(ids)
        features = _features(self.body, attention, input_ids=rows)
        numbers: Tensor = self.head(features).squeeze(-1).float()
        return numbers.view_as(ids)

    @torch.compiler.disable  # as that of `LanguageModel`
    def _packed(self, rows: Tensor, length: Tensor) -> Tensor:
        pack = packing(rows, length)
        return pack.spread(self.head(packed_features(self.body, rows, pack)).squeeze(-1).float())


def _features(body: Any, attention: Tensor | None, **read: Tensor) -> Tensor:
    """Of all tokens [B, T]: [B, T, D]. `attention` as for `LanguageModel.features`."""
    positions = None if attention is None else (attention.long().cumsum(1) - 1).clamp(min=0)
    out: Tensor = body(**read, attention_mask=attention, position_ids=positions, use_cache=False).last_hidden_state
    return out


# ------------------------------------------------------------------------------------------------------- factories


def language_model() -> Factory:
    """The model to begin with, to be trained whole."""
    return _language_model


def _language_model(spec: Spec, nets: Nets) -> nn.Module:
    model = copy.deepcopy(pretrained_of(spec, "this algorithm").model)
    return LanguageModel(model.requires_grad_(True))


def token_scalars(head_std: float | None = None) -> Factory:
    """The model to begin with, saying a number after each token in place of the next one."""
    return partial(_token_scalars, head_std=head_std)


def _token_scalars(spec: Spec, nets: Nets, head_std: float | None) -> nn.Module:
    model = copy.deepcopy(pretrained_of(spec, "this algorithm").model)
    return TokenScalars(model.requires_grad_(True), head_std)


def adapted(factory: Factory, rank: int, scale: float, modules: Sequence[str] | None) -> Factory:
    """Low-rank adapters on the linear layers of a language model; what it was before is kept and not trained."""
    return partial(_adapted, factory=factory, rank=rank, scale=scale, modules=modules)


def _adapted(
    spec: Spec, nets: Nets, factory: Factory, rank: int, scale: float, modules: Sequence[str] | None
) -> nn.Module:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as missing:
        raise Unfit("adapters need peft: pip install 'palaestra[language]'") from missing
    network = factory(spec, nets)
    if not isinstance(network, LanguageModel):
        raise Unfit("adapters go on a language model")
    targets = list(modules) if modules is not None else linear_names(network)
    try:
        inject_adapter_in_model(
            LoraConfig(
                r=rank,
                lora_alpha=scale,  # type: ignore[arg-type]
                target_modules=targets,
            ),
            network.model,
        )
    except ValueError as wrong:
        raise Unfit(f"no adapters fit the modules {targets}: {wrong}") from wrong
    return network


def linear_names(network: LanguageModel) -> list[str]:
    """The names of the layers that multiply by a matrix, but for the one that makes logits."""
    from transformers.pytorch_utils import Conv1D

    body = (name for name, layer in network.body.named_modules() if isinstance(layer, nn.Linear | Conv1D))
    return sorted({name.rpartition(".")[2] for name in body})


def adapters_of(network: nn.Module) -> list[Any]:
    """The layers of a network that have an adapter."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return []
    return [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """The network as it was before it was adapted: a reference that needs no copy. Not to be used in a term."""
    layers = adapters_of(network)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


# ---------------------------------------------------------------------------------------------------- the reference


@contextmanager
def reference(nets: Nets, name: str = "policy") -> Iterator[LanguageModel]:
    """The model that `nets[name]` began as: itself with its adapters off, or the one it was copied from."""
    network = nets[name]
    assert isinstance(network, LanguageModel)
    if adapters_of(network):
        with without_adapters(network):
            yield network
    else:
        yield LanguageModel(pretrained_of(nets.spec, "a reference").model)


# -------------------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: logits are divided by it, in (0, inf).
        top_k: only so many of the most likely tokens are drawn; all when None.
        top_p: only the most likely tokens that hold this much probability together, in (0, 1]; all when 1.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    @property
    def truncates(self) -> bool:
        """Whether what is drawn from is not the policy itself."""
        return self.top_k is not None or self.top_p < 1


def truncated(logp: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities [..., V] of what is drawn from: -inf where a token is left out, and summing to one again.

    A token that is as likely as the last one that is kept is kept too.
    """
    if sampling.top_k is not None:
        least = logp.topk(min(sampling.top_k, logp.shape[-1]), -1).values[..., -1:]
        logp = logp.masked_fill(logp < least, -torch.inf)
    if sampling.top_p < 1:
        ordered = logp.sort(-1, descending=True).values
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        least = ordered.masked_fill(before >= sampling.top_p, torch.inf).amin(-1, keepdim=True)
        logp = logp.masked_fill(logp < least, -torch.inf)
    return logp.log_softmax(-1)


Choose = Callable[[Tensor], Tensor]


def generated(
    network: LanguageModel,
    ids: Tensor,
    attention: Tensor,
    longest: int,
    end: int,
    sampling: Sampling,
    rng: Generator | None,
) -> dict[str, Tensor]:
    """Answers to prompts [B, P] that are padded on the left, up to `longest` tokens or the first end-of-text.

    Args:
        ids, attention: the prompts; 0 in `attention` is padding.
        longest: tokens of an answer, with its end.
        end: the end-of-text token.
        sampling: how tokens are drawn.
        rng: draws them; None takes the most likely ones.

    Returns:
        `ids` [B, L]; `answer` [B, L], whether a token is part of the answer (the end is, what follows it is not);
        `sampled_logp` and `behaviour_logp` [B, L]: under the policy at this temperature, and under what was drawn from.
    """
    with torch.no_grad():
        return _generated(network, ids, attention, longest, end, sampling, rng)


def _generated(
    network: LanguageModel,
    ids: Tensor,
    attention: Tensor,
    longest: int,
    end: int,
    sampling: Sampling,
    rng: Generator | None,
) -> dict[str, Tensor]:
    rows, device = len(ids), ids.device
    out = {
        "ids": torch.full((rows, longest), end, device=device),
        "answer": torch.zeros(rows, longest, dtype=torch.bool, device=device),
        "sampled_logp": torch.zeros(rows, longest, device=device),
        "behaviour_logp": torch.zeros(rows, longest, device=device),
    }
    alive = torch.arange(rows, device=device)
    attention = attention.long()
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    said = network.body(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True)
    for t in range(longest):
        logp = network.logits(said.last_hidden_state[:, -1], sampling.temperature).log_softmax(-1)
        drawn = truncated(logp, sampling) if sampling.truncates else logp
        token = logp.argmax(-1, keepdim=True) if rng is None else torch.multinomial(drawn.exp(), 1, generator=rng)
        out["ids"][alive, t] = token[:, 0]
        out["answer"][alive, t] = True
        out["sampled_logp"][alive, t] = logp.gather(1, token)[:, 0]
        out["behaviour_logp"][alive, t] = drawn.gather(1, token)[:, 0]
        if t + 1 == longest:
            break
        going = (token[:, 0] != end).nonzero()[:, 0]
        cache = said.past_key_values
        if len(going) < len(alive):
            if len(going) == 0:
                break
            cache.batch_select_indices(going)
            alive, token, attention = alive[going], token[going], attention[going]
        attention = nn.functional.pad(attention, (0, 1), value=1)
        said = network.body(
            input_ids=token,
            attention_mask=attention,
            position_ids=attention.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
    return out
