"""OREAL: its weights and advantages by hand, whom it learns from, and the two-answer bandit behind its loss."""

import itertools
import math

import pytest
import torch
from torch import tensor

from palaestra.algorithm import Unfit
from palaestra.expression import parse
from palaestra.functional.divergences import k3
from palaestra.methods.language.oreal import (
    chosen,
    credited,
    importance,
    leave_one_out_credit,
    one_of_each,
    outcome,
    reshaped_credit,
)
from tests.parts.texts import batches, run_of, textual

RLOO = textual("rloo")


def doubles(*rows):
    return tensor(rows, dtype=torch.float64)


def test_credit_of_a_group():
    right, group = tensor([True, False, False, False, True, True]), tensor([0, 0, 0, 0, 1, 1])
    # One right of four: 1 - (-1); each wrong one -1 - (1 - 1 - 1) / 3 = -2/3. All right: nothing to tell.
    torch.testing.assert_close(leave_one_out_credit(right, group), tensor([2.0, -2 / 3, -2 / 3, -2 / 3, 0.0, 0.0]))
    assert reshaped_credit(right, group).tolist() == [1.0, -0.75, -0.75, -0.75, 1.0, 1.0]


def test_credit_sums_to_zero_in_each_group():
    right = torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.4
    group = torch.arange(60) % 7
    total = torch.zeros(7).index_add(0, group, leave_one_out_credit(right, group))
    torch.testing.assert_close(total, torch.zeros(7), atol=1e-5, rtol=0)


def test_one_right_and_one_wrong_answer_of_each_mixed_group():
    right = tensor([True, True, False, False, True, True, False, False])
    group = tensor([0, 0, 0, 0, 1, 1, 2, 2])
    noise = tensor([0.1, 0.9, 0.7, 0.2, 0.5, 0.5, 0.5, 0.5])
    assert one_of_each(right, group, noise).nonzero()[:, 0].tolist() == [1, 2]
    assert one_of_each(right, group, 1 - noise).nonzero()[:, 0].tolist() == [0, 3]


def rows(reward, group):
    n = len(reward)
    return {
        "reward": tensor(reward), "group": tensor(group), "ids": torch.arange(3 * n).view(n, 3),
        "answer": tensor([[False, True, True]] * n), "length": torch.full((n,), 3),
    }  # fmt: skip


def test_rows_are_left_out_after_credit_is_given():
    batch = rows([1.0, 0.0, 0.0, 0.0, 1.0, 1.0], [0, 0, 0, 0, 1, 1])
    kept = chosen(None, batch, torch.Generator().manual_seed(0), leave_one_out_credit)
    assert kept["right"].tolist() == [True, False]
    torch.testing.assert_close(kept["credit"], tensor([2.0, -2 / 3]))  # as in the group of four
    columns = credited(None, kept)
    assert columns["correct_answer"].tolist() == [[False, True, True], [False] * 3]
    assert columns["wrong_answer"].tolist() == [[False] * 3, [False, True, True]]
    torch.testing.assert_close(columns["advantage"][1], tensor([0.0, -2 / 3, -2 / 3]))


@pytest.mark.parametrize("credit", [leave_one_out_credit, reshaped_credit])
def test_where_no_group_is_mixed_nothing_is_credited(credit):
    kept = chosen(None, rows([0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1]), torch.Generator(), credit)
    assert (len(kept["ids"]), kept["credit"].tolist()) == (4, [0.0] * 4)


def test_importance_by_hand():
    """Of what is said after each token of the answer, 0, 2 and -5: means of 0, 1 and -1."""
    said, answer = doubles([9.0, 0.0, 2.0, -5.0, 9.0]), tensor([[False, True, True, True, False]])
    surer = 2 / (1 + torch.e**-1) - 1  # 2 sigma(1) - 1 = 0.4621
    right = importance(said, answer, tensor([True]))
    wrong = importance(said, answer, tensor([False]))
    torch.testing.assert_close(right, doubles([0.0, 0.0, surer, 0.0, 0.0]))
    torch.testing.assert_close(wrong, doubles([0.0, 0.0, 0.0, surer, 0.0]))


def test_the_token_reward_model_is_a_classifier_of_means():
    """Means of 0 and of 2: -log sigma(0) for the right answer, -log sigma(-2) for the wrong one."""
    nets = {"token_reward": lambda ids: doubles([7.0, -1.0, 1.0], [7.0, 3.0, 1.0])}
    batch = {"ids": None, "answer": tensor([[False, True, True]] * 2), "right": tensor([True, False])}
    loss, told = outcome(nets, batch)
    torch.testing.assert_close(loss, doubles(torch.log(tensor(2.0)), torch.log1p(doubles(2.0).exp())).flatten())
    assert told["accurate"].tolist() == [0.0, 0.0]


