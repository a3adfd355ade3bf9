"""What do methods add to each other? Three bases on a mixed dataset: plain, with each of two methods, with both.

    python benchmarks/composition.py run --out docs/benchmarks/composition.json
    python benchmarks/composition.py plot --out docs/images/composition.png

Every arm is compared with its plain base by the sequential test of `palaestra compare`, five seeds a look. What was run
goes on where it was stopped.
"""

import argparse
import json
from pathlib import Path

ENV, STEPS, EXPERT_SHARE = "palaestra/PointMazeUMaze-v0", 20_000, 0.05
UPDATES, GROUP, GROUPS, EPISODES = 3_000, 5, 2, 20
BASES = {
    "td3-bc": "td3-bc(hidden=(64, 64))",
    "iql": "iql(decay_over=None, hidden=(64, 64))",
    "cql": "cql(conservatism=1.0, actions=4, hidden=(64, 64))",
}
WEIGHTING = "trajectory-weighting"
REGULARISER = (
    "cocoa(features=64, embedding=8, embedding_hidden=(64,), members=3, model_hidden=(64, 64), seeker_hidden=(64,), "
    "fit_updates=2000)"
)
KEEP = ("iqm", "interval", "scores", "seeds", "expression")


def file_of(folder: Path) -> Path:
    """The dataset, made where it is not there yet: random episodes, and few of an expert's."""
    from palaestra.data.files import write
    from palaestra.factories.datasets import make_dataset

    path = folder / "mixed.hdf5"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(make_dataset(ENV, "mixed", STEPS, seed=0, expert_share=EXPERT_SHARE), path)
    return path


def run(bases: list[str], folder: Path, threads: int, out: Path) -> None:
    """A comparison a base; the file is written anew after each."""
    import palaestra as pal

    data = file_of(folder)
    found = json.loads(out.read_text()) if out.exists() else {}
    for base in bases:
        plain = BASES[base]
        arms = {
            "plain": plain,
            WEIGHTING: f"{plain}+{WEIGHTING}",
            "cocoa": f"{plain}+{REGULARISER}",
            "both": f"{plain}+{REGULARISER}+{WEIGHTING}",
        }
        told = pal.compare(
            arms, ENV, UPDATES, dataset=str(data), group=GROUP, max_groups=GROUPS, measure="final", against_first=True,
            episodes=EPISODES, evaluate_every=UPDATES, threads=threads, out=folder / base,
        ).summary  # fmt: skip
        found[base] = {
            "arms": {name: {key: arm[key] for key in KEEP if key in arm} for name, arm in told["arms"].items()},
            "decisions": {one["left"]: one["decision"] for one in told["decisions"]},
            "verdict": told["verdict"],
            "seconds": told["seconds"],
            "dataset": pal.read_dataset(data).hash,
            "updates": UPDATES,
        }
        out.write_text(json.dumps(found, indent=1) + "\n")
        print("\n".join(told["verdict"]), flush=True)


def plot(found: dict, out: Path) -> None:
    """A panel a base, a row an arm: every seed's score, the interquartile mean and its interval, the verdict."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(found) + 1, 2.9), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    colours = {"larger": "#009E73", "smaller": "#D55E00", "undecided": "#666666"}
    for axes, (base, result) in zip(panels, found.items(), strict=True):
        for place, (name, arm) in enumerate(result["arms"].items()):
            verdict = result["decisions"].get(name)
            colour = colours[verdict] if verdict else "#0072B2"
            axes.plot(arm["scores"], [place] * len(arm["scores"]), "o", color=colour, alpha=0.35, markersize=4)
            axes.plot(arm["interval"], [place] * 2, color=colour, linewidth=3, solid_capstyle="butt")
            axes.plot(arm["iqm"], place, "|", color=colour, markersize=16, markeredgewidth=3)
            words = f"{verdict} ({len(arm['seeds'])} seeds)" if verdict else f"({len(arm['seeds'])} seeds)"
            axes.text(0.02, place - 0.32, words, color=colour, fontsize=8, transform=axes.get_yaxis_transform())
        axes.set_title(base, fontsize=11)
        axes.set_yticks(range(len(result["arms"])), list(result["arms"]))
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("return of the last policy")
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(len(next(iter(found.values()))["arms"]) - 0.4, -0.6)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    kept = Path(__file__).parents[1] / "docs" / "benchmarks" / "composition.json"
    one = verbs.add_parser("run")
    one.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    one.add_argument("--folder", type=Path, default=Path("composition"), help="of the dataset and the comparisons")
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--out", type=Path, default=kept)
    drawn = verbs.add_parser("plot")
    drawn.add_argument("--found", type=Path, default=kept)
    drawn.add_argument("--out", type=Path, default=Path("composition.png"))
    options = parser.parse_args()
    if options.verb == "run":
        run(options.bases, options.folder, options.threads, options.out)
    else:
        plot(json.loads(options.found.read_text()), options.out)


if __name__ == "__main__":
    main()
