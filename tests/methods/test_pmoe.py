"""PMOE: its equations by hand, and what they are when there is one expert or when all are one."""

import pytest
import torch

from palaestra.algorithms.sac import sac, soft_td
from palaestra.expression import parse
from palaestra.functional.distributions import categorical_by
from palaestra.learner import Learner, generator
from palaestra.methods.online.pmoe import best_expert, best_expert_improvement, drawn_expert_td, pmoe, routing_error
from tests.parts.worlds import batches, small, spec

PLAIN = small("sac")


def test_a_choice_is_where_the_quantile_falls():
    log_probs = torch.tensor([0.2, 0.3, 0.5]).log().expand(5, 3)
    noise = torch.tensor([-40.0, -1.0, -0.5, 1.0, 40.0])  # quantiles 0, 0.159, 0.309, 0.841, 1; bounds 0.2, 0.5
    assert categorical_by(noise, log_probs).tolist() == [0, 0, 1, 2, 2]


def test_choices_are_as_frequent_as_their_probabilities():
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    noise = torch.randn(40_000, generator=generator(0, "test"))
    counts = torch.bincount(categorical_by(noise, probabilities.log().expand(len(noise), 3)), minlength=3)
    # the standard error of a frequency is at most sqrt(0.24 / 40000) = 0.0025
    assert torch.allclose(counts / len(noise), probabilities, atol=0.01)


def test_a_certain_choice_is_made_whatever_the_noise():
    log_probs = torch.log_softmax(torch.tensor([[-200.0, 0.0, -200.0]]), -1).expand(100, 3)
    assert (categorical_by(torch.randn(100, generator=generator(0, "test")) * 3, log_probs) == 1).all()


def handmade():
    """Two rows, three experts of one action entry, and critics that like actions near the observation."""
    mean = torch.tensor([[[-1.0], [0.0], [1.0]], [[-1.0], [0.0], [1.0]]])
    return {
        "actor": lambda obs: (mean, torch.full_like(mean, -20.0)),
        "critic": lambda obs, action: torch.stack([-(obs - action).abs().sum(-1), 1 - (obs - action).abs().sum(-1)]),
        "entropy_coefficient": lambda: torch.tensor(0.5),
        "router": lambda obs: torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]).log(),
    }


ROWS = {"obs": torch.tensor([[0.7], [-0.1]]), "each_action_noise": torch.zeros(2, 3, 1)}


def test_the_best_expert_has_the_largest_least_value():
    # tanh(1) = 0.762 is nearest to 0.7, tanh(0) = 0 to -0.1
    assert best_expert(handmade(), ROWS).tolist() == [2, 1]


def test_the_actor_pays_the_best_experts_entropy_and_value():
    rows, columns = best_expert_improvement(handmade(), ROWS)
    # At the mean, with std e^-20: log N = 20 - log(2 pi) / 2 = 19.0811, less log(1 - tanh(mean)^2) = -0.8676 or 0
    assert columns["best"].tolist() == [2, 1]
    torch.testing.assert_close(columns["log_prob"], torch.tensor([19.9486, 19.0811]), atol=1e-3, rtol=0)
    torch.testing.assert_close(rows, torch.tensor([9.9743 + 0.0616, 9.5405 + 0.1]), atol=1e-3, rtol=0)


def test_the_router_is_told_who_was_best():
    # ((0.5 - 1)^2 + 0.25^2 + 0.25^2) / 3 = 0.125, and 0 where it was certain and right
    assert routing_error(handmade(), {**ROWS, "best": torch.tensor([0, 1])}).tolist() == [0.125, 0.0]


def test_only_the_best_expert_learns():
    learner = Learner(parse(f"{PLAIN}+pmoe(experts=3)"), spec("continuous"))
    last = learner.nets["actor"].mlp.layers[-1].weight
    before = last.detach().clone()
    batch = {key: value[:1] for key, value in batches(f"{PLAIN}+pmoe(experts=3)", "continuous")[0]["replay"].items()}
    _, columns = learner.update({"replay": batch})
    best = columns["replay"]["best"].item()
    moved = (last - before).abs().sum(-1).view(2, 3, 2).sum((0, 2)) > 0  # mean and log std, experts, entries
    assert moved.tolist() == [expert == best for expert in range(3)]


def test_of_equal_experts_it_does_not_matter_who_is_drawn():
    """The critic's target is then exactly sac's, whatever the router says."""
    one, three = (
        Learner(sac(hidden=(16, 16)), spec("continuous")),
        Learner(pmoe(sac(hidden=(16, 16)), experts=3), spec("continuous")),
    )
    state = one.nets.state_dict()
    for name in ("weight", "bias"):  # the rows of the last layer: [2 * A, ...] -> [2 * K * A, ...]
        whole = state[f"actor.mlp.layers.2.{name}"]
        state[f"actor.mlp.layers.2.{name}"] = torch.cat(
            [half.repeat(3, *[1] * (half.dim() - 1)) for half in whole.chunk(2)]
        )
    three.nets.load_state_dict(state, strict=False)
    batch = dict(batches(PLAIN, "continuous")[0]["replay"])
    batch["action_noise"] = torch.randn(batch["action"].shape, generator=generator(0, "test"))
    rows, _ = soft_td(one.nets, batch, 0.9)
    for noise in (-40.0, 0.0, 40.0):
        drawn, _ = drawn_expert_td(three.nets, {**batch, "weight_noise": torch.full((len(rows),), noise)}, 0.9)
        torch.testing.assert_close(drawn, rows)


def test_the_likeliest_expert_is_deployed():
    algorithm = parse(f"{PLAIN}+pmoe(experts=3)")
    learner = Learner(algorithm, spec("continuous"))
    obs = torch.randn(8, 5, generator=generator(0, "test"))
    with torch.no_grad():
        learner.nets["router"].mlp.layers[0].bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
        action, _, _ = learner.deployed()(learner.nets, obs, None, None)
        mean, _ = learner.nets["actor"](obs)
        assert torch.equal(action, mean[:, 2].tanh())
        rng = generator(0, "test")
        drawn = torch.stack([learner.policy()(learner.nets, obs, None, rng)[0] for _ in range(2)])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("base", ["td3", "sac-discrete", "ppo"])
def test_it_fits_sac_alone(base):
    with pytest.raises(ValueError, match="pmoe does not fit"):
        parse(f"{base}+pmoe")


def test_there_is_an_expert():
    with pytest.raises(ValueError, match="experts is 0; it must be larger than 0"):
        parse("sac+pmoe(experts=0)")
