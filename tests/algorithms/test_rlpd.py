"""The subset's minimum, the critics' mean, the norms, the two clocks, and sac where all of them are taken away."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn, tensor

from palaestra.algorithm import Nets
from palaestra.algorithms.rlpd import draw_subset, half_entropy_gap, mean_improvement, normalised, rlpd, subset_td
from palaestra.algorithms.sac import sac
from palaestra.batch import Space, Spec
from palaestra.data import mixture
from palaestra.data.dataset import from_episodes
from palaestra.data.replay import Replay
from palaestra.functional.distributions import tanh_normal
from palaestra.learner import Learner
from palaestra.loops.online import Online
from palaestra.networks.critics import Fixed, Positive
from tests.algorithms.test_identity import Match, copies
from tests.parts.worlds import batches, dataset, make, small, spec

TINY = {"hidden": (16, 16)}
ONE = Spec(Space((1,)), Space((1,)))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs, **options):
        return self.function(*inputs, **options)


def standing(*values):
    """Nets whose critics say these numbers, whatever they are asked; the coefficient is 0.5."""
    nets = Nets(ONE)
    nets["actor"] = Function(lambda obs: (torch.zeros_like(obs), torch.zeros_like(obs)))
    constant = Function(lambda obs, action: tensor(values)[:, None].expand(-1, len(obs)))
    nets["critic"] = nets["target_critic"] = constant
    nets["entropy_coefficient"] = Fixed(0.5)
    return nets


def rows(**columns):
    two = {"obs": torch.zeros(2, 1), "next_obs": torch.zeros(2, 1), "action": torch.zeros(2, 1)}
    two |= {"reward": tensor([1.0, 2.0]), "terminated": tensor([False, True])}
    return {**two, "action_noise": torch.full((2, 1), 0.3), **columns}


def test_the_target_is_the_least_of_those_who_are_asked():
    """y = 1 + 0.9 (least - 0.5 log pi) and 2; the losses of 10, 20 and 30 add up."""
    log_prob = tanh_normal(torch.zeros(1), torch.zeros(1), tensor([0.3]))[1].item()
    for asked, least in (([0, 1], 10.0), ([1, 2], 20.0), ([2, 1], 20.0), ([2], 30.0)):
        given = rows(asked=tensor([asked, asked]))
        for entropy, kept in ((True, 0.5 * log_prob), (False, 0.0)):
            y = (1 + 0.9 * (least - kept), 2.0)
            found, columns = subset_td(standing(10.0, 20.0, 30.0), given, 0.9, entropy_backup=entropy)
            assert found.tolist() == pytest.approx([sum((q - one) ** 2 for q in (10, 20, 30)) for one in y], rel=1e-5)
            assert columns["error"].tolist() == pytest.approx([abs(10 - one) for one in y], rel=1e-5)


def test_the_actor_climbs_the_mean():
    log_prob = tanh_normal(torch.zeros(1), torch.zeros(1), tensor([0.3]))[1].item()
    found, _ = mean_improvement(standing(10.0, 20.0, 60.0), rows())
    assert found.tolist() == pytest.approx([0.5 * log_prob - 30.0] * 2)


def test_the_entropys_target_is_half_of_the_actions():
    nets = Nets(Spec(Space((1,)), Space((3,))))
    nets["entropy_coefficient"] = Positive(2.0)
    log = nets["entropy_coefficient"].log.item()
    given = {"log_prob": tensor([0.25])}
    assert half_entropy_gap(nets, given, None).item() == pytest.approx(-log * (0.25 - 1.5))
    assert half_entropy_gap(nets, given, 4.0).item() == pytest.approx(-log * 4.25)


def test_the_subset_is_drawn_without_replacement_and_from_all():
    rng = torch.Generator().manual_seed(0)
    drawn = [draw_subset(None, rows(), rng, critics=5, subset=2)["asked"] for _ in range(1_000)]
    assert all(asked.shape == (2, 2) and torch.equal(asked[0], asked[1]) for asked in drawn)
    members = torch.stack([asked[0] for asked in drawn])
    assert (members[:, 0] != members[:, 1]).all()
    counts = torch.bincount(members.flatten(), minlength=5)
    assert (counts - 400).abs().max() < 5 * (1_000 * 0.4 * 0.6) ** 0.5  # five deviations of a binomial
    everyone = draw_subset(None, rows(), rng, critics=5, subset=5)["asked"][0]
    assert sorted(everyone.tolist()) == [0, 1, 2, 3, 4]


def test_a_normalised_layer_by_hand():
    """[1, 3] has mean 2 and deviation 1."""
    assert normalised(tensor([[1.0, 3.0]]), "relu").tolist()[0] == pytest.approx([0.0, 1.0], abs=1e-4)
    assert normalised(tensor([[1.0, 3.0]]), "tanh").tolist()[0] == pytest.approx([-0.76159, 0.76159], abs=1e-4)


def test_values_are_bounded_whatever_action_they_are_of():
    """|Q| <= |w| sqrt(units) + |b|: a normalised layer's numbers have length sqrt(units) at most. sac's are not."""
    for algorithm, bounded in ((rlpd(**TINY), True), (sac(**TINY), False)):
        critic = Learner(algorithm, spec("continuous")).nets["critic"]
        far = critic(torch.zeros(1, 5), torch.full((1, 2), 1e6)).squeeze(1)
        weight, bias = critic.mlp.weights[-1], critic.mlp.biases[-1]
        bound = weight.flatten(1).norm(dim=1) * 16**0.5 + bias.flatten().abs()
        assert (far.abs() <= bound).all() == bounded


def test_the_actor_is_sacs():
    own, plain = (Learner(a, spec("continuous")).nets["actor"] for a in (rlpd(**TINY), sac(**TINY)))
    assert all(torch.equal(left, right) for left, right in zip(own.parameters(), plain.parameters(), strict=True))
    obs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(own(obs)[0], plain(obs)[0])


def given():
    return batches(small("sac"), "continuous")


def after(algorithm, updates):
    learner = Learner(algorithm, spec("continuous"))
    for n in range(updates):
        learner.update({"replay": given()[n % 4]["replay"]})
    return learner.nets.state_dict()


def differing(one, other):
    return {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}


def test_without_its_ideas_it_is_sac():
    """One critic that is not normalised, one update of all, and sac's target entropy: to the last bit."""
    plain = sac(**TINY, critics=1)
    bare = rlpd(**TINY, critics=1, subset=1, critic_updates=1, target_entropy=-2.0)
    bare = replace(bare, networks=plain.networks)
    assert not differing(after(bare, 6), after(plain, 6))
    for change in (rlpd(**TINY, critics=1, subset=1, critic_updates=1), rlpd(**TINY, critics=1, subset=1)):
        changed = replace(change, networks=plain.networks)
        assert differing(after(changed, 6), after(plain, 6))


