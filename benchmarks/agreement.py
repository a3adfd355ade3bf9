"""Does ours learn what Stable-Baselines3's learns from the same, and whole runs of the same random choices?

    PEERS/bin/python benchmarks/agreement.py updates --out docs/benchmarks
    PEERS/bin/python benchmarks/agreement.py runs --seeds 5 --out docs/benchmarks

`updates`: both begin with the same parameters, read the same batches of random rows and draw the same noise, in
float64; after 1, 10 and 100 updates every parameter is compared, those of target networks and of the entropy
coefficient with the rest. "Moved" is how far the parameter that moved most is from where it began, "apart" how far two
are from each other at most.

`runs`: whole runs of `dqn` on CartPole at the settings of `learning.py` and `peers_learning.py`. Ours runs first and by
itself. Then theirs runs from the same first parameters with the same luck: the seeds of its environment, whether it
explores and by which action, and which of its rows are drawn. All else is its own: what it does when it does not
explore, what it keeps of a step and of an episode's end, when it learns and when it copies its target, what it learns.
Actions, observations, parameters and the returns of the final policies are compared, in float32, bit for bit. Two sums
are therefore taken in one order on both sides (the Bellman target, the norm of a gradient), and both have Adam's fused
kernel. Whether the luck itself is fair is asked of three things: how likely exploring is at each step, how often it
changed an action (half of the time, of two), and whether the rows that were drawn are uniform among those there were.

Traps: in float32 Adam makes a whole step of a gradient that is nothing but rounding. Stable-Baselines3 learns SAC's
coefficient first and ours last, but all its losses read the coefficient from before; it adds 1e-6 within the logarithm
of the density's correction, which is left out here, and halves the loss of SAC's critics, which Adam sees in its
epsilon alone: here ours is halved too. Its DQN moves the target before a gradient step, ours after it; in `updates`
both do it after.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import contest
import gymnasium as gym
import learning
import numpy as np
import peers_learning
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from scipy.stats import kstest
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common import policies
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_ as clip

import palaestra as pal
from palaestra.algorithm import replace_term
from palaestra.batch import Columns, Space, Spec
from palaestra.data.replay import STEP
from palaestra.learner import Learner
from palaestra.loops.online import Online

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


# ------------------------------------------------------------------------------------------------------ whole runs


class Witnessed(CartPoleEnv):
    """Remembers with which seeds it was reset, or takes those `seeds`, and all that was seen."""

    def __init__(self, seeds: list[int | None] | None = None) -> None:
        super().__init__()
        self.given = None if seeds is None else iter(seeds)
        self.seeds: list[int | None] = []
        self.seen: list[np.ndarray] = []

    def reset(self, *, seed=None, options=None):
        seed = seed if self.given is None else next(self.given)
        self.seeds.append(seed)
        obs, info = super().reset(seed=seed, options=options)
        self.seen.append(obs.copy())
        return obs, info

    def step(self, action):
        result = super().step(action)
        self.seen.append(result[0].copy())
        return result


@dataclass
class Luck:
    """What was random in a run: of each step the action and the one without exploring, of each update its rows; and
    how likely exploring was."""

    actions: list[int] = field(default_factory=list)
    greedy: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)  # rows that could be drawn

    def noted(self, exploration):
        """The exploration of an algorithm, which notes what it does."""

        def explored(policy):
            exploring = exploration(policy)

            def act(nets, obs, memory, rng):
                result = exploring(nets, obs, memory, rng)
                self.actions.append(int(result[0]))
                self.greedy.append(int(policy(nets, obs, memory, None)[0]))
                self.shares.append(float(exploration.keywords["random"](nets.clock)))
                return result

            return act

        return explored


def run_of_ours(recipe: learning.Recipe, seed: int, world: Witnessed) -> tuple[Online, Luck, list[Tensor]]:
    """Our run, its luck, and its first parameters."""
    luck = Luck()
    algorithm = pal.parse(recipe.expression)
    algorithm = replace(algorithm, exploration=luck.noted(algorithm.exploration))
    env = gym.vector.SyncVectorEnv(
        [lambda: gym.wrappers.TimeLimit(world, 500)], autoreset_mode=gym.vector.AutoresetMode.DISABLED
    )
    online = Online(algorithm, env, (seed,))
    first = [parameter.detach().clone() for parameter in online.learner.nets["critic"].parameters()]
    replay, drawn = online.replays["replay"], []
    draw = replay.draw

    def noted(n, rngs):
        drawn.append(draw(n, rngs))
        return drawn[-1]

    replay.draw = noted
    while online.env_steps < recipe.steps:
        online.advance()
        ordinal = replay.kind.eq(STEP).cumsum(0) - 1  # a slot holds a step, or what was seen at an episode's end
        luck.rows += [ordinal[slots].numpy() for slots in drawn]
        luck.stored += [int(ordinal[-1]) + 1] * len(drawn)
        drawn.clear()
    return online, luck, first


def run_of_theirs(
    luck: Luck, first: list[Tensor], world: Witnessed, steps: int, seed: int
) -> tuple[DQN, list[int], list[float]]:
    """Their run with that luck, its actions, and how likely exploring was at each."""
    recipe = peers_learning.RECIPES["dqn"]
    policy = {"net_arch": list(recipe.net), "activation_fn": recipe.activation, "optimizer_kwargs": {"fused": True}}
    env = gym.wrappers.TimeLimit(world, 500)
    model = DQN("MlpPolicy", env, seed=seed, policy_kwargs=policy, device="cpu", **recipe.settings)
    with torch.no_grad():
        for own, other in zip(model.q_net.parameters(), first, strict=True):
            own.copy_(other)
    model.q_net_target.load_state_dict(model.q_net.state_dict())
    taken: list[int] = []
    shares: list[float] = []
    choose, rows, replay = model._sample_action, iter(luck.rows), model.replay_buffer

    def noted(*args, **kwargs):
        result = choose(*args, **kwargs)
        taken.append(int(result[0][0]))
        shares.append(model.exploration_rate)
        return result

    class Coins:
        """In place of their module's NumPy: explores where ours did."""

        class random:
            @staticmethod
            def rand():
                return float(luck.actions[len(taken)] == luck.greedy[len(taken)])

        def __getattr__(self, name):
            return getattr(np, name)

    model._sample_action = noted
    model.action_space.sample = lambda *_: np.int64(luck.actions[len(taken)])
    replay.sample = lambda size, env=None: replay._get_samples(next(rows), env=env)
    with mock.patch("stable_baselines3.dqn.dqn.np", Coins()):
        model.learn(steps)
    return model, taken, shares


