"""Do our bases learn as well as Stable-Baselines3's, at equal settings?

    python benchmarks/learning.py run sac --seed 0 --out docs/benchmarks/learning.jsonl      # one of our runs
    python benchmarks/learning.py compare docs/benchmarks/learning.jsonl docs/benchmarks/peers_learning.jsonl

The peers' lines come from `benchmarks/peers_learning.py`, which also says what their settings mean. A score is the
return of one of 20 episodes of the final policy, acting most likely, in separately seeded environments ("final"), or of
the evaluations in the second half of the run ("second half"), since DQN at these settings still collapses and recovers
at the end, in both libraries.

`compare` draws seeds with replacement, then episodes within each seed, 10,000 times, and gives the 2.5 % and 97.5 %
points of the difference of interquartile means (ours less theirs), beside 5 % of the score range: for Pendulum from a
random policy's -1,200 to 0, for CartPole from 0 to 500.

Lines of `dqn-unclipped` and `dqn-slower` are from before ours clipped gradients to a norm of 10, as Stable-Baselines3's
DQN does.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

# expression, environment, environment steps
RECIPES = {
    "sac": ("sac(lr=1e-3, start=1000, capacity=100_000, hidden=(64, 64))", "Pendulum-v1", 10_000),
    "td3": ("td3(lr=1e-3, start=1000, capacity=100_000, hidden=(64, 64))", "Pendulum-v1", 10_000),
    "dqn": (
        "dqn(lr=2.3e-3, batch_size=64, start=1000, collect=256, updates=0.5, target_every=128, exploration=0.04, "
        "exploration_steps=8000, clip_norm=10, hidden=(256, 256))",
        "CartPole-v1",
        50_000,
    ),
    "dqn-every-step": (
        "dqn(lr=2.5e-4, batch_size=64, start=1000, target_every=250, exploration=0.05, exploration_steps=10_000, "
        "clip_norm=10, hidden=(120, 84))",
        "CartPole-v1",
        50_000,
    ),
}
NETS = {
    "dqn": [256, 256],
    "dqn-unclipped": [256, 256],
    "dqn-slower": [256, 256],
    "dqn-every-step": [120, 84],
}  # which of a peer's lines to compare
RANGE = {"Pendulum-v1": 1_200.0, "CartPole-v1": 500.0}


def run(algorithm: str, seed: int, out: Path) -> None:
    import torch

    import palaestra as pal

    torch.set_num_threads(1)
    expression, env, steps = RECIPES[algorithm]
    with tempfile.TemporaryDirectory() as folder:
        trained = pal.train(
            expression,
            env,
            steps,
            seed=seed,
            out=Path(folder) / "run",
            evaluate_every=steps // 10,
            checkpoint_every=steps,
        )
        rows = trained.metrics()
        scores = pal.evaluate(trained, episodes=20, seed=1_000_000 + 1_000 * seed)["scores"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    line = {
        "library": "palaestra",
        "algorithm": algorithm,
        "env": env,
        "env_steps": rows[-1]["env_steps"],
        "seed": seed,
        "settings": expression,
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


def compare(ours: Path, theirs: Path) -> None:
    def table(path: Path) -> dict[tuple[str, str, str], np.ndarray]:
        found: dict[tuple[str, str, str], list[list[float]]] = {}
        for line in map(json.loads, path.read_text().splitlines()):
            net = line["settings"].get("net") if isinstance(line["settings"], dict) else None
            if net is None or net == NETS.get(line["algorithm"], [64, 64]):
                late = [v for p in line["curve"] if p["env_steps"] > line["env_steps"] / 2 + 1 for v in p["scores"]]
                found.setdefault((line["algorithm"], line["env"], "final"), []).append(line["scores"]["episode_return"])
                found.setdefault((line["algorithm"], line["env"], "second half"), []).append(late)
        return {key: np.array(value) for key, value in found.items()}

    rng = np.random.default_rng(0)
    left, right = table(ours), table(theirs)
    print("| base | environment | scores | seeds | ours | theirs | difference | 95 % interval | 5 % of the range |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (algorithm, env, which), scores in left.items():
        other = right[algorithm.removesuffix("-unclipped"), env, which]
        a, b = (interquartile_mean(s.reshape(-1)) for s in (scores, other))
        low, high = np.quantile(drawn(scores, 10_000, rng) - drawn(other, 10_000, rng), (0.025, 0.975))
        print(
            f"| {algorithm} | {env} | {which} | {len(scores)}/{len(other)} | {a:.1f} | {b:.1f} | {a - b:+.1f} "
            f"| {low:+.1f} to {high:+.1f} | {0.05 * RANGE[env]:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run")
    one.add_argument("algorithm", choices=RECIPES)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, default=Path("learning.jsonl"))
    both = verbs.add_parser("compare")
    both.add_argument("ours", type=Path)
    both.add_argument("theirs", type=Path)
    options = parser.parse_args()
    if options.verb == "run":
        run(options.algorithm, options.seed, options.out)
    else:
        compare(options.ours, options.theirs)


if __name__ == "__main__":
    main()
