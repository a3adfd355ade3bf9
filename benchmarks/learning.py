"""Do our bases learn as well as Stable-Baselines3's, at equal settings?

    python benchmarks/learning.py run sac --seed 0 --out docs/benchmarks/learning.jsonl      # one of our runs
    python benchmarks/learning.py compare docs/benchmarks/learning.jsonl docs/benchmarks/peers_learning.jsonl
    python benchmarks/learning.py plot ppo sac-halfcheetah --out docs/images/learning.png

The peers' lines come from `benchmarks/peers_learning.py`, which also says what their settings mean. A score is the
return of one of 20 episodes of the final policy, acting most likely, in separately seeded environments ("final"), or of
the evaluations in the second half of the run ("second half"), since DQN at these settings still collapses and recovers
at the end, in both libraries. `plot` draws the curves: a thin line a seed, and a thick one for their median.

`compare` draws seeds with replacement, then episodes within each seed, 10,000 times, and gives the 2.5 % and 97.5 %
points of the difference of interquartile means (ours less theirs), beside 5 % of the score range: for Pendulum from a
random policy's -1,200 to 0, for CartPole from 0 to 500, for HalfCheetah, which has no ceiling, from 0 to their score.

Lines of `dqn-unclipped` and `dqn-slower` are from before ours clipped gradients to a norm of 10, as Stable-Baselines3's
DQN does; those of `dqn-later` from before its first burst of updates came when theirs does. `dqn-annealed` is `dqn`
with a learning rate that falls to 0 as environment steps are taken; its final scores are those of its last evaluation.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Recipe:
    expression: str
    env: str
    steps: int  # environment steps, in all environments together
    environments: int = 1
    every: int | None = None  # environment steps between evaluations; a tenth of all when None
    episodes: int = 10  # of each evaluation


RECIPES = {
    "sac": Recipe("sac(lr=1e-3, start=1000, capacity=100_000, hidden=(64, 64))", "Pendulum-v1", 10_000),
    "td3": Recipe("td3(lr=1e-3, start=1000, capacity=100_000, hidden=(64, 64))", "Pendulum-v1", 10_000),
    "sac-halfcheetah": Recipe("sac(lr=3e-4, start=10_000)", "HalfCheetah-v5", 30_000, every=2_500, episodes=5),
    "td3-halfcheetah": Recipe("td3(lr=1e-3, start=10_000)", "HalfCheetah-v5", 30_000, every=2_500, episodes=5),
    # A value coefficient of 1: theirs is 0.5, of a squared error that ours halves.
    "ppo": Recipe(
        "ppo(lr=1e-3, gamma=0.98, lam=0.8, collect=32, epochs=20, minibatches=1, value_coefficient=1.0, "
        "anneal_steps=100_000)+annealed-clip(steps=100_000)",
        "CartPole-v1",
        100_000,
        environments=8,
        every=2_500,
        episodes=5,
    ),
    "dqn": Recipe(
        # Their first burst comes after 1,024 steps, as ours does with 768. With 1,000 it would be of 12 updates, and
        # each later copy of the target would fall into the middle of a burst.
        "dqn(lr=2.3e-3, batch_size=64, start=768, collect=256, updates=0.5, target_every=128, exploration=0.04, "
        "exploration_steps=8000, clip_norm=10, hidden=(256, 256))",
        "CartPole-v1",
        50_000,
    ),
    "dqn-following": Recipe(
        "dqn(lr=3e-4, batch_size=128, start=1000, target_every=1, tau=0.005, exploration=0.04, "
        "exploration_steps=8000, clip_norm=10, hidden=(128, 128))",
        "CartPole-v1",
        50_000,
    ),
}
NETS = {
    "dqn-following": [128, 128],
    "dqn-annealed": [256, 256],
    "dqn": [256, 256],
    "dqn-unclipped": [256, 256],
    "dqn-slower": [256, 256],
    "sac-halfcheetah": [256, 256],
    "td3-halfcheetah": [256, 256],
}  # which of a peer's lines to compare
THEIRS = {"dqn-unclipped": "dqn", "dqn-later": "dqn"}  # a peer's lines, where they have another name
RANGE = {"Pendulum-v1": 1_200.0, "CartPole-v1": 500.0}


def run(algorithm: str, seed: int, out: Path, steps: int | None) -> None:
    import torch

    import palaestra as pal

    torch.set_num_threads(1)
    recipe = RECIPES[algorithm]
    steps = steps or recipe.steps
    with tempfile.TemporaryDirectory() as folder:
        trained = pal.train(
            recipe.expression,
            recipe.env,
            steps,
            seed=seed,
            environments=recipe.environments,
            out=Path(folder) / "run",
            evaluate_every=recipe.every or steps // 10,
            episodes=recipe.episodes,
            checkpoint_every=steps,
        )
        rows = trained.metrics()
        evaluations = [row for row in rows if row["kind"] == "evaluation"]
        by_seed = pal.evaluate(trained, episodes=20, seed=1_000_000 + 1_000 * seed)["scores"]
        scores = {name: values[str(seed)] for name, values in by_seed.items()}
    line = {
        "library": "palaestra",
        "algorithm": algorithm,
        "env": recipe.env,
        "env_steps": rows[-1]["env_steps"],
        "seed": seed,
        "settings": recipe.expression,
        "scores": scores,
        "curve": [{"env_steps": row["env_steps"], "scores": row["scores"]["episode_return"]} for row in evaluations],
        "train_seconds": rows[-1]["seconds"],
        "threads": 1,
    }
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{algorithm} seed {seed}: {np.mean(scores['episode_return']):.1f} in {line['train_seconds']} s")


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, as rliable's: without the lowest and highest quarter."""
    cut = values.shape[-1] // 4
    return np.sort(values, -1)[..., cut : values.shape[-1] - cut].mean(-1)


