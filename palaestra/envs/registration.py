"""The Gymnasium ids of our own worlds.

`gymnasium.make(id)` gives one copy under Gymnasium's usual wrappers; `gymnasium.make_vec(id, n)` gives n, vectorised
natively. The time limit stands in the id alone: `make` applies it as a `TimeLimit`, `make_vec` hands it to the world.
Of a text task there is `gymnasium.make` alone, with the task's settings: `make("palaestra/Add-v0", digits=3)`.
Nothing but names is read here; a world's module is imported when one is made.
"""

from __future__ import annotations

from typing import Any

# id: (module, class name less "Env", time limit or None where episodes end by themselves, further arguments)
WORLDS: dict[str, tuple[str, str, int | None, dict[str, Any]]] = {
    "palaestra/PointMass-v0": ("point_mass", "PointMass", 100, {}),
    "palaestra/PointMaze-v0": ("point_maze", "PointMaze", 200, {}),
    "palaestra/PointMazeOpen-v0": ("point_maze", "PointMaze", 100, {"layout": "open"}),
    "palaestra/PointMazeUMaze-v0": ("point_maze", "PointMaze", 100, {"layout": "umaze"}),
    "palaestra/PointMazeUTurn-v0": (
        "point_maze",
        "PointMaze",
        100,
        {"layout": ("#####", "#S  #", "### #", "#G  #", "#####")},
    ),
    "palaestra/PointMazeMedium-v0": ("point_maze", "PointMaze", 200, {"layout": "medium"}),
    "palaestra/PointMazeLarge-v0": ("point_maze", "PointMaze", 300, {"layout": "large"}),
    "palaestra/PointMazeRooms-v0": ("point_maze", "PointMaze", 200, {"layout": "rooms"}),
    "palaestra/PointMazeGenerated-v0": ("point_maze", "PointMaze", 200, {"layout": "generated"}),
    "palaestra/Pendulum-v0": ("pendulum", "Pendulum", 200, {}),
    "palaestra/CartPole-v0": ("cartpole", "CartPole", 500, {}),
    "palaestra/MountainCar-v0": ("mountain_car", "MountainCar", 200, {}),
    "palaestra/MountainCarContinuous-v0": ("mountain_car", "MountainCarContinuous", 999, {}),
    "palaestra/Catch-v0": ("catch", "Catch", None, {}),
    "palaestra/Recall-v0": ("recall", "Recall", None, {}),
    "palaestra/ContextualPendulum-v0": ("pendulum", "ContextualPendulum", 200, {}),
    "palaestra/ContextualCartPole-v0": ("cartpole", "ContextualCartPole", 500, {}),
    "palaestra/ContextualMountainCar-v0": ("mountain_car", "ContextualMountainCar", 200, {}),
}

# id: "MODULE:FUNCTION" in palaestra.envs.text. Nothing but strings is seen and done there, for one step an episode, so
# that they are no worlds for control: no Box, no physics, no native vectorisation.
TEXTS: dict[str, str] = {
    "palaestra/Add-v0": "add:add",
    "palaestra/MarkedAdd-v0": "add:marked_add",
    "palaestra/Countdown-v0": "countdown:countdown",
    "palaestra/Sent-v0": "sent:sent",
    "palaestra/Sort-v0": "sort:sort",
    "palaestra/KeyValue-v0": "recall:key_value",
    "palaestra/ChainSum-v0": "chain:chain_sum",
}


def register() -> None:
    """Make the ids of `WORLDS` and `TEXTS` known to Gymnasium; calling it again changes nothing."""
    import gymnasium

    for name, (module, world, max_episode_steps, options) in WORLDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                id=name,
                entry_point=f"palaestra.envs.{module}:{world}Env",
                vector_entry_point=f"palaestra.envs.{module}:{world}VectorEnv",
                max_episode_steps=max_episode_steps,
                kwargs=dict(options),
            )
    for name, task in TEXTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(id=name, entry_point="palaestra.envs.text.task:text_env", kwargs={"task": task})
