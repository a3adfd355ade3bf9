"""Two processes with half of the rows each, and half of every parameter, learn what one learns alone.

FSDP2 divides gradients by the number of processes, so that each multiplies its sum by it; and it gathers parameters
in a module's own `forward` alone. A term that reads them in another way fails here.
"""

import json
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from palaestra.batch import pieces
from palaestra.learner import _sum, _units, generator
from palaestra.networks.language import LanguageModel
from tests.parts.texts import BASES, batches, run_of, textual

WORLD = 2
SHARED, OWN = "shared", "own"  # units of the whole update, and of each half, which is wrong, and has to be seen


def any_reward(rows, answers):
    """Different for most answers, so that no advantage is 0 because a model that has learnt nothing is never right."""
    return [float(len(answer) + sum(map(ord, answer)) % 7) for answer in answers]


def moved(nets):
    """No longer what collected, nor the reference: ratios are not 1, and divergences not 0."""
    rng = generator(0, "moved")
    with torch.no_grad():
        for parameter in nets.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))


def shard(nets):
    """Each layer by itself, then what is left: as for a model that is too large for one device."""
    for net in nets.values():
        layers = (net.model.base_model if isinstance(net, LanguageModel) else net.body).layers
        for module in (*layers, net):
            fully_shard(module)


def gradients(nets, loss):
    """Of all that a loss trains, whole, and forgotten."""
    found = {}
    for name in loss.trains:
        for parameter, value in nets[name].named_parameters(name):
            assert value.grad is not None, f"{parameter} has no gradient"
            found[parameter] = value.grad.full_tensor() if isinstance(value, DTensor) else value.grad
            value.grad = None
    return found


def errors(alone, shared):
    """The largest difference: of the total, where it is above 1 as a share of it (without a divergence, those of
    groups are 0), and of all gradients, as a share of the largest entry."""
    largest = max(value.abs().max() for value in alone[1].values())
    difference = max((shared[1][name] - value).abs().max() for name, value in alone[1].items())
    return [((shared[0] - alone[0]).abs() / alone[0].abs().clamp(min=1)).item(), (difference / largest).item()]


def compared(base, rank):
    """By loss, the `errors` of two processes, with units of the whole update and with units of their own."""
    run = run_of(textual(base), reward={"any": any_reward})
    learner, nets = run.learner, run.learner.nets
    batch = {stream: learner._completed(stream, columns) for stream, columns in batches(run).items()}
    moved(nets)
    alone, ready, units = {}, {}, {}
    for name, loss in learner.algorithm.losses.items():
        ready[name] = dict(batch)
        with torch.no_grad():
            for transform in loss.transforms:
                changed = learner.transformed(transform, ready[name][transform.stream], learner._transforming)
                ready[name][transform.stream] = changed
            units[name] = _units(loss, nets, ready[name])
        total, *_ = _sum(loss, nets, ready[name], None)
        total.backward()
        alone[name] = total.detach(), gradients(nets, loss)
    shard({name: net for name, net in nets.items() if list(net.parameters())})

    def together(name, loss, units):
        mine = {stream: pieces(columns, WORLD)[rank] for stream, columns in ready[name].items()}
        if units is None:
            units = {term: unit / WORLD for term, unit in _units(loss, nets, mine).items()}
        else:
            units = pieces(units, WORLD)[rank]
        total, *_ = _sum(loss, nets, mine, units)
        (WORLD * total).backward()
        total = total.detach()
        dist.all_reduce(total)
        return total, gradients(nets, loss)

    found = {}
    for name, loss in learner.algorithm.losses.items():
        whole, own = together(name, loss, units[name]), together(name, loss, None)
        found[name] = {SHARED: errors(alone[name], whole), OWN: errors(alone[name], own)}
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120)
    )
    found = {base: compared(base, rank) for base in BASES}
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path,), WORLD)
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == set(BASES)
    apart = {
        units: {(base, loss): max(of[units]) for base, losses in found.items() for loss, of in losses.items()}
        for units in (SHARED, OWN)
    }
    assert {name: error for name, error in apart[SHARED].items() if error >= 1e-6} == {}
    # A mean of means: where the answers of one half are longer, its tokens would count less.
    assert max(apart[OWN].values()) > 1e-3
