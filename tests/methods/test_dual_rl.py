"""Dual RL: its regressions by hand and in one dimension, ReCOIL's rows, targets and shares, what stays as it was."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import tensor

from palaestra.algorithm import Conflict, Nets, Unfit, changed_parts, same
from palaestra.algorithms.bc import bc
from palaestra.algorithms.experience import n_step
from palaestra.algorithms.iql import in_sample_td, iql, iql_discrete
from palaestra.algorithms.td3_bc import td3_bc
from palaestra.algorithms.xql import xql
from palaestra.data.mixture import sample
from palaestra.expression import parse
from palaestra.functional.regressions import chi_squared_regression, gumbel_regression, total_variation_regression
from palaestra.learner import Learner
from palaestra.loops.offline import Offline
from palaestra.loops.online import Online
from palaestra.methods.offline.dual_rl import (
    demonstrated,
    dual_rl,
    dual_rl_total_variation,
    each_of_anybodys,
    expert_is_best,
    recoil,
)
from tests.algorithms.test_iql import SETTINGS, bandit, solved, value
from tests.algorithms.test_neutral import after, assert_not_same, assert_same
from tests.algorithms.test_numbers import CRITIC, ONE, close, doubles, linear, made, q
from tests.parts.worlds import batches, dataset, make, small, spec

TINY = {"hidden": (16, 16)}
BASES = [(iql, "continuous"), (iql_discrete, "discrete"), (xql, "continuous")]
DIVERGENCES = [dual_rl, dual_rl_total_variation]

# ------------------------------------------------------------------------------------------------- the regressions


def test_total_variation():
    # 0.8 * 3 - 0.2 * 3;   0.2 * 2;   0
    close(total_variation_regression(doubles(3.0, -2.0, 0.0), 0.8), 1.8, 0.4, 0.0)


def test_chi_squared():
    # 0.7 * (3 + 9/4) - 0.3 * 3;   0.3 * 2, of -6 as of -2: no square on that side;   0
    close(chi_squared_regression(doubles(3.0, -2.0, -6.0, 0.0), 0.7), 3.675 - 0.9, 0.6, 1.8, 0.0)


def test_the_authors_form_of_chi_squared_is_the_same_above_minus_four():
    x = torch.linspace(-4, 20, 97, dtype=torch.float64)
    theirs = 0.7 * (x + x.square() / 4).clamp(min=0.0) - 0.3 * x
    torch.testing.assert_close(chi_squared_regression(x, 0.7), theirs)


def test_total_variation_is_quantile_regression():
    x = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    quantile = (2 * 0.8 - 1) / 0.8
    torch.testing.assert_close(
        total_variation_regression(x, 0.8), 0.8 * torch.where(x > 0, quantile * x, (quantile - 1) * x)
    )


def test_of_small_errors_chi_squared_is_total_variation():
    x = 1e-6 * torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(chi_squared_regression(x, 0.8), total_variation_regression(x, 0.8), rtol=1e-5, atol=0)


def gradient(error, regression):
    error = error.clone().requires_grad_()
    regression(error).sum().backward()
    return error.grad


def fitted(targets, regression):
    """The number whose regression on `targets` is least: where the gradient changes its sign, by bisection."""
    low, high = targets.min().item() - 20, targets.max().item() + 1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gradient(targets - middle, regression).sum() > 0 else (low, middle)
    return (low + high) / 2


# A standard normal distribution by its quantiles in the middle of 100,000 equal parts.
NORMAL = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)


def density(v):
    return math.exp(-v * v / 2) / math.sqrt(2 * math.pi)


def above(v):
    """P(x > v)"""
    return math.erfc(v / math.sqrt(2)) / 2


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.6, -0.430727), (2 / 3, 0.0), (0.8, 0.674490), (10 / 11, 1.281552)],  # 1/3, 1/2, 3/4 and 9/10 lie below
)
def test_total_variation_fits_a_quantile(share, expected):
    assert fitted(NORMAL, partial(total_variation_regression, share=share)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.5, 0.7, 0.9, 0.99])
def test_chi_squared_fits_its_fixed_point(share):
    """`E[(1 + x / 2) 1{x > 0}]`, `x = q - v`, of a normal q is `(1 - v / 2) P(q > v) + density(v) / 2`."""
    v = fitted(NORMAL, partial(chi_squared_regression, share=share))
    assert (1 - v / 2) * above(v) + density(v) / 2 == pytest.approx((1 - share) / share, abs=2e-4)


def test_a_larger_share_fits_a_larger_value_up_to_the_largest():
    for regression, shares in (
        (total_variation_regression, (0.501, 0.6, 0.8, 0.95, 0.99999)),
        (chi_squared_regression, (0.1, 0.3, 0.5, 0.8, 0.95, 0.99999)),
    ):
        found = [fitted(doubles(0.0, 1.0, 3.0, 4.0), partial(regression, share=share)) for share in shares]
        assert found == sorted(found)
        assert found[-1] == pytest.approx(4.0, abs=1e-2)
    half = [fitted(NORMAL, partial(chi_squared_regression, share=share)) for share in (0.3, 0.5, 0.7, 0.9)]
    assert all(left + 0.1 < right for left, right in pairwise(half))


def test_one_outlier_has_a_bounded_pull():
    """Where it is 50 above, total variation counts 0.6, chi-squared 0.7 (1 + 25) - 0.3, and an exponential e^50."""
    far = tensor([50.0, 0.5])
    assert gradient(far, partial(total_variation_regression, share=0.8)).tolist() == pytest.approx([0.6, 0.6])
    assert gradient(far, partial(chi_squared_regression, share=0.7)).tolist() == pytest.approx([17.9, 0.575])
    assert not (2 * far).exp().isfinite().all()  # of Gumbel regression without its shift, at a temperature of a half
    near = gradient(2 * far, partial(gumbel_regression, max_clip=torch.inf))[1]
    assert near.abs() < 1e-40  # and with it, nothing is left to the other row


# ---------------------------------------------------------------------------------------------------------- f-DVL


@pytest.mark.parametrize("method", DIVERGENCES)
@pytest.mark.parametrize(("base", "world"), BASES)
def test_it_changes_what_v_is_fitted_by_and_nothing_else(base, world, method):
    plain, changed = base(**TINY), method(base(**TINY))
    assert changed_parts(plain, changed) == ("losses",)
    assert [name for name in plain.losses if not same(plain.losses[name], changed.losses[name])] == ["value"]
    given = batches(small(base.__name__.replace("_", "-")), world)
    assert_not_same(after(changed, world, given), after(plain, world, given))


@pytest.mark.parametrize("base", [iql, xql])
def test_the_base_comes_back_with_its_own_regression(base):
    """The neutral element: there is no share with which one divergence is another."""
    plain = base(**TINY)
    term, own = dual_rl(plain).losses["value"].terms["in_sample"], plain.losses["value"].terms["in_sample"]
    back = replace(term, value=partial(term.value, value_loss=own.value.keywords["value_loss"]), gives=own.gives)
    loss = replace(plain.losses["value"], terms={"in_sample": replace(back, across_rows=own.across_rows)})
    given = batches(small(base.__name__), "continuous")
    restored = replace(plain, losses={**plain.losses, "value": loss})
    assert_same(after(restored, "continuous", given), after(plain, "continuous", given))


def test_a_bandit():
    """Two actions that pay 10 and 0, as often logged.

    Chi-squared with 0.3: `(1 + (10 - V) / 2) / 2 = 7/3`, so that V is 10 - 22/3. Total variation with 0.8: three
    quarters lie below 10 alone.
    """
    batch = bandit(ONE, [0.5, -0.5], [10.0, 0.0], [16, 16])
    settings = {**SETTINGS, "sharpness": 0.8}
    found, said, _ = solved(dual_rl(iql(**settings), upward_share=0.3), ONE, batch, 1_000)
    assert found == pytest.approx(10 - 22 / 3, abs=0.1)
    assert said.mean.item() == pytest.approx(0.5, abs=0.03)
    found, _, _ = solved(dual_rl_total_variation(xql(**settings)), ONE, batch, 1_500)
    assert found == pytest.approx(10.0, abs=0.2)


@pytest.mark.parametrize("share", [1.0, 1.5, 0.0, -0.2])
@pytest.mark.parametrize("method", ["dual-rl", "dual-rl-total-variation"])
def test_shares_that_do_not_pull_both_ways(method, share):
    pulls = "nothing pulls V down" if share >= 1 else "nothing holds V up"
    with pytest.raises(ValueError, match=rf"upward_share is {share}, with which {pulls}: choose it between"):
        parse(f"xql+{method}(upward_share={share})")


def test_half_is_too_little_for_total_variation_alone():
    with pytest.raises(ValueError, match=r"upward_share is 0.5, .* between 0.5 and 1"):
        dual_rl_total_variation(xql(), upward_share=0.5)
    dual_rl(xql(), upward_share=0.5)


def test_v_has_one_regression():
    with pytest.raises(Conflict, match="dual-rl-total-variation and dual-rl both set"):
        dual_rl_total_variation(dual_rl(iql()))


@pytest.mark.parametrize("method", [*DIVERGENCES, recoil])
def test_bases_without_v(method):
    for base in (bc(), td3_bc()):
        with pytest.raises(ValueError, match="choose iql or xql"):
            method(base)


# --------------------------------------------------------------------------------------------------------- ReCOIL

# Four rows: the expert's, the expert's last of all, another's, another's last of all.
FOUR = {
    "obs": doubles(0.5, 0.5, 0.5, -1.0)[:, None],
    "action": doubles(0.2, 0.2, 0.2, 0.8)[:, None],
    "next_obs": doubles(2.0, 2.0, 2.0, 3.0)[:, None],
    "reward": doubles(7.0, 7.0, 7.0, 7.0),
    "expert": tensor([True, True, False, False]),
    "terminated": tensor([False, True, False, True]),
    "weight": torch.ones(4, dtype=torch.float64),
}


def test_targets():
    """With a discount of 3/4 and a cost of 2 the worth is 8: V(s') is 0.6 where s' is 2."""
    nets = made(critic=linear(CRITIC), value=value)
    b = expert_is_best(nets, FOUR, None, step_cost=2.0, gamma=0.75)
    rows, columns = in_sample_td(nets, b, 0.75)
    targets = [8.0, 8.0, -2.0 + 0.75 * 0.6, -8.0]
    said = [q(CRITIC, 0.5, 0.2)] * 3 + [q(CRITIC, -1.0, 0.8)]
    expected = [sum((v - target) ** 2 for v in own) for own, target in zip(said, targets, strict=True)]
    assert rows.tolist() == pytest.approx(expected, rel=1e-6)
    assert columns["error"].tolist() == pytest.approx([abs(v[0] - t) for v, t in zip(said, targets, strict=True)])
    silent = expert_is_best(nets, {**FOUR, "reward": doubles(*[math.nan] * 4)}, None, step_cost=2.0, gamma=0.75)
    assert torch.equal(silent["reward"], b["reward"])


def test_v_is_fitted_to_anybodys_rows_alone():
    assert each_of_anybodys(FOUR).tolist() == [0.0, 0.0, 0.5, 0.5]
    for base, world in BASES:
        changed = recoil(base(**TINY))
        b = batches(str(changed), world)[0]["replay"]
        learners = [Learner(changed, spec(world)) for _ in range(2)]
        other = {**b, "action": torch.where(b["expert"].view(-1, *[1] * (b["action"].dim() - 1)), 0, b["action"])}
        (metrics, _), (again, _) = (
            one.update({"replay": rows}) for one, rows in zip(learners, (b, other), strict=True)
        )
        assert metrics["loss/actor"] != again["loss/actor"]
        if base is not xql:  # whose shift is the whole batch's: it moves no minimum
            assert metrics["loss/value"] == again["loss/value"]


def test_half_of_a_batch_is_the_experts():
    run = Offline(recoil(iql(**TINY)), dataset("continuous"), (0, 1))
    clock = run.learner.clock
    drawn = sample(run.replays, "replay", 400, run.drawing, clock)
    assert torch.equal(drawn["expert"], (torch.arange(400) >= 200).expand(2, 400))
    data = dataset("continuous")
    best = int(data.returns().argmax())
    begin, length = int(data.first[best]), int(data.lengths[best])
    own = drawn["index"][drawn["expert"]]
    assert set(own.tolist()) == set(range(begin, begin + length))
    others = drawn["index"][~drawn["expert"]]
    assert len(others.unique()) > data.steps / 2
    assert ((others >= begin) & (others < begin + length)).any()  # all rows, the expert's among them


def marked(flags, world="continuous", **columns):
    """The dataset with a column "expert" of its own: whole episodes."""
    data = dataset(world)
    expert = np.repeat(np.isin(np.arange(data.episodes), flags), data.lengths + 1)
    return replace(data, columns={**data.columns, "expert": expert, **columns})


def test_the_dataset_says_who_is_the_expert_and_rewards_say_nothing():
    silent = np.full(dataset("continuous").slots, np.nan, np.float32)
    data = marked([3, 7], reward=silent)
    run = Offline(recoil(iql(**TINY)), data)
    drawn = run.replays["expert"].sample(200, run.drawing, run.learner.clock)
    rows = [set(range(int(data.first[i]), int(data.first[i] + data.lengths[i]))) for i in (3, 7)]
    assert set(drawn["index"].tolist()) == rows[0] | rows[1]
    for _ in range(3):
        run.advance()
    run.learner.check_finite()


def test_the_best_are_the_experts_where_nobody_is_named():
    columns = {
        "first": tensor([True, False, False, True, False, True, False, False]),
        "valid": tensor([True, True, False, True, False, True, True, False]),
        "reward": tensor([1.0, 1.0, 0.0, 5.0, 0.0, 1.0, 2.0, 0.0]),
    }
    nets = Nets(ONE)
    for count, expected in ((1, [0, 0, 0, 1, 1, 0, 0, 0]), (2, [0, 0, 0, 1, 1, 1, 1, 1]), (9, [1] * 8)):
        assert demonstrated(nets, columns, None, count)["expert"].tolist() == list(map(bool, expected))
    own = demonstrated(nets, {**columns, "expert": tensor([0, 1, 0, 0, 0, 0, 0, 0])}, None, 1)["expert"]
    assert own.dtype == torch.bool
    assert own.nonzero().tolist() == [[1]]
    for nobody in (torch.zeros(8), torch.nn.functional.one_hot(tensor(2), 8)):  # nobody, or a final observation
        with pytest.raises(ValueError, match="'expert' marks no step"):
            demonstrated(nets, {**columns, "expert": nobody}, None, 1)


@pytest.mark.parametrize(("base", "world"), BASES)
def test_without_expert_rows_it_is_the_base_where_each_step_costs(base, world):
    """And where what ends is paid what the cost forever is worth."""
    given = [
        {"replay": {**batch["replay"], "expert": torch.zeros(len(batch["replay"]["reward"]), dtype=torch.bool)}}
        for batch in batches(small(base.__name__.replace("_", "-")), world)
    ]
    costly = [{"replay": {**b["replay"], "reward": torch.where(b["replay"]["terminated"], -8.0, -2.0)}} for b in given]
    settings = {**TINY, "gamma": 0.75}
    plain = after(base(**settings), world, costly)
    assert_same(after(recoil(base(**settings)), world, given), plain)
    assert_not_same(after(recoil(base(**settings), step_cost=1.0), world, given), plain)


def test_it_prefers_the_experts_actions_and_what_leads_to_the_expert():
    """Two states; the expert is in the second, where its action is 0.5.

    From the first, 0.5 leads there and -0.5 stays: `Q = -1 + V / 2` of the state behind. In the second the expert's
    action is worth 1 / (1 - 1/2) = 2, and the other, which leads back, less. Rows are as many of each kind.
    """
    first, second = [1.0, 0.0], [0.0, 1.0]
    rows = [  # s, a, s', expert
        (first, 0.5, second, False), (first, -0.5, first, False),
        (second, 0.5, second, False), (second, -0.5, first, False), (second, 0.5, second, True),
    ]  # fmt: skip
    s, a, behind, expert = (tensor(column).float() for column in zip(*(rows[:4] * 16 + rows[4:] * 64), strict=True))
    no = torch.zeros(len(a), dtype=torch.bool)
    batch = {"obs": s, "action": a[:, None], "next_obs": behind, "reward": torch.zeros(len(a)), "expert": expert.bool()}
    batch |= {"terminated": no, "truncated": no}
    two = replace(ONE, obs=replace(ONE.obs, shape=(2,)))
    learner = Learner(recoil(iql(**SETTINGS, gamma=0.5, expectile=0.9, sharpness=5.0), step_cost=1.0), two)
    for _ in range(500):
        learner.update({"replay": batch})
    said = learner.nets["actor"](tensor([first, second])).mean
    assert said.squeeze(-1).tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    v = learner.nets["value"](tensor([first, second]))
    assert -2 < v[0] < v[1] < 2


def test_what_it_does_not_fit():
    with pytest.raises(Conflict, match=r"n-step and recoil both set buffers\.replay\.layout"):
        n_step(recoil(iql()))
    with pytest.raises(Conflict, match=r"recoil and n-step both set buffers\.replay\.layout"):
        recoil(n_step(iql()))
    with pytest.raises(ValueError, match="recoil does not fit gamma=1"):
        recoil(iql(gamma=1.0))
    with pytest.raises(Unfit, match="reads expert, which only a dataset has"):
        Online(recoil(iql(**TINY)), make("continuous"))
    for wrong in ("demonstrations=0", "step_cost=0.0"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            parse(f"iql+recoil({wrong})")


@pytest.mark.parametrize("order", ["dual-rl+recoil", "recoil+dual-rl", "recoil+dual-rl-total-variation"])
def test_both_together(order):
    run = Offline(parse(f"xql(hidden=(16,))+{order}"), dataset("continuous"))
    for _ in range(3):
        run.advance()
    run.learner.check_finite()
    term = run.algorithm.losses["value"].terms["in_sample"]
    assert (term.share, term.needs, term.across_rows) == (each_of_anybodys, ("expert",), False)
