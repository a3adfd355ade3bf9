"""How well do peers learn? One run of Stable-Baselines3, appended as one JSON line to a results file.

    python benchmarks/peers_learning.py sac --seed 0 --out docs/benchmarks/peers_learning.jsonl

The lines are the yardstick that the tests of our own bases are held against: same environment, same settings,
same number of steps, raw scores. Needs the extra `bench`.

Traps when copying a setting from here:
  * action noise acts on actions scaled to [-1, 1]: TD3's sigma 0.1 is 0.2 of Pendulum's torque in [-2, 2];
  * `dqn` takes 128 gradient steps after every 256 environment steps, clips their norm at 10, uses the Huber loss,
    and copies its target network every 10 environment steps, checked while collecting: once between two bursts;
  * PPO's squared error of the value is not halved: its coefficient of 0.5 is one of 1 where it is;
  * the first `learning_starts` actions are uniform, and a time limit is not a termination.
"""

import argparse
import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

# For Pendulum: small budgets, a high learning rate, one gradient step after each environment step.
CONTINUOUS = {
    "learning_rate": 1e-3,
    "batch_size": 256,
    "buffer_size": 100_000,
    "learning_starts": 1_000,
    "gamma": 0.99,
    "tau": 0.005,
    "train_freq": 1,
    "gradient_steps": 1,
}
# rl-baselines3-zoo, hyperparams/dqn.yml, CartPole-v1.
DISCRETE = {
    "learning_rate": 2.3e-3,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 1_000,
    "gamma": 0.99,
    "target_update_interval": 10,
    "train_freq": 256,
    "gradient_steps": 128,
    "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04,
}
# A target that follows, and an update after every step: of those that were tried, the settings at which their own last
# policies were best (five seeds, 100 to 104, which are in no comparison).
FOLLOWING = DISCRETE | {
    "learning_rate": 3e-4,
    "batch_size": 128,
    "target_update_interval": 1,
    "tau": 0.005,
    "train_freq": 1,
    "gradient_steps": 1,
}
# rl-baselines3-zoo, hyperparams/ppo.yml, CartPole-v1. "lin_x" falls linearly from x to 0.
ON_POLICY = {
    "learning_rate": "lin_0.001",
    "clip_range": "lin_0.2",
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 20,
    "gamma": 0.98,
    "gae_lambda": 0.8,
    "ent_coef": 0.0,
}
# Their defaults, but for the first 10,000 steps.
MUJOCO = CONTINUOUS | {"learning_rate": 3e-4, "buffer_size": 1_000_000, "learning_starts": 10_000}
DELAYED = {"policy_delay": 2, "target_policy_noise": 0.2, "target_noise_clip": 0.5}
NOISE = 0.1


@dataclass(frozen=True)
class Recipe:
    kind: type
    env: str
    steps: int
    settings: dict
    net: tuple[int, ...] = (64, 64)
    activation: type[torch.nn.Module] = torch.nn.ReLU
    environments: int = 1
    every: int | None = None  # environment steps between evaluations; a tenth of all when None
    episodes: int = 10  # of each evaluation


RECIPES = {
    "sac": Recipe(SAC, "Pendulum-v1", 10_000, CONTINUOUS),
    "td3": Recipe(TD3, "Pendulum-v1", 10_000, CONTINUOUS | DELAYED),
    "sac-halfcheetah": Recipe(SAC, "HalfCheetah-v5", 30_000, MUJOCO, (256, 256), every=2_500, episodes=5),
    "td3-halfcheetah": Recipe(
        TD3,
        "HalfCheetah-v5",
        30_000,
        MUJOCO | DELAYED | {"learning_rate": 1e-3},
        (256, 256),
        every=2_500,
        episodes=5,
    ),
    "ppo": Recipe(
        PPO, "CartPole-v1", 100_000, ON_POLICY, activation=torch.nn.Tanh, environments=8, every=2_500, episodes=5
    ),
    "dqn": Recipe(DQN, "CartPole-v1", 50_000, DISCRETE, (256, 256)),
    "dqn-following": Recipe(DQN, "CartPole-v1", 50_000, FOLLOWING, (128, 128)),
    "dqn-annealed": Recipe(DQN, "CartPole-v1", 50_000, DISCRETE | {"learning_rate": "lin_0.0023"}, (256, 256)),
    "dqn-slower": Recipe(DQN, "CartPole-v1", 50_000, DISCRETE | {"learning_rate": 1e-3}, (256, 256)),
}


