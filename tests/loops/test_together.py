"""How many seeds run: what is asked for, what is measured, and processes of their own."""

from dataclasses import replace

import pytest

from palaestra.algorithms.td3 import td3
from palaestra.envs.make import make_vector
from palaestra.loops.online import Online
from palaestra.together import choose, seconds_a_step, seeds_of, written


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-3", (0, 1, 2, 3)), ("7", (7,)), ("5, 3,8", (5, 3, 8)), ("0-2,9-10", (0, 1, 2, 9, 10))]
)
def test_seeds_are_read(text, seeds):
    assert seeds_of(text) == seeds
    assert seeds_of(written(seeds)) == seeds


def test_seeds_are_written_short():
    assert written((0, 1, 2, 3, 7, 8, 5)) == "0-3,7-8,5"


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-2", "1..3", "0-3,2", "1,,2"])
def test_what_is_no_seed_is_refused(text):
    with pytest.raises(ValueError, match="seed"):
        seeds_of(text)


def small(**settings):
    return td3(hidden=(4,), batch_size=4, start=1_000, **settings)


def copies(algorithm, seeds):
    return Online(algorithm, make_vector("palaestra/Pendulum-v0", len(seeds)), tuple(seeds))


def test_the_faster_way_is_chosen(monkeypatch):
    times = {1: 0.4, 8: 0.1}
    monkeypatch.setattr("palaestra.together.seconds_a_step", lambda algorithm, begin, seeds: times[len(seeds)])
    chosen = choose(small(), copies, range(8), "auto", workers=2)
    assert (chosen.way, chosen.seconds) == ("stacked", {"stacked": 0.1, "processes": 0.2})
    assert "100 ms" in chosen.why
    assert "200 ms" in chosen.why
    times[8] = 0.3
    assert choose(small(), copies, range(8), "auto", workers=2).way == "processes"
    assert choose(small(), copies, range(8), "auto", workers=1).way == "stacked"


def test_what_cannot_be_stacked_runs_in_processes():
    stops = replace(small(), schedule=replace(small().schedule, stop=lambda metrics: False))
    chosen = choose(stops, copies, range(3), "auto", workers=2)
    assert (chosen.way, chosen.workers) == ("processes", 2)
    assert "stops each seed's passes" in chosen.why


def looks(nets, obs, memory, rng):
    """A policy that looks at a number, which cannot be mapped over seeds."""
    action = nets["actor"](obs)
    return (action if action.sum().item() > 0 else -action), {}, memory


def test_a_part_that_cannot_be_mapped_is_found_by_trying():
    chosen = choose(replace(small(), policy=looks), copies, range(3), "auto", workers=2)
    assert chosen.way == "processes"
    assert "cannot be stacked" in chosen.why
    assert "\n" not in chosen.why


def test_a_way_that_is_unknown():
    with pytest.raises(ValueError, match="auto, stacked, processes"):
        choose(small(), copies, range(3), "both", workers=2)


def test_a_trial_learns_from_the_first_step_on(monkeypatch):
    monkeypatch.setattr("palaestra.together.PATIENCE", 0.05)
    updates = []

    class Watched(Online):
        def advance(self):
            super().advance()
            updates.append(self.learner.updates)

    def watched(algorithm, seeds):
        return Watched(algorithm, make_vector("palaestra/Pendulum-v0", len(seeds)), tuple(seeds))

    assert seconds_a_step(small(), watched, (0, 1)) > 0
    assert updates == list(range(1, len(updates) + 1))
