"""How contestants are timed: each in a process of its own, in turn, on the same cores; and what goes into a result.

Absolute times drift from machine to machine and from minute to minute. So every round times all contestants, each round
in another order, and what is read are ratios of medians over rounds. Run it on an idle machine: one busy neighbour
slows a contestant with as many threads as there are cores several times over.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
LIBRARIES = ("torch", "gymnasium", "numpy", "mujoco", "stable-baselines3", "sbx-rl", "jax", "transformers", "trl")


def limit(threads: int, first: int = 0) -> None:
    """Same threads and same cores, from the `first` on, for everybody. Before torch and jax are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):  # JAX has no setting for its threads: it counts the cores that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[first : first + threads])
    import torch

    torch.set_num_threads(threads)


def waited(device: str) -> float:
    """The time, after all that was begun on the device has ended."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def product_rate(size: int, device: str = "cpu", seconds: float = 2.0, dtype: str = "float32") -> float:
    """The best rate of products of square matrices, in single precision as it comes, in GFLOP/s."""
    import torch

    left, right, out = (torch.ones(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(3))
    count = max(1, int((2e8 if device == "cpu" else 2e11) / size**3))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = waited(device)
        for _ in range(count):
            torch.mm(left, right, out=out)
        best = max(best, count * 2 * size**3 / (waited(device) - start))
    return round(best / 1e9, 1)


def child(command: Sequence[str]) -> dict | None:
    """The JSON in the last line of a process's output; None, with the reason on standard error, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        what = " ".join(command[1:]).replace(f"{Path(__file__).parent}/", "")
        print(f"{what}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", file=sys.stderr)
        return None
    line = done.stdout.splitlines()[-1]
    print(line, file=sys.stderr, flush=True)  # as it comes, since a round takes minutes
    return json.loads(line)


def rounds(contestants: Mapping[str, Sequence[str]], repeats: int) -> list[dict[str, dict | None]]:
    """What each contestant's command printed, in each of the rounds."""
    names = list(contestants)
    result = []
    for repeat in range(repeats):
        order = names[repeat % len(names) :] + names[: repeat % len(names)]
        results = {name: child(contestants[name]) for name in order}
        result.append({name: results[name] for name in names})
    return result


def about(*pythons: str) -> dict:
    """The command that is running, without this machine's paths, and what it runs on."""
    words = ["PEERS/bin/python" if word in pythons and word != sys.executable else word for word in sys.argv[1:]]
    code = (
        "import importlib.metadata as m, json\n"
        f"print(json.dumps({{d.name.lower(): d.version for d in m.distributions() if d.name.lower().replace('_', '-') "
        f"in {LIBRARIES}}}))"
    )
    versions: dict[str, str] = {}
    for python in pythons or (sys.executable,):
        versions |= json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True).stdout or "{}")
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "machine": {"cores": os.cpu_count(), "processor": processor(), "system": platform.system()},
        "versions": {"python": platform.python_version()} | dict(sorted(versions.items())),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def save(folder: Path | None, name: str, result: dict) -> None:
    """Write `name`.json into the folder, where one is given, and print its table."""
    import tables

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(tables.TABLES[name](result)))
