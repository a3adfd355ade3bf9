"""Which answers are kept, that their advantages are those of all answers, and that keeping all changes nothing."""

import pytest
import torch
from torch import tensor

from palaestra.algorithm import Conflict, Unfit
from palaestra.algorithms.grpo import dapo, grpo
from palaestra.algorithms.ppo_lm import ppo_lm
from palaestra.algorithms.sft import sft
from palaestra.learner import generator
from palaestra.methods.language.pf_ppo import (
    best,
    best_and_random,
    best_and_worst,
    by_power,
    everything,
    filter_r2,
    of_kept,
    pf_ppo,
    pf_ppo_best,
    pf_ppo_best_worst,
    pf_ppo_power,
    pf_ppo_unfiltered,
)
from tests.parts.texts import run_of

BASE = ppo_lm(prompts=3, longest=6, lr=1e-3, epochs=2, minibatches=2)
REWARD = tensor([3.0, 9.0, 1.0, 5.0, 5.0, 4.0, 7.0, 2.0, 6.0])  # of prompt 0: 3, 1, 4, 2; of 1: 9, 7, 6; of 2: 5, 5
GROUP = tensor([0, 1, 0, 2, 2, 0, 1, 0, 1])


def rng(seed=0):
    return generator(seed, "test")


def words(rows, answers):
    """A reward that tells answers apart, though the model has learnt nothing."""
    return [float(sum(map(ord, answer)) % 7) for answer in answers]


def run(algorithm, rounds=0, reward=words):
    found = run_of(algorithm, reward={"words": reward})
    for _ in range(rounds):
        found.advance()
    return found


def state(algorithm, **given):
    return run(algorithm, 2, **given).learner.nets.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------------------ filters


def test_filters_by_hand():
    assert best(REWARD, GROUP, rng()).tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert best_and_worst(REWARD, GROUP, rng()).tolist() == [0, 1, 1, 0, 0, 1, 0, 0, 1]
    assert everything(REWARD, GROUP, rng()).tolist() == [1] * 9


def test_the_best_and_each_of_the_others_as_often():
    found = torch.stack([best_and_random(REWARD, GROUP, rng(seed)) for seed in range(600)]).double()
    assert (found[:, 5] == 1).all()
    assert (found[:, [0, 2, 5, 7]].sum(1) == 2).all()
    # a third of 600 each, with a deviation of sqrt(600 * 2 / 9) = 11.5
    assert ((found[:, [0, 2, 7]].sum(0) - 200).abs() < 4 * 11.5).all()
    assert found[:, [3, 4]].sum() == 0


