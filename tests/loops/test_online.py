"""The online loop: rollouts and replays, memory, streams, evaluation, and how many updates steps are worth."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Generator, Tensor, nn

import palaestra as pal
from palaestra.algorithm import (
    Algorithm,
    Buffer,
    Loss,
    Nets,
    Schedule,
    Term,
    Transform,
    add_buffer,
    add_loss,
    add_term,
    append_transform,
    explore_with,
    gives,
    mix,
    replace_policy,
    reprioritise,
    reschedule,
)
from palaestra.algorithms.dqn import dqn, greedy
from palaestra.algorithms.sac import categorical
from palaestra.batch import Columns, Obs, Spec, flatten
from palaestra.data.layouts import once, transition
from palaestra.data.priorities import Proportional
from palaestra.data.replay import STEP
from palaestra.envs.make import make_vector
from palaestra.envs.native import generator_from
from palaestra.evaluation.returns import episode_return
from palaestra.functional.returns import generalised_advantage
from palaestra.functional.schedules import linear
from palaestra.learner import generator
from palaestra.loops.online import Online, online
from palaestra.networks.actors import Body, categorical_actor
from palaestra.rollout.collect import step
from palaestra.rollout.exploration import mostly
from palaestra.runs import Run
from palaestra.runs.states import load_state, save_state
from tests.runs.resuming import differences

CONTEXTS = 3


class Matching(gym.Env[np.ndarray, np.int64]):
    """One step: the reward is 1 for the action that the observation names, else 0. At best 1, by chance 1/3."""

    observation_space = gym.spaces.Box(0.0, 1.0, (CONTEXTS,), np.float32)
    action_space = gym.spaces.Discrete(CONTEXTS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.context = int(self.np_random.integers(CONTEXTS))
        return np.eye(CONTEXTS, dtype=np.float32)[self.context], {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(CONTEXTS, np.float32), float(action == self.context), True, False, {}


class Counting(gym.Env[np.ndarray, np.int64]):
    """Episodes of 1 to 6 steps; the observation is the number of steps since the episode began. It gives its state."""

    observation_space = gym.spaces.Box(0.0, 10.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.end = 0, int(self.np_random.integers(1, 7))
        return np.array([0.0], np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        reward = float(self.time % 2)
        return np.array([self.time], np.float32), reward, self.time >= self.end, False, {}

    def get_state(self) -> dict[str, Any]:
        return {"time": self.time, "end": self.end, "rng": self.np_random.bit_generator.state}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.time, self.end = state["time"], state["end"]
        self.np_random = generator_from(state["rng"])


def small(**changes: Any) -> Algorithm:
    """A replay algorithm that any of these worlds can be played with."""
    return dqn(**{"hidden": (8,), "batch_size": 8, "start": 20, "capacity": 300, "target_every": 5, **changes})


def contents(state: Any) -> dict[str, Any]:
    """Every tensor and array of a state, as bytes by path."""
    if isinstance(state, Mapping):
        return {f"{k}/{p}": v for k, entry in state.items() for p, v in contents(entry).items()}
    if isinstance(state, list | tuple):
        return contents(dict(enumerate(state)))
    array = state.numpy() if isinstance(state, Tensor) else state
    return {"": array.tobytes() if isinstance(array, np.ndarray) else repr(array)}


def again(run: Online, env: gym.vector.VectorEnv, folder: Path) -> Online:
    """A run that goes on from a state that was on disk."""
    save_state(folder, run.state_dict())
    rows = {name: [replay.segment()] for name, replay in run.replays.items()}
    other = Online(run.algorithm, env, run.seeds)
    other.load_state_dict(load_state(folder), rows)
    return other


# ------------------------------------------------------------------------------------------------ rollout algorithms


def _value(spec: Spec, nets: Nets) -> nn.Module:
    return Body(spec, 1, (16,), "tanh", None)


@gives("advantage", "return")
def estimated(nets: Nets, rollout: Columns, gamma: float = 0.99, lam: float = 0.95) -> Columns:
    with torch.no_grad():
        value, following = (
            nets["value"](rollout[key].flatten(0, 1)).view(rollout["reward"].shape) for key in ("obs", "next_obs")
        )
    flags = (rollout["terminated"], rollout["truncated"])
    advantage = generalised_advantage(rollout["reward"], value, following, *flags, gamma, lam)
    return {"advantage": advantage, "return": advantage + value}


def policy_gradient(nets: Nets, b: Columns, entropy: float = 0.01) -> Tensor:
    log_probs = nets["actor"](b["obs"])
    chosen = log_probs.gather(-1, b["action"].unsqueeze(-1)).squeeze(-1)
    return -chosen * b["advantage"] + entropy * (log_probs.exp() * log_probs).sum(-1)


def value_error(nets: Nets, b: Columns) -> Tensor:
    return (nets["value"](b["obs"]).squeeze(-1) - b["return"]).square()


def actor_critic(**schedule: Any) -> Algorithm:
    """Advantage actor-critic (Mnih et al. 2016), as a user would write it: nothing of it is in the library."""
    gradient = Term(policy_gradient, stream="rollout", needs=("advantage",))
    error = Term(value_error, stream="rollout", needs=("return",))
    return Algorithm(
        networks={"actor": categorical_actor((16,), "tanh"), "value": _value},
        policy=categorical,
        collect=step,
        advantage=estimated,
        buffers={"rollout": Buffer(once)},
        losses={
            "actor": Loss({"gradient": gradient}, ("actor",), lr=1e-2),
            "value": Loss({"error": error}, ("value",), lr=1e-2),
        },
        schedule=Schedule(**{"collect": 16, "epochs": 2, "minibatches": 4, **schedule}),
        evaluation=(episode_return,),
    )  # fmt: skip


def test_a_rollout_algorithm_learns() -> None:
    run = Online(actor_critic(), make_vector(Matching, 4), seeds=(1,))
    scores: dict[int, list[float]] = {}

    def record(row: dict[str, Any]) -> None:
        if row["kind"] == "evaluation":
            scores[row["env_steps"]] = row["scores"]["episode_return"]

    before = run.evaluate(make_vector(Matching, 60), 0)[1]["episode_return"]
    online(run, 3_200, make_vector(Matching, 60), evaluate_every=1_600, log_every=800, record=record)
    assert sum(before) / 60 < 0.8
    assert list(scores) == [1_600, 3_200]
    assert scores[3_200] == [1.0] * 60
    assert run.learner.updates == 3_200 // (16 * 4) * 2 * 4


def test_each_row_of_a_rollout_is_seen_once_an_epoch_and_then_never_again() -> None:
    def tell(nets: Nets, b: Columns) -> tuple[Tensor, Columns]:
        seen.append(b["number"].tolist())
        return nets["value"](b["obs"]).squeeze(-1) * 0.0, {}

    class Numbered:
        """A collect transform with a state: it numbers the steps."""

        def __init__(self) -> None:
            self.count = 0

        def __call__(self, nets: Nets, steps: Columns, rng: Generator) -> Columns:
            shape = steps["reward"].shape
            first, self.count = self.count, self.count + shape.numel()
            return {**steps, "number": torch.arange(first, self.count).view(shape)}

    seen: list[list[int]] = []
    algorithm = append_transform(actor_critic(), Transform(Numbered(), "collect", "rollout", gives=("number",)))
    algorithm = add_loss(algorithm, "told", Loss({"told": Term(tell, stream="rollout")}, ("value",), lr=0.0))
    run = Online(algorithm, make_vector(Matching, 3), seeds=(0,))
    for collection in range(2):
        seen.clear()
        run.advance()
        assert [len(piece) for piece in seen] == [12] * 8
        expected = list(range(48 * collection, 48 * (collection + 1)))
        for epoch in (seen[:4], seen[4:]):
            assert sorted(number for piece in epoch for number in piece) == expected
        assert seen[:4] != seen[4:], "epochs shuffle anew"


def test_stop_ends_the_passes() -> None:
    def enough(metrics: Mapping[str, Tensor]) -> bool:
        return "loss/actor" in metrics

    run = Online(actor_critic(stop=enough), make_vector(Matching, 2), seeds=(0,))
    for _ in range(3):
        run.advance()
    assert run.learner.updates == 3


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_only_steps_that_were_taken_are_in_a_rollout(mode: AutoresetMode) -> None:
    """NEXT_STEP spends a step on each reset: it is none of the environment's, and no row."""
    env = SyncVectorEnv([Counting] * 3, autoreset_mode=mode)
    run = Online(actor_critic(), env, seeds=(0,))
    run.advance()
    (rollout,) = run.rollouts.values()
    assert len(rollout.columns["reward"]) == run.env_steps
    assert (run.env_steps == 48) is (mode is not AutoresetMode.NEXT_STEP)
    assert (rollout.columns["reward"] == (rollout.columns["obs"].squeeze(-1) + 1) % 2).all()
    assert (rollout.columns["next_obs"] == rollout.columns["obs"] + 1).all(), (
        "the final observation, not the next first"
    )


