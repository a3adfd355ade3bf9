"""Run every term of an algorithm on the meta device, where tensors have shapes and no numbers.

Whatever looks at a number fails there: `.item()`, a Python branch on a tensor, NumPy, boolean indexing. So does a
tensor that is neither a column nor a parameter or buffer of a module: it stays behind on the CPU.
"""

from __future__ import annotations

import torch

from palaestra.batch import each, flatten, number_of_rows
from palaestra.functional.schedules import number
from palaestra.learner import build


def to_meta(columns):
    return each(lambda column: column.to("meta"), columns)


def run(algorithm, spec, batches):
    """The rows of every term, `{"loss/term": meta tensor}`, after checking what the learner relies on."""
    nets = build(algorithm, spec, 0)
    rng = torch.Generator().manual_seed(0)
    batches = {stream: {**batch, **counted(nets)} for stream, batch in batches.items()}
    for transform in algorithm.transforms:  # may look at numbers: they run before, on the CPU
        if transform.moment == "update" and transform.stream in batches:
            batches[transform.stream] = transform.fn(nets, batches[transform.stream], rng)
    own = {}
    for name, loss in algorithm.losses.items():
        own[name] = {stream: {**batches[stream]} for stream in {term.stream for term in loss.terms.values()}}
        for transform in loss.transforms:
            before = dict(own[name][transform.stream])
            after = transform.fn(nets, before, rng)
            own[name][transform.stream] = after
    nets = nets.to("meta")
    earlier = {stream: {} for stream in batches}
    found = {}
    for name, loss in algorithm.losses.items():
        columns = {stream: to_meta(batch) | earlier[stream] for stream, batch in own[name].items()}
        for term in loss.terms.values():
            for column in term.noise:
                columns[term.stream][f"{column}_noise"] = torch.randn_like(columns[term.stream][column])
        complete = {stream: {**batch, **loss.outputs(nets, batch)} for stream, batch in columns.items()}
        for term_name, term in loss.terms.items():
            found[f"{name}/{term_name}"] = rows = check_term(term, nets, columns[term.stream], complete[term.stream])
            if isinstance(rows, tuple):
                found[f"{name}/{term_name}"], given = rows
                earlier[term.stream] |= {key: value.detach() for key, value in given.items()}
    return found


def counted(nets):
    return {"env_steps": nets.clock.env_steps, "updates": nets.clock.updates}


def check_term(term, nets, batch, complete):
    """What a term returns: rows in the shape of its share, and the columns that it says it gives."""
    result = term.value(nets, complete)
    rows, given = result if isinstance(result, tuple) else (result, {})
    assert rows.device.type == "meta", "it left the device"
    share = term.share(batch)
    size = number_of_rows(batch)
    assert rows.dim() in (1, 2), f"its rows have shape {tuple(rows.shape)}: [B] or [B, T] is needed"
    assert rows.shape == share.shape, f"its rows have shape {tuple(rows.shape)}, and its share {tuple(share.shape)}"
    assert len(rows) == size, f"it has {len(rows)} rows, and its batch {size}"
    assert rows.dtype.is_floating_point
    assert set(given) == set(term.gives), f"it gives {sorted(given)}, and says {sorted(term.gives)}"
    assert all(len(column) == size for column in flatten(given).values()), "a column that it gives is not a column"
    coefficient = number(term.coefficient, nets.clock)
    assert isinstance(coefficient, float | int) or coefficient.shape == ()
    return result
