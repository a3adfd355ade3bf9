"""f-DPG: what is measured of the target by hand, on a table of sentences, and beside rloo."""

import copy
import math

import pytest
import torch

from palaestra.algorithm import Conflict, Unfit, changed_parts
from palaestra.algorithms.grpo import penalised_leave_one_out
from palaestra.expression import parse
from palaestra.functional import divergences
from palaestra.methods.language.f_dpg import (
    LEAST,
    TARGET,
    Target,
    f_dpg,
    f_dpg_reverse_kl,
    pointwise_constraint,
    pseudo_rewarded,
)
from tests.parts.texts import batches, run_of, textual

BASE = textual("rloo")
REWARDS = {
    "f-dpg": divergences.jensen_shannon_reward,
    "f-dpg-forward-kl": divergences.forward_kl_reward,
    "f-dpg-reverse-kl": divergences.reverse_kl_reward,
    "f-dpg-total-variation": divergences.total_variation_reward,
}


def lengths(rows, answers):
    return [float(len(answer)) for answer in answers]


def ones(rows, answers):
    return [1.0] * len(answers)


def test_z_and_the_baseline_by_hand():
    target = Target(window=2)
    assert target.weigh(torch.tensor([0.0, math.log(3)])).exp().item() == pytest.approx(2)  # (1 + 3) / 2
    assert target.remember(torch.tensor([4.0, 6.0])).item() == pytest.approx(5)
    assert target.weigh(torch.tensor([math.log(5)])).exp().item() == pytest.approx(3)  # (1 + 3 + 5) / 3
    assert target.remember(torch.tensor([1.0])).item() == pytest.approx(3.5)  # of 6 and 1
    assert target.weigh(torch.tensor([1000.0])).item() == pytest.approx(1000 - math.log(4))  # e^1000 is no float


def test_fewer_answers_than_the_window():
    target = Target(window=10)
    target.weigh(torch.zeros(2))
    assert target.remember(torch.tensor([4.0, 6.0])).item() == pytest.approx(5)


def rows():
    """Two answers of two tokens after a prompt of one, whose entry counts for nothing."""
    return {
        "answer": torch.tensor([[False, True, True]] * 2),
        "reference_logp": torch.tensor([[9.0, -1.0, -1.0], [9.0, -2.0, -1.0]]),
        "sampled_logp": torch.tensor([[7.0, -1.0, -1.0 - math.log(2)], [7.0, -1.0, -2.0]]),
        "reward": torch.tensor([0.0, 0.5 * math.log(4)]),
    }


def test_pseudo_rewards_by_hand():
    """P / pi is 2 e^0 and 1 e^(log(4) / 2 / 0.5) = 4, Z is 3, t is 3/2 and 3/4: 1 / t is 2/3 and 4/3, their mean 1."""
    nets = {TARGET: Target(window=8)}
    found = pseudo_rewarded(nets, rows(), None, reward=divergences.forward_kl_reward, beta=0.5)["pseudo_reward"]
    assert found.tolist() == pytest.approx([-1 / 3, 1 / 3], abs=1e-6)


