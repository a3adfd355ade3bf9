"""Small logs for the tests of files: whole datasets, and the same as the arrays of D4RL."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from palaestra.data.dataset import Dataset, from_episodes

BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
TORQUE = gym.spaces.Box(-2, 2, (2,), np.float32)


def rows_of(space: gym.Space[Any], number: int, rng: np.random.Generator) -> np.ndarray:
    space.seed(int(rng.integers(1 << 30)))
    return np.stack([space.sample() for _ in range(number)])


def dataset(
    lengths: tuple[int, ...] = (3, 1, 5),
    obs: gym.Space[Any] = BOX,
    action: gym.Space[Any] = TORQUE,
    seed: int = 0,
    **about: Any,
) -> Dataset:
    """Random episodes; every second one is truncated, the others terminate."""
    rng = np.random.default_rng(seed)
    episodes = []
    for number, length in enumerate(lengths):
        flags = np.zeros((2, length), bool)
        flags[number % 2, -1] = True
        episode = {
            "action": rows_of(action, length, rng),
            "reward": rng.normal(size=length).astype(np.float32),
            "terminated": flags[0],
            "truncated": flags[1],
        }
        if isinstance(obs, gym.spaces.Dict):
            episode |= {f"obs/{key}": rows_of(space, length + 1, rng) for key, space in obs.spaces.items()}
        else:
            episode["obs"] = rows_of(obs, length + 1, rng)
        episodes.append(episode)
    return from_episodes(episodes, obs, action, about)


def logged(data: Dataset, next_observations: bool = True) -> dict[str, np.ndarray]:
    """A dataset as D4RL's arrays, a row a step."""
    names = {"action": "actions", "reward": "rewards", "terminated": "terminals", "truncated": "timeouts"}
    found: dict[str, np.ndarray] = {new: data.columns[old][data.is_step] for old, new in names.items()}
    after = np.flatnonzero(data.is_step) + 1
    for name in data.obs_names:
        of = "observations" + name.removeprefix("obs")
        found[of] = data.columns[name][data.is_step]
        if next_observations:
            found[f"next_{of}"] = data.columns[name][after]
    return found


def hdf5(path: Path, arrays: dict[str, np.ndarray], **attributes: Any) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        file.attrs.update(attributes)
    return path


def npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path
