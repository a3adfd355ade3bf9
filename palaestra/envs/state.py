"""The whole state of an environment, given and taken, so that a run resumes bit for bit.

    state = get_state(env)          # in the middle of an episode
    set_state(fresh_env, state)     # of the same construction; goes on with the same numbers

Known are our own worlds; Gymnasium's classic control, toy text and MuJoCo; `SyncVectorEnv`; and Gymnasium's wrappers
around any of them. Whoever has `EnvState`'s two methods joins in. `state_problem(env)` says whether an environment can,
before a long run begins. The streams of `env.action_space.sample()` belong to the caller and are not in the state.

A state is nested dictionaries and lists of NumPy arrays, numbers, strings, booleans and None: JSON and safetensors can
hold it (a stream's integers have up to 128 bits).
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import iterate
from numpy.typing import NDArray

from palaestra.envs.native import generator_from

State = dict[str, Any]
AnyEnv = gymnasium.Env | VectorEnv


@runtime_checkable
class EnvState(Protocol):
    """What an environment (not a wrapper) defines to be saved and resumed: two methods on the unwrapped class.

    `get_state()` returns everything that its future depends on, its random streams included, as nested dictionaries
    and lists of NumPy arrays, numbers, strings, booleans and None; `set_state(state)` takes it up in an environment of
    the same construction, which then gives the same numbers bit for bit.
    """

    def get_state(self) -> State:
        """Everything that the environment's future depends on."""

    def set_state(self, state: State) -> None:
        """Take up a state that `get_state` gave."""


# What each class remembers from one step to the next, by the full name of the class: a subclass may remember more, so
# it is not taken for its parent.
_REMEMBERS: dict[str, tuple[str, ...]] = {
    "gymnasium.envs.classic_control.acrobot.AcrobotEnv": ("state",),
    "gymnasium.envs.classic_control.cartpole.CartPoleEnv": ("state", "steps_beyond_terminated"),
    "gymnasium.envs.classic_control.cartpole.CartPoleVectorEnv": (
        "state",
        "steps",
        "prev_done",
        "steps_beyond_terminated",
        "low",
        "high",
    ),
    "gymnasium.envs.classic_control.continuous_mountain_car.Continuous_MountainCarEnv": ("state",),
    "gymnasium.envs.classic_control.mountain_car.MountainCarEnv": ("state",),
    "gymnasium.envs.classic_control.pendulum.PendulumEnv": ("state", "last_u"),
    "gymnasium.envs.toy_text.blackjack.BlackjackEnv": (
        "dealer",
        "player",
        "dealer_top_card_suit",
        "dealer_top_card_value_str",
    ),
    "gymnasium.envs.toy_text.cliffwalking.CliffWalkingEnv": ("s", "lastaction"),
    "gymnasium.envs.toy_text.frozen_lake.FrozenLakeEnv": ("s", "lastaction"),
    "gymnasium.envs.toy_text.taxi.TaxiEnv": ("s", "lastaction", "fickle_step", "taxi_orientation"),
    "gymnasium.wrappers.common.Autoreset": ("autoreset",),
    "gymnasium.wrappers.common.OrderEnforcing": ("_has_reset",),
    "gymnasium.wrappers.common.PassiveEnvChecker": (),
    "gymnasium.wrappers.common.RecordEpisodeStatistics": (
        "episode_count",
        "episode_start_time",
        "episode_returns",
        "episode_lengths",
        "time_queue",
        "return_queue",
        "length_queue",
    ),
    "gymnasium.wrappers.common.TimeLimit": ("_elapsed_steps",),
    "gymnasium.wrappers.stateful_action.RepeatAction": (),
    "gymnasium.wrappers.stateful_action.StickyAction": (
        "last_action",
        "is_sticky_actions",
        "num_repeats",
        "repeats_taken",
    ),
    "gymnasium.wrappers.stateful_observation.DelayObservation": ("observation_queue",),
    "gymnasium.wrappers.stateful_observation.FrameStackObservation": ("obs_queue", "padding_value"),
    "gymnasium.wrappers.stateful_observation.MaxAndSkipObservation": ("_obs_buffer",),
    "gymnasium.wrappers.stateful_observation.NormalizeObservation": ("obs_rms", "_update_running_mean"),
    "gymnasium.wrappers.stateful_observation.TimeAwareObservation": ("timesteps",),
    "gymnasium.wrappers.stateful_reward.NormalizeReward": ("return_rms", "discounted_reward", "_update_running_mean"),
    "gymnasium.wrappers.vector.common.RecordEpisodeStatistics": (
        "episode_count",
        "episode_start_times",
        "episode_returns",
        "episode_lengths",
        "prev_dones",
        "time_queue",
        "return_queue",
        "length_queue",
    ),
    "gymnasium.wrappers.vector.stateful_observation.NormalizeObservation": ("obs_rms", "_update_running_mean"),
    "gymnasium.wrappers.vector.stateful_reward.NormalizeReward": (
        "return_rms",
        "accumulated_reward",
        "_update_running_mean",
        "_prev_dones",
    ),
} | {
    f"gymnasium.wrappers.{module}.{name}": ()
    for module, names in {
        "transform_action": "TransformAction ClipAction RescaleAction DiscretizeAction",
        "transform_observation": "TransformObservation FilterObservation FlattenObservation GrayscaleObservation "
        "ResizeObservation ReshapeObservation RescaleObservation DtypeObservation AddRenderObservation "
        "DiscretizeObservation",
        "transform_reward": "TransformReward ClipReward",
        "vector.vectorize_action": "TransformAction ClipAction RescaleAction",
        "vector.vectorize_observation": "TransformObservation FlattenObservation ReshapeObservation "
        "RescaleObservation DtypeObservation",
        "vector.vectorize_reward": "TransformReward ClipReward",
    }.items()
    for name in names.split()
}

