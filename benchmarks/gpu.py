"""Stacked seeds of TD3 on a GPU: how many gradient steps a second, of 1, 2, 4, ... 256 seeds, and the whole loop?

    python benchmarks/gpu.py --out docs/benchmarks          # says so, and does nothing, where there is no GPU
    python benchmarks/gpu.py --device cpu --quick           # tiny sizes, to see that it works

A gradient step of S seeds is one update of all of them, with the drawing of their batches: 256 rows each, 17
observations, 6 actions, two hidden layers of 256 units. The loop is that of `palaestra train`, in our own pendulum.
Steps are counted over all seeds; three ways:

  * eager;
  * compiled: `Learner(compile=True)`, each loss fused by `torch.compile`;
  * graphs: two updates after each other (TD3's actor learns in every second one) are captured with `torch.cuda.graph`
    and replayed. What a graph cannot hold stays outside: drawing rows, which the host does, the environment, and
    whatever reads the clock or counts updates, which a graph would freeze (TD3 has no such part; its learner's watch
    for numbers that are not finite has). So this says what graphs could give, not what `palaestra train` does.

Every figure is the median of blocks, after warm-up, with the device waited for. The share of the peak is the matrix
products of the updates over the best rate of products on this device, in single precision as PyTorch sets it.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import contest
from throughput import ACTIONS, BATCH, OBS, UNITS, filled, flops

WAYS = ("eager", "compiled", "graphs")
DELAY = 2  # TD3's actor learns in every second update


class Captured:
    """`Learner.update` as CUDA graphs of one update each, replayed in turn. Only for updates that repeat every `DELAY`.

    A graph reads and writes the same memory at every replay: batches are copied in, and what comes out is overwritten
    by the next replay. Generators are registered, so that each replay draws new noise.
    """

    def __init__(self, learner, batches) -> None:
        import torch

        self.updates = 0
        self.batches = {stream: _cloned(batch) for stream, batch in batches.items()}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is made at the first updates must not be made within a graph
            for _ in range(3 * DELAY):
                learner.update(self.batches)
        torch.cuda.current_stream().wait_stream(aside)
        self.graphs, self.results, pool = [], [], None
        for _ in range(DELAY):
            graph = torch.cuda.CUDAGraph()
            for rng in _generators(learner):
                graph.register_generator_state(rng)
            with torch.cuda.graph(graph, pool=pool):
                self.results.append(learner.update(self.batches))
            self.graphs.append(graph)
            pool = graph.pool()

    def __call__(self, batches):
        for stream, batch in batches.items():
            _copied(self.batches[stream], batch)
        turn = self.updates % DELAY
        self.updates += 1
        self.graphs[turn].replay()
        return self.results[turn]


def _cloned(batch: dict) -> dict:
    return {key: _cloned(value) if isinstance(value, dict) else value.clone() for key, value in batch.items()}


def _copied(into: dict, batch: dict) -> None:
    for key, value in batch.items():
        _copied(into[key], value) if isinstance(value, dict) else into[key].copy_(value)


def _generators(learner):
    """Those of the noise, which are on the device."""
    return [rng for rngs in learner._noise().values() for rng in rngs]


def timed(step, units_a_step: int, blocks: int, count: int, device: str) -> dict[str, float]:
    """Median of blocks of `count` calls, in units a second, with the lowest and the highest."""
    rates = []
    for _ in range(blocks):
        start = contest.waited(device)
        for _ in range(count):
            step()
        rates.append(count * units_a_step / (contest.waited(device) - start))
    return {
        "rate": round(statistics.median(rates), 1),
        "lowest": round(min(rates), 1),
        "highest": round(max(rates), 1),
    }


def gradient(seeds: int, way: str, device: str, sizes: argparse.Namespace) -> dict[str, float]:
    """Gradient steps a second, of all seeds together."""
    from palaestra.algorithms.td3 import td3
    from palaestra.batch import Space, Spec
    from palaestra.learner import Learner

    value = td3(hidden=(sizes.hidden, sizes.hidden), batch_size=sizes.batch, capacity=2 * sizes.rows)
    spec = Spec(Space((OBS,)), Space((ACTIONS,)))
    learner = Learner(value, spec, range(seeds), device=device, compile=way == "compiled")
    replay = filled(value, 10, sizes.rows, device, seeds)
    drawing = learner.streams("drawing")

    def batches():
        return {"replay": replay.sample(sizes.batch, drawing, learner.clock)}

    update = Captured(learner, batches()) if way == "graphs" else learner.update
    for _ in range(sizes.warm_up):
        update(batches())
    return timed(lambda: update(batches()), seeds, sizes.blocks, sizes.count, device)


def loop(seeds: int, way: str, device: str, sizes: argparse.Namespace) -> dict[str, float]:
    """Environment steps a second of the whole loop, of all seeds together: one gradient step each."""
    from palaestra.algorithms.td3 import td3
    from palaestra.envs.make import make_vector
    from palaestra.loops.online import Online

    value = td3(hidden=(sizes.hidden, sizes.hidden), batch_size=sizes.batch, start=100, capacity=2 * sizes.rows)
    world = make_vector("palaestra/Pendulum-v0", seeds)
    run = Online(value, world, range(seeds), device=device, compile=way == "compiled")
    while run.learner.updates < sizes.warm_up:
        run.advance()
    if way == "graphs":
        run.learner.update = Captured(run.learner, {"replay": run._draw("replay", sizes.batch)})  # type: ignore[method-assign]
    run.advance()
    return timed(run.advance, seeds, sizes.blocks, sizes.count, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2**i for i in range(9)])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--quick", action="store_true", help="1 and 4 seeds, 16 units and a few steps")
    parser.add_argument("--out", type=Path, help="a folder for the raw figures")
    options = parser.parse_args()
    import torch

    cuda = options.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        print(f"no CUDA device is here (PyTorch {torch.__version__}): nothing was measured")
        return
    sizes = argparse.Namespace(hidden=UNITS, batch=BATCH, rows=10_000, warm_up=50, blocks=5, count=100)
    if options.quick:
        options.seeds = [1, 4]
        sizes = argparse.Namespace(hidden=16, batch=32, rows=200, warm_up=4, blocks=3, count=5)
    peak = contest.product_rate(8_192 if cuda else 512, options.device)
    print(f"matrix products reach {peak:,.0f} GFLOP/s on {_name(options.device)}", flush=True)
    measured = []
    for seeds in options.seeds:
        for way in options.ways:
            if way == "graphs" and not cuda:
                continue
            for what, measure in (("gradient", gradient), ("loop", loop)):
                began = time.perf_counter()
                try:
                    row = measure(seeds, way, options.device, sizes)
                except RuntimeError as problem:  # out of memory, or not to be captured: said, and the others go on
                    row = {"problem": str(problem).splitlines()[0]}
                row = {"what": what, "seeds": seeds, "way": way, **row}
                measured.append(row)
                print(json.dumps(row | {"took_s": round(time.perf_counter() - began, 1)}), file=sys.stderr, flush=True)
    result = {"device": _name(options.device), "peak_gflops": peak, "flops": flops("td3"), "measured": measured}
    if options.quick:
        result["flops"] = None  # of another size
    contest.save(options.out, "gpu", contest.about() | result)


def _name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine() + " CPU"


if __name__ == "__main__":
    main()
