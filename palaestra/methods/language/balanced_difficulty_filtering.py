"""Balanced difficulty filtering: prompts are learnt from that the policy answers right about half of the time.

    draw prompts, answer each G times, p = the share of right answers;  keep those with low <= p <= high
    until there are as many as a round has; what is kept beyond that waits for the next round

Paper: Bae et al., "Online Difficulty Filtering for Reasoning Oriented Reinforcement Learning" (2025). Of the optimum
pi* ~ pi exp(r / beta), r in {0, 1}, the policy is away by

    KL(pi || pi*) = log(1 - p + p exp(1 / beta)) - p / beta = p (1 - p) / (2 beta^2) + O(1 / beta^3)

which is largest at p = beta - 1 / (exp(1 / beta) - 1), close to 1/2 where beta is large. p (1 - p) is also the mean
square of `dr-grpo`'s advantages.

Traps: what is thrown away was paid for; `answers` in the metrics counts it, and `thrown_away` tells it. The mean reward
of what is left is about a half whatever was learnt: look at evaluations, whose prompts nobody chose. Where nothing is
left in the band prompts would be drawn forever: after `most_draws` the nearest ones fill up. GRPO's division by the
standard deviation makes the advantages of extreme prompts larger; on `dr-grpo` the filter is seen by itself. What
waits for the next round was answered by an older policy, see `UntilFull`.

Differs from the paper: prompts that fill up are those nearest to the band. Its filter by what the model can do before
it learns is not here.
"""

from __future__ import annotations

from functools import partial

from palaestra.algorithm import Algorithm, Unfit, above, collect_with, expressed
from palaestra.rollout.texts import UntilFull, answers_to_each
from palaestra.tasks.admission import Admission, in_band, unmixed


@expressed
def balanced_difficulty_filtering(
    algorithm: Algorithm, low: float = 0.25, high: float = 0.75, most_draws: int = 8, success: float = 0.0
) -> Algorithm:
    """Prompts are learnt from whose share of right answers lies in a band around one half. On `grpo` and its like.

    Args:
        low, high: the band, both ends belong to it. The paper has 8 to 16 answers to a prompt.
        most_draws: times that prompts are drawn for one round, at most.
        success: an answer is right that earns more.
    """
    return _band("balanced-difficulty-filtering", algorithm, low, high, most_draws, success)


@expressed
def without_easy_prompts(
    algorithm: Algorithm, high: float = 0.75, most_draws: int = 8, success: float = 0.0
) -> Algorithm:
    """Prompts are left out that are answered right too often, and those stay that never are. On `grpo` and its like.

    Args:
        high: the largest share of right answers.
        most_draws, success: as for `balanced_difficulty_filtering`.
    """
    return _band("without-easy-prompts", algorithm, 0.0, high, most_draws, success)


@expressed
def without_hard_prompts(
    algorithm: Algorithm, low: float = 0.25, most_draws: int = 8, success: float = 0.0
) -> Algorithm:
    """Prompts are left out that are answered right too seldom, and those stay that always are. On `grpo` and its like.

    Args:
        low: the smallest share of right answers.
        most_draws, success: as for `balanced_difficulty_filtering`.
    """
    return _band("without-hard-prompts", algorithm, low, 1.0, most_draws, success)


@expressed
def mixed_difficulty_filtering(algorithm: Algorithm, most_draws: int = 8) -> Algorithm:
    """Prompts are left out whose answers all earn the same, as in `dapo`. On `grpo` and its like.

    Args:
        most_draws: as for `balanced_difficulty_filtering`.
    """
    return _admitted("mixed-difficulty-filtering", algorithm, unmixed, most_draws)


def _band(slug: str, algorithm: Algorithm, low: float, high: float, most: int, success: float) -> Algorithm:
    changed = _admitted(slug, algorithm, in_band(low, high, success), most)
    answers = answers_to_each(algorithm.collect)
    if not any(low <= right / answers <= high for right in range(answers + 1)):
        raise ValueError(f"no share of {answers} answers lies between {low} and {high}: give more answers")
    return changed


def _admitted(slug: str, algorithm: Algorithm, admission: Admission, most: int) -> Algorithm:
    above(0, most_draws=most)
    if answers_to_each(algorithm.collect) < 2:
        raise Unfit(
            f"{slug} does not fit {algorithm}: it goes by how many of the answers to a prompt are right; try it on "
            "grpo, or on reinforce-plus-plus(answers=8)"
        )
    return collect_with(algorithm, partial(UntilFull, outside=admission, most=most))