def made(algorithm, seed, net=None):
    """The model of a recipe, with its environment."""
    recipe = RECIPES[algorithm]
    many = recipe.environments > 1
    env = make_vec_env(recipe.env, recipe.environments, seed=seed) if many else gym.make(recipe.env)
    policy = {"net_arch": list(net or recipe.net), "activation_fn": recipe.activation}
    return recipe.kind("MlpPolicy", env, seed=seed, policy_kwargs=policy, device="cpu", **arguments(recipe, env))


def arguments(recipe, env):
    """A recipe's settings as Stable-Baselines3 takes them."""
    settings = {key: linear(value) if isinstance(value, str) else value for key, value in recipe.settings.items()}
    if recipe.kind is TD3:
        actions = env.action_space.shape[0]
        settings["action_noise"] = NormalActionNoise(np.zeros(actions), np.full(actions, NOISE))
    return settings


def linear(text):
    first = float(text.removeprefix("lin_"))
    return lambda remaining: remaining * first


def evaluate(model, env_id, episodes, seed):
    """Undiscounted returns of the deterministic policy, one reset seed an episode, never the training environment."""
    env = gym.make(env_id)
    returns = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(round(total, 3))
    env.close()
    return returns


class Curve(BaseCallback):
    """Evaluates every `every` environment steps, after the updates that follow them, as ours does.

    It keeps the time that this took, so that training can be timed alone.
    """

    def __init__(self, env_id, every, episodes, seed):
        super().__init__()
        self.env_id, self.every, self.episodes, self.seed = env_id, every, episodes, seed
        self.points, self.seconds, self.last = [], 0.0, 0

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        if self.num_timesteps // self.every > self.last // self.every:
            self.evaluate()
        self.last = self.num_timesteps

    def _on_training_end(self):
        if self.num_timesteps > self.last:
            self.evaluate()

    def evaluate(self):
        start = time.perf_counter()
        scores = evaluate(self.model, self.env_id, self.episodes, self.seed)
        self.points.append({"env_steps": self.num_timesteps, "scores": scores})
        self.seconds += time.perf_counter() - start


def run(algorithm, seed, net, threads, steps=None):
    torch.set_num_threads(threads)
    recipe = RECIPES[algorithm]
    steps, net = steps or recipe.steps, net or recipe.net
    model = made(algorithm, seed, net)
    evaluation_seed = 1_000_000 + 1_000 * seed
    curve = Curve(recipe.env, recipe.every or steps // 10, recipe.episodes, evaluation_seed)
    start = time.perf_counter()
    model.learn(steps, callback=curve)
    seconds = time.perf_counter() - start - curve.seconds
    return {
        "library": "stable-baselines3",
        "algorithm": algorithm,
        "env": recipe.env,
        "env_steps": model.num_timesteps,
        "seed": seed,
        "settings": recipe.settings
        | {"net": list(net), "activation": recipe.activation.__name__.lower(), "environments": recipe.environments}
        | ({"action_noise_sigma": NOISE} if recipe.kind is TD3 else {}),
        "scores": {"episode_return": evaluate(model, recipe.env, 20, evaluation_seed)},
        "curve": curve.points,
        "train_seconds": round(seconds, 1),
        "threads": threads,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("stable-baselines3", "torch", "gymnasium", "numpy")},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--net", type=int, nargs="+", help="units of the hidden layers; the recipe's when left out")
    parser.add_argument("--steps", type=int, help="fewer than the recipe's, to try it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("peers.jsonl"), help="the file to append to")
    options = parser.parse_args()

    result = run(options.algorithm, options.seed, options.net, options.threads, options.steps)
    with options.out.open("a") as file:
        file.write(json.dumps(result) + "\n")
    scores = result["scores"]["episode_return"]
    print(
        f"{options.algorithm} {result['settings']['net']} seed {options.seed}: {sum(scores) / len(scores):.1f}", end=" "
    )
    print(f"(mean of {len(scores)} episodes) in {result['train_seconds']} s")


if __name__ == "__main__":
    main()
