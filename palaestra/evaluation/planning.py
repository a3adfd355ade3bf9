"""How many seeds will a comparison need? Answered before the first one runs, by simulating the comparator itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from palaestra.evaluation.sequential import SequentialComparator


def seeds_needed(
    difference: float,
    sd: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    group: int | Sequence[int] = (3, 5, 8, 12, 20),
    max_groups: int = 5,
    arms: int = 2,
    repetitions: int = 1000,
    permutations: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A row for each group size: how often a difference would be found, and what that would cost.

    Assumes normal scores with one standard deviation in all arms, and one arm, the first, that is better than the
    others, which are equal; other scores may need more. Guess `sd` from the baseline's seeds, and rather too high: the
    seeds needed grow with (sd / difference)^2.

    Args:
        difference: between the means, in the unit of the scores; not 0.
        sd: standard deviation of an arm's scores over seeds.
        power: the wanted probability that the better arm is found to be larger than every other one.
        arms: all pairs are compared.
        repetitions: simulated comparisons a row; the power's standard error is at most 0.5 / sqrt(repetitions).

    Returns:
        Rows with `group`, `most_seeds` (an arm, group * max_groups), `expected_seeds` (an arm, the mean over arms),
        `power` with its `standard_error`, and `enough` (whether the power reaches the wanted one).

    Raises:
        ValueError: an argument is outside of its range.
    """
    if not sd > 0 or not abs(difference) > 0:
        raise ValueError(f"difference is {difference} and sd {sd}: give a difference that is not 0 and a positive sd")
    if not 0 < power < 1:
        raise ValueError(f"power is {power}: give a probability between 0 and 1, for example 0.8")
    rng = np.random.default_rng(seed)
    names = [str(arm) for arm in range(arms)]
    shift = np.zeros(arms)
    shift[0] = abs(difference) / sd
    rows = []
    for size in [group] if isinstance(group, int) else group:
        found, seeds = np.empty(repetitions), np.empty(repetitions)
        for repetition in range(repetitions):
            comparator = SequentialComparator(
                names, group=size, max_groups=max_groups, alpha=alpha, permutations=permutations, seed=seed
            )
            seeds[repetition] = 0
            while needs := comparator.needs:
                scores = rng.standard_normal((arms, size)) + shift[:, None]
                comparator.update({arm: scores[int(arm)] for arm in needs})
                seeds[repetition] += size * len(needs) / arms
            against_first = [comparator.decisions[names[0], other].decision for other in names[1:]]
            found[repetition] = set(against_first) == {"larger"}
        rows.append(
            {
                "group": size,
                "most_seeds": size * max_groups,
                "expected_seeds": round(float(seeds.mean()), 1),
                "power": float(found.mean()),
                "standard_error": float(found.std() / repetitions**0.5),
                "enough": bool(found.mean() >= power),
            }
        )
    return rows
