"""The nearest of many logged pairs: what does `prdc` pay for it, and would an index that errs now and then be cheaper?

    python benchmarks/neighbours.py --out docs/benchmarks/neighbours.json
    python benchmarks/neighbours.py one 100000 17 6 paths                 # one measurement, one JSON line
    python benchmarks/neighbours.py update 17 6                           # td3-bc's update, which the search adds to

Pairs [2 s, a] of standardised observations and actions in [-1, 1]. "paths": both follow four numbers that change slowly
through episodes of 1,000 steps, as a body's joints do, with a little noise; "independent": all entries are drawn apart,
which is as hard as so many dimensions can be. 256 keys are asked for: the states of drawn pairs, with their own actions
moved by normal noise of 0.3 (a policy "near" the data) or with uniform ones ("anywhere"). `own_row` is how often the
nearest pair is the drawn one: where it always is, `prdc` is td3-bc.

Each measurement has a process of its own. Times are those of the processor, of one thread: on a machine that does
other things too they are steadier than the clock's, and on an idle one the same. Memory is what the process holds more
after the tree is built, beside the pairs in float32. `prdc` asks once in two updates, so that its share of an update is
`q / (2 u + q)`, q being the milliseconds of 256 keys and u those of an update of td3-bc (256 units, batches of 256).
"brute" is all distances by one matrix product for each 10,000 pairs, in float32. "approximate" is the same tree told
that a row is near enough if it is at most 1 + eps times as far as the nearest: `recall` is how often it is the nearest,
`off` how far its action is from the nearest pair's (root of the mean square over keys and entries), and `apart` how far
actions of two pairs drawn apart are, to compare with.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import contest

SIZES, DIMENSIONS, KINDS = (10_000, 100_000, 1_000_000), ((17, 6), (4, 2)), ("paths", "independent")
KEYS, WEIGHT, MOVED, CHUNK = 256, 2.0, 0.3, 10_000
EPISODE, LATENT, STEPS = 1_000, 4, 100_000
SLACK = (0.1, 0.5, 1.0)


def synthetic(number: int, obs: int, actions: int, kind: str) -> tuple[Any, Any]:
    """Observations and actions, float32 [N, ...]."""
    import numpy as np

    rng = np.random.default_rng(0)
    if kind == "independent":
        return rng.standard_normal((number, obs), np.float32), rng.uniform(-1, 1, (number, actions)).astype(np.float32)
    now = rng.standard_normal((number // EPISODE, LATENT))
    latent = np.empty((number // EPISODE, EPISODE, LATENT))
    for t in range(EPISODE):
        latent[:, t] = now
        now = 0.98 * now + 0.2 * rng.standard_normal(now.shape)
    latent = latent.reshape(-1, LATENT)
    seen, done = (np.tanh(latent @ rng.standard_normal((LATENT, n))) for n in (obs, actions))
    seen, done = (x + scale * rng.standard_normal(x.shape) for x, scale in ((seen, 0.05), (done, 0.1)))
    seen = (seen - seen.mean(0)) / seen.std(0)
    return seen.astype(np.float32), done.clip(-1, 1).astype(np.float32)


def milliseconds(what: Callable[[], Any], seconds: float = 1.0) -> float:
    """Of the processor: the median over at least three calls, and over so many seconds."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.process_time()
        what()
        times.append(time.process_time() - start)
    return round(statistics.median(times) * 1e3, 3)


def rounded(number: Any) -> float:
    return round(float(number), 4)


