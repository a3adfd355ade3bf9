"""What is known of a comparison, as JSON data: all that its report, its figure and a claim's page are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from palaestra.evaluation.aggregates import (
    Interval,
    bootstrap,
    interquartile_mean,
    probability_of_improvement,
    sample_efficiency,
)
from palaestra.evaluation.sequential import SequentialComparator

Curve = tuple[list[float], list[float]]  # steps and values
WORDS = {"auc": "area under the curve", "final": "last value", "best": "highest value"}


def of_arm(scores: Mapping[int, float], curves: Mapping[int, Curve]) -> dict[str, Any]:
    """`seeds`, `scores` (one a seed), `iqm`, its 95 % `interval` (None of fewer than two seeds), and `curve`.

    `curve` is `{"steps": [...], "values": [a list for each seed]}` at the steps that all seeds have; None with fewer
    than two.
    """
    values = list(scores.values())
    return {
        "seeds": list(scores),
        "scores": values,
        "iqm": float(interquartile_mean(values)),
        "interval": _bounds(interval(values)) if len(values) > 1 else None,
        "curve": _curve(curves),
    }


def interval(*samples: Sequence[float]) -> Interval:
    """Of the interquartile mean; of two samples, of the difference of theirs (the first's less the second's)."""
    rng = np.random.default_rng(0)
    if len(samples) == 1:
        return bootstrap(interquartile_mean, *samples, rng=rng)
    return bootstrap(lambda left, right: interquartile_mean(left) - interquartile_mean(right), *samples, rng=rng)


def decisions(comparator: SequentialComparator, scores: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Of each pair: `left, right, decision, groups`; the `difference` of interquartile means and the `probability` that
    a seed of left is larger than one of right, each `[estimate, low, high]` (None of fewer than two seeds).
    """
    found = []
    for one in comparator.decisions.values():
        left, right = scores[one.left], scores[one.right]
        difference = probability = None
        if len(left) > 1 and len(right) > 1:
            difference = _all(interval(left, right))
            probability = _all(bootstrap(probability_of_improvement, left, right, rng=np.random.default_rng(0)))
        found.append(
            {
                "left": one.left,
                "right": one.right,
                "decision": one.decision,
                "groups": one.groups,
                "difference": difference,
                "probability": probability,
            }
        )
    return found


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What came out, a sentence for each pair."""
    plan = summary["plan"]
    return [
        _sentence(plan, summary["arms"], one, finished=summary["status"] == "finished") for one in summary["decisions"]
    ]


def _sentence(plan: Mapping[str, Any], arms: Mapping[str, Any], one: Mapping[str, Any], finished: bool) -> str:
    seeds = [len(arms[one[side]]["seeds"]) for side in ("left", "right")]
    counted = f"{seeds[0]} seeds each" if seeds[0] == seeds[1] else f"{seeds[0]} and {seeds[1]} seeds"
    of = measured(plan)
    if one["decision"] != "undecided":
        high, low = (one["left"], one["right"]) if one["decision"] == "larger" else (one["right"], one["left"])
        return f"{high} has a larger {of} than {low}, decided with {counted}."
    if not finished:
        return f"{one['left']} and {one['right']} are not decided yet, after {counted}."
    return (
        f"{one['left']} and {one['right']} could not be told apart by their {of} with {counted}: undecided, not equal."
    )


def measured(plan: Mapping[str, Any]) -> str:
    """What a score is, in words."""
    name = plan["score"].replace("_", " ")
    return f"{name} ({WORDS[plan['measure']]})" if plan["measure"] in WORDS else name


def _curve(curves: Mapping[int, Curve]) -> dict[str, Any] | None:
    shared = sorted(set.intersection(*(set(steps) for steps, _ in curves.values()))) if curves else []
    if len(shared) < 2:
        return None
    at = [dict(zip(steps, values, strict=True)) for steps, values in curves.values()]
    return {"steps": shared, "values": [[own[step] for step in shared] for own in at]}


def band(curve: Mapping[str, Any]) -> Interval:
    """The interquartile mean over seeds at each step, with its interval: [points] each."""
    values = np.asarray(curve["values"], dtype=float)[:, None]
    return bootstrap(sample_efficiency, values, repetitions=1000, rng=np.random.default_rng(0))


def _bounds(found: Interval) -> list[float]:
    return [float(found.low), float(found.high)]


def _all(found: Interval) -> list[float]:
    return [float(found.estimate), *_bounds(found)]
