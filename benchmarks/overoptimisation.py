"""Where does learning from a reward model stop to help? What it says, and what it should say, over the divergence.

    python benchmarks/overoptimisation.py run --out docs/benchmarks/overoptimisation.json
    python benchmarks/overoptimisation.py plot --out docs/images/overoptimisation.png

Policies of tiny language models begin as the same fine-tuned model and learn from the same reward model, or from the
pairs with wrong labels that this learnt from (palaestra/claims/salsa.py). Now and then their answers are judged. What
was run goes on where it was stopped.
"""

import argparse
import json
import time
from pathlib import Path

SEEDS, ROUNDS, LOOKS = 5, 80, 10  # DPO makes four updates a round: as many as PPO
KL = 0.02  # the coefficient of PPO; DPO's beta
METHODS = ("ppo-lm", "dpo", "salsa", "pf-ppo")
MEASURES = ("kl", "proxy", "gold")


def expression_of(method: str, models: tuple[str, ...]) -> str:
    """What is trained; `models` are the folders of a soup."""
    from palaestra.claims.salsa import PPO, TASK

    ppo = PPO.format(KL)
    return {
        "ppo-lm": ppo,
        "dpo": f"dpo(beta={KL}, lr=3e-4, batch_size=64, longest={TASK.longest})",
        "salsa": f"{ppo}+salsa(models={models!r})",
        "pf-ppo": f"{ppo.replace('prompts=128', 'prompts=64')}+pf-ppo",  # two answers to a prompt are learnt from
    }[method]


def curve(method: str, seed: int, rounds: int) -> dict:
    """Means over the answers of each look, the first one before anything is learnt."""
    from palaestra.claims.salsa import begun, feedback, judged, trained

    given = feedback(seed, rounds)
    run = begun(expression_of(method, given.models), given, seed)
    length = rounds if run.clock == "rounds" else 4 * rounds
    found: dict = {"count": [], **{name: [] for name in MEASURES}}
    began = time.perf_counter()
    for look in range(LOOKS + 1):
        trained(run, length * look // LOOKS)
        values = judged(run, given, seed)
        found["count"].append(run.count)
        for name in MEASURES:
            found[name].append(round(sum(values[name]) / len(values[name]), 4))
    return {**found, "clock": run.clock, "seconds": round(time.perf_counter() - began, 1)}


def run(methods: list[str], seeds: int, rounds: int, out: Path) -> None:
    """A curve a method and seed; the file is written anew after each."""
    from palaestra.runs.provenance import provenance

    found = json.loads(out.read_text()) if out.exists() else {"settings": {}, "curves": {}}
    settings = {"rounds": rounds, "looks": LOOKS, "kl": KL, "expressions": {}}
    if found["curves"] and found["settings"]["rounds"] != rounds:
        raise SystemExit(f"{out} has curves of {found['settings']['rounds']} rounds: give another file")
    settings["expressions"] = {name: expression_of(name, ("FIRST", "SECOND")) for name in METHODS}
    found |= {"settings": settings, "provenance": provenance()}
    for seed in range(seeds):  # all methods of a seed share what is prepared
        for method in methods:
            curves = found["curves"].setdefault(method, {})
            if str(seed) in curves:
                continue
            curves[str(seed)] = curve(method, seed, rounds)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=1) + "\n")
            print(method, seed, {name: curves[str(seed)][name][-1] for name in MEASURES}, flush=True)


def plot(found: dict, out: Path) -> None:
    """A panel for each of the two rewards: every seed's curve, and the mean of those by look, over the divergence."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 3.6), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = dict(zip(("proxy", "gold"), figure.subplots(1, 2, sharex=True), strict=True))
    colours = dict(zip(METHODS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True))
    for name, axes in panels.items():
        for method, curves in found["curves"].items():
            colour = colours[method]
            for one in curves.values():
                axes.plot(one["kl"], one[name], color=colour, alpha=0.25, linewidth=0.8)
            kl, height = (
                [sum(values) / len(values) for values in zip(*(one[key] for one in curves.values()), strict=True)]
                for key in ("kl", name)
            )
            axes.plot(
                kl, height, "o-", color=colour, linewidth=2, markersize=3, label=f"{method} ({len(curves)} seeds)"
            )
        axes.set_title({"proxy": "what the reward model says", "gold": "what it should say (gold)"}[name], fontsize=11)
        axes.set_xlabel("divergence from the fine-tuned model, nats an answer")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels["gold"].legend(frameon=False, fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    kept = Path(__file__).parents[1] / "docs" / "benchmarks" / "overoptimisation.json"
    one = verbs.add_parser("run")
    one.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    one.add_argument("--seeds", type=int, default=SEEDS)
    one.add_argument("--rounds", type=int, default=ROUNDS)
    one.add_argument("--out", type=Path, default=kept)
    drawn = verbs.add_parser("plot")
    drawn.add_argument("--found", type=Path, default=kept)
    drawn.add_argument("--out", type=Path, default=Path("overoptimisation.png"))
    options = parser.parse_args()
    if options.verb == "run":
        run(options.methods, options.seeds, options.rounds, options.out)
    else:
        plot(json.loads(options.found.read_text()), options.out)


if __name__ == "__main__":
    main()
