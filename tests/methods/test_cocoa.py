"""COCOA: anchors that are sought with models fitted to the dataset, and networks that read them."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Generator

from palaestra.algorithm import Unfit, changed_parts
from palaestra.algorithms.dqn import dqn
from palaestra.algorithms.iql import iql
from palaestra.algorithms.normalisation import normalised_obs
from palaestra.claims.cocoa import outside
from palaestra.data.dataset import from_episodes
from palaestra.expression import parse
from palaestra.learner import Learner
from palaestra.loops.filled import whole
from palaestra.loops.offline import Offline
from palaestra.methods.offline.cocoa import anchor_of, away, cocoa
from palaestra.networks.transduction import Transductive
from tests.parts.worlds import batches, small, spec

SMALL = (
    "features=8, embedding=2, embedding_hidden=(8,), members=2, model_hidden=(32,), seeker_hidden=(16,), "
    "fit_updates=600"
)


class Back:
    """A reverse model that is sure: a step by `action` came from `reached - action`."""

    def sample(self, reached, action, rng):
        return reached - action


def walks(reached, action, seed=0, **settings):
    return away(Back(), {"reached": reached, "action": action}, Generator().manual_seed(seed), **settings)


def test_walks_lead_away_in_one_direction():
    reached, action = torch.tensor([[0.0, 0.0], [3.0, 3.0]]), torch.tensor([[1.0, -0.5]]).expand(2, 2)
    found = walks(reached, action, length=3, scale=0.5, noise=0.0)
    assert found["action"].tolist() == [[0.5, -0.25]] * 6
    one = [[-0.5, 0.25], [-1.0, 0.5], [-1.5, 0.75]]  # one, two and three steps back from (0, 0), and from (3, 3)
    assert sorted(found["obs"].tolist()) == sorted(one + [[x + 3, y + 3] for x, y in one])
    beyond = walks(reached, action, length=1, scale=4.0, noise=0.0)
    assert beyond["action"].tolist() == [[1.0, -1.0]] * 2  # within the range of actions


def test_directions_are_other_steps_and_stay_while_the_noise_is_drawn_anew():
    rows = 3_000
    apart = walks(torch.zeros(rows, 1), torch.linspace(-1, 1, rows)[:, None], length=2, scale=0.5, noise=0.0)
    first, second = apart["action"].chunk(2)
    assert torch.equal(first, second)
    assert first.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.05)  # uniform in [-0.5, 0.5]
    noisy = walks(torch.zeros(rows, 1), torch.zeros(rows, 1), length=5, scale=0.8, noise=0.1)
    assert noisy["action"].std().item() == pytest.approx(0.1, rel=0.05)
    assert noisy["obs"][-rows:].std().item() == pytest.approx(0.1 * 5**0.5, rel=0.05)


def test_an_anchor_is_so_many_steps_away():
    nets = {"forward_model": lambda obs, action: obs + action, "anchor_seeker": lambda obs: -obs / 2}
    obs = torch.tensor([[8.0], [-4.0]])
    assert [anchor_of(nets, obs, horizon).tolist() for horizon in (0, 1, 3)] == [
        [[8.0], [-4.0]], [[4.0], [-2.0]], [[1.0], [-0.5]]
    ]  # fmt: skip


def drift(episodes=20, length=30, seed=0):
    """Points that are pushed about near the origin: obs' = obs + action / 5."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(episodes):
        obs, action = [rng.uniform(-1, 1, 2)], []
        for _ in range(length):
            action.append((-obs[-1] + rng.uniform(-1, 1, 2)).clip(-1, 1))
            obs.append(obs[-1] + action[-1] / 5)
        rows.append(
            {
                "obs": np.array(obs, np.float32),
                "action": np.array(action, np.float32),
                "reward": -np.linalg.norm(obs[1:], axis=1),
                "terminated": np.zeros(length, bool),
                "truncated": np.arange(length) == length - 1,
            }
        )
    return from_episodes(rows, Box(-9, 9, (2,)), Box(-1, 1, (2,)))


def run_of(base, seeds=(0,), method=f"cocoa({SMALL})"):
    return Offline(parse(f"{small(base)}+{method}"), drift(), seeds)


def test_anchors_lie_nearer_to_the_data():
    nets = run_of("iql").learner.nets
    angle = torch.arange(0, 6.28, 0.1)
    outside = 2 * torch.stack((angle.cos(), angle.sin()), 1)
    anchors = [anchor_of(nets, outside, horizon).norm(dim=1).mean().item() for horizon in (0, 1, 3)]
    assert anchors[0] == pytest.approx(2.0)
    assert anchors[2] < anchors[1] < 1.98  # a step is no longer than 0.28
    steps = whole(drift(), run_of("iql").border)
    at = steps["valid"].nonzero()[:, 0]
    gap = nets["forward_model"](steps["obs"][at], steps["action"][at]) - steps["obs"][at + 1]
    assert gap.abs().mean() < 0.02  # no step across the end of an episode: there is none to fit