_CLOCKS = ("episode_start_time", "episode_start_times")  # of time.perf_counter, whose zero differs between processes


def state_problem(env: AnyEnv) -> str | None:
    """Why the environment's state cannot be given and taken, in one sentence; None when it can."""
    *wrappers, base = _layers(env)
    for wrapper in wrappers:
        if _name(wrapper) not in _REMEMBERS:
            return f"the wrapper {_name(wrapper)} is unknown: what it remembers cannot be saved"
    if isinstance(base, SyncVectorEnv):
        problems = (state_problem(copy) for copy in base.envs)
        return next((problem for problem in problems if problem), None)
    if isinstance(base, AsyncVectorEnv):
        return "AsyncVectorEnv keeps its environments in other processes: use SyncVectorEnv"
    if _gives_its_own(base) or _is_mujoco(base) or _name(base) in _REMEMBERS:
        return None
    return f"the environment {_name(base)} is unknown: give it get_state() and set_state(state)"


def get_state(env: AnyEnv) -> State:
    """Everything that the environment's future depends on, wrappers included. Raises ValueError if it cannot be had."""
    problem = state_problem(env)
    if problem:
        raise ValueError(problem)
    *wrappers, base = _layers(env)
    return {
        "wrappers": [{"class": _name(each), "values": _values(each)} for each in wrappers],
        "class": _name(base),
        "state": _base_state(base),
    }


def set_state(env: AnyEnv, state: Mapping[str, Any]) -> None:
    """Put an environment of the same construction into a state. Raises ValueError if the state is of another one."""
    problem = state_problem(env)
    if problem:
        raise ValueError(problem)
    *wrappers, base = _layers(env)
    chain = [_name(layer) for layer in (*wrappers, base)]
    given = [*(each["class"] for each in state["wrappers"]), state["class"]]
    if chain != given:
        raise ValueError(f"the state is of {_chain(given)}: it cannot be given to {_chain(chain)}")
    for wrapper, saved in zip(wrappers, state["wrappers"], strict=True):
        _set_values(wrapper, saved["values"])
        if _name(wrapper).endswith("PassiveEnvChecker"):
            # Its checks look back at the step before, which is not saved: once is enough.
            wrapper.checked_reset = wrapper.checked_step = wrapper.checked_data_reuse = True
    _set_base_state(base, state["state"])


# What an episode that begins in a state does not take from it: a copied stream would repeat the same noise in every
# episode, copied counters would end it early, copied statistics would be those of whoever was there before.
_STREAMS_AND_COUNTERS = ("rng", "seed", "seeds", "elapsed")
_COUNTERS_AND_STATISTICS = ("TimeLimit", "RecordEpisodeStatistics", "NormalizeObservation", "NormalizeReward")


def begin_in(env: AnyEnv, state: Mapping[str, Any]) -> None:
    """Begin an episode in a state that `get_state` gave, after a reset.

    Random streams, step counters and statistics stay the environment's own. ValueError as `set_state`.
    """
    own = get_state(env)
    wrappers = [
        mine if mine["class"].rpartition(".")[2] in _COUNTERS_AND_STATISTICS else given
        for mine, given in zip(own["wrappers"], state["wrappers"], strict=False)
    ]
    kept = {key: own["state"][key] for key in _STREAMS_AND_COUNTERS if key in own["state"]}
    set_state(env, {**state, "wrappers": wrappers, "state": {**state["state"], **kept}})


def _layers(env: AnyEnv) -> Iterator[Any]:
    while isinstance(env, (gymnasium.Wrapper, VectorWrapper)):
        yield env
        env = env.env
    yield env


def _name(env: AnyEnv) -> str:
    return f"{type(env).__module__}.{type(env).__qualname__}"


def _chain(names: list[str]) -> str:
    return " > ".join(name.rpartition(".")[2] for name in names)


def _gives_its_own(env: AnyEnv) -> bool:
    # Many environments have a method of one of these names with other arguments (MujocoEnv.set_state(qpos, qvel)).
    if not isinstance(env, EnvState):
        return False
    required = (inspect.signature(method).parameters.values() for method in (env.get_state, env.set_state))
    return [sum(each.default is each.empty for each in parameters) for parameters in required] == [0, 1]


def _is_mujoco(env: AnyEnv) -> bool:
    return type(env).__module__.startswith("gymnasium.envs.mujoco.") and hasattr(env, "data")