def test_reverse_kl_is_the_penalised_reward():
    """Where all answers are of one group, rloo's advantage is beta n / (n - 1) times ours."""
    beta, n = 0.2, 16
    rng = torch.Generator().manual_seed(0)
    b = {name: -torch.rand(n, 5, generator=rng) for name in ("reference_logp", "sampled_logp")}
    b |= {"answer": torch.rand(n, 5, generator=rng) < 0.8, "group": torch.zeros(n, dtype=torch.long)}
    b["reward"] = torch.randn(n, generator=rng)
    theirs = penalised_leave_one_out({}, b, beta)["advantage"]
    ours = pseudo_rewarded({TARGET: Target(64)}, b, rng, divergences.reverse_kl_reward, beta)["pseudo_reward"]
    torch.testing.assert_close(theirs, beta * n / (n - 1) * ours[:, None] * b["answer"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", [name for name in REWARDS if name != "f-dpg-total-variation"])
def test_at_the_target_there_is_nothing_to_learn(method):
    """The policy is the reference, and all answers are worth the same: t is one. (A sign knows no nearly.)"""
    still, moved = (
        batches(run_of(f"{BASE}+{method}", reward={"given": reward}))["rollout"]["advantage"]
        for reward in (ones, lengths)
    )
    assert still.abs().max() < 1e-4
    assert moved.abs().max() > 1e-2


def test_it_is_rloo_but_for_the_advantage():
    plain, changed = parse(BASE), parse(f"{BASE}+f-dpg")
    assert changed_parts(plain, changed) == ("networks", "transforms", "advantage")
    assert parse(str(changed)) == changed
    # without a reference there was none to weigh answers by
    bare = parse(f"{textual('dr-grpo')}+f-dpg")
    assert [t.gives for t in bare.transforms] == [("reference_logp",), ("pseudo_reward",)]
    one, other = (run_of(f"{BASE}+{order}") for order in ("f-dpg+pointwise-constraint", "pointwise-constraint+f-dpg"))
    assert one.algorithm == other.algorithm


def test_a_constraint_is_a_logarithm():
    run = run_of(f"{BASE}+pointwise-constraint", reward={"given": lambda rows, answers: [0.0, 1.0, 0.5, 0.0] * 2})
    assert batches(run)["rollout"]["reward"].sort().values.tolist() == pytest.approx(
        [LEAST] * 4 + [-math.log(2)] * 2 + [0.0] * 2
    )
    with pytest.raises(ValueError, match="a reward is -1, and a constraint is never below 0"):
        batches(run_of(f"{BASE}+pointwise-constraint", reward={"given": lambda rows, answers: [-1.0] * len(rows)}))


def test_what_was_measured_is_kept():
    whole, first, second = (run_of(f"{BASE}+f-dpg", reward={"given": lengths}) for _ in range(3))
    whole.advance()
    whole.advance()
    first.advance()
    second.load_state_dict(copy.deepcopy(first.state_dict()), {})
    second.advance()
    assert int(second.learner.nets[TARGET].answers) == 2 * 4 * 2
    left, right = (run.learner.nets.state_dict() for run in (whole, second))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("base", "message"),
    [("ppo-lm()", "no critic"), ("dpo()", "no critic"), ("td3()", "no critic"), ("grpo()", "kl_coefficient=0")],
)
def test_misfits(base, message):
    with pytest.raises(Unfit, match=message):
        parse(f"{base}+f-dpg")


def test_errors():
    with pytest.raises(Unfit, match="samples no answers"):
        pointwise_constraint(parse("dpo()"))
    with pytest.raises(ValueError, match="beta is 0; it must be larger than 0"):
        f_dpg(parse(BASE), beta=0)
    with pytest.raises(Conflict, match="'target' exists already"):
        f_dpg_reverse_kl(f_dpg(parse(BASE)))


# -------------------------------------------------------------------------------------------- a table of sentences


def minimised(reward, reference, log_target, features):
    """The policy, reference times e^(features w), that a pseudo-reward leads to: log-probabilities [200]."""
    w = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([w], lr=0.05)
    for _ in range(1_000):
        logp = (reference.log() + features @ w).log_softmax(0)
        found = logp.detach()
        rewards = reward(found - log_target)
        loss = -(found.exp() * (rewards - found.exp() @ rewards)) @ logp  # of all sentences: no chance in it
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return logp.detach()


def test_divergences_disagree_where_the_policy_cannot_be_the_target():
    """200 sentences, 14 of which satisfy a constraint, and a policy with twelve features to tell them apart by.

    Each leads to the policy that is best by its own divergence; reverse KL satisfies most and says least, forward KL
    the other way around, and the two between are nearer to the target. (That order is of this table: Jensen-Shannon has
    local optima, and in others it stays below the total variation.)
    """
    rng = torch.Generator().manual_seed(0)
    reference = 1 / torch.arange(1, 201, dtype=torch.float64)
    reference = (reference / reference.sum())[torch.randperm(200, generator=rng)]
    satisfies = torch.zeros(200, dtype=torch.float64)
    satisfies[torch.randperm(200, generator=rng)[:14]] = 1
    features = torch.randn(200, 12, generator=rng, dtype=torch.float64)
    target = reference * satisfies / (reference @ satisfies)
    log_target = (reference.log() + (satisfies - 1) * -LEAST) - (reference @ satisfies).log()
    found = {name: minimised(r, reference, log_target, features) for name, r in REWARDS.items()}

    def kl(p, log_p, log_q):
        return float((p * (log_p - log_q)).sum())

    def mixed(logp):
        return (0.5 * (logp.exp() + target)).log()

    away = {
        "f-dpg": lambda q: kl(q.exp(), q, mixed(q)) + kl(target, log_target, mixed(q)),
        "f-dpg-forward-kl": lambda q: kl(target, log_target, q),
        "f-dpg-reverse-kl": lambda q: kl(q.exp(), q, log_target),
        "f-dpg-total-variation": lambda q: 0.5 * float((q.exp() - target).abs().sum()),
    }
    for name, divergence in away.items():
        assert min(found, key=lambda other: divergence(found[other])) == name

    def ordered(quantity):
        return [name.removeprefix("f-dpg") for name in sorted(found, key=lambda name: -quantity(found[name]))]

    assert ordered(lambda q: float(q.exp() @ satisfies)) == ["-reverse-kl", "", "-total-variation", "-forward-kl"]
    assert ordered(lambda q: float(-(q.exp() @ q))) == ["-forward-kl", "-total-variation", "", "-reverse-kl"]
    assert set(ordered(away["f-dpg-total-variation"])[2:]) == {"", "-total-variation"}
