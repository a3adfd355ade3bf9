"""What is unusual about a dataset, and which methods are recommended for such data: two tables of stated rules.

A rule reads what `palaestra.data.statistics.describe` found and returns a sentence, or None where it does not apply.
What a method is recommended for is what its card says of its paper. Cards seldom name a number: those here are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from palaestra.data.coverage import SATURATED

HIGH = 0.9  # a high TQ or SACo: what the card's check asks of an expert's data
SPARSE = 0.9  # share of steps that are paid the same
MOSTLY_LOW = 0.6  # share of the variance of returns that lies above their mean: half where they are symmetric

Found = Mapping[str, Any]
Rule = Callable[[Found], str | None]


def unusual(found: Found) -> list[str]:
    """What a user should know before training, a sentence each."""
    return [said for rule in UNUSUAL if (said := rule(found))]


def recommended(found: Found, listed: Collection[str] | None = None) -> list[dict[str, str]]:
    """Methods for such data: `slug`, `reason` and `card` each; only those that are `listed` where that is given."""
    return [
        {"slug": slug, "reason": reason, "card": card}
        for slug, kind, card, rule in RULES
        if kind in ("any", found["actions"]["kind"]) and (listed is None or slug in listed) and (reason := rule(found))
    ]


# ---------------------------------------------------------------------------------------------------------- unusual


def _cut(found: Found) -> str | None:
    """Any episode."""
    if not (cut := found["ends"]["cut"]):
        return None
    return f"{cut:,} of {found['episodes']:,} episodes end neither terminated nor truncated: they are cut off"


def _watched(found: Found) -> str | None:
    """Any episode."""
    if not (watched := found["without_actions"]):
        return None
    what = "what is said of actions, coverage, neighbours and repetitions is of the others"
    return f"{watched:,} of {found['episodes']:,} episodes have no actions: {what}"


def _mended(found: Found) -> str | None:
    """Whatever `palaestra.data.files.read` had to mend."""
    what = {
        "dropped": "steps dropped, since nothing says what they led to",
        "cut": "episodes begun where rows did not continue",
        "unended": "episodes without an end, now truncated",
    }
    said = [f"{found['mended'][name]:,} {words}" for name, words in what.items() if found["mended"][name]]
    return f"mended when the file was read: {'; '.join(said)}" if said else None


def _time_limit(found: Found) -> str | None:
    """At least five terminated episodes, all of them as long as the longest one."""
    terminated = found["ends"]["terminated"]
    if terminated < 5 or found["ends"]["same_step"] < terminated:
        return None
    limit = int(found["lengths"]["max"])
    return f"all {terminated:,} terminated episodes have {limit:,} steps: probably a time limit, and so truncations"


def _repeated(found: Found) -> str | None:
    """More than one transition in a hundred."""
    share = found["duplicates"]
    return f"{share:.1%} of the transitions repeat an earlier one exactly" if share > 0.01 else None


def _constant(found: Found) -> str | None:
    """No standard deviation."""
    names = [one["name"] for one in (*found["observations"], *found["actions"]["features"]) if one["min"] == one["max"]]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"constant: {shown}" if names else None


def _bounds(found: Found) -> str | None:
    """More than a tenth of the steps."""
    share = found["actions"]["at_bounds"]
    return f"{share:.0%} of the steps have an action at a bound" if share is not None and share > 0.1 else None


def _unused(found: Found) -> str | None:
    """A choice that is never taken."""
    unused = [number for number, share in enumerate(found["actions"]["shares"] or []) if not share]
    return f"never chosen: action {', '.join(map(str, unused))}" if unused else None


def _unpaid(found: Found) -> str | None:
    """One reward, or one return of several episodes."""
    if found["reward"]["values"] == 1:
        return f"every reward is {found['reward']['mean']:g}"
    same = found["episodes"] > 1 and found["returns"]["min"] == found["returns"]["max"]
    return f"every episode's return is {found['returns']['mean']:g}" if same else None


def _outstanding(found: Found) -> str | None:
    """More than five standard deviations above or below the mean."""
    returns = found["returns"]
    for which in ("max", "min"):
        away = (returns[which] - returns["mean"]) / (returns["std"] or 1.0)
        if abs(away) > 5:
            return f"a return of {returns[which]:g} is {abs(away):.1f} standard deviations from the mean"
    return None


def _stateless(found: Found) -> str | None:
    """Action divergence of at least 0.9 of what it is over all states, of which there are many neighbourhoods."""
    near = found["neighbours"]
    if near is None or near["rows"] < 10 * near["nearest"]:
        return None
    share = near["action_divergence_share"] or 0.0
    if share < 0.9:
        return None
    return f"actions hardly depend on the observation: divergence is {share:.0%} of what it is over all states"


def _saturated(found: Found) -> str | None:
    """Coverage near the number of steps, or of cells."""
    if not found["coverage"]["saturated"]:
        return None
    seen = f"{found['coverage']['unique']:,} cells of {found['steps']:,} steps"
    return f"coverage is saturated ({seen}, over {SATURATED:.0%} of what there can be): it says little"


def _size(found: Found) -> str | None:
    """A reference with another number of steps."""
    reference = found["coverage"].get("reference")
    if reference is None or reference["steps"] == found["steps"]:
        return None
    return (
        f"the reference has {reference['steps']:,} steps and this {found['steps']:,}: SACo compares equal numbers only"
    )


UNUSUAL: tuple[Rule, ...] = (
    _cut, _watched, _mended, _time_limit, _repeated, _constant, _bounds, _unused, _unpaid, _outstanding, _stateless,
    _saturated, _size,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ recommended


def sparse(found: Found) -> bool:
    """Whether nearly all steps are paid the same, and some are not: 0 and 1, or -1 and 0."""
    return found["reward"]["values"] > 1 and found["reward"]["commonest"]["share"] >= SPARSE


def _high(found: Found, *names: str) -> list[str]:
    comparable = not (_saturated(found) or _size(found))
    numbers = {"TQ": found["quality"]["tq"], "SACo": found["coverage"].get("saco") if comparable else None}
    return [f"{name} is {number:.2f}" for name in names if (number := numbers[name] or 0.0) >= HIGH]


def _cloned(found: Found) -> str | None:
    high = _high(found, "TQ")
    return f"{high[0]}: where quality is high, behaviour cloning matches the best offline methods" if high else None


def _constrained(found: Found) -> str | None:
    high = " and ".join(_high(found, "TQ", "SACo"))
    return (
        f"{high}: policy-constrained methods do well where one of them is high, best where both are" if high else None
    )


def _explored(found: Found) -> str | None:
    high = _high(found, "SACo")
    return f"{high[0]}: the DQN family needs high coverage" if high else None


def _minimal(found: Found) -> str | None:
    if sparse(found) or found["reward"]["values"] == 1:
        return None
    return "continuous actions and dense rewards, as in D4RL's Gym tasks, where it is on par with others of its time"


def _paid_rarely(found: Found) -> str:
    most = found["reward"]["commonest"]
    return f"{most['share']:.0%} of the rewards are {most['value']:g}, as in AntMaze"


def _expectile(found: Found) -> str | None:
    if not sparse(found):
        return None
    return f"{_paid_rarely(found)}: the best trade-off there of its time (expectile 0.9)"


def _gumbel(found: Found) -> str | None:
    if not sparse(found):
        return None
    return f"{_paid_rarely(found)}: the best there of its time; depends on the scale of rewards"


def _prior(found: Found) -> str | None:
    if not (sparse(found) and found["env"]):
        return None
    return f"{_paid_rarely(found)}, and {found['env']} can be stepped: it solves all of AntMaze without pre-training"


def _weighted(found: Found) -> str | None:
    variance = found["positive_sided_variance"]
    if (variance["share"] or 0) < MOSTLY_LOW:
        return None
    return (
        f"mostly low returns and a few good ones: {variance['share']:.0%} of their variance lies above the mean "
        f"(PSV {variance['psv']:.3g})"
    )


def _scales(found: Found) -> str | None:
    widths = [one["std"] for one in found["observations"] if one["std"] > 0]
    if len(widths) < 2:
        return None
    return f"td3-bc's paper standardises states; here deviations go from {min(widths):.3g} to {max(widths):.3g}"


def _reward_range(found: Found) -> str | None:
    returns = found["returns"]
    if sparse(found) or returns["max"] == returns["min"]:
        return None
    return f"iql's paper divides dense rewards by the range of returns, here {returns['max'] - returns['min']:.4g}"


def _goal(found: Found) -> str | None:
    if not (sparse(found) and (found["reward"]["min"], found["reward"]["max"]) == (0, 1)):
        return None
    return "iql's paper subtracts 1 where rewards are 0 and 1, as in AntMaze"


def _unlabelled(found: Found) -> str | None:
    if not (watched := found["without_actions"]):
        return None
    return f"{watched:,} of {found['episodes']:,} episodes have no actions: it recovers them from what was seen"


# Slug, the actions that it is for, card, and when and why.
RULES: tuple[tuple[str, str, str, Rule], ...] = (
    ("bc", "any", "dataset-perspective", _cloned),
    ("cql", "continuous", "dataset-perspective", _constrained),
    ("cql-discrete", "discrete", "dataset-perspective", _constrained),
    ("dqn", "discrete", "dataset-perspective", _explored),
    ("qr-dqn", "discrete", "dataset-perspective", _explored),
    ("td3-bc", "continuous", "base-td3-bc", _minimal),
    ("iql", "continuous", "base-iql", _expectile),
    ("iql-discrete", "discrete", "base-iql", _expectile),
    ("xql", "continuous", "base-xql", _gumbel),
    ("rlpd", "continuous", "base-rlpd", _prior),
    ("ss-orl", "continuous", "ss-orl", _unlabelled),
    ("trajectory-weighting", "any", "trajectory-weighting", _weighted),
    ("normalised-obs", "continuous", "base-td3-bc", _scales),
    ("normalised-return", "continuous", "base-iql", _reward_range),
    ("shifted-reward", "any", "base-iql", _goal),
)