def _base_state(env: Any) -> Any:
    if isinstance(env, SyncVectorEnv):
        return {
            "copies": [get_state(copy) for copy in env.envs],
            "observations": _plain(env._observations),
            "rewards": env._rewards.copy(),
            "terminations": env._terminations.copy(),
            "truncations": env._truncations.copy(),
            "autoreset_envs": env._autoreset_envs.copy(),
        }
    if _gives_its_own(env):
        return env.get_state()
    rng = None if env._np_random is None else _plain(env._np_random.bit_generator.state)
    state = {"rng": rng, "seed": env._np_random_seed}
    if _is_mujoco(env):
        return {**state, "time": float(env.data.time), "data": {k: v.copy() for k, v in _mujoco_arrays(env.data)}}
    return {**state, "values": _values(env)}


def _set_base_state(env: Any, state: Any) -> None:
    if isinstance(env, SyncVectorEnv):
        if len(env.envs) != len(state["copies"]):
            raise ValueError(f"the state has {len(state['copies'])} copies: this environment has {len(env.envs)}")
        for copy, saved in zip(env.envs, state["copies"], strict=True):
            set_state(copy, saved)
        env._observations = _like(env._observations, state["observations"])
        env._env_obs = [_like(each, _plain(each)) for each in iterate(env.observation_space, env._observations)]
        env._rewards = np.array(state["rewards"])
        env._terminations = np.array(state["terminations"])
        env._truncations = np.array(state["truncations"])
        env._autoreset_envs = np.array(state["autoreset_envs"])
        return
    if _gives_its_own(env):
        env.set_state(state)
        return
    env._np_random = None if state["rng"] is None else generator_from(state["rng"])
    env._np_random_seed = state["seed"]
    if not _is_mujoco(env):
        _set_values(env, state["values"])
        return
    arrays = dict(_mujoco_arrays(env.data))
    if {name: array.shape for name, array in arrays.items()} != {k: np.shape(v) for k, v in state["data"].items()}:
        raise ValueError("the state's MuJoCo arrays differ from this model's: it is of another model or MuJoCo version")
    env.data.time = state["time"]
    for name, array in arrays.items():
        array[...] = state["data"][name]


def _mujoco_arrays(data: Any) -> Iterator[tuple[str, NDArray]]:
    # Everything in MjData's buffer, which starts with qpos, and not only positions and velocities: the v5 environments
    # read quantities derived in the last step (xpos, cfrc_ext) before they step again, and the solver starts from
    # qacc_warmstart. Beyond the buffer, in the arena, lie contacts and constraints, found anew in each step.
    start = data.qpos.ctypes.data
    for name in dir(data):
        array = None if name.startswith("_") else getattr(data, name)
        if not isinstance(array, np.ndarray) or not array.size or name == "plugin_data":  # plug-ins keep pointers there
            continue
        if start <= array.ctypes.data < start + data.nbuffer:
            yield name, array


def _values(owner: Any) -> State:
    now = time.perf_counter()
    values = {name: getattr(owner, name) for name in _REMEMBERS[_name(owner)]}
    return {name: _plain(now - value if name in _CLOCKS else value) for name, value in values.items()}


def _set_values(owner: Any, values: Mapping[str, Any]) -> None:
    now = time.perf_counter()
    for name, saved in values.items():
        value = _like(getattr(owner, name, None), saved)  # some are first set by reset
        setattr(owner, name, now - value if name in _CLOCKS else value)


def _plain(value: Any) -> Any:
    # The value in dictionaries, lists, arrays, numbers and strings, sharing nothing with it.
    if isinstance(value, np.str_):
        return str(value)
    if value is None or isinstance(value, (bool, int, str)) or type(value) is float:
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return np.array(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [_plain(each) for each in value]
    if hasattr(value, "mean") and hasattr(value, "var") and hasattr(value, "count"):  # Gymnasium's RunningMeanStd
        return {name: _plain(getattr(value, name)) for name in ("mean", "var", "count")}
    raise ValueError(f"a {type(value).__name__} cannot be saved: states hold arrays, numbers, strings, lists and dicts")


def _like(template: Any, saved: Any) -> Any:
    # The inverse of _plain; tuples, queues and running means are told by what stands there in the fresh environment.
    if isinstance(saved, np.ndarray):
        return saved.copy() if saved.ndim else saved[()]
    if isinstance(saved, Mapping):
        if hasattr(template, "var") and not isinstance(template, (np.ndarray, np.generic)):
            for name, value in saved.items():
                setattr(template, name, _like(None, value))
            return template
        inner = template if isinstance(template, Mapping) else {}
        return {key: _like(inner.get(key), each) for key, each in saved.items()}
    if isinstance(saved, list):
        if isinstance(template, deque):
            return deque((_like(None, each) for each in saved), template.maxlen)
        inner_templates = (
            template if isinstance(template, (list, tuple)) and len(template) == len(saved) else [None] * len(saved)
        )
        items = [_like(each, value) for each, value in zip(inner_templates, saved, strict=True)]
        return tuple(items) if isinstance(template, tuple) else items
    return saved
