"""Write the tables of docs/benchmarks.md from the results beside it, so that no number there is typed by hand.

    python benchmarks/tables.py             # into the page, between <!-- table: NAME --> and <!-- end -->
    python benchmarks/tables.py --check     # exit code 1 where the page is not what the results say

A ratio is one of medians over rounds, above 1 where the row is faster than the peer that the column names.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import language
import learning
import numpy as np
import offline
from throughput import CONTESTANTS, flops

from palaestra.evaluation.aggregates import bootstrap, interquartile_mean

DOCS = Path(__file__).parents[1] / "docs"


def steps(result: dict) -> list[str]:
    """Gradient steps: milliseconds, ratios to the peers, share of the best matrix products."""
    rounds = result["rounds"]
    # A property of the machine: what disturbs a round only lowers it.
    peak = max((r["peak"]["gflops_256"] for r in rounds if r["peak"]), default=float("nan"))
    peers = {"times SB3": "SB3", "times SBX": "SBX", "times SBX, 60 a call": "SBX, 60 a call"}
    lines = [f"Matrix products at 256 x 256 x 256 reach {peak:.0f} GFLOP/s.", ""]
    lines += head("base", "who", "milliseconds", "range", *peers, "of the peak")
    for algorithm in ("sac", "td3"):
        times = {name: values(rounds, f"{algorithm} {name}", "ms_per_update") for name in CONTESTANTS}
        for name, own in times.items():
            if own:
                middle = statistics.median(own)
                ratios = (ratio(times[peer], own) for peer in peers.values())
                share = f"{100 * flops(algorithm) / (middle * 1e6) / peak:.0f} %"
                lines.append(row(algorithm, name, f"{middle:.2f}", spread(own, ".2f"), *ratios, share))
    return lines + made(result)


def loops(result: dict) -> list[str]:
    """Whole loops: environment steps a second, and ratios to the peers."""
    rounds, names = result["rounds"], ("ours", "ours, compiled", "ours, own world", "SB3", "SBX")
    lines = head("base", "environment", "who", "steps a second", "range", "times SB3", "times SBX")
    for algorithm, about in result["settings"].items():
        rates = {name: values(rounds, f"{algorithm} {name}", "steps_per_s") for name in names}
        for name, own in rates.items():
            if own:
                base, env = algorithm.partition("-")[0], about["env"]
                ratios = (ratio(own, rates[peer]) for peer in ("SB3", "SBX"))
                lines.append(row(base, env, name, f"{statistics.median(own):,.0f}", spread(own, ",.0f"), *ratios))
    return lines + made(result)


def seeds(result: dict) -> list[str]:
    """Seconds a seed, for each way of running many."""
    rounds = result["rounds"]
    ways = list(dict.fromkeys(name.split(" ", 2)[2] for name in rounds[0]))
    lines = head("base", "units", "steps a seed", *ways, *(f"{way}: times faster" for way in ways[1:]))
    for algorithm in result["settings"]:
        for units in result["units"]:
            times = [values(rounds, f"{algorithm} {units} {way}", "seconds_a_seed") for way in ways]
            cells = [f"{statistics.median(own):.3f} ({spread(own, '.3f')})" if own else "-" for own in times]
            faster = [ratio(times[0], own) for own in times[1:]]
            lines.append(row(algorithm, str(units), f"{result['steps'][algorithm]:,}", *cells, *faster))
    return lines + made(result)


def gpu(result: dict) -> list[str]:
    """Gradient steps and environment steps a second over all seeds, and how many times those of one seed, eager."""
    found = {(m["what"], m["seeds"], m["way"]): m.get("rate") for m in result["measured"]}
    ways = list(dict.fromkeys(m["way"] for m in result["measured"]))
    one = {what: found.get((what, 1, "eager")) for what in ("gradient", "loop")}
    lines = [f"{result['device']}: matrix products reach {result['peak_gflops']:,.0f} GFLOP/s.", ""]
    lines += head("seeds", *(f"{what}, {way}" for what in ("gradient steps", "loop") for way in ways), "of the peak")
    for count in dict.fromkeys(m["seeds"] for m in result["measured"]):
        cells = []
        for what in ("gradient", "loop"):
            for rate in (found.get((what, count, way)) for way in ways):
                times = f" ({rate / one[what]:.1f} times)" if rate and one[what] else ""
                cells.append(f"{rate:,.0f}{times}" if rate else "-")
        best = max((found.get(("gradient", count, way)) or 0 for way in ways), default=0)
        work = result["flops"]
        cells.append(f"{100 * best * work / 1e9 / result['peak_gflops']:.1f} %" if work else "-")
        lines.append(row(str(count), *cells))
    return lines + made(result)


def agreement(result: dict) -> list[str]:
    """Parameters: how far ours are from Stable-Baselines3's after so many updates."""
    lines = head("base", "updates", "moved", "apart")
    for found in result["rows"]:
        lines.append(row(found["base"], str(found["updates"]), f"{found['moved']:.0e}", f"{found['apart']:.0e}"))
    return lines + made(result)