def test_two_critics_who_are_both_asked_have_sacs_targets():
    """Their order does not matter. The actor's mean is not sac's minimum: it stands still here."""
    plain = sac(**TINY, critics=2)
    both = replace(rlpd(**TINY, critics=2, subset=2), networks=plain.networks)
    still = replace(plain, losses={"critic": plain.losses["critic"]})
    assert not differing(after(both, 6), after(still, 6))
    one = replace(rlpd(**TINY, critics=2, subset=1), networks=plain.networks)
    assert differing(after(one, 6), after(still, 6)) == {"critic", "target_critic"}


def test_critics_learn_more_often_than_the_actor():
    learner = Learner(rlpd(**TINY, critic_updates=3), spec("continuous"))
    moved = []
    for n in range(7):
        before = {name: value.clone() for name, value in learner.nets.state_dict().items()}
        learner.update({"replay": given()[n % 4]["replay"]})
        moved.append(differing(learner.nets.state_dict(), before) - {"clock"})
    often, all_of_them = {"critic", "target_critic"}, {"critic", "target_critic", "actor", "entropy_coefficient"}
    assert moved == [often, often, all_of_them, often, often, all_of_them, often]


def test_half_of_a_batch_is_logged():
    """Both replays filled by hand: what was collected pays 1, what was logged pays -1."""
    algorithm = rlpd(**TINY, capacity=100)
    replays = {name: Replay(buffer) for name, buffer in algorithm.buffers.items()}
    for name, reward in (("replay", 1.0), ("dataset", -1.0)):
        zeros = {key: torch.zeros(20, 1, size) for key, size in (("obs", 5), ("next_obs", 5), ("action", 2))}
        flags = {key: torch.zeros(20, 1, dtype=torch.bool) for key in ("terminated", "truncated", "first")}
        valid = torch.ones(20, 1, dtype=torch.bool)
        replays[name].insert({**zeros, **flags, "valid": valid, "reward": torch.full((20, 1), reward)})
    learner = Learner(algorithm, spec("continuous"))
    batch = mixture.sample(replays, "replay", 256, torch.Generator().manual_seed(0), learner.clock)
    assert (batch["reward"] == 1).sum() == (batch["reward"] == -1).sum() == 128
    metrics, _ = learner.update({"replay": batch})
    assert metrics["loss/critic"].isfinite()


def test_it_learns_beside_a_dataset_that_stays_as_it_is():
    algorithm = rlpd(**TINY, start=10, batch_size=8, critic_updates=4, critics=3)
    run = Online(algorithm, make("continuous", 1), dataset=dataset("continuous"))
    while run.env_steps < 20:
        run.advance()
    assert run.learner.updates == 40  # four for each of the ten steps after the start
    assert {"loss/critic", "loss/actor", "loss/entropy_coefficient"} <= run.metrics.keys()
    assert run.replays["replay"].rows[0] == 20
    assert run.replays["dataset"].rows[0] == dataset("continuous").steps


def test_match():
    """The identity world, as every base is tried in it, beside 200 logged steps: a random action is paid -2/3."""
    rng = np.random.default_rng(0)
    episodes = []
    for obs, action in zip(*rng.uniform(-1, 1, (2, 200, 1, 1)).astype(np.float32), strict=True):
        flags = {"terminated": np.ones(1, bool), "truncated": np.zeros(1, bool)}
        reward = -np.square(action - obs)[:, 0]
        episodes.append({"obs": np.concatenate((obs, obs)), "action": action, "reward": reward, **flags})
    logged = from_episodes(episodes, Match.observation_space, Match.action_space)
    settings = {"hidden": (32, 32), "lr": 3e-3, "gamma": 0.5, "tau": 0.1, "batch_size": 64, "start": 100}
    run = Online(rlpd(**settings, critics=3, critic_updates=2, target_entropy=-3.0), copies(Match, 4), dataset=logged)
    while run.learner.updates < 700:  # half as many of the actor
        run.advance()
    assert np.mean(run.evaluate(copies(Match, 64), 0)[0]["episode_return"]) > -0.02


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"subset": 11}, "subset is 11; it must be at most the number of critics, 10"),
        ({"subset": 0}, "subset is 0"),
        ({"critic_updates": 0}, "critic_updates is 0"),
        ({"dataset_share": 1.0}, "less than 1 in all"),
    ],
)
def test_what_cannot_be_is_said(settings, problem):
    with pytest.raises(ValueError, match=problem):
        rlpd(**settings)