class Deployed:
    """A learner of ours as `peers_learning.evaluate` asks for actions."""

    def __init__(self, learner: Learner) -> None:
        self.nets, self.policy = learner.nets, learner.deployed()

    def predict(self, obs, deterministic):
        with torch.no_grad():
            return int(self.policy(self.nets, torch.from_numpy(obs)[None], None, None)[0]), None


def lockstep(seed: int, steps: int | None) -> dict:
    recipe = learning.RECIPES["dqn"]
    recipe = replace(recipe, steps=steps or recipe.steps)
    worlds = [Witnessed()]
    with (
        mock.patch("palaestra.algorithms.dqn.bellman", unfused_bellman),
        mock.patch("palaestra.learner._clip", lambda parameters, largest, stacked: clip(parameters, largest)),
    ):
        online, luck, first = run_of_ours(recipe, seed, worlds[0])
    worlds.append(Witnessed(worlds[0].seeds))
    count = len(luck.actions)
    model, taken, shares = run_of_theirs(luck, first, worlds[1], count, seed)
    start = model.learning_starts  # theirs acts at random until then
    own, other = (list(net.parameters()) for net in (online.learner.nets["critic"], model.q_net))
    player, games = Deployed(online.learner), {"env_id": recipe.env, "episodes": 20, "seed": 1_000_000 + 1_000 * seed}
    return {
        "seed": seed,
        "env_steps": [online.env_steps, model.num_timesteps],
        "updates": [online.learner.updates, model._n_updates],
        "same_actions": sum(a == b for a, b in zip(luck.actions, taken, strict=True)),
        "explored": sum(a != b for a, b in zip(luck.actions, luck.greedy, strict=True)),
        "explored_expected": sum(luck.shares) / 2,
        "rows_p": uniform_p(luck, seed),
        "shares_apart": max(abs(a - b) for a, b in zip(luck.shares[start:], shares[start:], strict=True)),
        "same_observations": all(map(np.array_equal, *(world.seen for world in worlds))),
        "apart": max((a - b).abs().max().item() for a, b in zip(own, other, strict=True)),
        "returns": [peers_learning.evaluate(one, **games) for one in (player, model)],
    }


def uniform_p(luck: Luck, seed: int) -> float:
    """The probability of rows that are less like uniform ones, if they are uniform (Kolmogorov and Smirnov)."""
    rng = np.random.default_rng(seed)
    places = [(rows + rng.random(len(rows))) / stored for rows, stored in zip(luck.rows, luck.stored, strict=True)]
    return float(kstest(np.concatenate(places), "uniform").pvalue)


def unfused_bellman(reward, terminated, value, gamma, steps=None):
    return reward + (1 - terminated.to(value.dtype)) * gamma * value


# --------------------------------------------------------------------------------------------------------- command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--out", type=Path, help="the folder of results")
    commands.add_parser("updates", parents=[both])
    whole = commands.add_parser("runs", parents=[both])
    whole.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    whole.add_argument("--steps", type=int, help="fewer than the recipe's, to try it")
    options = parser.parse_args()
    contest.limit(1)
    if options.what == "runs":
        rows = [lockstep(seed, options.steps) for seed in range(options.seeds)]
        contest.save(options.out, "agreement_runs", {**contest.about(), "rows": rows})
        return
    with mock.patch.object(policies, "preprocess_obs", lambda obs, *_, **__: obs):  # which makes float32 of it
        rows = [row for name in CASES for row in compared(name)]
    contest.save(options.out, "agreement", {**contest.about(), "rows": rows})


if __name__ == "__main__":
    main()