def agreement_runs(result: dict) -> list[str]:
    """Whole runs with the same luck: how often they did the same, and what they earn in the end."""
    lines = head(
        "seed",
        "steps",
        "updates",
        "same actions",
        "parameters apart",
        "ours",
        "theirs",
        "explored",
        "expected",
        "rows uniform, p",
    )
    for found in result["rows"]:
        returns = (f"{statistics.fmean(values):.1f}" for values in found["returns"])
        counts = (f"{n:,}" for n in (found["env_steps"][0], found["updates"][0], found["same_actions"]))
        luck = f"{found['explored']:,}", f"{found['explored_expected']:,.0f}", f"{found['rows_p']:.2f}"
        lines.append(
            row(str(found["seed"]), *counts, f"{found['apart']:.0e}" if found["apart"] else "0", *returns, *luck)
        )
    return lines + made(result)


def language_numbers(result: dict) -> list[str]:
    """Losses: how far ours is from TRL's, and why, where it is not rounding."""
    lines = head("loss", "TRL", "loss apart", "gradients apart", "")
    for loss in result["losses"]:
        apart = loss["loss_apart"], loss["gradient_apart"]
        verdict = "equal" if max(apart) < language.EQUAL else loss["note"] or "different"
        lines.append(row(loss["name"], f"`{loss['trl']}`", *(f"{x:.0e}" for x in apart), verdict))
    return lines + made(result)


def language_speed(result: dict) -> list[str]:
    """Steps of language models: tokens a second, ratios to TRL, memory; on a GPU the share of the peak."""
    rounds = result["rounds"]
    keys = {"memory, MB": "peak_mb", "more than loaded, MB": "increase_mb", "GPU memory, MB": "gpu_peak_mb"}
    keys = {name: key for name, key in keys.items() if values_of(rounds[0], key)}
    peak = max((r["peak"]["tflops"] for r in rounds if r.get("peak")), default=None)
    share = ("of the peak",) if peak else ()
    lines = [f"Matrix products in bf16 reach {peak:.0f} TFLOP/s.", ""] if peak else []
    lines += head("base", "who", "tokens a second", "range", "milliseconds a step", "times TRL", *keys, *share)
    for algorithm in language.STEPS:
        rates = {who: values(rounds, f"{algorithm} {who}", "tokens_per_s") for who in ("ours", "trl")}
        for who, own in rates.items():
            if own:
                name = f"{algorithm} {who}"
                step = statistics.median(values(rounds, name, "ms_per_step"))
                memory = (f"{statistics.median(values(rounds, name, key)):,.0f}" for key in keys.values())
                used = (f"{100 * statistics.median(values(rounds, name, 'tflops')) / peak:.0f} %",) if peak else ()
                cells = f"{statistics.median(own):,.0f}", spread(own, ",.0f"), f"{step:,.0f}"
                lines.append(row(algorithm, who, *cells, ratio(own, rates["trl"]), *memory, *used))
    return lines + made(result)


def values_of(found: dict, key: str) -> list[float]:
    """Of every contestant of a round that has it."""
    return [one[key] for one in found.values() if one and key in one]


def offline_speed(lines: list[dict]) -> list[str]:
    """Updates from a dataset, ours and d3rlpy's, what our matrix products take alone; then stacked seeds."""
    rounds = [line["round"] for line in lines]
    peak = max(values(rounds, "peak", "gflops_256"), default=float("nan"))
    table = [f"Matrix products at 256 x 256 x 256 reach {peak:.0f} GFLOP/s.", ""]
    table += head(
        *("base", "who", "updates a second", "milliseconds", "range", "drawing alone"),
        *("products alone", "times d3rlpy", "of the peak"),
    )
    for algorithm in offline.TIMED:
        sides = ("ours", "ours, compiled", "d3rlpy")
        times = {who: values(rounds, f"{algorithm} {who}", "ms_per_update") for who in (*sides, "products")}
        work = max(values(rounds, f"{algorithm} products", "mflops"), default=0.0)
        for who in sides:
            if own := times[who]:
                middle, drawing = statistics.median(own), values(rounds, f"{algorithm} {who}", "ms_drawing")
                cells = (
                    f"{1e3 / middle:.0f}",
                    f"{middle:.2f}",
                    spread(own, ".2f"),
                    f"{statistics.median(drawing):.2f}",
                )
                floor = f"{statistics.median(times['products']):.2f}" if who == "ours" and times["products"] else "-"
                share = f"{100 * work / middle / peak:.0f} %" if work else "-"
                table.append(row(algorithm, who, *cells, floor, ratio(times["d3rlpy"], own), share))
    table += ["", *head("base", "one seed", f"{offline.SEEDS} seeds, stacked", "times faster")]
    for algorithm in offline.TIMED:
        one, stacked = (values(rounds, f"{algorithm} {way}", "ms_per_update") for way in ("one", "stacked"))
        if one and stacked:
            cells = (f"{statistics.median(own):.3f} ({spread(own, '.3f')})" for own in (one, stacked))
            table.append(row(algorithm, *cells, ratio(one, stacked)))
    alike = [line["round"] for line in lines if line["command"] == lines[0]["command"]]
    return table + made({**lines[0], "rounds": alike})


