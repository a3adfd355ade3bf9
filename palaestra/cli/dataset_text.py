"""A description of a dataset for people to read in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_FEATURES = 8  # that are told one by one
_HEIGHTS = " ▁▂▃▄▅▆▇█"


def text(found: Mapping[str, Any]) -> None:
    """Print what `palaestra.data.statistics.describe` found."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, lines in _rows(found):
        for number, line in enumerate(lines):
            table.add_row(Text("" if number else name, style="bold"), Text(line))
    Console().print(table)


def _rows(found: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    lengths, returns = found["lengths"], found["returns"]
    same = lengths["min"] == lengths["max"]
    long = f"{lengths['min']:,.0f} each" if same else f"{lengths['min']:,.0f} to {lengths['max']:,.0f} each"
    ends = {"terminated": "terminated", "truncated": "truncated", "cut": "cut off"}
    rows = [
        ("dataset", [f"{found['env'] or 'of an unnamed environment'}, hash {found['hash'][:12]}"]),
        ("observations", [_space(found["spaces"]["obs"]), *map(_feature, found["observations"][:_FEATURES])]),
        ("actions", [_space(found["spaces"]["action"]), *_actions(found["actions"])]),
        ("episodes", [f"{found['episodes']:,}: {_listed(found['ends'], ends)}"]),
        ("steps", [f"{found['steps']:,}: {long}, median {lengths['median']:,.0f}"]),
        ("returns", [_spread(returns), _bars(returns["histogram"])]),
        ("rewards", [_spread(found["reward"]), f"{found['reward']['zeros']:.1%} are zero"]),
        ("quality", [_quality(found["quality"]), _variance(found["positive_sided_variance"])]),
        ("coverage", [_coverage(found["coverage"])]),
        ("consistency", _neighbours(found["neighbours"])),
        ("repeated", [f"{found['duplicates']:.1%} of the transitions"]),
        ("unusual", found["unusual"] or ["nothing"]),
        ("recommended", [f"{row['slug']}: {row['reason']} [{row['card']}]" for row in found["recommended"]]),
    ]
    if more := len(found["observations"]) - _FEATURES:
        rows[1][1].extend([f"and {more} more: see --json"] if more > 0 else [])
    return [(name, lines or ["nothing: no rule applies, see quality and coverage"]) for name, lines in rows]


def _listed(numbers: Mapping[str, int], words: Mapping[str, str]) -> str:
    return ", ".join(f"{numbers[name]:,} {word}" for name, word in words.items() if numbers[name])


def _spread(found: Mapping[str, Any]) -> str:
    return f"{found['min']:.4g} to {found['max']:.4g}, mean {found['mean']:.4g}, deviation {found['std']:.4g}"


def _space(said: Mapping[str, Any]) -> str:
    """A space in a few words: a kind and a size."""
    if said["space"] == "Dict":
        return ", ".join(f"{key}: {_space(inner)}" for key, inner in said["spaces"].items())
    return f"{said['space']} {said.get('shape', said.get('nvec', said.get('n')))}"


def _feature(one: Mapping[str, Any]) -> str:
    return f"{one['name']:10} {_spread(one)}"


def _actions(found: Mapping[str, Any]) -> list[str]:
    if found["shares"] is not None:
        return ["chosen: " + ", ".join(f"{number} {share:.1%}" for number, share in enumerate(found["shares"][:16]))]
    at_bounds = [] if found["at_bounds"] is None else [f"at a bound in {found['at_bounds']:.1%} of the steps"]
    return [*map(_feature, found["features"][:_FEATURES]), *at_bounds]


def _bars(found: Mapping[str, Sequence[float]]) -> str:
    """A histogram in one line; a bin with anything in it shows."""
    most = max(found["counts"])
    bars = "".join(_HEIGHTS[-(-8 * int(count) // int(most))] for count in found["counts"])
    return f"{found['edges'][0]:.4g} |{bars}| {found['edges'][-1]:.4g}"


def _quality(found: Mapping[str, Any]) -> str:
    if found["tq"] is None:
        return "TQ unknown: give --random-return and --best-return"
    return f"TQ {found['tq']:.3f} (random {found['random']:.4g}, best {found['best']:.4g})"


def _variance(found: Mapping[str, Any]) -> str:
    if found["share"] is None:
        return "PSV 0: returns do not vary" if found["psv"] == 0 else "PSV unknown: there is no whole episode"
    return f"PSV {found['psv']:.4g}: {found['share']:.0%} of the variance of returns lies above their mean"


def _coverage(found: Mapping[str, Any]) -> str:
    pairs = f"{found['unique']:,} different state-action pairs ({found['how']})"
    if "saco" not in found:
        return f"{pairs}; SACo unknown: give --reference"
    log = "" if found["lsaco"] is None else f", lSACo {found['lsaco']:.3f}"
    return f"{pairs}; SACo {found['saco']:.3f}{log}"


def _neighbours(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["unknown: observations are images, or there is one step"]
    share, diversity = found["action_divergence_share"], found["transition_diversity"]
    of_all = "" if share is None else f", {share:.0%} of what it is over all states"
    return [
        f"action divergence {found['action_divergence']:.3g}{of_all}",
        f"transition diversity {'unknown' if diversity is None else f'{diversity:.3g}'}",
        f"({found['nearest']} nearest of {found['rows']:,} steps, within {found['distance']:.3g} standard deviations)",
    ]
