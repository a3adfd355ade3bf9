"""No base that acts among masked actions takes a forbidden one, or learns from what it would be worth."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from palaestra.expression import catalogue, parse
from palaestra.loops.online import Online
from tests.parts.worlds import fits, small

SETTINGS = {"start": 20, "batch_size": 16, "capacity": 500, "exploration_steps": 100, "target_every": 10}
LOGGED = ("decision-transformer", "return-conditioned")  # learn from a dataset alone: tested in a file of their own
BASES = [base for base in catalogue("algorithms") if base not in LOGGED and fits(small(base), "masked")]
DOUBLE = [f"{base}+double" for base in ("dqn", "c51", "qr-dqn")]
TEMPTATION = 1e4


class Forbidding(gym.Env):
    """Three actions, the last paid best; each is forbidden in half of the states, but never all. A step that takes a
    forbidden action raises. `allowed` is the mask again, as a feature."""

    observation_space = Dict({"allowed": Box(0, 1, (3,)), "action_mask": MultiBinary(3)})
    action_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def seen(self):
        self.mask = (self.np_random.random(3) < 0.5).astype(np.int8)
        self.mask[self.np_random.integers(3)] = 1
        return {"allowed": self.mask.astype(np.float32), "action_mask": self.mask.copy()}

    def step(self, action):
        assert self.mask[action], f"action {action} is forbidden: {self.mask}"
        return self.seen(), float(action), bool(self.np_random.random() < 0.1), False, {}


class Unseen(Forbidding):
    """The same without telling: what a policy does that does not know the mask."""

    observation_space = Box(0, 1, (3,))

    def seen(self):
        return super().seen()["allowed"]


def copies(make, n):
    return SyncVectorEnv([make] * n, autoreset_mode=AutoresetMode.DISABLED)


def run_for(expression, steps, make=Forbidding):
    run = Online(parse(expression), copies(make, 4))
    while run.env_steps < steps:
        run.advance()
    return run


@pytest.mark.parametrize("expression", [*(small(base, **SETTINGS) for base in BASES), *DOUBLE])
def test_no_forbidden_action_is_taken(expression):
    base, _, method = expression.partition("+")
    run = run_for(small(base, **SETTINGS) + f"+{method}" if method else expression, 800)
    assert run.learner.updates > 4
    run.evaluate(copies(Forbidding, 50), 0)  # deployed
    mask = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    obs = {"allowed": mask.float(), "action_mask": mask}
    learner = run.learner
    for policy, rng in ((learner.policy(), torch.Generator().manual_seed(0)), (learner.deployed(), None)):
        for _ in range(50):
            action, *_ = policy(learner.nets, obs, None, rng)
            assert action[:3].tolist() == [0, 1, 2]
            assert action[3] < 2


@pytest.mark.parametrize("base", ["dqn", "c51"])
def test_the_world_tells_on_who_does(base):
    with pytest.raises(Exception, match="is forbidden"):
        run_for(small(base, **SETTINGS), 200, Unseen)


class Tempted(nn.Module):
    """A network that promises a lot for every action that is not `allowed`; of a distribution, in its last atom."""

    def __init__(self, net, atoms):
        super().__init__()
        self.net, self.atoms = net, atoms

    def forward(self, obs):
        more = TEMPTATION * (1 - obs["allowed"])
        said = self.net(obs)
        if not self.atoms:
            return said + more
        return torch.cat((said[..., :-1], (said[..., -1] + more).unsqueeze(-1)), -1)


# iql bootstraps from the value of a state, and asks its target critics of logged actions alone.
LOOKS_AHEAD = [b for b in BASES if "target_critic" in parse(small(b)).networks and b != "iql-discrete"]


@pytest.mark.parametrize("expression", [*LOOKS_AHEAD, *DOUBLE])
def test_no_forbidden_action_is_bootstrapped_from(expression):
    base, _, method = expression.partition("+")
    run = run_for(small(base, **SETTINGS) + (f"+{method}" if method else ""), 200)
    nets, td = run.learner.nets, run.learner.algorithm.losses["critic"].terms["td"].value
    batch = run.replays["replay"].sample(200, torch.Generator().manual_seed(0))
    plain, _ = td(nets, batch)
    for name in ("critic", "target_critic"):
        nets[name] = Tempted(nets[name], atoms=base in ("c51", "qr-dqn"))
    tempted, columns = td(nets, batch)
    assert columns["error"].isfinite().all()
    torch.testing.assert_close(tempted, plain)
    # And the promise would be believed where the mask allowed it.
    everything = {**batch["next_obs"], "action_mask": torch.ones_like(batch["next_obs"]["action_mask"])}
    believed, _ = td(nets, {**batch, "next_obs": everything})
    concerned = (batch["next_obs"]["allowed"] == 0).any(1) & ~batch["terminated"]
    assert ((believed - plain).abs()[concerned] > 1e-3).float().mean() > 0.9
    torch.testing.assert_close(believed[~concerned], plain[~concerned])


def test_partial_masks_are_seen():
    """The world does forbid: of many states, most forbid something, none everything."""
    env = partial(Forbidding)()
    env.reset(seed=0)
    masks = np.stack([env.seen()["action_mask"] for _ in range(500)])
    assert (masks.sum(1) >= 1).all()
    assert (masks.sum(1) < 3).mean() > 0.5
