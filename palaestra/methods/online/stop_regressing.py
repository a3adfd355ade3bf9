"""Stop regressing: a critic classifies its target into bins of values, by cross-entropy, instead of regressing on it.

    Q(s, a) = sum_i softmax(l(s, a))_i c_i,  c_i the middle of bin i of `bins` equal ones in [v_min, v_max]
    y: the base's own scalar target, with its double, minimum or multi-step rule
    stop-regressing (HL-Gauss): label_i = P(e_i < x < e_{i+1}),  x ~ N(y, std^2) within [v_min, v_max],
                                std = smoothing * width of a bin
    two-hot:                    label shared by the two atoms beside y, so that its mean is y
    critic: -sum_i label_i log softmax(l(s, a))_i

Paper: Farebrother et al., "Stop Regressing: Training Value Functions via Classification for Scalable Deep RL" (2024);
m is `bins`, sigma / width is `smoothing`. Two-hot is from Schrittwieser et al., "Mastering Atari, Go, Chess and Shogi
by Planning with a Learned Model" (2020). The paper's third way, C51, projects a distribution and no scalar: it is the
base `c51`.

Traps: [v_min, v_max] must hold every discounted return: targets are clipped to it, and the metric `beyond` is the
share of them that were. Within two std of an end the mean of an HL-Gauss label is drawn inwards (with the defaults 9.5
becomes 9.47 and -9.9 becomes -9.70); two-hot's is not. The cross-entropy is never 0 and of another size than a squared
error: learning rates, `value_coefficient` and `clip_norm` mean something else. Priorities stay |Q - y|.

Differs from the paper: it has Q-networks alone; here every critic that a scalar target trains (td3's and sac's
ensembles, ppo's state value) gets the head, and whoever else reads the critic reads its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import signature

import torch
from torch import Tensor

from palaestra.algorithm import Algorithm, above, expressed, rebind
from palaestra.batch import Columns
from palaestra.functional.distributional import categorical_projection, cross_entropy, gaussian_in_bins
from palaestra.networks.critics import classifying


def hl_gauss(y: Tensor, v_min: float, v_max: float, bins: int, smoothing: float) -> Tensor:
    """A normal distribution about `y`, within the bins: [...] -> [..., M]."""
    edges = torch.linspace(v_min, v_max, bins + 1, dtype=y.dtype, device=y.device)
    return gaussian_in_bins(y, smoothing * (v_max - v_min) / bins, edges)


def two_atoms(y: Tensor, v_min: float, v_max: float, bins: int) -> Tensor:
    """`y` as the mean of the two atoms beside it: [...] -> [..., M]."""
    y = y.unsqueeze(-1)
    atoms = torch.linspace(v_min, v_max, bins, dtype=y.dtype, device=y.device)
    return categorical_projection(y, torch.ones_like(y), atoms)


def classification(
    logits: Tensor, target: Tensor, label: Callable[..., Tensor], v_min: float, v_max: float
) -> tuple[Tensor, Columns]:
    """Rows [B] of logits [B, M], or [E, B, M] (summed over the ensemble), and targets [B]; and which lay `beyond`."""
    y = target.clamp(v_min, v_max)
    rows = cross_entropy(logits, label(y, v_min, v_max, logits.shape[-1]))
    return rows.sum(0) if rows.dim() > y.dim() else rows, {"beyond": y != target}


@expressed
def stop_regressing(
    algorithm: Algorithm, v_min: float = -10.0, v_max: float = 10.0, bins: int = 51, smoothing: float = 0.75
) -> Algorithm:
    """The critic classifies targets, smeared over some bins of values (HL-Gauss). On `dqn`, `sac`, `td3`, `ppo`...

    Args:
        v_min: lower end of the first bin; no discounted return may be smaller.
        v_max: upper end of the last bin; no discounted return may be larger.
        bins: how many, of equal width, at least 2.
        smoothing: standard deviation of a label, in widths of a bin: 0.75 reaches about six of them.
    """
    above(0, smoothing=smoothing)
    label = partial(hl_gauss, smoothing=smoothing)
    return _classified("stop-regressing", algorithm, label, v_min, v_max, bins, margin=0.5)


@expressed
def two_hot(algorithm: Algorithm, v_min: float = -10.0, v_max: float = 10.0, bins: int = 51) -> Algorithm:
    """The critic classifies targets, each shared by the two atoms beside it. On `dqn`, `sac`, `td3`, `ppo`...

    Args:
        v_min: the smallest atom; no discounted return may be smaller.
        v_max: the largest atom; no discounted return may be larger.
        bins: how many atoms, at equal distances, at least 2.
    """
    return _classified("two-hot", algorithm, two_atoms, v_min, v_max, bins, margin=0.0)


def _classified(
    slug: str,
    algorithm: Algorithm,
    label: Callable[..., Tensor],
    v_min: float,
    v_max: float,
    bins: int,
    margin: float,
) -> Algorithm:
    """The outer atoms lie `margin` widths of a bin within the ends."""
    above(1, bins=bins)
    above(v_min, v_max=v_max)
    regressions = [
        (loss, term)
        for loss in algorithm.losses
        for term, value in algorithm.losses[loss].terms.items()
        if "critic" in algorithm.losses[loss].trains and "regression" in signature(value.value).parameters
    ]
    if not regressions:
        raise ValueError(
            f"{slug} does not fit {algorithm}, where no critic is regressed on a number: choose dqn, sac, td3 or ppo"
        )
    regression = partial(classification, label=label, v_min=v_min, v_max=v_max)
    for loss, term in regressions:
        algorithm = _also_gives(rebind(algorithm, loss, term, regression=regression), loss, term, "beyond")
    inset = margin * (v_max - v_min) / bins
    try:
        critic = classifying(algorithm.networks["critic"], bins, v_min + inset, v_max - inset)
    except ValueError as wrong:
        raise ValueError(f"{slug} does not fit {algorithm}: {wrong}") from wrong
    return replace(algorithm, networks={**algorithm.networks, "critic": critic})


def _also_gives(algorithm: Algorithm, loss: str, term: str, column: str) -> Algorithm:
    """The term's declaration, after its regression was rebound to one with a column more."""
    terms = algorithm.losses[loss].terms
    declared = replace(terms[term], gives=(*terms[term].gives, column))
    changed = replace(algorithm.losses[loss], terms={**terms, term: declared})
    return replace(algorithm, losses={**algorithm.losses, loss: changed})
