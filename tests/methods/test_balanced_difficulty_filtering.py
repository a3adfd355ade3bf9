"""Balanced difficulty filtering: what it keeps, its theory on a bandit that is enumerated, and its neutral element."""

import math

import pytest
import torch

from palaestra.algorithm import Unfit, changed_parts
from palaestra.expression import parse
from palaestra.functional.groups import centred
from tests.parts.texts import begin, run_of
from tests.parts.worlds import small

GRPO = "grpo(prompts=4, answers=4, longest=3, lr=0.01)"
SLUGS = (
    "balanced-difficulty-filtering",
    "mixed-difficulty-filtering",
    "without-easy-prompts",
    "without-hard-prompts",
)


def even(rows, answers):
    """About half of the answers of a model that knows nothing are right."""
    return [float(answer[:1] in ("0", "2", "4", "6", "8")) for answer in answers]


def run(expression, **given):
    return run_of(expression, reward={"even": even}, **given)


def shares(expression, rounds=4):
    """Of right answers to each prompt that is learnt from."""
    one, found = run(expression), []
    for _ in range(rounds):
        columns = one._collected()
        found += columns["reward"].view(4, 4).mean(1).tolist()
    return found


def test_only_the_band_is_learnt_from():
    assert {0.0, 0.25, 0.5, 0.75} <= set(shares(GRPO, 16))
    assert set(shares(f"{GRPO}+balanced-difficulty-filtering")) == {0.25, 0.5, 0.75}
    assert set(shares(f"{GRPO}+balanced-difficulty-filtering(low=0.5, high=0.5, most_draws=99)")) == {0.5}
    assert set(shares(f"{GRPO}+mixed-difficulty-filtering")) == {0.25, 0.5, 0.75}
    assert set(shares(f"{GRPO}+without-easy-prompts(high=0.5)", 16)) == {0.0, 0.25, 0.5}
    assert set(shares(f"{GRPO}+without-hard-prompts(low=0.5)", 16)) <= {0.5, 0.75, 1.0}


def test_where_nothing_is_in_the_band_a_round_ends_all_the_same():
    one = run_of(
        f"{GRPO}+balanced-difficulty-filtering(most_draws=3)", reward={"never": lambda rows, a: [0.0] * len(a)}
    )
    one.advance()
    assert (one.answers, one.told["thrown_away"]) == (3 * 16, 2 * 16)


@pytest.mark.parametrize(
    "method", ["balanced-difficulty-filtering(low=0.0, high=1.0)", "without-easy-prompts(high=1.0)"]
)
@pytest.mark.parametrize("base", [GRPO, "reinforce-plus-plus(prompts=4, answers=4, longest=3, lr=0.01)"])
def test_the_whole_band_is_the_base(base, method):
    plain, changed = run(base), run(f"{base}+{method}")
    for _ in range(3):
        plain.advance()
        changed.advance()
    left, right = (one.learner.nets.state_dict() for one in (plain, changed))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert any(not torch.equal(tensor, begin().model.state_dict()[name]) for name, tensor in _model(left).items())
    assert (plain.told, plain.answers) == (changed.told, changed.answers)


def _model(state):
    return {name.removeprefix("policy.model."): tensor for name, tensor in state.items() if name.startswith("policy.")}


# ---------------------------------------------------------------------------------------------------------- theory


def away(p, beta, answers=1000):
    """KL(pi || pi*) of a uniform policy over `answers` answers, of which `p` are right: all of them enumerated."""
    reward = (torch.arange(answers) < round(p * answers)).double()
    policy = torch.full((answers,), 1 / answers, dtype=torch.float64)
    best = policy * (reward / beta).exp()
    best /= best.sum()
    return float((policy * (policy / best).log()).sum())


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_what_there_is_to_learn_is_the_variance(p):
    """The third cumulant of a Bernoulli is p (1 - p) (1 - 2 p): the ratio to p (1 - p) / (2 beta^2) is
    1 + (1 - 2 p) / (3 beta) + O(1 / beta^2), above 1 for hard prompts and below it for easy ones."""
    beta = 50.0
    ratio = away(p, beta) / (p * (1 - p) / (2 * beta**2))
    assert ratio == pytest.approx(1 + (1 - 2 * p) / (3 * beta), abs=1e-4)


@pytest.mark.parametrize("beta", [0.5, 2.0, 20.0])
def test_there_is_most_to_learn_near_one_half(beta):
    """The derivative by p is 0 at beta - 1 / (exp(1 / beta) - 1)."""
    best = max(range(1, 1000), key=lambda right: away(right / 1000, beta)) / 1000
    assert best == pytest.approx(beta - 1 / math.expm1(1 / beta), abs=0.002)
    if beta == 20:
        assert best == pytest.approx(0.5, abs=0.006)


def test_the_mean_square_of_centred_rewards_is_the_variance():
    reward = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0])  # p = 3/8
    assert float(centred(reward, torch.zeros(8, dtype=torch.int64)).square().mean()) == pytest.approx(3 / 8 * 5 / 8)


# ------------------------------------------------------------------------------------------------------------ misfits


@pytest.mark.parametrize("slug", SLUGS)
def test_what_it_changes(slug):
    for base in ("grpo", "dr-grpo", "dapo", "rloo", "reinforce-plus-plus(answers=8)"):
        assert changed_parts(parse(base), parse(f"{base}+{slug}")) == ("collect",)
        assert parse(str(parse(f"{base}+{slug}"))) == parse(f"{base}+{slug}")


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("base", ["reinforce-plus-plus", "ppo-lm", "sft", small("ppo"), small("td3")])
def test_one_answer_says_nothing_of_a_prompt(slug, base):
    with pytest.raises(Unfit, match=f"{slug} does not fit .* try it on grpo"):
        parse(f"{base}+{slug}")


def test_bands_that_cannot_be():
    with pytest.raises(ValueError, match=r"no share of 2 answers lies between 0\.25 and 0\.45: give more answers"):
        parse("grpo(answers=2)+balanced-difficulty-filtering(high=0.45)")
    with pytest.raises(ValueError, match="give 0 <= low <= high <= 1"):
        parse("grpo+without-easy-prompts(high=1.5)")
    with pytest.raises(ValueError, match="most_draws is 0"):
        parse("grpo+mixed-difficulty-filtering(most_draws=0)")