def test_the_right_ones_of_many_are_what_the_best_policy_says():
    """The paper's theorem, which is why right answers are cloned: of the right answers among N of the reference, one
    drawn at random is distributed as the policy that is best where the reference hardly holds it."""
    reference, right, n = [0.1, 0.3, 0.6], [0, 1], 3
    drawn = torch.zeros(3, dtype=torch.float64)
    for answers in itertools.product(range(3), repeat=n):
        found = [a for a in answers if a in right]
        for answer in found:
            drawn[answer] += math.prod(reference[a] for a in answers) / len(found)
    assert drawn.sum().item() == pytest.approx(1 - (1 - 0.4) ** n)  # how often there is one
    best = doubles(reference)[0] * (doubles([1.0, 1.0, 0.0])[0] / 0.02).exp()  # reward / beta
    torch.testing.assert_close(drawn / drawn.sum(), best / best.sum())


# ------------------------------------------------------------------------------------------------------------- runs


def mixed(run):
    """A batch of a run as if the first of every two answers of its rollout had been right."""
    batch = batches(run)["rollout"]
    batch["right"] = torch.arange(len(batch["ids"])) % 2 == 0
    batch["credit"] = torch.where(batch["right"], 1.0, -1.0)
    return {"rollout": {**batch, **credited(None, batch)}}


def test_losses_are_sums_over_right_and_over_wrong_tokens():
    run = run_of(f"{RLOO}+oreal-without-tokens(kl_coefficient=0.5)")
    batch = mixed(run)
    row = batch["rollout"]
    row["reference_logp"] = row["reference_logp"] - 0.3
    policy = run.learner.nets["policy"]
    logp = policy(row["ids"])["logp"].detach()
    right, wrong = row["correct_answer"], row["wrong_answer"]
    assert right.sum() > 0 < wrong.sum()
    metrics, _ = run.learner.update(batch)
    torch.testing.assert_close(metrics["loss/policy/right"], -logp[right].mean())
    torch.testing.assert_close(metrics["loss/policy/wrong"], tensor(0.5))  # its ratio is 1, its advantage -1
    kl = k3(logp - row["reference_logp"])[row["answer"]].mean()
    torch.testing.assert_close(metrics["loss/policy/kl"], 0.5 * kl)


def test_without_wrong_answers_right_ones_are_cloned():
    """The gradient is that of their negative log-likelihood, and so is the step."""
    run = run_of(f"{RLOO}+oreal-without-tokens(negative_coefficient=0.0, kl_coefficient=0.0)")
    assert list(run.algorithm.losses["policy"].terms) == ["right", "wrong"]
    batch = mixed(run)
    row, policy = batch["rollout"], run.learner.nets["policy"]
    (-policy(row["ids"])["logp"][row["correct_answer"]].mean()).backward()
    wanted = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    norm = torch.cat([g.flatten() for g in wanted.values()]).norm()
    run.learner.update(batch)
    scale = (1 / norm).clamp(max=1)  # its gradient is clipped to 1
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, scale * wanted[name], atol=1e-5, rtol=1e-3)


def test_the_policy_waits_for_the_token_reward_model():
    run = run_of(f"{RLOO}+oreal(alone=2, token_reward_lr=0.01)")
    begin = {name: value.clone() for name, value in run.learner.nets["policy"].state_dict().items()}
    for update in range(3):
        metrics, _ = run.learner.update(mixed(run))
        assert ("loss/policy" in metrics) == (update == 2)
        assert "loss/token_reward" in metrics
        policy = run.learner.nets["policy"].state_dict()
        assert all(torch.equal(begin[name], value) for name, value in policy.items()) == (update < 2)


def test_tokens_that_do_not_matter_are_not_learnt_from():
    """A token reward model that says 0 of everything: no importance anywhere, and the policy keeps to itself."""
    run = run_of(f"{RLOO}+oreal(alone=0, kl_coefficient=0.0)")
    head = run.learner.nets["token_reward"].head
    torch.nn.init.zeros_(head.weight)
    metrics, _ = run.learner.update(mixed(run))
    assert metrics["loss/policy"] == 0


def test_a_round():
    run = run_of(f"{RLOO}+oreal(alone=0)")
    for _ in range(2):
        run.advance()
    run.learner.check_finite()
    assert run.told["reward"] == run.told["reward/exact_match"]
    assert run.answers == 16  # all that were collected, whether learnt from or not


def test_the_reference_is_there_where_it_is_asked():
    def given(expression):
        return [name for transform in parse(expression).transforms for name in transform.gives]

    assert "reference_logp" in given("grpo(kl_coefficient=0.0)+oreal")
    assert "reference_logp" not in given("grpo(kl_coefficient=0.0)+oreal(kl_coefficient=0.0)")
    assert given("rloo+oreal").count("reference_logp") == 1


@pytest.mark.parametrize("expression", ["ppo-lm+oreal", "dpo+oreal", "sft+oreal-without-tokens", "rloo+oreal+oreal"])
def test_what_it_does_not_fit(expression):
    with pytest.raises(Unfit, match="rloo and grpo"):
        parse(expression)


@pytest.mark.parametrize(
    "wrong", ["negative_coefficient=-1.0", "kl_coefficient=-0.1", "alone=-1", "token_reward_lr=0.0"]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=wrong.partition("=")[0]):
        parse(f"rloo+oreal({wrong})")
