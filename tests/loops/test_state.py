"""Parts that are objects with state: each run has its own, and a resumed run goes on with it."""

import torch

from palaestra.algorithm import Transform, explore_with, prepend_transform, stateful
from palaestra.algorithms.td3 import td3
from palaestra.envs.make import make_vector
from palaestra.loops.online import Online


class Counting:
    """A transform that counts its batches, and pays that count on top of every reward."""

    def __init__(self):
        self.batches = 0

    def __call__(self, nets, batch, rng):
        self.batches += 1
        return {**batch, "reward": batch["reward"] + self.batches}

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


class Steady:
    """An exploration that repeats its first action for ever."""

    def __init__(self):
        self.action = None

    def __call__(self, policy):
        def act(nets, obs, memory, rng):
            action, columns, memory = policy(nets, obs, memory, rng)
            if self.action is None:
                self.action = action.clone()
            return self.action, columns, memory

        return act

    def state_dict(self):
        return {"action": self.action}

    def load_state_dict(self, state):
        self.action = state["action"]


def run() -> Online:
    plain = td3(start=5, hidden=(8,), batch_size=8)
    algorithm = explore_with(prepend_transform(plain, Transform(Counting())), Steady())
    return Online(algorithm, make_vector("palaestra/Pendulum-v0", 1))


def advanced(live: Online, times: int) -> Online:
    for _ in range(times):
        live.advance()
    return live


def rows(live: Online) -> list:
    return [replay.segment() for replay in live.replays.values()]


def test_state_goes_with_the_checkpoint():
    whole = advanced(run(), 30)
    half = advanced(run(), 15)
    other = run()
    other.load_state_dict(half.state_dict(), {"replay": rows(half)})
    advanced(other, 15)
    left, right = whole.learner.state_dict(), other.learner.state_dict()
    assert [part["batches"] for part in left["parts"] if "batches" in part] == [25]
    assert [part["batches"] for part in right["parts"] if "batches" in part] == [25]
    for name, value in left["nets"].items():
        assert torch.equal(value, right["nets"][name]), name


def test_two_runs_share_no_state():
    counting = Counting()
    algorithm = prepend_transform(td3(start=2, hidden=(8,), batch_size=8), Transform(counting))
    for seed in (0, 1):
        live = advanced(Online(algorithm, make_vector("palaestra/Pendulum-v0", 1), (seed,)), 10)
        assert stateful(live.learner.algorithm.transforms)[0].batches == 8
    assert counting.batches == 0