def test_models_are_the_datasets_and_every_seeds():
    alone, two = run_of("iql", (7,)), run_of("iql", (3, 7))
    fitted = [(two, 3), (two, 7)]
    for name in ("forward_model", "anchor_seeker"):
        expected = alone.learner.nets[name].state_dict()
        for run, seed in fitted:
            for key, value in run.learner.nets_of(seed)[name].state_dict().items():
                assert torch.equal(value, expected[key])
        assert not any(parameter.requires_grad for parameter in alone.learner.nets[name].parameters())


@pytest.mark.parametrize("base", ["iql", "td3-bc", "cql"])
def test_stacked_equals_single_after_the_fit(base):
    together = run_of(base, (3, 7))
    for _ in range(4):
        together.advance()
    for seed in (3, 7):
        alone = run_of(base, (seed,))
        before = {key: value.clone() for key, value in alone.learner.nets.state_dict().items()}
        for _ in range(4):
            alone.advance()
        ours, theirs = alone.learner.nets.state_dict(), together.learner.nets_of(seed).state_dict()
        for key, value in ours.items():
            assert torch.allclose(value, theirs[key], rtol=1e-3, atol=1e-4), key
            frozen = key.split(".")[0] in ("forward_model", "anchor_seeker", "obs_statistics", "clock")
            assert "of_anchor" not in key or not torch.equal(value, before[key]), key  # targets follow too
            assert not frozen or key.startswith("clock") or torch.equal(value, before[key]), key


def test_a_run_that_is_resumed_goes_on_alike():
    one = run_of("iql")
    for _ in range(3):
        one.advance()
    other = run_of("iql")
    other.load_state_dict(one.state_dict(), {})
    one.advance()
    other.advance()
    for key, value in one.learner.nets.state_dict().items():
        assert torch.equal(value, other.learner.nets.state_dict()[key]), key


def test_without_a_dataset_anchors_are_observations():
    learner = Learner(parse(f"{small('iql')}+cocoa({SMALL}, horizon=3)"), spec("continuous"))
    obs = batches(small("iql"), "continuous")[0]["replay"]["obs"]
    assert torch.equal(anchor_of(learner.nets, obs, 3), obs)


def test_what_standardised_networks_read_is_what_models_read():
    nets = run_of("td3-bc").learner.nets
    steps = whole(drift(), run_of("td3-bc").border)
    read = nets["obs_statistics"](steps["obs"])
    at = steps["valid"].nonzero()[:, 0]
    gap = nets["forward_model"](read[at], steps["action"][at]) - read[at + 1]
    assert gap.abs().mean() < 0.05  # in deviations, and a step is 0.3 of them
    run_of("iql", method=f"normalised-obs+cocoa({SMALL})").advance()
    with pytest.raises(ValueError, match="put normalised-obs before it"):
        run_of("iql", method=f"cocoa({SMALL})+normalised-obs")


def test_only_what_networks_read_changes():
    base = iql(hidden=(8,))
    changed = cocoa(base)
    assert changed_parts(base, changed) == ("networks", "transforms")
    nets = Learner(parse(f"{small('cql')}+cocoa({SMALL})"), spec("continuous")).nets
    assert [name for name in nets if isinstance(getattr(nets[name], "mlp", None), Transductive)] == [
        "actor", "critic", "target_critic"
    ]  # fmt: skip


def test_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    run_of("iql")
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_it_does_not_fit():
    for wrong in ({"horizon": -1}, {"rollout_length": 0}, {"direction_noise": -0.1}, {"members": 0}, {"features": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            cocoa(iql(), **wrong)
    with pytest.raises(Unfit, match="continuous"):
        Learner(cocoa(dqn()), spec("discrete"))
    with pytest.raises(ValueError, match="no networks to learn from a dataset"):
        cocoa(parse("ppo"))
    with pytest.raises(ValueError, match=r"both set networks\.actor"):
        cocoa(cocoa(iql()))
    assert "normalised-obs" in str(normalised_obs(cocoa(iql())))  # is found out when the dataset is read


def test_what_the_claim_cuts_out_is_in_no_piece():
    angle = np.array([0.0, 0.2, -1.0, -2.0, 3.0, 2.0, 1.0, -0.6, 0.0])
    episode = {
        "obs": np.stack([np.cos(angle), np.sin(angle), angle], 1),
        "reward": np.arange(8.0),
        "truncated": np.arange(8) == 7,
    }
    pieces = list(outside(episode))  # 0, 0.2 | 3, 2, 1 | 0: the last is an observation without a step
    assert [piece["obs"][:, 2].tolist() for piece in pieces] == [[0.0, 0.2], [3.0, 2.0, 1.0], [0.0]]
    assert [piece["reward"].tolist() for piece in pieces] == [[0.0], [4.0, 5.0], []]
    assert [piece["truncated"].tolist() for piece in pieces] == [[True], [False, True], []]
