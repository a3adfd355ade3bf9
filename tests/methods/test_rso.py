"""RSO: what is accepted, its law, and its pairs by hand; what is collected, and that learning from it is DPO."""

import pytest
import torch
from torch import tensor

from palaestra.algorithm import changed_parts
from palaestra.algorithms.dpo import dpo, slic
from palaestra.algorithms.reward_model import reward_model
from palaestra.expression import parse
from palaestra.functional import preferences
from palaestra.methods.preference.rso import (
    better_first,
    first_round,
    rso,
    rso_tournament,
    sft_sample_rank,
    statistical_rejection,
    tournament,
)
from tests.parts.texts import batches, run_of, textual

BASE = textual("dpo")
FEW = {"prompts": 4, "candidates": 6, "accepted": 4}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def rewarded(rows, answers):
    return [float(len(answer)) + answer.count("1") for answer in answers]


def run(algorithm, **given):
    return run_of(algorithm, reward={"length": rewarded}, **given)


# ---------------------------------------------------------------------------------------------------- what is accepted

REWARD = tensor([[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0]])


def test_cold_it_is_the_best_and_warm_the_first():
    place, passes = statistical_rejection(REWARD, 3, 1e-6, rng())
    assert place.tolist() == [[1, 2, 0], [0, 1, 2]]
    assert passes.tolist() == [3, 1]  # one candidate a pass, and all at once where none is worse
    place, passes = statistical_rejection(REWARD, 3, 1e30, rng())
    assert place.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert passes.tolist() == [1, 1]
    assert sorted(statistical_rejection(REWARD, 4, 0.5, rng())[0][0].tolist()) == [0, 1, 2, 3]


def test_two_passes_by_hand(monkeypatch):
    """Odds against the best that is left: e^-2 = 0.135, 1, e^-1 = 0.368, e^-3 = 0.050; then 1 and e^-2 of two."""
    draws = iter([tensor([[0.13, 0.99, 0.37, 0.06]]), tensor([[0.0, 0.0, 0.99, 0.14]])])
    monkeypatch.setattr(torch, "rand", lambda *shape, **where: next(draws))
    place, passes = statistical_rejection(REWARD[:1], 3, 1.0, rng())
    assert place.tolist() == [[0, 1, 2]]
    assert passes.tolist() == [2]


def distance(reward, number, kept, target):
    """In total variation, of the accepted among answers that are as likely from the law, and of their mean reward."""
    drawn = torch.randint(20, (4_000, number), generator=rng(5))
    place, _ = statistical_rejection(reward[drawn], kept, 0.5, rng(6))
    law = torch.bincount(drawn.gather(1, place).flatten(), minlength=20) / place.numel()
    return 0.5 * (law - target).abs().sum().item(), ((law - target) * reward).sum().abs().item()


def test_accepted_answers_have_the_law_of_the_best_policy():
    """Of 20 answers with standard normal rewards, c = 0.5, while one pass is enough: n below N times the mean odds.

    The odds against the best are 0.17 in the mean where rewards are drawn, so that 64 candidates give 8 in one pass. At
    the middles of 20 equal parts of the law they are 0.10, and 64 give 8 in 1.7 passes: too many, by a little.
    """
    drawn = torch.randn(20, generator=rng(0))
    even = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(20) + 0.5) / 20)
    for reward, enough, few in ((drawn, (64, 8), (16, 8)), (even, (64, 4), (64, 8)), (even, (128, 8), (16, 8))):
        target = (reward / 0.5).softmax(0)
        near, error = distance(reward, *enough, target)
        assert near < 0.08
        assert error < 0.1
        assert distance(reward, *few, target)[0] > 0.1
        all_that_there_are, _ = distance(reward, 8, 8, target)
        assert all_that_there_are == pytest.approx(0.5 * (target - 1 / 20).abs().sum().item(), abs=0.02)


# ------------------------------------------------------------------------------------------------------------ pairs


def test_neighbours_are_pairs_with_the_better_one_first():
    reward = tensor([[1.0, 3.0, 2.0, 0.0, 7.0]])
    assert better_first(reward, tensor([[0, 1, 2, 3, 4]])).tolist() == [[[1, 0], [2, 3]]]  # the fifth has no other
    assert better_first(reward, tensor([[4, 3]])).tolist() == [[[4, 3]]]


def test_a_first_round_pairs_each_once_and_at_random():
    reward = torch.arange(6.0).expand(2_000, 6)
    pairs = first_round(reward, rng())
    assert pairs.shape == (2_000, 3, 2)
    assert torch.equal(pairs.flatten(1).sort(1).values, torch.arange(6).expand(2_000, 6))
    assert (pairs[..., 0] > pairs[..., 1]).all()
    # the partner of 5 is each of the five others as often: 400 of 2,000, with a standard deviation of 18
    partners = pairs[pairs[..., 0] == 5][:, 1]
    assert (torch.bincount(partners, minlength=5) - 400).abs().max() < 90