# ------------------------------------------------------------------------------------------------ policies with memory


@gives("count")
def counting(nets: Nets, obs: Obs, memory: Any, rng: Generator | None) -> tuple[Tensor, Columns, Any]:
    """Greedy, and gives how often it has acted in this episode."""
    action, columns, _ = greedy(nets, obs, None, rng)
    count = torch.zeros(len(action)) if memory is None else memory["inner"]["count"]
    return action, {**columns, "count": count}, {"inner": {"count": count + 1}}


def kept(run: Online, name: str) -> tuple[Tensor, Tensor]:
    """A column of all whole steps in the replay, and the observation beside it."""
    replay = run.replays["replay"]
    steps = replay.kind == STEP
    return replay.columns[name][steps], replay.columns["obs"][steps]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_memory_begins_anew_with_each_episode(mode: AutoresetMode) -> None:
    env = SyncVectorEnv([Counting] * 3, autoreset_mode=mode)
    run = Online(replace_policy(small(), counting), env, seeds=(0,))
    for _ in range(40):
        run.advance()
    count, obs = kept(run, "count")
    assert count.max() >= 3
    assert (count == obs.squeeze(-1)).all()


def test_memory_survives_a_resume(tmp_path: Path) -> None:
    run = Online(replace_policy(small(), counting), make_vector(Counting, 3), seeds=(0,))
    while run.env_steps < 60 or not run.source.memory["inner"]["count"].all():
        run.advance()  # until all are in the middle of an episode
    other = again(run, make_vector(Counting, 3), tmp_path)
    for _ in range(20):
        run.advance()
        other.advance()
    assert contents(other.state_dict()) == contents(run.state_dict())
    count, obs = kept(other, "count")
    assert (count == obs.squeeze(-1)).all()


