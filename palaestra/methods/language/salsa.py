"""SALSA: the reference that a policy is held to is a soup, the average of the weights of several fine-tuned models.

    log pi_ref -> log pi_soup,   theta_soup = share theta_1 + (1 - share) (theta_2 + ... + theta_n) / (n - 1)

Paper: Chegini et al., "SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF" (2024); alpha is `share`.
The idea of a soup is of Wortsman et al., "Model Soups" (2022).

The models are fine-tuned from one pre-trained model on the same data, with different seeds; the policy begins as one of
them, or as the soup. `palaestra export RUN` makes the folder of a run. Of adapters this averages what they add to the
weights, not their factors: an exported model has them added.

Traps: models that were pre-trained apart have a soup that says nothing. The policy is away from its reference before
the first update, and divergences that are told are those from the soup. A soup may be a weaker hold than a single model
at the same coefficient: compare at the best coefficient of each. What samples from the reference, as `rso`, goes on
sampling from the model that the policy began as.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

from palaestra.algorithm import Algorithm, Nets, between, expressed
from palaestra.networks.language import LanguageModel, Pretrained, pretrained_of
from palaestra.networks.pretrained import averaged, pretrained, same_tokens
from palaestra.rollout.scorers import refer_to

SOUPS = 4  # that a process keeps: more than one where runs take turns


@lru_cache(SOUPS)
def soup(models: tuple[str, ...], share: float, device: str) -> Pretrained:
    """The average of models in folders; the first has the `share`, and the others the rest in equal parts."""
    others = len(models) - 1
    return averaged([pretrained(each, device=device) for each in models], [share, *[(1 - share) / others] * others])


@contextmanager
def souped(nets: Nets, models: tuple[str, ...], share: float) -> Iterator[LanguageModel]:
    """The reference of `palaestra.rollout.scorers`; it is read when it is first asked, and never learns."""
    made = soup(models, share, str(next(nets.parameters()).device))
    same_tokens(pretrained_of(nets.spec, "salsa"), made)
    yield LanguageModel(made.model)


@expressed
def salsa(algorithm: Algorithm, models: tuple[str, ...], share: float = 0.5) -> Algorithm:
    """A soup as the reference. On what has a reference: `ppo-lm`, `grpo`, `rloo`, `dpo`, `kto`, `f-dpg`, ...

    Args:
        models: folders, or names that `transformers` knows, of at least two models that were fine-tuned from one.
        share: of the first of them, in [0, 1]; with 1 it is the reference.
    """
    between(0, 1, share=share)
    if isinstance(models, str) or len(models) < 2:
        raise ValueError(f"models is {models!r}; it must be a tuple of at least two folders")
    return refer_to(algorithm, partial(souped, models=tuple(models), share=share))