def test_a_tournament_pairs_winners_until_one_is_left():
    reward = torch.randperm(8, generator=rng()).float().expand(50, 8)
    pairs = tournament(reward, rng(1))
    assert pairs.shape == (50, 7, 2)
    assert (pairs[:, -1, 0] == reward[0].argmax()).all()
    winners, entered = pairs[:, :4, 0].sort(1).values, pairs[:, 4:6].flatten(1).sort(1).values
    assert torch.equal(winners, entered)
    assert tournament(torch.zeros(1, 6), rng()).shape == (1, 3 + 1, 2)  # of three winners one is left out


# ------------------------------------------------------------------------------------------------- as part of a run


@pytest.mark.parametrize(("method", "pairs"), [(rso, 8), (rso_tournament, 12)])
def test_what_is_collected(method, pairs):
    learning = run(method(parse(BASE), **FEW))
    columns = learning._collected()
    assert columns["ids"].shape[:2] == (pairs, 2)
    assert columns["reference_logp"].shape == columns["ids"].shape
    reward = columns["reward"]
    assert (reward[:, 0] >= reward[:, 1]).all()
    assert torch.equal(columns["weight"], (reward[:, 0] > reward[:, 1]).float())
    before = columns["length"] - columns["answer"].sum(-1)  # both answer the same prompt
    assert torch.equal(before[:, 0], before[:, 1])
    for ids, begin in zip(columns["ids"], before[:, 0], strict=True):
        assert torch.equal(ids[0, :begin], ids[1, :begin])
    assert 1 <= learning.told["passes"] <= FEW["accepted"]
    assert learning.told["reward"] == pytest.approx(reward.mean().item())
    assert "kl" not in learning.told


def test_candidates_are_those_of_the_model_it_began_as():
    """Whatever the policy has learnt; and rounds draw new ones."""
    fresh, learnt = (run(rso(parse(BASE), **FEW)) for _ in range(2))
    with torch.no_grad():
        for parameter in learnt.learner.nets["policy"].parameters():
            parameter.zero_()
    one, other = fresh._collected(), learnt._collected()
    assert torch.equal(one["ids"], other["ids"])
    assert not torch.equal(fresh._collected()["length"], one["length"])


def test_an_update_from_its_pairs_is_dpo():
    base, learning = run_of(BASE), run(rso(parse(BASE), **FEW))
    batch = batches(learning)["rollout"]
    rows = {name: value for name, value in batch.items() if name != "reward"}
    base.learner.update({"pairs": rows})
    learning.learner.update({"rollout": batch})
    one, other = (r.learner.nets["policy"].state_dict() for r in (base, learning))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(
        not torch.equal(one[name], before) for name, before in run_of(BASE).learner.nets["policy"].state_dict().items()
    )


def test_a_warm_sampler_takes_what_sft_sample_rank_takes():
    """Where as many are accepted as there are, both pair the same answers."""
    warm, plain = (
        run(a) for a in (rso(parse(BASE), 1e30, 4, 4, prompts=4), sft_sample_rank(parse(BASE), 4, prompts=4))
    )
    one, other = (sorted(map(tuple, r._collected()["ids"].flatten(0, 1).tolist())) for r in (warm, plain))
    assert one == other
    assert warm.told["passes"] == 1
    assert "passes" not in plain.told


def test_updates_stay_as_large():
    base = dpo(batch_size=64, longest=5)
    assert rso(base).schedule.minibatches == 4  # 64 prompts with 4 pairs each
    assert rso_tournament(base).schedule.minibatches == 7
    assert sft_sample_rank(base, answers=2, prompts=65).schedule.minibatches == 2
    assert changed_parts(base, rso(base)) == ("policy", "collect", "buffers", "transforms", "losses", "schedule")


def test_links_and_other_bases():
    before, after = (parse(f"{BASE}+{more}") for more in ("hinge-link+rso(prompts=4)", "rso(prompts=4)+hinge-link"))
    for algorithm in (before, after):
        term = algorithm.losses["policy"].terms["preference"]
        assert term.stream == "rollout"
        assert term.value.keywords["link"].func is preferences.hinge
    learning = run(rso(slic(batch_size=4, longest=5), **FEW))
    learning.advance()
    assert learning.learner.updates == 2
    assert learning.metrics["loss/policy/imitation"] > 0


# ---------------------------------------------------------------------------------------------------- what it refuses


def test_what_it_refuses():
    with pytest.raises(ValueError, match="rso does not fit reward-model"):
        rso(reward_model())
    with pytest.raises(ValueError, match=r"rso does not fit dpo.*rso"):
        rso(rso(dpo()))
    with pytest.raises(ValueError, match="accepted is 9; it must not be more than candidates, 8"):
        rso(dpo(), candidates=8, accepted=9)
    with pytest.raises(ValueError, match="accepted is 1; it must be larger than 1"):
        rso_tournament(dpo(), accepted=1)
    with pytest.raises(ValueError, match="kl_coefficient is 0"):
        rso(dpo(), kl_coefficient=0.0)
    with pytest.raises(ValueError, match="top_k is 0"):
        sft_sample_rank(dpo(), top_k=0)
