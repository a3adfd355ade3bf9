"""Methods for logged data on top of each other: the pairs that somebody with a dataset would try first."""

from __future__ import annotations

import numpy as np
import pytest

from palaestra.algorithm import Conflict
from palaestra.data.dataset import Dataset
from palaestra.expression import parse
from palaestra.factories.datasets import action_free, make_dataset
from palaestra.loops.offline import Offline

BODY = "hidden=(8,), batch_size=16"
MODELS = "members=2, model_hidden=(8,), seeker_hidden=(8,), fit_updates=20"
COCOA = f"cocoa(features=8, embedding=2, embedding_hidden=(8,), {MODELS})"
A2PR, SS_ORL = "a2pr(generator_hidden=(8,))", "ss-orl(hidden=(8,), updates=20)"
PAIRS = [
    f"iql({BODY})+dual-rl+trajectory-weighting",
    f"td3-bc({BODY})+prdc+advantage-weighting",
    f"td3-bc({BODY})+{A2PR}+top-trajectories(share=0.5)",
    f"iql({BODY})+{COCOA}+trajectory-weighting",
    f"cql({BODY}, actions=2)+{COCOA}+trajectory-weighting",
    f"td3-bc({BODY})+{SS_ORL}+prdc",
    f"iql({BODY})+{SS_ORL}+dual-rl",
    f"gaussian-bc({BODY})+trajectory-weighting+v-gps",
    f"iql({BODY})+dual-rl+v-gps",
    f"iql({BODY})+smore+v-gps",
]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return make_dataset("palaestra/PointMazeUMaze-v0", "mixed", 600)


@pytest.fixture(scope="module")
def watched(data: Dataset) -> Dataset:
    """The same with actions in half of the episodes."""
    return action_free(data, range(0, data.episodes, 2))


@pytest.mark.parametrize("expression", PAIRS)
def test_a_pair_learns_and_both_count(expression: str, data: Dataset, watched: Dataset) -> None:
    data = watched if "ss-orl" in expression else data
    algorithm = parse(expression)
    base, first, second = algorithm.calls
    assert first.parts
    assert second.parts
    run, without = Offline(algorithm, data), Offline(parse(f"{base}+{first}"), data)
    for _ in range(3):
        run.advance()
        without.advance()
    run.learner.check_finite()
    if second.slug != "v-gps":  # which leaves the policy as it was learnt
        ours, theirs = (r.learner.nets["actor"].state_dict() for r in (run, without))
        assert any(not np.array_equal(ours[key], theirs[key]) for key in ours if key in theirs)


def test_two_that_want_one_part_are_a_conflict() -> None:
    with pytest.raises(Conflict, match=r"dual-rl-total-variation and dual-rl both set .*value_loss"):
        parse(f"iql({BODY})+dual-rl+dual-rl-total-variation")
