"""How well do peers learn? One run of Stable-Baselines3, appended as one JSON line to a results file.

    python benchmarks/peers_learning.py sac --seed 0 --net 64 64 --out peers.jsonl

The lines are the yardstick that the tests of our own bases are held against: same environment, same settings,
same number of steps, raw scores. Needs the extra `bench`.

Traps when copying a setting from here:
  * action noise acts on actions scaled to [-1, 1]: TD3's sigma 0.1 is 0.2 of Pendulum's torque in [-2, 2];
  * `dqn` takes 128 gradient steps after every 256 environment steps, clips their norm at 10, uses the Huber loss,
    and copies its target network every 10 environment steps, checked while collecting: once between two bursts;
  * the first `learning_starts` actions are uniform, and a time limit is not a termination.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
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
NOISE = 0.1
# class, environment, environment steps, settings
RECIPES = {
    "sac": (SAC, "Pendulum-v1", 10_000, CONTINUOUS),
    "td3": (
        TD3,
        "Pendulum-v1",
        10_000,
        CONTINUOUS | {"policy_delay": 2, "target_policy_noise": 0.2, "target_noise_clip": 0.5},
    ),
    "dqn": (DQN, "CartPole-v1", 50_000, DISCRETE),
    # The settings of DQN's own check: an update after every step, a small rate, a target copied every 250.
    "dqn-every-step": (
        DQN,
        "CartPole-v1",
        50_000,
        DISCRETE
        | {"learning_rate": 2.5e-4, "target_update_interval": 250, "train_freq": 1, "gradient_steps": 1}
        | {"exploration_fraction": 0.2, "exploration_final_eps": 0.05},
    ),
    "dqn-slower": (DQN, "CartPole-v1", 50_000, DISCRETE | {"learning_rate": 1e-3}),
}


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
    """Evaluates at every `every` environment steps; keeps the time that took, so that training can be timed alone."""

    def __init__(self, env_id, every, episodes, seed):
        super().__init__()
        self.env_id, self.every, self.episodes, self.seed = env_id, every, episodes, seed
        self.points, self.seconds = [], 0.0

    def _on_step(self):
        if self.num_timesteps % self.every == 0:
            start = time.perf_counter()
            scores = evaluate(self.model, self.env_id, self.episodes, self.seed)
            self.points.append({"env_steps": self.num_timesteps, "scores": scores})
            self.seconds += time.perf_counter() - start
        return True


def run(algorithm, seed, net, threads):
    torch.set_num_threads(threads)
    kind, env_id, steps, settings = RECIPES[algorithm]
    env = gym.make(env_id)
    extra = {}
    if algorithm == "td3":
        actions = env.action_space.shape[0]
        extra["action_noise"] = NormalActionNoise(np.zeros(actions), np.full(actions, NOISE))
    policy = {"net_arch": list(net), "activation_fn": torch.nn.ReLU}
    model = kind("MlpPolicy", env, seed=seed, policy_kwargs=policy, device="cpu", **settings, **extra)

    evaluation_seed = 1_000_000 + 1_000 * seed
    curve = Curve(env_id, steps // 10, 10, evaluation_seed)
    start = time.perf_counter()
    model.learn(steps, callback=curve)
    seconds = time.perf_counter() - start - curve.seconds
    return {
        "library": "stable-baselines3",
        "algorithm": algorithm,
        "env": env_id,
        "env_steps": steps,
        "seed": seed,
        "settings": settings
        | {"net": list(net), "activation": "relu"}
        | ({"action_noise_sigma": NOISE} if algorithm == "td3" else {}),
        "scores": {"episode_return": evaluate(model, env_id, 20, evaluation_seed)},
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
    parser.add_argument("--net", type=int, nargs="+", default=[256, 256], help="units of the hidden layers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("peers.jsonl"), help="the file to append to")
    options = parser.parse_args()

    result = run(options.algorithm, options.seed, options.net, options.threads)
    with options.out.open("a") as file:
        file.write(json.dumps(result) + "\n")
    scores = result["scores"]["episode_return"]
    print(f"{options.algorithm} {options.net} seed {options.seed}: {sum(scores) / len(scores):.1f}", end=" ")
    print(f"(mean of {len(scores)} episodes) in {result['train_seconds']} s")


if __name__ == "__main__":
    main()
