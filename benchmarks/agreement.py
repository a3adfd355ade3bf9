"""Do a learner of ours and one of Stable-Baselines3's learn the same from the same?

    PEERS/bin/python benchmarks/agreement.py --out docs/benchmarks

Both begin with the same parameters, read the same batches of random rows and draw the same noise, in float64; after 1,
10 and 100 updates every parameter is compared, those of target networks and of the entropy coefficient with the rest.
"Moved" is how far the parameter that moved most is from where it began, "apart" how far two are from each other at
most. What is not compared is how rows are collected.

Traps: in float32 Adam makes a whole step of a gradient that is nothing but rounding. Stable-Baselines3 learns SAC's
coefficient first and ours last, but all its losses read the coefficient from before; it adds 1e-6 within the logarithm
of the density's correction, which is left out here, and halves the loss of SAC's critics, which Adam sees in its epsilon
alone: here ours is halved too. Its DQN moves the target before a gradient step, ours after it;
here both do it after.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import contest
import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common import policies
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn

import palaestra as pal
from palaestra.algorithm import replace_term
from palaestra.batch import Columns, Space, Spec
from palaestra.learner import Learner

OBS, ACTIONS, CHOICES, UNITS, BATCH = 17, 6, 4, 256, 256
COMPARED = (1, 10, 100)  # updates
SIGMA = 0.2  # of td3's noise
SHARED = {"batch_size": BATCH, "gamma": 0.99, "tau": 0.005}
CASES = {
    "sac": (SAC, "sac(lr=1e-3)", {"learning_rate": 1e-3}),
    "td3": (TD3, "td3(lr=1e-3)", {"learning_rate": 1e-3, "target_policy_noise": SIGMA}),
    "dqn": (
        DQN,
        f"dqn(lr=1e-3, target_every=1, tau=0.005, clip_norm=10, batch_size={BATCH}, hidden=({UNITS}, {UNITS}))",
        {"learning_rate": 1e-3, "max_grad_norm": 10},
    ),
}


class Nowhere(gym.Env):
    """Never stepped: it only tells the shapes."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)

    def __init__(self, discrete: bool) -> None:
        self.action_space = gym.spaces.Discrete(CHOICES) if discrete else gym.spaces.Box(-1, 1, (ACTIONS,), np.float32)


class Given(Learner):
    """Takes its noise from a list."""

    noise: list[Tensor]

    def _drawn(self, shape, rngs):
        return self.noise.pop(0)


class Rows:
    """In place of a peer's replay: says what it is told."""

    def __init__(self) -> None:
        self.batch: Columns = {}

    def sample(self, size, env=None):
        b = self.batch
        action = b["action"] if b["action"].dim() > 1 else b["action"][:, None]
        return ReplayBufferSamples(
            b["obs"], action, b["next_obs"], b["terminated"].double()[:, None], b["reward"][:, None], None
        )


def batches(count: int, discrete: bool) -> Iterator[Columns]:
    rng = torch.Generator().manual_seed(0)
    for _ in range(count):
        action = torch.rand(BATCH, ACTIONS, generator=rng) * 2 - 1
        yield {
            "obs": torch.randn(BATCH, OBS, generator=rng).double(),
            "next_obs": torch.randn(BATCH, OBS, generator=rng).double(),
            "action": torch.randint(CHOICES, (BATCH,), generator=rng) if discrete else action.double(),
            "reward": torch.randn(BATCH, generator=rng).double(),
            "terminated": torch.rand(BATCH, generator=rng) < 0.05,
        }


def linear(*modules: nn.Module) -> list[nn.Linear]:
    return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]


def plain(layers: list[nn.Linear]) -> list[Tensor]:
    """As the parameters of our `MLP`."""
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias)]


