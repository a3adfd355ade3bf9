"""Contrastive policy gradient: its rows by hand, its gradient, where it rests, and what it needs of a dataset."""

from functools import partial

import pytest
import torch

from palaestra.algorithm import Conflict, Unfit, changed_parts
from palaestra.algorithms.dpo import dpo, hinge_link, ipo, simpo
from palaestra.algorithms.grpo import grpo, reinforce_plus_plus, rloo
from palaestra.algorithms.reward_model import reward_model
from palaestra.data.dataset import DatasetError
from palaestra.data.tokens import scored_pairs
from palaestra.expression import parse
from palaestra.functional.preferences import contrastive
from palaestra.methods.preference.copg import contrasted, contrasted_in_groups, copg, copg_groups
from tests.parts.texts import batches, run_of, texts, textual

doubles = partial(torch.tensor, dtype=torch.float64)


def pair(logp, reference, reward):
    """Pairs whose answers are one token long: [B, 2, 1]."""
    columns = {"logp": logp, "reference_logp": reference}
    columns = {name: doubles(value).unsqueeze(-1) for name, value in columns.items()}
    return {**columns, "answer": torch.ones_like(columns["logp"], dtype=torch.bool), "reward": doubles(reward)}


def single(columns):
    """The answers of pairs [B, 2, 1] as rows of a rollout [2 B, 1], two to a group."""
    rows = {name: value.flatten(0, 1) for name, value in columns.items()}
    return {**rows, "group": torch.arange(len(rows["reward"])) // 2}


def test_a_pair_by_hand():
    # g = (2, -1), so the margin is 3; the rewards differ by 1/2: -(1/2 - 0.1 / 2 * 3) * 3 = -1.05
    rows, told = contrasted(None, pair([[-1.0, -4.0]], [[-3.0, -3.0]], [[2.0, 1.5]]), beta=0.1)
    assert rows.tolist() == pytest.approx([-1.05])
    assert told["margin"].tolist() == pytest.approx([3.0])
    assert told["reward_gap"].tolist() == pytest.approx([0.5])


def test_which_answer_is_called_chosen_does_not_matter():
    columns = pair([[-1.0, -4.0], [-2.0, -0.5]], [[-3.0, -3.0], [-1.0, -1.0]], [[2.0, 1.5], [0.0, 4.0]])
    other = {name: value.flip(1) for name, value in columns.items()}
    assert torch.equal(contrasted(None, columns, 0.3)[0], contrasted(None, other, 0.3)[0])


def test_tokens_that_are_no_answer_do_not_count():
    columns = pair([[-1.0, -4.0]], [[-3.0, -3.0]], [[2.0, 1.5]])
    wider = {name: torch.cat([columns[name], columns[name]], -1) for name in ("logp", "reference_logp")}
    answer = torch.tensor([[[True, False], [True, False]]])
    rows, _ = contrasted(None, {**columns, **wider, "answer": answer}, 0.1)
    assert torch.equal(rows, contrasted(None, columns, 0.1)[0])


def test_a_group_is_all_its_pairs():
    """The mean of the rows over a group of four is that of the six pairs; a group of two is a pair."""
    generator = torch.Generator().manual_seed(0)
    logp, reference, reward = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    rows, told = contrasted_in_groups(
        None,
        {
            "logp": logp[:, None],
            "reference_logp": reference[:, None],
            "answer": torch.ones(4, 1, dtype=torch.bool),
            "reward": reward,
            "group": torch.full((4,), 7),
        },
        beta=0.3,
    )
    gain = logp - reference
    assert torch.allclose(told["gain"], gain)
    i, j = torch.triu_indices(4, 4, 1)
    assert rows.mean().item() == pytest.approx(contrastive(gain[i], gain[j], reward[i] - reward[j], 0.3).mean().item())
    columns = pair([[-1.0, -4.0], [-2.0, -0.5]], [[-3.0, -3.0], [-1.0, -1.0]], [[2.0, 1.5], [0.0, 4.0]])
    rows, _ = contrasted_in_groups(None, single(columns), 0.1)
    assert rows.unflatten(0, (2, 2)).mean(1).tolist() == pytest.approx(contrasted(None, columns, 0.1)[0].tolist())


def test_a_group_is_a_variance():
    """Up to what no parameter changes, the mean row is `var(R - beta g) / beta`, divided by one less than they are."""

    def mean_row(gain):
        columns = {"logp": gain[:, None], "reference_logp": torch.zeros_like(gain)[:, None], "reward": reward}
        columns |= {"answer": torch.ones(5, 1, dtype=torch.bool), "group": torch.zeros(5, dtype=torch.int64)}
        return contrasted_in_groups(None, columns, 0.4)[0].mean()

    generator = torch.Generator().manual_seed(1)
    reward, gain = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    still = torch.zeros_like(gain)
    expected = ((reward - 0.4 * gain).var() - reward.var()) / 0.4
    assert (mean_row(gain) - mean_row(still)).item() == pytest.approx(expected.item())


def test_an_answer_alone_counts_nothing():
    columns = {"logp": doubles([[-1.0]]), "reference_logp": doubles([[-2.0]]), "answer": torch.ones(1, 1).bool()}
    rows, _ = contrasted_in_groups(None, {**columns, "reward": doubles([3.0]), "group": torch.zeros(1)}, 0.1)
    assert rows.tolist() == [0.0]


# The bandit of the card: three arms, a uniform reference, and a behaviour that mostly draws the worst.
REWARD, BEHAVIOUR, BETA = doubles([2.5, 2.0, 1.0]), doubles([0.1, 0.2, 0.7]), 0.5
OPTIMUM = (REWARD / BETA).softmax(0)


def settled(loss, steps=4_000, lr=0.2):
    """The policy that gradient descent comes to."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(logits.log_softmax(0)), logits)
        logits = (logits - lr * gradient).detach().requires_grad_()
    return logits.detach().softmax(0)


def off_policy(logp):
    """CoPG's loss, exactly, of pairs drawn from the behaviour."""
    i, j = torch.cartesian_prod(torch.arange(3), torch.arange(3)).unbind(1)
    columns = {
        "logp": torch.stack([logp[i], logp[j]], 1).unsqueeze(-1),
        "reference_logp": torch.full((9, 2, 1), 1 / 3, dtype=torch.float64).log(),
        "answer": torch.ones(9, 2, 1, dtype=torch.bool),
        "reward": torch.stack([REWARD[i], REWARD[j]], 1),
    }
    return (BEHAVIOUR[i] * BEHAVIOUR[j] * contrasted(None, columns, BETA)[0]).sum()


def without_baseline(logp):
    """The off-policy gradient of the same regularised reward, as a loss."""
    return -(BEHAVIOUR * (REWARD - BETA * (logp + doubles(3.0).log())).detach() * logp).sum()


def test_a_bandit_comes_to_its_optimum_from_what_another_policy_drew():
    assert OPTIMUM.tolist() == pytest.approx([0.705, 0.259, 0.035], abs=1e-3)
    assert (settled(off_policy) - OPTIMUM).abs().sum().item() / 2 < 1e-6
    wrong = settled(without_baseline)
    assert (wrong - OPTIMUM).abs().sum().item() / 2 == pytest.approx(0.49, abs=0.01)


# ---------------------------------------------------------------------------------------------------- as a method


def test_what_it_changes():
    assert changed_parts(dpo(), copg(dpo())) == ("buffers", "losses")
    assert copg(dpo()).buffers["pairs"].layout is scored_pairs
    assert changed_parts(rloo(), copg_groups(rloo())) == ("advantage", "losses")
    assert changed_parts(grpo(kl_coefficient=0.0), copg_groups(grpo(kl_coefficient=0.0))) == (
        "transforms",
        "advantage",
        "losses",
    )
    assert list(copg_groups(grpo()).losses["policy"].terms) == ["surrogate"]


def gradient(run, given):
    run.learner.update(given)
    return torch.cat([p.grad.flatten() for p in run.learner.nets.parameters() if p.grad is not None])


def test_a_constant_gap_is_ipo():
    """Rewards that differ by 1/2 for every pair: the gradient is `beta` / 2 times that of IPO with sums over tokens."""
    rows = [{**row, "chosen_reward": 0.5, "rejected_reward": 0.0} for row in texts("pairs")]
    plain = {"batch_size": 4, "clip_norm": None, "longest": 5}
    one = run_of(copg(dpo(**plain), beta=0.2), dataset=rows)
    other = run_of(f"{dpo(**plain)}+hinge-link", dataset=rows)
    squared = run_of(_summed_ipo(ipo(tau=0.2, **plain)), dataset=rows)
    given = batches(one)
    found = gradient(one, given)
    expected = 0.1 * gradient(squared, given)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(found, gradient(other, given), atol=1e-3)


def _summed_ipo(algorithm):
    from palaestra.algorithm import rebind
    from palaestra.algorithms.dpo import gain

    return rebind(algorithm, "policy", "preference", amount=gain)


def test_on_policy_without_a_penalty_it_is_rloo():
    """The first gradient after a rollout, with beta near 0: twice that of leave-one-out without a divergence."""
    settings = {"prompts": 4, "answers": 3, "longest": 5, "clip_norm": None}
    base, changed = (
        run_of(a, reward={"length": _lengths}) for a in (rloo(kl_coefficient=0.0, **settings), parse(
            f"{rloo(**settings)}+copg-groups(beta=1e-9)"
        ))
    )  # fmt: skip
    left, right = gradient(base, batches(base)), gradient(changed, batches(changed))
    assert left.abs().max() > 0.01
    assert torch.allclose(2 * left, right, atol=1e-4 * float(left.abs().max()))


def _lengths(rows, answers):
    return [float(len(answer)) + answer.count("1") for answer in answers]


def test_groups_are_not_split():
    run = run_of(copg_groups(parse(textual("grpo"))), micro_batch=2, reward={"length": _lengths})
    whole = run_of(copg_groups(parse(textual("grpo"))), reward={"length": _lengths})
    run.advance()
    whole.advance()
    for left, right in zip(run.learner.nets.parameters(), whole.learner.nets.parameters(), strict=True):
        assert torch.equal(left, right)


def test_it_learns_what_earned_more():
    """Of two answers the one that earned more becomes likelier, whichever is called chosen."""
    rows = [{**row, "chosen_reward": -1.0, "rejected_reward": 1.0} for row in texts("pairs", 8)]
    run = run_of("dpo(lr=3e-3, batch_size=8, longest=5)+copg(beta=0.1)", dataset=rows)
    for _ in range(30):
        run.advance()
    assert float(run.metrics["pairs/margin"].mean()) < -1.0
    assert run.metrics["pairs/reward_gap"].tolist() == [-2.0] * 8


def test_it_fits_pairs_beside_a_reference():
    for unfit in (simpo(), reward_model(), grpo(), parse("bc")):
        with pytest.raises(Unfit, match="copg does not fit"):
            copg(unfit)
    for unfit in (dpo(), reinforce_plus_plus(), parse("bc"), parse("ppo-lm")):
        with pytest.raises(Unfit, match="copg-groups does not fit"):
            copg_groups(unfit)
    with pytest.raises(Conflict, match="hinge-link"):
        copg(hinge_link(dpo()))
    with pytest.raises(ValueError, match="beta is 0"):
        copg(dpo(), beta=0)
    with pytest.raises(ValueError, match="beta is -1"):
        copg_groups(rloo(), beta=-1)


@pytest.mark.parametrize(("value", "what"), [(None, "missing"), ("much", "finite"), (float("nan"), "finite")])
def test_rows_without_rewards(value, what):
    rows = [dict(row) for row in texts("pairs")]
    rows[2]["rejected_reward"] = value
    with pytest.raises(DatasetError, match=f"'rejected_reward', row 3.*{what}"):
        run_of(f"{textual('dpo')}+copg", dataset=rows)
    run_of(textual("dpo"), dataset=rows)  # which does not read them
