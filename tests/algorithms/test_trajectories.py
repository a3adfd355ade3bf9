"""Twenty updates of each base on fixed random data, pinned: losses and norms of parameters at updates 1, 5 and 20.

A change that moves them is meant or a mistake; if it is meant, say so in the commit and run

    python tests/algorithms/test_trajectories.py --write
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from palaestra.algorithm import given_by
from palaestra.batch import Space
from palaestra.data.layouts import sequences
from palaestra.expression import catalogue, parse
from palaestra.learner import Learner

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.parts.worlds import batches, fits, small, spec

PINNED = Path(__file__).with_name("trajectories.json")
AT = (1, 5, 20)
MAIN = ("continuous", "discrete")
BASES = [base for base in catalogue("algorithms") if any(fits(small(base), world) for world in MAIN)]


def sampled(space: Space, rows, rng):
    if space.discrete:
        return torch.randint(space.choices[0], (rows,), generator=rng)
    return torch.rand((rows, *space.shape), generator=rng) * 2 - 1


def data(algorithm, spec, update, rows=64):
    """Random rows, with a random number for each column that acting and the advantage give."""
    rng = torch.Generator().manual_seed(update)
    columns = {
        "obs": sampled(spec.obs, rows, rng),
        "action": sampled(spec.action, rows, rng),
        "reward": torch.randn(rows, generator=rng),
        "next_obs": sampled(spec.obs, rows, rng),
        "terminated": torch.rand(rows, generator=rng) < 0.2,
        "truncated": torch.rand(rows, generator=rng) < 0.1,
    }
    more = given_by((algorithm.policy, algorithm.advantage))
    columns |= {name: torch.randn(rows, generator=rng) for name in more if name != "memory"}
    if any(buffer.layout is sequences for buffer in algorithm.buffers.values()):
        columns |= {"first": torch.rand(rows, generator=rng) < 0.2, "valid": torch.rand(rows, generator=rng) < 0.9}
        columns["memory"] = torch.randn(rows, 64, generator=rng)
        columns = {name: column.unflatten(0, (16, 4)) for name, column in columns.items()}
    return columns


def trajectory(base):
    """`{update: {metric or network: number}}`."""
    expression = small(base, hidden=(32, 32), lr=1e-3)
    world = next(world for world in MAIN if fits(expression, world))
    learner = Learner(parse(expression), spec(world))
    found = {}
    for update in range(1, max(AT) + 1):
        metrics, _ = learner.update(
            batches(expression, world)[update % 4]  # columns that are read off a dataset
            if any(t.moment == "dataset" and given_by(t.fn) for t in learner.algorithm.transforms)
            else {stream: data(learner.algorithm, spec(world), update) for stream in learner.algorithm.buffers}
        )
        if update in AT:
            numbers = {name: value.item() for name, value in metrics.items()}
            for name, net in learner.nets.items():
                parameters = list(net.parameters())
                if parameters:
                    numbers[name] = torch.cat([p.detach().flatten() for p in parameters]).norm().item()
            found[str(update)] = {name: float(f"{value:.8g}") for name, value in numbers.items()}
    return found


@pytest.mark.parametrize("base", BASES)
def test_trajectory(base):
    pinned = json.loads(PINNED.read_text())
    assert base in pinned, f"{base} is new: pin it with python tests/algorithms/test_trajectories.py --write"
    found = trajectory(base)
    assert found.keys() == pinned[base].keys()
    for update, numbers in found.items():
        assert numbers == pytest.approx(pinned[base][update], rel=1e-4, abs=1e-6), update


def test_nothing_else_is_pinned():
    assert sorted(json.loads(PINNED.read_text())) == sorted(BASES)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    PINNED.write_text(json.dumps({base: trajectory(base) for base in BASES}, indent=1) + "\n")
