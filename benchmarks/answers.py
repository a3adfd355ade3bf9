"""How many sums are right before and after? A model that is fine-tuned alone, and with each of four algorithms on top.

    python benchmarks/answers.py run --out docs/benchmarks/answers.json
    python benchmarks/answers.py plot --out docs/images/answers.png

The model adds two numbers below 100 with a scratchpad; of the places in its demonstrations one in four was added up to
another number. Each seed's policy draws an answer to 300 sums that nothing was learnt from; every algorithm is compared
with the fine-tuned model by the sequential test of `palaestra compare`. All begin with the same model and sample as
many answers. What was run goes on where it was stopped.
"""

import argparse
import json
from functools import partial
from pathlib import Path

ASKED, SFT = 300, "sft alone"
BODY = "longest=22, warm_up=5, kl_coefficient=0.0"
ARMS = {  # 256 answers a round
    "grpo": f"grpo(lr=1e-4, prompts=32, answers=8, {BODY})",
    "rloo": f"rloo(lr=1e-4, prompts=32, answers=8, {BODY})",
    "ppo-lm": f"ppo-lm(lr=1e-4, critic_lr=1e-3, prompts=256, epochs=1, minibatches=1, {BODY})",
    "oreal": f"rloo(lr=1e-4, prompts=32, answers=8, {BODY})+oreal(token_reward_lr=4e-4)",
}


def arm(seed: int, rounds: int, expression: str | None) -> dict[str, list[float]]:
    """Whether each answer is right, after so many rounds."""
    from palaestra.envs.text.add import add
    from palaestra.expression import parse
    from palaestra.factories.language import Tiny, made
    from palaestra.text_ground import text_ground

    begin = made(Tiny("add:add", {"scratchpad": True, "mistakes": 0.25}, updates=500, layers=2), name="add-scratchpad")
    algorithm = parse(f"{expression or ARMS['grpo']}+drawn-answers")
    ground = text_ground(algorithm, model=begin, env=add(scratchpad=True))
    run = ground.begin(algorithm, (seed,), None, ASKED, asked_seed=seed)
    while expression is not None and run.count < rounds:
        run.advance()
    run.learner.check_finite()
    return {"exact_match": run.evaluate()[seed]["reward"]}


def run(rounds: int, seeds: int, folder: Path, threads: int, out: Path, names: list[str]) -> None:
    """One comparison of all arms with the fine-tuned model."""
    import palaestra as pal

    written = {name: ARMS[name] for name in names}
    arms = {SFT: partial(arm, expression=None), **{n: partial(arm, expression=text) for n, text in written.items()}}
    told = pal.compare(
        arms, f"sums, {rounds} rounds", rounds, group=seeds, max_groups=1, measure="final", score="exact_match",
        against_first=True, threads=threads, out=folder,
    ).summary  # fmt: skip
    kept = ("iqm", "interval", "scores", "seeds")
    found = {
        "rounds": rounds,
        "arms": {name: {key: one[key] for key in kept} for name, one in told["arms"].items()},
        "expressions": written,
        "decisions": {one["left"]: one["decision"] for one in told["decisions"]},
        "verdict": told["verdict"],
        "seconds": told["seconds"],
    }
    out.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(told["verdict"]))


def plot(found: dict, out: Path) -> None:
    """A row an arm: every seed's share of right answers, the interquartile mean and its interval, the verdict."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.0), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = {"larger": "#009E73", "smaller": "#D55E00", "undecided": "#666666"}
    for place, (name, one) in enumerate(found["arms"].items()):
        verdict = found["decisions"].get(name)
        colour = colours[verdict] if verdict else "#0072B2"
        axes.plot(one["scores"], [place] * len(one["scores"]), "o", color=colour, alpha=0.35, markersize=4)
        axes.plot(one["interval"], [place] * 2, color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(one["iqm"], place, "|", color=colour, markersize=16, markeredgewidth=3)
        words = f"{verdict} ({len(one['seeds'])} seeds)" if verdict else f"({len(one['seeds'])} seeds)"
        axes.text(0.01, place - 0.3, words, color=colour, fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(found["arms"])), list(found["arms"]))
    axes.set_ylim(len(found["arms"]) - 0.4, -0.6)
    axes.set_xlabel(f"right answers to {ASKED} sums, after {found['rounds']} rounds of 256 answers")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    kept = Path(__file__).parents[1] / "docs" / "benchmarks" / "answers.json"
    one = verbs.add_parser("run")
    one.add_argument("--rounds", type=int, default=40)
    one.add_argument("--seeds", type=int, default=5)
    one.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    one.add_argument("--folder", type=Path, default=Path("answers"), help="of the comparison")
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--out", type=Path, default=kept)
    drawn = verbs.add_parser("plot")
    drawn.add_argument("--found", type=Path, default=kept)
    drawn.add_argument("--out", type=Path, default=Path("answers.png"))
    options = parser.parse_args()
    if options.verb == "run":
        run(options.rounds, options.seeds, options.folder, options.threads, options.out, options.arms)
    else:
        plot(json.loads(options.found.read_text()), options.out)


if __name__ == "__main__":
    main()