def test_of_equal_rewards_chance_decides():
    reward, group = tensor([1.0, 0.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    found = torch.stack([best_and_worst(reward, group, rng(seed)) for seed in range(400)]).double()
    assert (found[:, [0, 2]].sum(1) == 1).all()
    assert (found[:, [1, 3]].sum(1) == 1).all()
    assert ((found.sum(0) - 200).abs() < 4 * 10).all()  # a deviation of sqrt(400 / 4)
    first, other = found[:, 0], found[:, 1]
    assert abs((first * other).sum() - 100) < 4 * 75**0.5  # and of each by itself: sqrt(400 * 3 / 16)


@pytest.mark.parametrize("keep", [best, best_and_worst, best_and_random])
def test_without_any_difference_all_are_kept(keep):
    assert keep(torch.full((4,), 0.1), tensor([0, 0, 1, 1]), rng()).tolist() == [1] * 4


def test_powers():
    reward = tensor([0.0, -1.0, 2.0])
    found = sum(by_power(reward, GROUP[:3], rng(seed), 2.0) for seed in range(500)).double()
    assert found.sum() == 1500
    assert found[0] == 0
    assert abs(found[1] - 300) < 4 * (1500 * 0.2 * 0.8) ** 0.5  # odds of 1 to 4
    assert by_power(torch.zeros(3), GROUP[:3], rng(), 2.0).sum() == 3


def test_r2_by_hand():
    """Bins of two: rewards 0.5, 2.5, 4.5 and truths 0, 1, 0.5, with deviations -2, 0, 2 and -0.5, 0.5, 0.

    Their products add up to 1, their squares to 8 and 0.5: R^2 = 1 / (8 * 0.5).
    """
    reward, truth = tensor([5.0, 0.0, 1.0, 2.0, 3.0, 4.0]), tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    kept = torch.ones(6, dtype=torch.int64)
    assert filter_r2(reward, truth, kept, bins=3).item() == pytest.approx(0.25)
    line = tensor([0, 1, 2, 0, 0, 1])  # rewards 0, 1, 1, 4 with truths 0, 0, 0, 1
    assert filter_r2(reward, truth, line, bins=4).item() == pytest.approx(_correlation([0, 1, 1, 4], [0, 0, 0, 1]) ** 2)


def _correlation(left, right):
    return torch.corrcoef(tensor([left, right], dtype=torch.float64))[0, 1].item()


# --------------------------------------------------------------------------------------------------- whole algorithms


def test_all_answers_of_one_each_are_the_base_bit_for_bit():
    assert same(state(BASE), state(pf_ppo_unfiltered(BASE, answers=1)))
    assert not same(state(pf_ppo_unfiltered(BASE, answers=4)), state(pf_ppo(BASE, answers=4)))
    group = grpo(prompts=3, answers=4, longest=6, lr=1e-3)
    assert same(state(group), state(pf_ppo_unfiltered(group, answers=1)))


def test_where_nothing_differs_a_filter_changes_nothing():
    equal = {"reward": lambda rows, answers: [1.0] * len(rows)}
    assert same(state(pf_ppo_unfiltered(BASE, answers=4), **equal), state(pf_ppo(BASE, answers=4), **equal))


@pytest.mark.parametrize("method", [pf_ppo, pf_ppo_best_worst, pf_ppo_best, pf_ppo_power])
@pytest.mark.parametrize("base", [BASE, grpo(prompts=3, answers=4, longest=6, lr=1e-3, minibatches=2)])
def test_each_learns_from_what_it_keeps(method, base):
    answers = 4 if base is BASE else 1
    whole, part = run(pf_ppo_unfiltered(base, answers=answers)), run(method(base, answers=answers))
    all_of_them, kept = whole._collected(), part._collected()
    n = {pf_ppo: 6, pf_ppo_best_worst: 6, pf_ppo_best: 3, pf_ppo_power: 12}[method]
    assert len(all_of_them["reward"]) == 12
    assert all_of_them["group"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert all(len(value) == n for value in kept.values() if value.dim())
    assert part.told == whole.told  # of all that were collected
    for row in range(n):  # credited among all answers: no advantage is another one for the others having been dropped
        length = kept["length"][row]
        mine = [
            torch.equal(ids[:length], kept["ids"][row, :length])
            and torch.equal(a[:length], kept["advantage"][row, :length])
            for ids, a in zip(all_of_them["ids"], all_of_them["advantage"], strict=True)
        ]
        assert any(mine)
    part.advance()
    part.learner.check_finite()
    assert part.learner.updates == part.algorithm.schedule.epochs * 2  # as many as without a filter


def test_the_best_alone_still_have_their_sign():
    """Whitened after they were chosen, half of the advantages of the best answers would be negative."""
    kept = run(pf_ppo_best(grpo(prompts=8, answers=4, longest=6), answers=1))._collected()
    advantage = (kept["advantage"] * kept["answer"]).sum(1)
    differ = kept["group"].unique().numel() == len(advantage)
    assert differ
    assert (advantage > 0).all()


def test_a_row_comes_as_often_as_it_is_kept_and_0_d_columns_stay():
    b = {
        "ids": tensor([[1, 2, 0], [3, 4, 5], [6, 0, 0]]),
        "length": tensor([2, 3, 1]),
        "kept": tensor([2, 0, 1]),
        "updates": tensor(7),
    }
    given = of_kept({}, b, lambda nets, b: {"advantage": b["ids"] * 0.5})
    assert given["ids"].tolist() == [[1, 2], [1, 2], [6, 0]]  # and without the padding that only the second needed
    assert given["advantage"].tolist() == [[0.5, 1.0], [0.5, 1.0], [3.0, 0.0]]
    assert given["updates"] == 7


def test_what_does_not_fit():
    with pytest.raises(Unfit, match="among answers"):
        pf_ppo(sft())
    with pytest.raises(Unfit, match="answers=1"):
        pf_ppo(dapo())
    pf_ppo(dapo(), answers=1)
    with pytest.raises(Conflict, match="leave one of them out"):
        pf_ppo_best(pf_ppo(BASE))
    with pytest.raises(ValueError, match="answers is 0"):
        pf_ppo(BASE, answers=0)
    with pytest.raises(ValueError, match="power is -1"):
        pf_ppo_power(BASE, power=-1)