def offline_scores(lines: list[dict]) -> list[str]:
    """Interquartile means, over seeds, of a policy's mean return, and their intervals."""
    found: dict[tuple[int, int], dict[str, list[float]]] = {}
    qualities, algorithms = offline.QUALITIES, tuple(offline.LEARNT)
    for line in lines:
        place = qualities.index(line["quality"]), algorithms.index(line["algorithm"])
        mean = statistics.fmean(line["scores"]["episode_return"])
        found.setdefault(place, {}).setdefault(line["library"], []).append(mean)
    table = head("dataset", "base", "seeds", "ours", "d3rlpy", "difference")
    for (quality, algorithm), by_library in sorted(found.items()):
        own, other = (by_library.get(library, []) for library in ("palaestra", "d3rlpy"))
        cells = (interval(interquartile_mean, ".2f", own), interval(interquartile_mean, ".2f", other))
        apart = interval(lambda a, b: interquartile_mean(a) - interquartile_mean(b), "+.2f", own, other)
        seeds = f"{len(own)}/{len(other)}" if other else f"{len(own)}"
        table.append(row(qualities[quality], algorithms[algorithm], seeds, *cells, apart))
    return table


def interval(statistic: Callable[..., Any], form: str, *samples: list[float]) -> str:
    """A statistic of the seeds and its 95 % bootstrap interval, where every sample has seeds."""
    if not all(samples):
        return "-"
    middle, low, high = bootstrap(statistic, *samples, rng=np.random.default_rng(0))
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def values(rounds: list[dict], name: str, key: str) -> list[float]:
    """Of every round in which this was measured."""
    return [r[name][key] for r in rounds if r.get(name)]


def ratio(above: list[float], below: list[float]) -> str:
    return f"{statistics.median(above) / statistics.median(below):.2f}" if above and below else "-"


def spread(numbers: list[float], form: str) -> str:
    return f"{min(numbers):{form}} to {max(numbers):{form}}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*names: str) -> list[str]:
    return [row(*names), row(*["---"] * len(names))]


def made(result: dict) -> list[str]:
    """How a table came about."""
    if "command" not in result:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = f"{result['machine']['cores']} cores ({result['machine']['processor']})"
    threads = f"threads: {result['threads']}, " if "threads" in result else ""
    repeats = f"rounds: {len(result['rounds'])}, " if "rounds" in result else ""
    return ["", f"`{result['command']}`: {repeats}{threads}{machine}; {versions}."]


TABLES = {
    "throughput": steps, "loops": loops, "seeds": seeds, "gpu": gpu, "agreement": agreement,
    "agreement_runs": agreement_runs,
    "language_numbers": language_numbers, "language_speed": language_speed, "language_gpu": language_speed,
}  # fmt: skip
OF_LINES = {"offline_speed": offline_speed, "offline_scores": offline_scores}


def block(name: str, now: str) -> str:
    """What belongs between the markers of a table: what is there, where nothing has been measured yet."""
    results = DOCS / "benchmarks"
    if name == "learning":
        lines = learning.comparison(results / "learning.jsonl", results / "peers_learning.jsonl")
    elif (file := results / f"{name}.json").exists():
        lines = TABLES[name](json.loads(file.read_text()))
    elif (file := results / f"{name}.jsonl").exists():
        lines = OF_LINES[name]([json.loads(line) for line in file.read_text().splitlines()])
    else:
        return now
    return "\n" + "\n".join(lines) + "\n\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    page = DOCS / "benchmarks.md"
    before = page.read_text()
    pattern = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
    after = pattern.sub(lambda m: m[1] + block(m[2], m[3]) + m[4], before)
    if options.check:
        return int(after != before)
    page.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