def ensemble(critic: nn.Module) -> list[Tensor]:
    """As the parameters of our `EnsembleMLP`."""
    members = list(zip(*(linear(net) for net in critic.q_networks), strict=True))
    weights = [torch.stack([layer.weight.T for layer in same]) for same in members]
    return weights + [torch.stack([layer.bias for layer in same]).unsqueeze(1) for same in members]


def theirs(model) -> dict[str, list[Tensor]]:
    """A peer's parameters, by the names that our networks have, in their order and layout."""
    if isinstance(model, DQN):
        return {"critic": plain(linear(model.q_net)), "target_critic": plain(linear(model.q_net_target))}
    found = {"critic": ensemble(model.critic), "target_critic": ensemble(model.critic_target)}
    if isinstance(model, TD3):
        return found | {"actor": plain(linear(model.actor)), "target_actor": plain(linear(model.actor_target))}
    body, heads = plain(linear(model.actor.latent_pi)), linear(model.actor.mu, model.actor.log_std)
    last = [torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])]
    return found | {"actor": body + last, "entropy_coefficient": [model.log_ent_coef]}


def noises(name: str, seed: int) -> list[Tensor]:
    """What the peer draws in an update after `torch.manual_seed(seed)`, in the order in which ours asks for it."""
    torch.manual_seed(seed)
    shape = BATCH, ACTIONS
    if name == "td3":
        return [torch.empty(shape).double().normal_()]
    if name == "sac":
        of_obs, of_next = (torch.normal(torch.zeros(shape).double(), torch.ones(shape).double()) for _ in range(2))
        return [of_next, of_obs]
    return []


def compared(name: str) -> Iterator[dict]:
    kind, expression, settings = CASES[name]
    discrete = kind is DQN
    if kind is TD3:
        settings = settings | {"action_noise": NormalActionNoise(np.zeros(ACTIONS), np.full(ACTIONS, 0.1))}
    policy = {"net_arch": [UNITS, UNITS], "activation_fn": nn.ReLU}
    model = kind("MlpPolicy", Nowhere(discrete), policy_kwargs=policy, seed=0, device="cpu", **SHARED, **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.replay_buffer = rows = Rows()
    model.policy.double()
    value = pal.parse(expression)
    if kind is SAC:
        model.actor.action_dist.epsilon = 0.0
        model.log_ent_coef.data = model.log_ent_coef.data.double()
        td = value.losses["critic"].terms["td"]
        value = replace_term(value, "critic", "td", replace(td, coefficient=0.5))
    action = Space((), torch.int64, (CHOICES,)) if discrete else Space((ACTIONS,))
    learner = Given(value, Spec(Space((OBS,)), action))
    learner.nets.double()
    with torch.no_grad():
        for net, tensors in theirs(model).items():
            for own, other in zip(learner.nets[net].parameters(), tensors, strict=True):
                own.copy_(other.view_as(own))
    began = {net: [tensor.detach().clone() for tensor in tensors] for net, tensors in theirs(model).items()}
    for update, batch in enumerate(batches(max(COMPARED), discrete), start=1):
        rows.batch, learner.noise = batch, noises(name, update)
        torch.manual_seed(update)
        model.train(gradient_steps=1, batch_size=BATCH)
        if discrete:
            polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), model.tau)
        learner.update({"replay": batch})
        if update in COMPARED:
            moved = apart = 0.0
            for net, tensors in theirs(model).items():
                for own, other, first in zip(learner.nets[net].parameters(), tensors, began[net], strict=True):
                    moved = max(moved, (other - first).abs().max().item())
                    apart = max(apart, (own.view_as(other) - other).abs().max().item())
            yield {"base": name, "updates": update, "moved": moved, "apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder of results")
    options = parser.parse_args()
    contest.limit(1)
    policies.preprocess_obs = lambda obs, *_, **__: obs  # which makes float32 of it
    contest.save(options.out, "agreement", {**contest.about(), "rows": [row for name in CASES for row in compared(name)]})


if __name__ == "__main__":
    main()
