"""The base of our own environments: N copies stepped as a few NumPy operations on one array.

A world says how one moves (`advance`), what is seen (`observe`) and where an episode begins (`begin`); this class does
the rest as Gymnasium 1.4's `SyncVectorEnv` does it: the three autoreset modes, seeds, masks, infos.

Every copy has a random stream of its own, and draws from it only when an episode begins, always `draws` uniform
numbers. Copy i of an environment seeded s is therefore, bit for bit, a single environment seeded s + i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class NativeVectorEnv(VectorEnv):
    """N copies of a world in one array. Observations are float32, or uint8 images; physics and rewards float64.

    A world sets `draws`, `physics_names` and `task_names` (what the columns mean), calls this constructor, and defines
    `begin`, `advance`, `observe`, and where it can `controller`, `draw_frame`, `outcome`, `physics_problem` and
    `task_problem`.

    Arguments:
        num_envs: number of copies, N.
        observation_space, action_space: of one copy.
        autoreset_mode: Gymnasium's `AutoresetMode` or its value; `reset(options={"reset_mask": mask})` begins new
            episodes by hand.
        max_episode_steps: episodes are truncated after so many steps; None for no limit.
        render_mode: None or "rgb_array".
        task_space, default_task: of a contextual world: the range of its task, float64 [d], and the task that copies
            have until `reset(options={"task": ...})` or `set_task` gives another.
        visible: append the task to the observation, each coordinate scaled from its range to [-1, 1].
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 (as Gymnasium)
    draws: ClassVar[int]
    physics_names: ClassVar[tuple[str, ...]]
    task_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        num_envs: int,
        observation_space: Box,
        action_space: Box | Discrete,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        task_space: Box | None = None,
        default_task: Sequence[float] = (),
        visible: bool = False,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: there must be at least one copy")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps={max_episode_steps}: give a positive number, or None for no limit")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode={render_mode!r}: give None or "rgb_array"')
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self.task_space = task_space
        self.visible = visible and task_space is not None
        if self.visible:
            ones = np.ones(len(default_task), dtype=np.float32)
            observation_space = Box(
                np.concatenate([observation_space.low, -ones]), np.concatenate([observation_space.high, ones])
            )
        self.single_observation_space: Space = observation_space
        self.single_action_space: Space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)

        self.generators: list[np.random.Generator] = []  # one a copy, from the first reset on
        self._seeds: list[int] = []
        self._physics: Floats = np.zeros((num_envs, len(self.physics_names)))
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._finished = np.zeros(num_envs, dtype=np.bool_)
        self._tasks: Floats = np.tile(np.asarray(default_task, dtype=np.float64), (num_envs, 1))
        self._next_tasks = self._tasks.copy()

    # What a world defines.

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """Physical states in which episodes begin [M, p], from numbers [M, draws] in [0, 1) and tasks [M, d]."""
        raise NotImplementedError  # abstract: a world defines it

    def advance(self, physics: Floats, action: NDArray, tasks: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """One step of all copies: (new physics [N, p], reward [N], terminated [N]); the arguments stay as they are."""
        raise NotImplementedError  # abstract: a world defines it

    def observe(self, physics: Floats) -> NDArray:
        """Observations [M, o] of physical states [M, p], or images [M, H, W, C], without the task."""
        raise NotImplementedError  # abstract: a world defines it

    def outcome(self, terminated: NDArray[np.bool_]) -> dict[str, NDArray]:
        """What `info` tells of each copy: {name: [N]}; called with zeros for an episode that just began."""
        return {}

    def physics_problem(self, physics: Floats) -> str | None:
        """Why these finite physical states [M, p] cannot be, in one sentence; None if they can."""
        return None

    def task_problem(self, tasks: Floats) -> str | None:
        """Why these tasks [M, d], which lie in `task_space`, cannot be, in one sentence; None if they can."""
        return None

    def controller(self, obs: ArrayLike) -> NDArray:
        """Actions [N, ...] of a scripted controller that solves the world, from this environment's observations."""
        raise NotImplementedError  # abstract: a world defines it

    def draw_frame(self, index: int) -> NDArray[np.uint8]:
        """A picture of copy `index`, uint8 [H, W, 3]."""
        raise NotImplementedError  # abstract: a world defines it

    # Gymnasium's side.

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The copies' random streams, as `SyncVectorEnv` gives them; empty before the first reset."""
        return tuple(self.generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The copies' seeds, as `SyncVectorEnv` gives them; empty before the first reset."""
        return tuple(self._seeds)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray, dict[str, Any]]:
        """Begin an episode in every copy, or in those of a mask.

        Arguments:
            seed: s seeds copy i with s + i; a list seeds each (None: the copy's stream goes on).
            options: "reset_mask", bool [N]: the copies to reset; "task", [d] or [N, d]: their task from now on.

        Returns the observations [N, o] of all copies, and the infos of those that were reset.
        """
        options = dict(options or {})
        mask = self._reset_mask(options.pop("reset_mask", None))
        task = options.pop("task", None)
        if options:
            raise ValueError(f'reset option {next(iter(options))!r} is unknown: use "reset_mask" or "task"')
        if task is not None:
            self.set_task(task, mask)
        self._seed(seed, mask)
        self._begin(self._physics, np.flatnonzero(mask))
        info = self._infos(self.outcome(np.zeros(self.num_envs, dtype=np.bool_)), mask)
        return self._observations(), info

    def step(self, actions: ArrayLike) -> tuple[NDArray, Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Act in every copy: actions [N, ...] -> obs [N, o], reward [N], terminated [N], truncated [N], infos."""
        if not self.generators:
            raise gymnasium.error.ResetNeeded("step was called before the first reset: call reset(seed=...) first")
        fresh = self._finished  # with NEXT_STEP, these copies begin their next episode in this step
        if self.autoreset_mode is AutoresetMode.DISABLED and fresh.any():
            raise gymnasium.error.ResetNeeded(
                f"the episode of copy {int(fresh.argmax())} is over: call reset(options={{'reset_mask': "
                "terminated | truncated}) before the next step, or choose an autoreset_mode"
            )
        physics, reward, terminated = self.advance(self._physics, self._admitted(actions), self._tasks)
        self._physics = physics
        self._elapsed += 1
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            index = np.flatnonzero(fresh)
            self._begin(physics, index)
            reward[index] = 0.0
            terminated[index] = False
        if self.max_episode_steps is None:
            truncated = np.zeros(self.num_envs, dtype=np.bool_)
        else:
            truncated = self._elapsed >= self.max_episode_steps
        finished = terminated | truncated
        obs = self._observations()
        info: dict[str, Any] = {}
        outcome = self.outcome(terminated)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and finished.any():
            index = np.flatnonzero(finished)
            info = self._final(obs, outcome, finished, index)
            self._begin(physics, index)
            obs[index] = self._observations(index)
            outcome = self.outcome(terminated & ~finished)
            finished = np.zeros(self.num_envs, dtype=np.bool_)
        self._finished = finished
        info |= self._infos(outcome, np.ones(self.num_envs, dtype=np.bool_)) if outcome else {}
        return obs, reward, terminated, truncated, info

    def render(self) -> tuple[NDArray[np.uint8], ...]:
        """A picture of each copy: a tuple of N frames, uint8 [H, W, 3]."""
        if self.render_mode is None:
            raise gymnasium.error.Error('render_mode is None: construct the environment with render_mode="rgb_array"')
        return tuple(self.draw_frame(index) for index in range(self.num_envs))

    # Tasks, physical states, and the whole state.

    def set_task(self, task: ArrayLike, mask: NDArray[np.bool_] | None = None) -> None:
        """Give copies (those of `mask`, [N]) a task [d] or [N, d]; each takes it up when its next episode begins.

        Raises ValueError if the world has no tasks, or the task lies outside `task_space`.
        """
        space = self.task_space
        if space is None:
            raise ValueError(f'"task": {type(self).__name__} has no tasks; use one of the contextual worlds')
        tasks = np.asarray(task, dtype=np.float64)
        if tasks.shape not in (space.shape, (self.num_envs, *space.shape)):
            raise ValueError(f'"task" has shape {tasks.shape}: give {space.shape} or {(self.num_envs, *space.shape)}')
        tasks = np.broadcast_to(tasks, self._next_tasks.shape)
        rows = tasks if mask is None else tasks[mask]
        outside = ~((rows >= space.low) & (rows <= space.high))
        if outside.any():
            row, key = np.argwhere(outside)[0]
            raise ValueError(
                f'"task" has {self.task_names[key]}={rows[row, key]}: it must lie in '
                f"[{space.low[key]:g}, {space.high[key]:g}]"
            )
        problem = self.task_problem(rows)
        if problem:
            raise ValueError(f'"task": {problem}')
        self._next_tasks[slice(None) if mask is None else mask] = rows

    @property
    def tasks(self) -> Floats:
        """The tasks of the running episodes, [N, d]."""
        return self._tasks.copy()

    def get_physics(self, index: int | Sequence[int] | NDArray | None = None) -> Floats:
        """The physical state of a copy [p], of several [M, p], or of all [N, p]; columns as in `physics_names`."""
        return self._physics[slice(None) if index is None else index].copy()

    def set_physics(self, index: int | Sequence[int] | NDArray, physics: ArrayLike, elapsed: ArrayLike = 0) -> NDArray:
        """Begin an episode of copy `index` (or copies, [M]) in a chosen physical state [p] ([M, p]).

        `elapsed` is how many steps of the time limit count as taken. The task stays. Draws nothing.
        Returns the observation [o] ([M, o]). Raises ValueError for a state that cannot be.
        """
        if not self.generators:
            raise gymnasium.error.ResetNeeded(
                "set_physics was called before the first reset: call reset(seed=...) first"
            )
        copies = np.atleast_1d(np.asarray(index))
        rows = np.asarray(physics, dtype=np.float64)
        wanted = (*np.shape(index), len(self.physics_names))
        if rows.shape != wanted:
            raise ValueError(
                f"the physical state has shape {rows.shape}: give {wanted}, {', '.join(self.physics_names)}"
            )
        rows = rows.reshape(len(copies), -1)
        problem = self.physics_problem(rows) if np.isfinite(rows).all() else "a number is not finite"
        if problem:
            raise ValueError(f"this physical state cannot be: {problem}")
        self._physics[copies] = rows
        self._elapsed[copies] = elapsed
        self._finished[copies] = False
        obs = self._observations(copies)
        return obs if np.ndim(index) else obs[0]

    def get_state(self) -> dict[str, Any]:
        """Everything that the future depends on: arrays, numbers, strings; the streams as dictionaries of integers."""
        return {
            "world": type(self).__name__,
            "physics": self._physics.copy(),
            "elapsed": self._elapsed.copy(),
            "finished": self._finished.copy(),
            "tasks": self._tasks.copy(),
            "next_tasks": self._next_tasks.copy(),
            "seeds": list(self._seeds),
            "rng": [generator.bit_generator.state for generator in self.generators],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `get_state` gave; the copies go on bit for bit. Raises ValueError if it does not fit."""
        if state["world"] != type(self).__name__:
            raise ValueError(f"the state is of {state['world']}: it cannot be given to {type(self).__name__}")
        for name in ("physics", "tasks"):
            have, given = getattr(self, f"_{name}").shape, np.shape(state[name])
            if have != given:
                raise ValueError(f"the state's {name} have shape {given}: this {type(self).__name__} needs {have}")
        self._physics = np.array(state["physics"], dtype=np.float64)
        self._elapsed = np.array(state["elapsed"], dtype=np.int64)
        self._finished = np.array(state["finished"], dtype=np.bool_)
        self._tasks = np.array(state["tasks"], dtype=np.float64)
        self._next_tasks = np.array(state["next_tasks"], dtype=np.float64)
        self._seeds = [int(seed) for seed in state["seeds"]]
        self.generators = [generator_from(stream) for stream in state["rng"]]

    # Inside.

    def _reset_mask(self, mask: Any) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(f'"reset_mask" must be a NumPy bool array of shape ({self.num_envs},), got {mask!r}')
        if not mask.any():
            raise ValueError('"reset_mask" has no True: leave the reset out')
        return mask

    def _seed(self, seed: int | Sequence[int | None] | None, mask: NDArray[np.bool_]) -> None:
        if seed is None and self.generators:
            return
        seeds = [seed] * self.num_envs if seed is None else seed
        if isinstance(seeds, (int, np.integer)):
            seeds = [int(seeds) + copy for copy in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} numbers: give one, or one for each of the {self.num_envs} copies")
        if not self.generators:
            self.generators, self._seeds = map(list, zip(*(seeding.np_random(each) for each in seeds), strict=True))
            return
        for copy in np.flatnonzero(mask).tolist():
            if seeds[copy] is not None:
                self.generators[copy], self._seeds[copy] = seeding.np_random(seeds[copy])

    def _begin(self, physics: Floats, index: NDArray[np.intp]) -> None:
        uniforms = np.empty((len(index), self.draws))
        generators = self.generators
        for row, copy in zip(uniforms, index.tolist(), strict=True):
            generators[copy].random(out=row)
        self._tasks[index] = self._next_tasks[index]
        physics[index] = self.begin(uniforms, self._tasks[index])
        self._elapsed[index] = 0
        self._finished[index] = False

    def _observations(self, index: NDArray | slice = slice(None)) -> NDArray:
        obs = self.observe(self._physics[index])
        if not self.visible:
            return obs
        assert self.task_space is not None
        low, high = self.task_space.low, self.task_space.high
        return np.concatenate([obs, ((self._tasks[index] - low) / (high - low) * 2 - 1).astype(np.float32)], axis=1)

    def _admitted(self, actions: ArrayLike) -> NDArray:
        actions, space = np.asarray(actions), self.single_action_space
        if actions.shape != self.action_space.shape:
            raise ValueError(
                f"the actions have shape {actions.shape}: {type(self).__name__} needs {self.action_space.shape}"
            )
        if isinstance(space, Discrete):
            if actions.dtype.kind not in "iu":
                raise ValueError(
                    f"the actions are {actions.dtype}: {type(self).__name__} needs integers below {space.n}"
                )
            good = (actions >= 0) & (actions < space.n)
        else:
            actions = actions.astype(np.float32, copy=False)
            good = np.isfinite(actions)
        if good.all():
            return actions
        bad = ~good.reshape(self.num_envs, -1).all(axis=1)
        counted = bad & ~self._finished  # the action of a copy that only begins its episode is ignored
        if counted.any():
            copy = int(counted.argmax())
            raise ValueError(f"the action of copy {copy} is {actions[copy]}: it must lie in {space}")
        return np.where(good, actions, np.zeros_like(actions))

    def _infos(self, outcome: Mapping[str, NDArray], mask: NDArray[np.bool_]) -> dict[str, Any]:
        info: dict[str, Any] = {}
        for name, values in outcome.items():
            info[name] = np.where(mask, values, np.zeros_like(values))
            info[f"_{name}"] = mask.copy()
        return info

    def _final(
        self, obs: NDArray, outcome: Mapping[str, NDArray], finished: NDArray[np.bool_], index: NDArray[np.intp]
    ) -> dict[str, Any]:
        last = np.full(self.num_envs, None, dtype=object)
        for copy in index.tolist():
            last[copy] = obs[copy].copy()
        return {
            "final_obs": last,
            "_final_obs": finished.copy(),
            "final_info": self._infos(outcome, finished),
            "_final_info": finished.copy(),
        }


def generator_from(state: Mapping[str, Any]) -> np.random.Generator:
    """A generator that goes on where `generator.bit_generator.state` was taken."""
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)
