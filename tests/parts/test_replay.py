"""Replay, layouts and priorities against a reference made of lists."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from palaestra.algorithm import Buffer, Clock
from palaestra.batch import each
from palaestra.data import mixture
from palaestra.data.layouts import n_steps, transition, windows
from palaestra.data.priorities import Proportional, SumTree
from palaestra.data.replay import END, PENDING, STEP, Replay

GOES_ON, TERMINATES, TRUNCATES, BREAKS_OFF, NOT_VALID, NOT_KEPT = range(6)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------- the reference


def written(events):
    """Steps [T, N] of what happens (`events[t][n]`), every step with its own `id`, every observation its own number.

    BREAKS_OFF: the step ends nothing, and yet the next one begins an episode. NOT_VALID: no step was taken. NOT_KEPT:
    the buffer's `keep` refuses it.
    """
    event = tensor(events)
    steps, environments = event.shape
    ident = torch.arange(steps)[:, None] + 1000 * torch.arange(environments)
    ends = (event == TERMINATES) | (event == TRUNCATES) | (event == BREAKS_OFF)
    seen = 2.0 * ident
    first = torch.ones_like(ends)
    first[1:] = ends[:-1]
    return {
        "obs": torch.stack((seen, -seen), -1),
        "next_obs": torch.stack((seen, -seen), -1) + tensor([1.0, -1.0]) * (2 - ends.long())[..., None],
        "action": 0.5 * ident[..., None],
        "reward": 1.0 + ident,
        "terminated": event == TERMINATES,
        "truncated": event == TRUNCATES,
        "first": first,
        "valid": event != NOT_VALID,
        "id": ident,
        "kept": event != NOT_KEPT,
    }


def rows_by_hand(steps):
    """Every step that a replay should have kept: `{id: row}`; `then` is the id of the step behind it, if any."""
    rows = {}
    steps_taken, environments = steps["id"].shape
    keep = steps["valid"] & steps["kept"]
    for n in range(environments):
        for t in range(steps_taken):
            if not keep[t, n]:
                continue
            row = {name: column[t, n] for name, column in steps.items()}
            end = bool(row["terminated"] | row["truncated"])
            more = not end and t + 1 < steps_taken and keep[t + 1, n] and not steps["first"][t + 1, n]
            row["then"] = int(steps["id"][t + 1, n]) if more else None
            rows[int(row["id"])] = row
    return rows


def chain(rows, ident, length):
    found = [rows[ident]]
    while len(found) < length and found[-1]["then"] is not None:
        found.append(rows[found[-1]["then"]])
    return found


def kept(row):
    return row["kept"]


def filled(events, capacity, layout=transition, chunk=3, **of_buffer):
    steps = written(events)
    environments = steps["id"].shape[1]
    replay = Replay(Buffer(layout, keep=kept, capacity=capacity * environments, **of_buffer), environments)
    for t in range(0, len(events), chunk):
        replay.insert({name: column[t : t + chunk] for name, column in steps.items()})
    return replay, rows_by_hand(steps)


def whole(replay):
    """The slots of all whole steps."""
    return (replay.kind == STEP).nonzero().squeeze(1)


def check(replay, rows):
    """Every whole step of the replay is a row of the reference, right in every layout; no newer one is missing."""
    index = whole(replay)
    assert replay.rows == len(index)
    if not len(index):
        return
    one = transition(replay, index, rng())
    three = n_steps(replay, index, rng(), n=3)
    window = windows(replay, index, rng(), length=4)
    single = n_steps(replay, index, rng(), n=1)
    assert torch.equal(single.pop("steps"), torch.ones_like(index))
    assert torch.equal(single.pop("reward").squeeze(1), one["reward"])
    assert single.keys() == one.keys() - {"reward"}
    assert all(torch.equal(single[name], one[name]) for name in single)
    for i, ident in enumerate(one["id"].tolist()):
        row = rows[ident]
        for name in ("obs", "action", "reward", "terminated", "truncated", "next_obs"):
            assert torch.equal(one[name][i], row[name]), (ident, name)
        steps = chain(rows, ident, 3)
        rewards = [step["reward"].item() for step in steps]
        assert three["reward"][i].tolist() == rewards + [0.0] * (3 - len(steps))
        assert three["steps"][i] == len(steps)
        assert torch.equal(three["obs"][i], row["obs"])
        assert torch.equal(three["action"][i], row["action"])
        for name in ("next_obs", "terminated", "truncated"):
            assert torch.equal(three[name][i], steps[-1][name]), (ident, name)
        steps = chain(rows, ident, 4)
        assert window["mask"][i].tolist() == [True] * len(steps) + [False] * (4 - len(steps))
        assert window["id"][i, : len(steps)].tolist() == [int(step["id"]) for step in steps]
    for n in range(replay.environments):
        mine = sorted(ident for ident in rows if ident // 1000 == n)
        live = sorted(ident for ident in one["id"].tolist() if ident // 1000 == n)
        assert live == mine[len(mine) - len(live) :]  # the newest are there, without a gap
        ring = replay.kind[n * replay.ring : (n + 1) * replay.ring]
        assert len(live) == len(mine) or (ring > 0).all()  # and nothing was forgotten while there was room


@st.composite
def histories(draw):
    environments = draw(st.integers(1, 3))
    often = [GOES_ON] * draw(st.integers(1, 8))
    event = st.sampled_from([*often, TERMINATES, TRUNCATES, BREAKS_OFF, NOT_VALID, NOT_KEPT])
    row = st.lists(event, min_size=environments, max_size=environments)
    return draw(st.lists(row, min_size=1, max_size=40))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(histories(), st.integers(3, 12))
def test_any_history_is_read_back_right(events, capacity):
    check(*filled(events, capacity))


# ----------------------------------------------------------------------------------------------- by hand, one by one


def column(*events):
    return [[event] for event in events]


def read(replay):
    batch = transition(replay, whole(replay), rng())
    order = batch["id"].argsort()
    return {name: batch[name][order] for name in ("id", "obs", "next_obs")}


def test_next_obs_at_every_kind_of_end():
    replay, _ = filled(column(GOES_ON, TERMINATES, GOES_ON, TRUNCATES, BREAKS_OFF, GOES_ON), 100)
    found = read(replay)
    assert found["obs"][:, 0].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    # odd numbers are final observations: of the episode that ended, not of the one that began
    assert found["next_obs"][:, 0].tolist() == [2.0, 3.0, 6.0, 7.0, 9.0, 12.0]
    assert (replay.kind == END).sum() == 3
    assert (replay.kind == PENDING).sum() == 1


def test_rows_left_out_are_gaps():
    replay, _ = filled(column(GOES_ON, NOT_VALID, GOES_ON, NOT_KEPT, NOT_KEPT, GOES_ON, GOES_ON), 100)
    found = read(replay)
    assert found["id"].tolist() == [0, 2, 5, 6]
    assert found["next_obs"][:, 0].tolist() == [2.0, 6.0, 12.0, 14.0]
    batch = n_steps(replay, whole(replay), rng(), n=3)
    assert batch["steps"].tolist() == [1, 1, 2, 1]


def test_the_oldest_make_room_in_every_ring():
    events = [[GOES_ON, TRUNCATES]] * 11
    replay, rows = filled(events, 4)  # 4 slots: three steps and the newest observation, or two whole episodes
    check(replay, rows)
    assert sorted(transition(replay, whole(replay), rng())["id"].tolist()) == [8, 9, 10, 1009, 1010]


def test_n_steps_by_hand():
    # rewards are 1, 2, 3, ...; the second episode is cut at the newest step
    replay, _ = filled(column(GOES_ON, GOES_ON, TERMINATES, GOES_ON, GOES_ON), 100)
    batch = n_steps(replay, whole(replay), rng(), n=3)
    assert batch["reward"].tolist() == [[1, 2, 3], [2, 3, 0], [3, 0, 0], [4, 5, 0], [5, 0, 0]]
    assert batch["steps"].tolist() == [3, 2, 1, 2, 1]
    assert batch["terminated"].tolist() == [True, True, True, False, False]
    assert batch["next_obs"][:, 0].tolist() == [5.0, 5.0, 5.0, 10.0, 10.0]
    assert batch["obs"][:, 0].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_dictionaries_of_observations():
    steps = written(column(GOES_ON, TERMINATES, GOES_ON))
    for key in ("obs", "next_obs"):
        steps[key] = {"position": steps[key], "image": steps[key].to(torch.uint8)[..., None]}
    replay = Replay(Buffer(transition, capacity=10))
    replay.insert(steps)
    batch = transition(replay, whole(replay), rng())
    assert batch["obs"]["position"][:, 0].tolist() == [0.0, 2.0, 4.0]
    assert batch["next_obs"]["position"][:, 0].tolist() == [2.0, 3.0, 6.0]
    assert batch["next_obs"]["image"].dtype == torch.uint8
    assert batch["next_obs"]["image"][:, 0, 0].tolist() == [2, 3, 6]


def test_an_observation_is_kept_once():
    replay = Replay(Buffer(transition, capacity=1_000_000))
    flags = {name: torch.zeros(1, 1, dtype=torch.bool) for name in ("terminated", "truncated", "first")}
    replay.insert(
        {
            "obs": torch.zeros(1, 1, 17), "next_obs": torch.zeros(1, 1, 17), "action": torch.zeros(1, 1, 6),
            "reward": torch.zeros(1, 1), **flags, "valid": torch.ones(1, 1, dtype=torch.bool),
        }
    )  # fmt: skip
    raw = 1_000_000 * (17 * 4 + 6 * 4 + 4 + 1 + 1)
    held = sum(
        tensor.nbytes for tensor in [*replay.columns.values(), *vars(replay).values()] if torch.is_tensor(tensor)
    )
    assert raw < held < 1.1 * raw


def test_images_stay_bytes():
    replay = Replay(Buffer(transition, capacity=4))
    steps = written(column(GOES_ON, GOES_ON))
    steps["obs"] = steps["next_obs"] = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)
    replay.insert(steps)
    assert replay.columns["obs"].nbytes == 4 * 8 * 8 * 3


# ---------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("capacity", [100, 9])
def test_draws_are_uniform_over_whole_steps(capacity):
    events = [[GOES_ON, TRUNCATES if t % 2 else GOES_ON, NOT_KEPT if t < 10 else GOES_ON] for t in range(20)]
    replay, _ = filled(events, capacity)
    n = 30_000
    counts = torch.bincount(replay.draw(n, [rng()]), minlength=replay.capacity).double()
    live = replay.kind == STEP
    assert counts[~live].sum() == 0
    expected = n / replay.rows
    chi_square = ((counts[live] - expected).square() / expected).sum().item()
    freedom = replay.rows - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_batch_is_drawn_by_its_generator():
    replay, _ = filled(column(*[GOES_ON] * 20), 100)
    one, same, other = (replay.sample(50, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(one["index"], same["index"])
    assert not torch.equal(one["index"], other["index"])
    assert torch.equal(one["weight"], torch.ones(50))
    assert torch.equal(replay.get("obs", one["index"]), one["obs"])


def test_an_empty_replay_says_so():
    with pytest.raises(ValueError, match="empty"):
        Replay(Buffer(transition, capacity=10)).sample(1, rng())


def test_a_capacity_that_is_too_small_is_named():
    with pytest.raises(ValueError, match=r"capacity=8 leaves 2 rows for each of 4"):
        Replay(Buffer(transition, capacity=8), 4)


# ------------------------------------------------------------------------------------------------------- priorities


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 9000), st.integers(0, 2**30))
def test_sum_tree_is_a_table_of_numbers(rows, seed):
    g = np.random.default_rng(seed)
    tree, table = SumTree(rows), np.zeros(rows)
    for _ in range(4):
        index = g.choice(rows, size=g.integers(1, rows + 1), replace=False)
        value = g.exponential(size=len(index)) * (g.random(len(index)) < 0.7)
        table[index] = value
        tree.set(torch.from_numpy(index), torch.from_numpy(value))
    assert np.array_equal(tree.get(torch.arange(rows)).numpy(), table)
    assert tree.total.item() == pytest.approx(table.sum(), rel=1e-12)
    if table.any():
        drawn = tree.sample(200, rng(seed)).numpy()
        assert (table[drawn] > 0).all()
    again = SumTree(rows)
    again.load_state_dict(tree.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.levels, tree.levels, strict=True))


@pytest.mark.parametrize("rows", [10, 5000])
def test_sum_tree_draws_in_proportion(rows):
    tree = SumTree(rows)
    index = torch.linspace(0, rows - 1, 5).long()
    p = tensor([0.1, 0.0, 0.2, 0.3, 0.4], dtype=torch.float64)
    tree.set(index, p * 17)
    n = 40_000
    counts = torch.bincount(tree.sample(n, rng()), minlength=rows)
    assert counts.sum() == counts[index].sum() == n
    assert ((counts[index] / n - p).abs() <= 4 * (p * (1 - p) / n).sqrt()).all()


def test_sum_tree_does_not_lose_a_million_tiny_numbers():
    rows = 1_000_001
    tree = SumTree(rows)
    tree.set(torch.arange(1, rows), torch.full((rows - 1,), 1e-9, dtype=torch.float64))
    tree.set(tensor([0]), tensor([1e-3]))
    assert tree.total.item() == pytest.approx(1e-3 + float(tensor(1e-3)), rel=1e-9)
    drawn = tree.sample(40_000, rng())
    tiny = drawn[drawn > 0]
    assert abs(len(tiny) / 40_000 - 0.5) < 0.01
    halves = (tiny > rows // 2).double().mean().item()
    assert abs(halves - 0.5) < 0.015
    assert len(tiny.unique()) > 0.98 * len(tiny)


def test_proportional_by_hand():
    priority = Proportional(sharpness=0.5, correction=1.0, floor=0.0)
    index = tensor([0, 1])
    assert priority.insert(None, index).tolist() == [1.0, 1.0]
    assert priority.update(None, index, tensor([4.0, 9.0])).tolist() == [2.0, 3.0]
    assert priority.insert(None, index).tolist() == [3.0, 3.0]  # new rows get the largest so far
    assert priority.update(None, index, tensor([1.0, 0.0])).tolist() == [1.0, 0.0]
    assert priority.insert(None, tensor([5])).tolist() == [3.0]
    # P = 0.2, 0.8 of 10 rows: 1 / (10 P) = 0.5, 0.125, over the largest 1, 0.25; with half the correction its root
    probability = tensor([0.2, 0.8], dtype=torch.float64)
    assert priority.weight(probability, 10, Clock()).tolist() == [1.0, 0.25]
    half = Proportional(0.5, lambda clock: tensor(0.5))
    assert half.weight(probability, 10, Clock()).tolist() == [1.0, 0.5]


def test_priorities_decide_what_is_drawn():
    replay, _ = filled(column(*[GOES_ON] * 5), 100, priority=(Proportional(1.0, 1.0, floor=0.0),))
    index = whole(replay)
    replay.update(index, tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
    batch = replay.sample(40_000, rng(), Clock())
    p = tensor([0.0, 0.1, 0.2, 0.3, 0.4])
    counts = torch.bincount(batch["id"], minlength=5) / 40_000
    assert ((counts - p).abs() <= 4 * (p * (1 - p) / 40_000).sqrt()).all()
    assert torch.allclose(batch["weight"] * batch["id"], torch.ones(40_000))  # (5 P)^-1 over its largest: 1 / id


def test_priorities_of_a_buffer_multiply():
    class Alternate:
        def insert(self, store, index):
            return (store.get("id", index) % 2).double()

        def update(self, store, index, error):
            return None  # as inserted

        def weight(self, probability, rows, clock):
            return None

    replay, _ = filled(column(*[GOES_ON] * 6), 100, priority=(Proportional(1.0, 1.0, floor=0.0), Alternate()))
    assert replay.prioritised.trees[0].get(whole(replay)).tolist() == [0, 1, 0, 1, 0, 1]
    replay.update(whole(replay), torch.arange(6.0))
    assert replay.prioritised.trees[0].get(whole(replay)).tolist() == [0, 1, 0, 3, 0, 5]


def test_what_is_no_step_is_never_drawn_by_priority():
    events = [[TRUNCATES if t % 3 == 2 else GOES_ON] * 2 for t in range(30)]
    replay, rows = filled(events, 7, priority=(Proportional(0.6, 0.4),))
    check(replay, rows)
    assert (replay.prioritised.trees[0].get(torch.arange(replay.capacity))[replay.kind != STEP] == 0).all()
    ends = (replay.kind == END).nonzero().squeeze(1)
    replay.update(ends, torch.ones(len(ends)))  # a row that was overwritten since it was drawn
    assert (replay.kind[replay.draw(5_000, [rng()])] == STEP).all()


def test_two_replays_share_no_priorities():
    buffer = Buffer(transition, capacity=10, priority=(Proportional(1.0, 1.0),))
    one, other = Replay(buffer), Replay(buffer)
    one.insert(written(column(GOES_ON)))
    one.update(tensor([0]), tensor([5.0]))
    assert other.prioritised.priorities[0][0].largest == buffer.priority[0].largest == 1.0


def test_fixed_shares_of_a_batch():
    demos, _ = filled(column(*[GOES_ON] * 5), 100)
    own, _ = filled(column(*[TERMINATES] * 5), 100, shares={"demos": 0.25}, priority=(Proportional(1.0, 1.0),))
    batch = mixture.sample({"replay": own, "demos": demos}, "replay", 16, rng(), Clock())
    assert batch["terminated"].tolist() == [True] * 12 + [False] * 4
    mixture.feed_back({"replay": own, "demos": demos}, "replay", batch["index"], torch.full((16,), 9.0))
    assert own.prioritised.trees[0].get(batch["index"][:12]).tolist() == pytest.approx([9.0] * 12, rel=1e-5)


# ------------------------------------------------------------------------------------------------------ checkpoints


def slots(replay):
    index = whole(replay)
    return {"kind": replay.kind, **(transition(replay, index, rng()) if len(index) else {})}


def agree(left, right):
    left, right = slots(left), slots(right)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(histories(), st.integers(3, 12), st.integers(1, 9), st.booleans())
def test_segments_and_state_are_the_replay(events, capacity, every, prioritised):
    steps = written(events)
    environments = steps["id"].shape[1]
    priority = (Proportional(0.5, 0.4),) if prioritised else ()
    buffer = Buffer(transition, keep=kept, capacity=capacity * environments, priority=priority)
    replay, segments = Replay(buffer, environments), []
    for number, t in enumerate(range(0, len(events), every)):
        replay.insert(each(lambda column, t=t: column[t : t + every], steps))
        if prioritised and replay.rows:
            index = replay.draw(4, [rng(number)])
            replay.update(index, torch.rand(4, generator=rng(number)))
        segments.append(replay.segment())
    segments = [(rows, meta) for rows, meta in segments if rows and replay.alive(meta)]
    loaded = Replay(buffer, environments)
    loaded.load(replay.state_dict(), segments)
    agree(replay, loaded)
    for copy in (replay, loaded):  # and both go on alike
        copy.insert(each(lambda column: column[:5], steps))
    agree(replay, loaded)
    if replay.rows:
        assert torch.equal(replay.draw(50, [rng()]), loaded.draw(50, [rng()]))
    further = loaded.segment()
    if further[0]:  # a loaded replay saves the rest, not everything again
        again = Replay(buffer, environments)
        again.load(loaded.state_dict(), [*segments, further])
        agree(again, loaded)


def test_a_segment_holds_what_is_new():
    replay = Replay(Buffer(transition, capacity=1000))
    steps = written(column(*[GOES_ON] * 100))
    replay.insert(each(lambda column: column[:90], steps))
    assert len(replay.segment()[0]["reward"]) == 91  # with the newest observation
    replay.insert(each(lambda column: column[90:], steps))
    assert len(replay.segment()[0]["reward"]) == 11
    assert len(replay.segment()[0]["reward"]) == 1


def test_layouts_may_be_partials():
    replay, _ = filled(column(*[GOES_ON] * 9), 100, layout=partial(n_steps, n=2))
    assert replay.sample(7, rng())["reward"].shape == (7, 2)
    replay, _ = filled(column(*[GOES_ON] * 9), 100, layout=partial(windows, length=5))
    assert replay.sample(7, rng())["obs"].shape == (7, 5, 2)


def test_segments_hold_no_stray_memory():
    replay = Replay(Buffer(transition, capacity=8))
    ones = torch.ones(1, 1)
    step = {"obs": ones[..., None], "next_obs": ones[..., None], "action": ones[..., None], "reward": ones}
    flags = {name: torch.tensor([[name == "valid"]]) for name in ("terminated", "truncated", "first", "valid")}
    replay.insert(step | flags)
    replay.columns["reward"][1] = float("nan")  # the slot of the newest observation, not yet written
    rows, _ = replay.segment()
    assert rows["reward"].tolist() == [1.0, 0.0]
    assert rows["obs"].flatten().tolist() == [1.0, 1.0]