def held() -> float:
    """Megabytes that this process holds."""
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def one(number: int, obs: int, actions: int, kind: str) -> dict[str, Any]:
    import torch

    from palaestra.data.tree import Tree
    from palaestra.methods.offline.prdc import pairs

    seen, done = (torch.from_numpy(x) for x in synthetic(number, obs, actions, kind))
    rows = pairs(seen, done, WEIGHT)
    Tree().plant(rows[:2])  # imports scipy
    tree, before, start = Tree(), held(), time.process_time()
    tree.plant(rows)
    result: dict[str, Any] = {"pairs": number, "obs": obs, "actions": actions, "kind": kind}
    result |= {"build_seconds": round(time.process_time() - start, 3), "megabytes": round(held() - before, 1)}
    rng = torch.Generator().manual_seed(1)
    drawn = torch.randint(number, (KEYS,), generator=rng)
    moved = (done[drawn] + MOVED * torch.randn(KEYS, actions, generator=rng)).clamp(-1, 1)
    lengths = rows.square().sum(1)
    result["apart"] = rounded((done[drawn] - done[drawn.roll(1)]).square().mean().sqrt())
    for where, asked in (("near", moved), ("anywhere", torch.rand(KEYS, actions, generator=rng) * 2 - 1)):
        keys = pairs(seen[drawn], asked, WEIGHT)

        def brute(keys: Any = keys) -> Any:
            parts = zip(lengths.split(CHUNK), rows.split(CHUNK), strict=True)
            best = [torch.addmm(length, keys, part.T, alpha=-2).min(1) for length, part in parts]
            chunk = torch.stack([b.values for b in best]).argmin(0)
            return chunk * CHUNK + torch.stack([b.indices for b in best]).gather(0, chunk[None])[0]

        exact = tree.nearest(keys)
        own = {"query_ms": milliseconds(lambda keys=keys: tree.nearest(keys)), "brute_ms": milliseconds(brute)}
        own["brute_agrees"] = rounded((rows[brute()] == exact).all(1).float().mean())
        own["own_row"] = rounded((rows[drawn] == exact).all(1).float().mean())
        own["approximate"] = []
        for eps in SLACK:

            def rough(keys: Any = keys, eps: float = eps) -> Any:
                return tree.index.query(keys.numpy(), eps=eps, workers=torch.get_num_threads())[1]

            found = torch.from_numpy(tree.index.data[rough()]).float()
            off = rounded((found - exact)[:, -actions:].square().mean().sqrt())
            recall = rounded((found == exact).all(1).float().mean())
            own["approximate"].append({"eps": eps, "ms": milliseconds(rough), "recall": recall, "off": off})
        result[where] = own
    return result


def update(obs: int, actions: int) -> dict[str, Any]:
    """An update of td3-bc on 100,000 steps."""
    import numpy as np
    from gymnasium.spaces import Box

    from palaestra.data.dataset import from_episodes
    from palaestra.expression import parse
    from palaestra.loops.offline import Offline

    seen, done = (x.reshape(-1, EPISODE, x.shape[-1]) for x in synthetic(STEPS, obs, actions, "paths"))
    end = np.arange(EPISODE) == EPISODE - 1
    episodes = [
        {
            "obs": np.concatenate([s, s[-1:]]),
            "action": a,
            "reward": s[:, 0],
            "terminated": end & False,
            "truncated": end,
        }
        for s, a in zip(seen, done, strict=True)
    ]
    data = from_episodes(episodes, Box(-np.inf, np.inf, (obs,), np.float32), Box(-1, 1, (actions,), np.float32))
    run = Offline(parse("td3-bc"), data)

    def two() -> None:
        run.advance()
        run.advance()

    for _ in range(10):
        two()
    return {"obs": obs, "actions": actions, "update_ms": round(milliseconds(two, 3.0) / 2, 3)}


def everything(threads: int, out: Path | None) -> None:
    """One process after the other; a share beside each query."""
    limits = ["--threads", str(threads)]
    found: list[dict[str, Any]] = []
    updates = {}
    for dimensions in DIMENSIONS:
        numbers = list(map(str, dimensions))
        updates[dimensions] = contest.child([sys.executable, __file__, "update", *numbers, *limits])
        for size in SIZES:
            for kind in KINDS:
                line = contest.child([sys.executable, __file__, "one", str(size), *numbers, kind, *limits])
                if line is None or updates[dimensions] is None:
                    continue
                for where in ("near", "anywhere"):
                    asked, took = line[where]["query_ms"], updates[dimensions]["update_ms"]
                    line[where]["share_of_update"] = round(asked / (2 * took + asked), 3)
                found.append(line)
    about = contest.about()
    about["versions"]["scipy"] = version("scipy")
    result = about | {"threads": threads, "updates": list(updates.values()), "measured": found}
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the file of results, written anew")
    commands = parser.add_subparsers(dest="what")
    for name in ("one", "update"):
        command = commands.add_parser(name)
        if name == "one":
            command.add_argument("pairs", type=int)
        command.add_argument("obs", type=int)
        command.add_argument("actions", type=int)
        if name == "one":
            command.add_argument("kind", choices=KINDS)
        command.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.what is None:
        everything(options.threads, options.out)
        return
    contest.limit(options.threads)
    if options.what == "one":
        print(json.dumps(one(options.pairs, options.obs, options.actions, options.kind)))
    else:
        print(json.dumps(update(options.obs, options.actions)))


if __name__ == "__main__":
    main()
