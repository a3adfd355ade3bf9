"""Language models from a folder, by name, or as objects; and folders that other programs read."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palaestra.data.tokenising import check_tokenizer
from palaestra.networks.fitting import drawing_from
from palaestra.networks.language import LanguageModel, Pretrained, adapters_of

IN_MEMORY = "(in memory)"


def pretrained(model: Any, tokenizer: Any = None, device: str = "cpu", name: str = "") -> Pretrained:
    """A model to begin with.

    Args:
        model: a folder or a name that `transformers` knows, or a model of `transformers`.
        tokenizer: of `transformers`; the one beside the model when None.
        device: holds it.
        name: what errors and run.json call it; where it came from when empty.

    Raises ValueError where there is no such model, DatasetError where the tokenizer lacks a token or does not match.
    """
    transformers = library()
    name = name or (str(model) if isinstance(model, str | Path) else getattr(model, "name_or_path", "") or IN_MEMORY)
    if isinstance(model, str | Path):
        if _looks_local(name) and not (Path(name) / "config.json").is_file():
            what = "holds no config.json" if Path(name).is_dir() else "is not there"
            raise ValueError(f"the model {name} {what}: give a folder that save_pretrained made, or a name")
        try:
            loaded = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
            tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError) as wrong:
            raise ValueError(f"the model {name!r} cannot be read: {_first_line(wrong)}") from wrong
    else:
        loaded = model
    if tokenizer is None:
        raise ValueError("a model that is given as an object needs its tokenizer: tokenizer=...")
    check_tokenizer(tokenizer, loaded.get_input_embeddings().num_embeddings)
    loaded = loaded.to(device).eval().requires_grad_(False)
    return Pretrained(loaded, tokenizer, name, fingerprint(loaded))


def library() -> Any:
    """`transformers`; ValueError where it is not installed."""
    try:
        import transformers
    except ImportError as missing:
        raise ValueError("language models need transformers: pip install 'palaestra[language]'") from missing
    transformers.utils.logging.disable_progress_bar()  # a bar of its own, in the midst of ours, for every file
    return transformers


def fingerprint(model: nn.Module) -> str:
    """The hash of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plain(network: LanguageModel) -> Any:
    """A model of `transformers` that says the same, with adapters added to what they adapt."""
    layers = adapters_of(network)
    with torch.no_grad():
        for layer in layers:
            layer.merge(safe_merge=True)
        try:
            state = {
                name.replace(".base_layer.", "."): tensor.clone()
                for name, tensor in network.model.state_dict().items()
                if ".lora_" not in name
            }
        finally:
            for layer in layers:
                layer.unmerge()
    model = type(network.model)(copy.deepcopy(network.model.config))
    model.load_state_dict(state)
    model.tie_weights()
    return model.eval()


def save(network: LanguageModel, tokenizer: Any, folder: Path) -> None:
    """Write a folder that `pretrained` and `transformers` read."""
    plain(network).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_shape(begin: Pretrained, folder: Path) -> None:
    """Write a model's configuration and its tokenizer, without its weights."""
    begin.model.config.save_pretrained(folder)
    begin.tokenizer.save_pretrained(folder)


def of_shape(folder: Path, device: str = "cpu") -> Pretrained:
    """What `save_shape` wrote, with weights that mean nothing yet. ValueError where it cannot be read."""
    transformers = library()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as wrong:
        raise ValueError(f"the model {folder} cannot be read: {_first_line(wrong)}") from wrong
    with drawing_from(torch.Generator()):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return Pretrained(model.to(device).eval().requires_grad_(False), tokenizer, str(folder), "")


def average_state_dicts(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """`sum_i weights_i theta_i`, tensor by tensor, added up in float32; whole numbers are the first one's.

    Tensors that are tied stay equal, under each of their names. Raises ValueError where names or shapes differ.
    """
    first = states[0]
    for state in states:
        if strange := sorted(first.keys() ^ state.keys()):
            raise ValueError(f"models of two kinds have no average: only one of them has {strange[0]}")
        for name, tensor in state.items():
            if tensor.shape != first[name].shape:
                shapes = f"{tuple(first[name].shape)} and {tuple(tensor.shape)}"
                raise ValueError(f"models of two sizes have no average: {name} is {shapes}")
    return {
        name: sum(
            (weight * state[name].float() for weight, state in zip(weights, states, strict=True)),
            torch.zeros((), device=tensor.device),
        ).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def averaged(models: Sequence[Pretrained], weights: Sequence[float]) -> Pretrained:
    """A model whose weights are the models' in these shares, with the first one's tokenizer.

    They are to be fine-tuned from one model: where they are not, an average says nothing. Raises ValueError where
    tokenizers or shapes differ.
    """
    first = models[0]
    for other in models[1:]:
        same_tokens(first, other)
    model = copy.deepcopy(first.model)
    model.load_state_dict(average_state_dicts([each.model.state_dict() for each in models], weights))
    name = " + ".join(f"{weight:g} {each.name}" for weight, each in zip(weights, models, strict=True))
    return Pretrained(model, first.tokenizer, name, fingerprint(model))


def same_tokens(one: Pretrained, other: Pretrained) -> None:
    """ValueError unless two models have the same tokens by the same numbers."""
    if one.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise ValueError(f"the tokenizers of {one.name} and {other.name} differ: take models that came from one")


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).exists()


def _first_line(wrong: Exception) -> str:
    return (str(wrong).strip().splitlines() or [type(wrong).__name__])[0]
