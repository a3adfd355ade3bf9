"""A tiny language model that has learnt nothing, texts for every kind of dataset, and runs on them."""

from __future__ import annotations

from functools import cache

from palaestra.algorithm import Unfit, changed_parts
from palaestra.envs.text.add import add
from palaestra.envs.text.task import rows
from palaestra.expression import ExpressionError, catalogue, parse
from palaestra.factories.language import Tiny, untrained
from palaestra.text_ground import text_ground
from tests.parts.worlds import small

TASK = add()
SHAPE = Tiny("add:add", hidden=16, layers=2, heads=2, context=32)
FEW = {"prompts": 4, "answers": 2, "longest": 5, "batch_size": 4}


@cache
def begin(seed=0):
    """The model; its weights are larger than usual, so that it expects one token more than another."""
    made = untrained(TASK, SHAPE, seed)
    for parameter in made.model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(8)
    return made


def step_scores(row, answer):
    """One step an answer, since none has a line break, and some are better than others."""
    return [len(answer) % 3 / 2]


@cache
def texts(kind, number=12):
    """Rows of a dataset of this kind."""
    found = []
    for i, row in enumerate(rows(TASK, number, 7)):
        wrong = str(int(row["answer"]) + 1)
        found.append(
            {
                "demonstrations": {"prompt": row["prompt"], "completion": row["answer"]},
                "pairs": {
                    "prompt": row["prompt"],
                    "chosen": row["answer"],
                    "rejected": wrong,
                    "chosen_reward": 1.0,
                    "rejected_reward": 0.25,
                },
                "labelled": {
                    "prompt": row["prompt"],
                    "completion": wrong if i % 3 else row["answer"],
                    "label": not i % 3,
                },
            }[kind]
        )
    return found


def textual(base):
    """The expression of a base of language models, small."""
    return small(base, **FEW)


@cache
def fits_texts(expression):
    """Whether an expression is one of language models."""
    try:
        run_of(expression)
    except (ExpressionError, Unfit, KeyError, ValueError):
        return False
    return True


def ground(expression, model=None, **given):
    """What it learns from: sums to answer, or texts of its kind."""
    algorithm = parse(expression) if isinstance(expression, str) else expression
    kinds = [name for name in algorithm.buffers if name != "rollout"]
    what = {"dataset": texts(kinds[0])} if kinds else {}
    return text_ground(algorithm, **{"model": model or begin(), "env": TASK, **what, **given})


def run_of(expression, seed=0, episodes=3, **given):
    """A run in memory, at its beginning."""
    algorithm = parse(expression) if isinstance(expression, str) else expression
    machine = {name: given.pop(name) for name in ("device", "compile", "precision") if name in given}
    return ground(algorithm, **given).begin(algorithm, (seed,), None, episodes, **machine)


def batches(run):
    """Batches as the next update of a run would get them, one a stream."""
    if run.clock == "rounds":
        return next(iter(run._passes(run._collected())))
    return {stream: run._draw(stream, run.algorithm.schedule.batch_size) for stream in run.streams}


# Of methods with arguments that have no default.
STEPS = '(scores="tests.parts.texts:step_scores")'
ARGUMENTS = dict.fromkeys(("prm-clip-delta", "prm-clip", "prm-delta", "prm-sum"), STEPS)
ARGUMENTS |= dict.fromkeys(("rso", "rso-tournament"), "(prompts=4, candidates=4, accepted=2)")
ARGUMENTS |= {"sft-sample-rank": "(prompts=4, answers=2)"}  # by default they are many
NEEDS_MODELS = ("salsa",)  # which its own tests make
BASES = tuple(base for base in catalogue("algorithms") if fits_texts(textual(base)))


@cache
def host(method):
    """The expression of a method on the first base of language models that it fits and changes; None without one."""
    for base in BASES:
        written = f"{textual(base)}+{method}{ARGUMENTS.get(method, '')}"
        if fits_texts(written) and changed_parts(parse(textual(base)), parse(written)):
            return written
    return None