def drawn(scores: np.ndarray, times: int, rng: np.random.Generator) -> np.ndarray:
    """Interquartile means [times] of `scores` [seeds, episodes], seeds and then episodes drawn with replacement."""
    seeds, episodes = scores.shape
    which = rng.integers(seeds, size=(times, seeds, 1))
    return interquartile_mean(scores[which, rng.integers(episodes, size=(times, seeds, episodes))].reshape(times, -1))


def read(path: Path) -> dict[tuple[str, str], list[dict]]:
    """The lines of a file by algorithm and environment; of a peer's, those with the network that ours has."""
    found: dict[tuple[str, str], list[dict]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        net = line["settings"].get("net") if isinstance(line["settings"], dict) else None
        if net is None or net == NETS.get(line["algorithm"], [64, 64]):
            found.setdefault((line["algorithm"], line["env"]), []).append(line)
    return found


def scores(lines: list[dict], which: str) -> np.ndarray:
    """[seeds, episodes]: of the final policies, or of the evaluations in the second half of each run."""
    if which == "final":
        return np.array([line["scores"]["episode_return"] for line in lines])
    late = [[p["scores"] for p in line["curve"] if p["env_steps"] > line["env_steps"] / 2 + 1] for line in lines]
    return np.array(late).reshape(len(lines), -1)


def comparison(ours: Path, theirs: Path) -> list[str]:
    """A table in Markdown: one line for each algorithm that is in both files, and kind of scores."""
    rng = np.random.default_rng(0)
    left, right = read(ours), read(theirs)
    table = ["| base | environment | scores | seeds | ours | theirs | difference | 95 % interval | 5 % of the range |"]
    table += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for algorithm, env in left:
        key = THEIRS.get(algorithm, algorithm), env
        for which in ("final", "second half") if key in right else ():
            own, other = scores(left[algorithm, env], which), scores(right[key], which)
            a, b = (interquartile_mean(s.reshape(-1)) for s in (own, other))
            low, high = np.quantile(drawn(own, 10_000, rng) - drawn(other, 10_000, rng), (0.025, 0.975))
            table.append(
                f"| {algorithm} | {env} | {which} | {len(own)}/{len(other)} | {a:.1f} | {b:.1f} | {a - b:+.1f} "
                f"| {low:+.1f} to {high:+.1f} | {0.05 * RANGE.get(env, abs(b)):.0f} |"
            )
    return table


def plot(algorithms: list[str], ours: Path, theirs: Path, out: Path) -> None:
    """A panel an algorithm: the mean of each evaluation's episodes, a thin line a seed, a thick one for the median."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(algorithms), 3.6), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(algorithms), squeeze=False)[0]
    for axes, algorithm in zip(panels, algorithms, strict=True):
        key = algorithm, RECIPES[algorithm].env
        for name, path, colour in (("Stable-Baselines3", theirs, "#D55E00"), ("Palaestra", ours, "#0072B2")):
            lines = read(path).get(key, [])
            curves = [{p["env_steps"]: statistics.fmean(p["scores"]) for p in line["curve"]} for line in lines]
            for curve in curves:
                axes.plot(list(curve), list(curve.values()), color=colour, alpha=0.3, linewidth=0.8)
            steps = [at for at in (curves[0] if curves else ()) if all(at in curve for curve in curves)]
            middle = [statistics.median(curve[at] for curve in curves) for at in steps]
            axes.plot(steps, middle, color=colour, linewidth=2, label=name)
        axes.set_title(f"{algorithm.partition('-')[0]} on {key[1]}, {len(curves)} seeds", fontsize=11)
        axes.set_xlabel("environment steps")
        axes.set_ylabel("return of an evaluation")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.6g}k" if value else "0")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run")
    one.add_argument("algorithm", choices=RECIPES)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, default=Path("learning.jsonl"))
    one.add_argument("--steps", type=int, help="fewer than the recipe's, to try it")
    both = verbs.add_parser("compare")
    both.add_argument("ours", type=Path)
    both.add_argument("theirs", type=Path)
    curves = verbs.add_parser("plot")
    curves.add_argument("algorithms", nargs="+", choices=RECIPES)
    folder = Path(__file__).parents[1] / "docs" / "benchmarks"
    curves.add_argument("--ours", type=Path, default=folder / "learning.jsonl")
    curves.add_argument("--theirs", type=Path, default=folder / "peers_learning.jsonl")
    curves.add_argument("--out", type=Path, default=Path("learning.png"))
    options = parser.parse_args()
    if options.verb == "run":
        run(options.algorithm, options.seed, options.out, options.steps)
    elif options.verb == "compare":
        print("\n".join(comparison(options.ours, options.theirs)))
    else:
        plot(options.algorithms, options.ours, options.theirs, options.out)


if __name__ == "__main__":
    main()
