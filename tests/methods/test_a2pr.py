"""A2PR: its rows by hand, what the actor's gradient goes through, and td3-bc where there is nothing better to clone."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from palaestra.algorithm import Conflict, Term, replace_term
from palaestra.algorithms.td3 import smoothed_td
from palaestra.algorithms.td3_bc import td3_bc, value_and_cloning
from palaestra.batch import Space, Spec
from palaestra.expression import parse
from palaestra.learner import Learner, generator
from palaestra.loops.offline import Offline
from palaestra.methods.offline.a2pr import (
    CLONING,
    a2pr,
    generated,
    good_actions_error,
    held,
    pessimistic_error,
    value_and_guidance,
)
from palaestra.networks.generative import conditional_vae
from palaestra.optimisers import adam
from tests.parts.worlds import batches, dataset, small, spec

PLAIN = small("td3-bc")
SMALL = "a2pr(generator_hidden=(16, 16))"


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(-1)


def test_the_value_is_fitted_to_the_smallest_of_all_critics():
    nets = {
        "value": lambda obs: obs.squeeze(-1),
        "target_actor": lambda obs: obs,
        "critic": lambda obs, action: torch.cat((action.T, action.T + 1)),
        "target_critic": lambda obs, action: torch.cat((0 * action.T + 0.2, action.T + 5)),
    }
    batch = {
        "obs": column(1.0, 2.0, 3.0),
        "action": column(0.0, 0.0, 0.0),
        "next_obs": column(0.4, -0.4, -0.4),  # and so the next action
        "reward": torch.ones(3, dtype=torch.float64),
        "terminated": torch.tensor([False, False, True]),
    }
    td = partial(smoothed_td, gamma=0.5, target_noise=0.0, target_clip=0.5, regression=None)
    rows, columns = pessimistic_error(nets, batch, td)
    # The smallest is 0.2, of a target critic; -0.4, of an online one; and not asked: y = 1.1, 0.8, 1
    torch.testing.assert_close(rows, torch.tensor([0.1**2, 1.2**2, 2.0**2], dtype=torch.float64))
    assert columns["value"].tolist() == [1.0, 2.0, 3.0]
    assert set(columns) == {"value"}  # priorities stay those of the critics


class FirstCritic:
    """`Q_1(s, a) = 2 a`."""

    def __call__(self, obs, action, first):
        assert first == 1
        return 2 * action.T


def handmade(shift=0.0):
    """The actor does what it sees, and the generator halves an action and adds its noise."""
    return {
        "actor": lambda obs: obs + shift,
        "critic": FirstCritic(),
        "generator": lambda obs, action, noise: (action / 2 + noise, 3 * noise.squeeze(-1)),
    }


def test_the_generator_pays_for_good_actions_alone():
    batch = {
        "obs": column(0.0, 0.0, 0.0),
        "action": column(0.5, 0.5, 0.5),
        "latents_noise": column(0.0, 0.1, 0.1),
        "value": torch.tensor([0.9, 1.1, 1.0]),
    }
    rows, columns = good_actions_error(handmade(), batch, kl_coefficient=0.5)
    # Q = 1, so that the last one is just not good; (0.25 - 0.5)^2, then half of a divergence of 0.3
    torch.testing.assert_close(rows, torch.tensor([0.0625, 0.15, 0.15], dtype=torch.float64))
    torch.testing.assert_close(columns["advantage"].float(), torch.tensor([0.1, -0.1, 0.0]))


CASES = {
    "obs": column(0.4, 0.4, 0.4, 0.0, 0.2),
    "action": column(0.3, 0.1, -0.1, -0.5, 0.3),
    "latents_noise": column(0.0, 0.0, 0.0, 0.0, 0.0),
    "value": torch.tensor([1.0, 0.3, 0.3, 0.0, 0.6]).double(),
}
# mu = obs, made = mu / 2, Q_1 of (made, logged): (0.4, 0.6), (0.4, 0.2), (0.4, -0.2), (0, -1), (0.2, 0.6)
# advantages: both negative; made; made; made, which is as good as V; none, as the logged one is only as good as V


def test_the_target_is_the_better_one_if_it_is_good():
    rows, columns = value_and_guidance(handmade(), CASES, improvement=1.4)
    assert columns["guided"].tolist() == [False, True, True, True, False]
    assert columns["proposed"].tolist() == [False, True, True, True, False]
    # Q_1(s, mu) = 2 mu; its mean size is (0.8 * 3 + 0 + 0.4) / 5 = 0.56, so that lambda is 2.5
    expected = column(-2.0, 0.04 - 2.0, 0.04 - 2.0, 0.0, -1.0).squeeze(-1)
    torch.testing.assert_close(rows, expected)
    logged = {**CASES, "action": column(0.9, 0.9, -0.1, 0.1, 0.31)}
    rows, columns = value_and_guidance(handmade(), logged, improvement=1.4)
    assert columns["guided"].tolist() == [True, True, True, True, True]
    assert columns["proposed"].tolist() == [False, False, True, False, False]
    expected = column(0.25 - 2.0, 0.25 - 2.0, 0.04 - 2.0, 0.01, 0.0121 - 1.0).squeeze(-1)
    torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize(("proposal", "share"), [(generated, 0.5), (held, 1.0)])
def test_the_gradient_goes_through_the_generated_action_or_not(proposal, share):
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    rows, _ = value_and_guidance(handmade(shift), CASES, improvement=1.4, proposal=proposal)
    (gradient,) = torch.autograd.grad(rows.sum(), shift)
    # Two rows are 0.2 away from what is generated, which moves half as fast as they do, and one is 0: of the distance
    # 2 * 2 * 0.2 * share; of the value -lambda * 2 in each of five rows
    assert gradient.item() == pytest.approx(0.8 * share - 2.5 * 2 * 5)


def test_it_comes_between_the_critics_and_the_actor():
    changed = parse(f"{PLAIN}+{SMALL}")
    assert list(changed.losses) == ["critic", "value", "generator", "actor"]
    assert changed.losses["value"].lr == changed.losses["critic"].lr
    nets = Learner(changed, spec("continuous")).nets  # actions have 2 entries
    assert nets["generator"].latents == 4
    assert [layer.out_features for layer in nets["value"].mlp.layers] == [16, 16, 1]  # as the critics of `small`
    assert list(small_losses(updates=1)) == ["loss/critic", "loss/value", "loss/generator"]
    assert list(small_losses(updates=2))[-1] == "loss/actor"


def small_losses(updates):
    learner = Learner(parse(f"{PLAIN}+{SMALL}"), spec("continuous"))
    for n in range(updates):
        metrics, _ = learner.update(batches(PLAIN, "continuous")[n])
    return metrics


def logged_action(nets, b, action):
    return b["action"]


def nothing_better(algorithm):
    """A2PR of which every logged action is good, and none that is generated better."""
    actor = algorithm.losses["actor"]
    term = actor.terms[CLONING]
    own = partial(term.value.func, **{**term.value.keywords, "proposal": logged_action})
    actor = replace(actor, terms={CLONING: replace(term, value=own)})
    low = Term(lambda nets, b: (nets["value"](b["obs"]), {"value": b["reward"] - 1e9}), gives=("value",))
    return replace_term(replace(algorithm, losses={**algorithm.losses, "actor": actor}), "value", "error", low)


def test_it_is_td3_bc_where_nothing_is_better_than_what_is_logged():
    given = batches(PLAIN, "continuous")
    changed = parse(f"{PLAIN}+{SMALL}")
    plain, same, other = (
        Learner(algorithm, spec("continuous")) for algorithm in (parse(PLAIN), nothing_better(changed), changed)
    )
    for n in range(6):
        for learner in (plain, same, other):
            learner.update(given[n % len(given)])
    state = plain.nets.state_dict()
    assert all(torch.equal(value, same.nets.state_dict()[name]) for name, value in state.items())
    assert not all(torch.equal(value, other.nets.state_dict()[name]) for name, value in state.items())


def test_where_nothing_is_good_only_the_value_counts():
    high = {**CASES, "value": CASES["value"] + 100}
    rows, columns = value_and_guidance(handmade(), high, improvement=1.4)
    assert not columns["guided"].any()
    at_itself = value_and_cloning(handmade(), {**high, "action": high["obs"]}, improvement=1.4)
    assert torch.equal(rows, at_itself)


def test_the_generator_makes_the_good_actions_of_a_state():
    """Of two actions in each state the one with the sign of the observation is good: it is what is generated."""
    rng = generator(0, "test")
    obs = torch.where(torch.rand(256, 1, generator=rng) < 0.5, -1.0, 1.0)
    action = torch.where(torch.rand(256, 1, generator=rng) < 0.5, -0.5, 0.5)
    batch = {"obs": obs, "action": action, "value": torch.zeros(256)}
    model = conditional_vae(hidden=(32,))(Spec(Space((1,)), Space((1,))), None)
    nets = {"generator": model, "critic": lambda obs, action, first: (obs * action).T}
    optimiser = adam(list(model.parameters()), 1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        noise = torch.randn(256, model.latents, generator=rng)
        rows, _ = good_actions_error(nets, {**batch, "latents_noise": noise}, kl_coefficient=0.5)
        rows.mean().backward()
        optimiser.step()
    # Asked about either action it makes the good one.
    made = generated(nets, {**batch, "latents_noise": noise}, action)
    assert (made - 0.5 * obs).abs().mean() < 0.05


def test_what_it_takes_to_describe_an_action():
    model = conditional_vae(latents=1, hidden=())(Spec(Space((3,)), Space((2,))), None).double()
    noise = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        bias = model.describe.layers[-1].bias
        bias.copy_(torch.tensor([2.0, 0.0, 0.0, -100.0]))  # means 2 and 0, deviations 1 and, at the limit, e^-4
        model.generate.layers[-1].weight.copy_(torch.eye(5, dtype=torch.float64)[3:])  # z, through tanh
        made, divergence = model(torch.zeros(1, 3).double(), torch.zeros(1, 2).double(), noise)
    # KL of N(2, 1): 2^2 / 2; of N(0, e^-8): 4 + e^-8 / 2 - 1/2; their mean
    assert divergence.item() == pytest.approx((2.0 + 4.0 + 0.5 * 2.718281828459045**-8 - 0.5) / 2)
    torch.testing.assert_close(made, torch.tensor([[3.0, -(2.718281828459045**-4)]], dtype=torch.float64).tanh())


@pytest.mark.parametrize(
    "methods", [f"{SMALL}+stop-regressing", f"stop-regressing+{SMALL}", f"prdc+{SMALL}", f"{SMALL}+prdc"]
)
def test_it_goes_with_others(methods):
    run = Offline(parse(f"{PLAIN}+{methods}"), dataset("continuous"))
    for _ in range(4):
        run.advance()
    run.learner.check_finite()
    assert run.metrics["replay/guided"].any()


def test_the_better_of_the_nearest_and_the_generated_action():
    """With prdc the candidate that was logged is its column, in either order."""
    for methods in (f"prdc+{SMALL}", f"{SMALL}+prdc"):
        term = parse(f"{PLAIN}+{methods}").losses["actor"].terms[CLONING]
        assert term.value.keywords["target"] == "nearest_action"
        assert "nearest_action" in term.needs


def test_what_it_refuses():
    for base in ("td3", "bc", "iql"):
        with pytest.raises(ValueError, match="choose td3-bc"):
            parse(f"{base}+a2pr")
    with pytest.raises(ValueError, match="kl_coefficient is -1"):
        a2pr(td3_bc(), kl_coefficient=-1)
    with pytest.raises(ValueError, match="latents is 0"):
        a2pr(td3_bc(), latents=0)
    with pytest.raises(Conflict, match="'value'"):
        parse("td3-bc+a2pr+a2pr")
    with pytest.raises(Conflict, match="a2pr"):
        replace_term(a2pr(td3_bc()), "actor", CLONING, Term(value_and_cloning))