def test_memory_survives_a_resume_of_a_run(tmp_path: Path) -> None:
    """The same through a run's folder, with an algorithm that is no expression."""

    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["kind"] == "tick" and row["env_steps"] >= 90:
            raise Stop

    algorithm = replace_policy(small(), counting)
    options: dict[str, Any] = {
        "environments": 3,
        "episodes": 2,
        "checkpoint_every": 35,
        "log_every": 20,
        "evaluate_every": 50,
    }
    whole = pal.train(algorithm, Counting, 150, out=tmp_path / "whole", **options)
    with pytest.raises(Stop):
        pal.train(algorithm, Counting, 150, out=tmp_path / "run", listen=stop, **options)
    assert not whole.about["rebuilds"]
    with pytest.raises(pal.runs.RunError, match="made by hand"):
        pal.resume(tmp_path / "run", env=Counting)
    pal.resume(tmp_path / "run", env=Counting, algorithm=algorithm)
    assert Run.open(tmp_path / "run").about["status"] == "finished"
    assert differences(whole.folder, tmp_path / "run") == []


# ---------------------------------------------------------------------------------------------------------- transforms


class Tenfold:
    """A collect transform with a state: it multiplies the reward and adds how many collections it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, nets: Nets, steps: Columns, rng: Generator) -> Columns:
        self.seen += 1
        noise = torch.rand(steps["reward"].shape, generator=rng)
        reward = 10.0 * steps["reward"]
        return {**steps, "reward": reward, "seen": torch.full_like(reward, self.seen), "noise": noise}

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.seen = state["seen"]


def test_a_collect_transform_changes_what_is_kept(tmp_path: Path) -> None:
    given = Tenfold()
    algorithm = append_transform(small(collect=2), Transform(given, "collect", gives=("seen", "noise")))
    run = Online(algorithm, make_vector(Counting, 2), seeds=(0,))
    for _ in range(12):
        run.advance()
    reward, obs = kept(run, "reward")
    assert (reward == 10.0 * ((obs.squeeze(-1) + 1) % 2)).all()
    assert sorted(kept(run, "seen")[0].tolist()) == [n for n in range(1, 13) for _ in range(4)]
    assert given.seen == 0, "a run has its own copy"

    other = again(run, make_vector(Counting, 2), tmp_path)
    run.advance()
    other.advance()
    assert kept(other, "seen")[0].max() == 13
    assert torch.equal(kept(other, "noise")[0], kept(run, "noise")[0]), "and its own stream of random numbers"


def test_a_collect_transform_comes_before_the_advantage() -> None:
    transform = Transform(Tenfold(), "collect", "rollout", gives=("seen", "noise"))
    run = Online(append_transform(actor_critic(), transform), make_vector(Matching, 3), seeds=(0,))
    nets = run.learner.nets
    (rollout,) = run.rollouts.values()
    with torch.no_grad():
        nets["value"].mlp.layers[-1].weight.zero_()
        nets["value"].mlp.layers[-1].bias.zero_()
    run.advance()
    assert (rollout.columns["return"] == rollout.columns["reward"]).all()
    assert set(rollout.columns["reward"].tolist()) == {0.0, 10.0}


# -------------------------------------------------------------------------------------------------- several streams


def rewarded(steps: Columns) -> Tensor:
    return steps["reward"] > 0


def told(nets: Nets, b: Columns) -> tuple[Tensor, Columns]:
    """A term of no weight that gives what its batch holds; the error is a function of the row, so that it is known."""
    zero = nets["critic"](b["obs"]).sum(-1) * 0.0
    return zero, {"paid": b["reward"], "at": b["index"], "error": 1.0 + b["obs"].squeeze(-1)}


def two_streams() -> Algorithm:
    algorithm = add_buffer(small(), "good", Buffer(transition, keep=rewarded, capacity=60))
    term = Term(told, stream="good", gives=("paid", "at", "error"))
    return add_term(algorithm, "critic", "good", term)


def test_two_streams_in_one_update() -> None:
    run = Online(two_streams(), make_vector(Counting, 3), seeds=(0,))
    while run.env_steps < 60:
        run.advance()
    assert run.replays["replay"].rows == 60
    assert 0 < run.replays["good"].rows < 60
    assert len(run.metrics["replay/q"]) == len(run.metrics["good/paid"]) == 8
    assert (run.metrics["good/paid"] == 1.0).all()
    assert {"loss/critic/td", "loss/critic/good"} <= run.metrics.keys()


def test_shares_of_one_stream_come_from_another_buffer() -> None:
    algorithm = add_buffer(small(), "good", Buffer(transition, keep=rewarded, capacity=60))
    algorithm = add_loss(
        mix(algorithm, "replay", good=0.25),
        "told",
        Loss({"told": Term(told, gives=("paid", "at", "error"))}, ("critic",), lr=0.0),
    )
    for name in ("replay", "good"):
        algorithm = reprioritise(algorithm, name, Proportional(0.5, 0.4, 0.0))
    run = Online(algorithm, make_vector(Counting, 3), seeds=(0,))
    drawn = []
    while run.env_steps < 90:
        run.advance()
        if run.learner.updates:
            paid, at, error = (run.metrics[f"replay/{key}"] for key in ("paid", "at", "error"))
            drawn.append(paid)
            for name, part in {"replay": slice(0, 6), "good": slice(6, 8)}.items():
                found = run.replays[name].prioritised.trees[0].get(at[part])
                assert torch.allclose(found.float(), error[part] ** 0.5), f"{name} did not get its errors back"
    drawn_rows = torch.stack(drawn)
    assert (drawn_rows[:, 6:] == 1.0).all(), "the last two of eight are drawn among those that paid"
    assert (drawn_rows[:, :6] == 0.0).any()


def test_a_rollout_and_a_replay_in_one_update() -> None:
    """An on-policy algorithm with an auxiliary loss on all it has ever seen."""
    algorithm = add_buffer(actor_critic(), "replay", Buffer(transition, capacity=600))
    seen = []

    def auxiliary(nets: Nets, b: Columns) -> Tensor:
        seen.append(len(b["reward"]))
        return (nets["value"](b["obs"]).squeeze(-1) - b["reward"]).square()

    algorithm = add_loss(algorithm, "auxiliary", Loss({"reward": Term(auxiliary)}, ("value",)))
    run = Online(algorithm, make_vector(Matching, 3), seeds=(0,))
    run.advance()
    run.advance()
    assert seen == [12] * 16, "as many rows as the minibatch has"
    assert run.replays["replay"].rows == 96


# ---------------------------------------------------------------------------------------------------- how much of what


@pytest.mark.parametrize("make", [small, actor_critic])
def test_evaluating_does_not_disturb_training(make: Any) -> None:
    def end(evaluation: gym.vector.VectorEnv | None, every: int) -> dict[str, Any]:
        run = Online(make(), make_vector(Counting, 3), seeds=(0,))
        online(run, 150, evaluation, evaluate_every=every, log_every=40)
        return contents(run.state_dict())

    alone = end(None, 1)
    assert alone == end(make_vector(Counting, 7), 1)
    assert alone == end(make_vector(Counting, 2), 50)


@pytest.mark.parametrize("collect", [1, 4])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 1.0, 2.0, 2.5])
def test_updates_are_as_many_as_steps_are_worth(ratio: float, collect: int) -> None:
    run = Online(small(updates=ratio, collect=collect), make_vector(Counting, 3), seeds=(0,))
    while run.env_steps < 120:
        run.advance()
        expected = int(round(10 * ratio) * max(0, run.env_steps - 20) // 10)
        assert run.learner.updates == expected, run.env_steps
    assert int(run.learner.nets.clock.updates) == run.learner.updates
    assert int(run.learner.nets.clock.env_steps) == run.env_steps == 120


def test_updates_are_as_many_after_a_resume(tmp_path: Path) -> None:
    run = Online(small(updates=0.3), make_vector(Counting, 3), seeds=(0,))
    while run.env_steps < 63:
        run.advance()
    run = again(run, make_vector(Counting, 3), tmp_path)
    while run.env_steps < 120:
        run.advance()
    assert run.learner.updates == 30


def test_resets_are_not_steps_and_are_worth_no_update() -> None:
    env = SyncVectorEnv([Counting] * 3, autoreset_mode=AutoresetMode.NEXT_STEP)
    run = Online(small(updates=2.0), env, seeds=(0,))
    for _ in range(60):
        run.advance()
        assert run.learner.updates == 2 * max(0, run.env_steps - 20)
    assert run.replays["replay"].rows == run.env_steps < 180


def test_rows_are_logged_and_saved_when_their_periods_pass() -> None:
    run = Online(small(), make_vector(Counting, 3), seeds=(0,))
    rows: list[dict[str, Any]] = []
    saved: list[int] = []
    env = make_vector(Counting, 2)
    online(run, 100, env, evaluate_every=30, log_every=25, checkpoint_every=40, record=rows.append,
           save=lambda run: saved.append(run.env_steps))  # fmt: skip
    assert [r["env_steps"] for r in rows if r["kind"] == "train"] == [27, 51, 75, 102]
    assert [r["env_steps"] for r in rows if r["kind"] == "evaluation"] == [30, 60, 90, 102]
    assert saved == [42, 81, 102]
    lengths = [n for row in rows if row["kind"] == "train" for n in row["episode_length"]]
    assert lengths
    assert sum(lengths) <= 102
    assert all(row["loss/critic"] >= 0.0 for row in rows[1:] if row["kind"] == "train")


# ------------------------------------------------------------------------------------------------------- exploration


def test_the_share_of_random_actions_reads_the_clock(tmp_path: Path) -> None:
    times: list[int] = []

    def share(clock: Any) -> Tensor:
        times.append(int(clock.env_steps))
        return linear(1.0, 0.0, 90)(clock)

    def last(nets: Nets, obs: Obs, memory: Any, rng: Generator | None) -> tuple[Tensor, Columns, Any]:
        return torch.full((len(obs),), 3), {}, memory

    algorithm = replace(reschedule(small(), start=1_000), exploration=lambda policy: policy)
    algorithm = explore_with(replace_policy(algorithm, last), partial(mostly, random=share))
    run = Online(algorithm, make_vector(Counting, 3), seeds=(0,))
    for _ in range(15):
        run.advance()
    run = again(run, make_vector(Counting, 3), tmp_path)
    for _ in range(35):
        run.advance()
    assert times == list(range(0, 150, 3)), "the clock goes on after a resume"
    actions = torch.stack([run.replays["replay"].columns["action"][slot] for slot in range(300)])
    steps = run.replays["replay"].kind == STEP
    rings = [actions[n * 100 : (n + 1) * 100][steps[n * 100 : (n + 1) * 100]] for n in range(3)]
    early, late = (torch.cat([ring[part] for ring in rings]) for part in (slice(0, 10), slice(30, 50)))
    assert (early != 3).float().mean() > 0.4, "at first four of five are random, and a quarter of those the same"
    assert (late == 3).all(), "after 90 steps none is"


def test_nothing_explores_when_nobody_learns() -> None:
    run = Online(small(exploration=1.0), make_vector(Matching, 4), seeds=(0,))
    scores = [run.evaluate(make_vector(Matching, 20), 5) for _ in range(2)]
    assert scores[0] == scores[1]


def test_two_runs_of_one_seed_are_the_same_and_of_another_are_not() -> None:
    def end(seed: int) -> dict[str, Any]:
        run = Online(small(), make_vector(Counting, 3), seeds=(seed,))
        online(run, 90)
        return contents(run.state_dict())

    before = torch.random.get_rng_state()
    assert end(0) == end(0) != end(1)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is nobody's"
    assert generator(0, "acting").initial_seed() != generator(0, "drawing").initial_seed()
    assert flatten({"obs": {"a": before}}).keys() == {"obs/a"}
