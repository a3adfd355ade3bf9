"""A point among walls: goals, exploration, curricula over mazes.

A layout is rows of text, `#` a wall and a space free, its outer ring all walls. `S` and `G` mark the cells in which
episodes begin and in which goals lie; if only one is used, the other is every other free cell; if none, every free cell
is both. Coordinates are in cells:
x runs along a row, y down the rows, and the middle of cell (row, column) is (column + 0.5, row + 0.5).

The point is a square of half-width 0.2 that never overlaps a wall: the two axes move one after the other, and a move
that would enter a wall stops at its face, so that the point slides along it. A step is shorter than the square, so
nothing is jumped over.

A *task* is (maze, start row, start column, goal row, goal column), where -1 leaves the choice to the reset. Mazes of
the generated layout are numbered; maze k of a `pool_seed` is the same whatever the pool's size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from palaestra.envs.canvas import BLUE, GREEN, INK, RED, Canvas
from palaestra.envs.native import Floats, NativeVectorEnv
from palaestra.envs.single import Single

LAYOUTS: dict[str, tuple[str, ...]] = {
    "open": ("#######", "#     #", "#     #", "#     #", "#     #", "#     #", "#######"),
    # The next three are the mazes of D4RL (Fu et al., 2020).
    "umaze": ("#####", "#   #", "### #", "#   #", "#####"),
    "medium": ("########", "#  ##  #", "#  #   #", "##   ###", "#  #   #", "# #  # #", "#   #  #", "########"),
    "large": (
        "############",
        "#    #     #",
        "# ## # # # #",
        "#      #   #",
        "# #### ### #",
        "#  # #     #",
        "## # # # ###",
        "#  #   #   #",
        "############",
    ),
    "rooms": (
        "###########",
        "#    #    #",
        "#    #    #",
        "#         #",
        "#    #    #",
        "## ### ####",
        "#    #    #",
        "#    #    #",
        "#         #",
        "#    #    #",
        "###########",
    ),
}

HALF_WIDTH = 0.2  # of the point
MAX_SPEED = 0.25  # per axis, cells a step
GOAL_RADIUS = 0.5
GAP = 1e-9  # left between the point and a wall, so that rounding cannot put it inside


class PointMazeVectorEnv(NativeVectorEnv):
    """N points in mazes. action: the speed wanted, [-1, 1]^2 of the top speed, reached with `inertia`.

    obs: position (from the maze's centre, in half its longer side), speed (in top speeds), goal (as the position), and
    for `view` the walls, 1 or 0. Reaching the goal gives reward 1 and terminates; `info["success"]` says so.

    Arguments:
        layout: a name in `LAYOUTS`, rows of text, or "generated": `pool_size` random mazes of `size` x `size` rooms,
            drawn from `pool_seed`, in which a share `loops` of the remaining inner walls is open.
        view: "all" shows the whole maze inside its outer ring, and makes mixed mazes a Markov process; k shows the
            (2k + 1)^2 - 1 cells around the point's; 0 nothing. None: "all" for generated mazes, otherwise 0.
        start, goal: (row, column), or None: drawn at each reset, never the same cell.
        dense: adds to each step's reward the way gained towards the goal, in cells of the shortest path (`remaining`):
            potential-based shaping with discount 1 (Ng, Harada and Russell, 1999).
        inertia: the share of the speed that is kept each step, in [0, 1).
    """

    draws = 5
    physics_names = ("x", "y", "x_speed", "y_speed", "goal_x", "goal_y", "maze")
    task_names = ("maze", "start_row", "start_column", "goal_row", "goal_column")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        layout: str | Sequence[str] = "umaze",
        size: int = 4,
        pool_size: int = 100,
        pool_seed: int = 0,
        loops: float = 0.1,
        view: int | Literal["all"] | None = None,
        start: tuple[int, int] | None = None,
        goal: tuple[int, int] | None = None,
        dense: bool = False,
        inertia: float = 0.6,
        max_episode_steps: int | None = 200,
        **common: Any,
    ) -> None:
        if not 0.0 <= inertia < 1.0:
            raise ValueError(f"inertia={inertia}: it must lie in [0, 1)")
        generated = layout == "generated"
        if generated:
            if size < 2 or pool_size < 1:
                raise ValueError(f"size={size}, pool_size={pool_size}: give at least 2 rooms a side, and one maze")
            pool = [generated_layout(size, pool_seed, maze, loops) for maze in range(pool_size)]
        else:
            pool = [_named(layout)]
        self.layouts = tuple(pool)
        self.dense = dense
        self.inertia = inertia
        self.walls, starts, goals = (np.stack(each) for each in zip(*map(_cells, pool), strict=True))  # [P, H, W]
        self.height, self.width = self.walls.shape[1:]
        self._flat_walls = self.walls.ravel()
        self._starts, self._goals = _Choice(starts), _Choice(goals)
        self._paths: dict[str, NDArray] = {}
        self._known = np.zeros(len(pool), dtype=np.bool_)
        if view is None:
            view = "all" if generated else 0
        self._scenery = _scenery(self.walls, view)
        self._scenery_by_cell = view != "all"

        self._centre = np.array([self.width, self.height]) / 2
        self._reach = max(self.width, self.height) / 2
        high = np.ones(6 + self._scenery.shape[1], dtype=np.float32)
        low = np.concatenate([-high[:6], np.zeros(self._scenery.shape[1], dtype=np.float32)])
        last = np.array([len(pool) - 1, self.height - 1, self.width - 1, self.height - 1, self.width - 1.0])
        task = [-1.0 if len(pool) > 1 else 0.0, *(start or (-1, -1)), *(goal or (-1, -1))]
        task_space = Box(-np.ones(5), last, dtype=np.float64)
        super().__init__(
            num_envs,
            Box(low, high),
            Box(-1.0, 1.0, (2,), np.float32),
            max_episode_steps=max_episode_steps,
            task_space=task_space,
            default_task=task,
            **common,
        )
        self.set_task(task)  # checks start and goal

    def begin(self, uniforms: Floats, tasks: Floats) -> Floats:
        """At rest in the start's cell, up to 0.25 off its middle; the goal in the middle of another cell."""
        pool, width = len(self.walls), self.width
        wanted = tasks.astype(np.int64)
        maze = np.where(wanted[:, 0] >= 0, wanted[:, 0], (uniforms[:, 0] * pool).astype(np.int64))
        start, goal = wanted[:, 1] * width + wanted[:, 2], wanted[:, 3] * width + wanted[:, 4]
        goal_given, start_given = wanted[:, 3] >= 0, wanted[:, 1] >= 0
        drawn = self._starts.draw(uniforms[:, 1], maze, np.where(goal_given, goal, -1))
        start = np.where(start_given, start, drawn)
        goal = np.where(goal_given, goal, self._goals.draw(uniforms[:, 2], maze, start))
        physics = np.zeros((len(tasks), 7))
        physics[:, 0] = start % width + 0.25 + 0.5 * uniforms[:, 3]
        physics[:, 1] = start // width + 0.25 + 0.5 * uniforms[:, 4]
        physics[:, 4] = goal % width + 0.5
        physics[:, 5] = goal // width + 0.5
        physics[:, 6] = maze
        return physics

    def advance(self, physics: Floats, action: NDArray, tasks: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Move along x, then along y, each up to the first wall."""
        after = physics.copy()
        x, y = physics[:, 0], physics[:, 1]
        maze = physics[:, 6].astype(np.int64) * (self.height * self.width)
        pull = (1.0 - self.inertia) * MAX_SPEED
        speed = self.inertia * physics[:, 2:4] + pull * action.clip(-1.0, 1.0).astype(np.float64)
        x, after[:, 2] = self._slide(x, speed[:, 0], y, maze, 1, self.width)
        y, after[:, 3] = self._slide(y, speed[:, 1], x, maze, self.width, 1)
        after[:, 0], after[:, 1] = x, y
        arrived = (x - physics[:, 4]) ** 2 + (y - physics[:, 5]) ** 2 < GOAL_RADIUS**2
        reward = arrived.astype(np.float64)
        if self.dense:
            reward += self.remaining(physics) - self.remaining(after)
        return after, reward, arrived

    def _slide(
        self, at: Floats, speed: Floats, across: Floats, maze: NDArray[np.int64], stride: int, other: int
    ) -> tuple[Floats, Floats]:
        # `at` is the coordinate that moves, `across` the other one; cells are maze + at * stride + across * other.
        side = np.where(speed > 0, HALF_WIDTH, -HALF_WIDTH)
        wanted = at + speed
        edge = (wanted + side).astype(np.int64)  # coordinates are positive, so this is the floor
        first = maze + edge * stride
        low, high = (across - HALF_WIDTH).astype(np.int64), (across + HALF_WIDTH).astype(np.int64)
        hit = self._flat_walls[first + low * other] | self._flat_walls[first + high * other]
        face = np.where(speed > 0, edge - GAP, edge + (1 + GAP)) - side
        return np.where(hit, face, wanted), np.where(hit, 0.0, speed)

    def observe(self, physics: Floats) -> NDArray[np.float32]:
        """Position, speed, goal, walls."""
        obs = np.empty((len(physics), 6 + self._scenery.shape[1]), dtype=np.float32)
        obs[:, :2] = (physics[:, :2] - self._centre) / self._reach
        obs[:, 2:4] = physics[:, 2:4] / MAX_SPEED
        obs[:, 4:6] = (physics[:, 4:6] - self._centre) / self._reach
        if self._scenery.shape[1]:
            maze = physics[:, 6].astype(np.int64)
            obs[:, 6:] = self._scenery[
                maze * (self.height * self.width) + self._cell(physics) if self._scenery_by_cell else maze
            ]
        return obs

    def outcome(self, terminated: NDArray[np.bool_]) -> dict[str, NDArray]:
        """`success`: the goal is reached."""
        return {"success": terminated.copy()}

    def physics_problem(self, physics: Floats) -> str | None:
        """The point outside all walls, the goal in a free cell of the same maze."""
        maze = physics[:, 6]
        if ((maze != np.floor(maze)) | (maze < 0) | (maze >= len(self.walls))).any():
            return f"mazes are numbered from 0 to {len(self.walls) - 1}"
        if (np.abs(physics[:, 2:4]) > MAX_SPEED).any():
            return f"speeds lie in [-{MAX_SPEED}, {MAX_SPEED}]"
        for points, half in ((physics[:, :2], HALF_WIDTH), (physics[:, 4:6], 0.0)):
            if ((points < 1) | (points > (self.width - 1, self.height - 1))).any() or self.blocked(
                maze, points, half
            ).any():
                return "the point or its goal lies in a wall"
        return None

    def blocked(self, maze: ArrayLike, points: Floats, half_width: float = HALF_WIDTH) -> NDArray[np.bool_]:
        """Whether squares around the points [M, 2] overlap a wall of their maze [M]: [M]."""
        maze = np.asarray(maze).astype(np.int64)
        corners = [
            (points + half_width * np.array(corner)).astype(np.int64) for corner in ((-1, -1), (-1, 1), (1, -1), (1, 1))
        ]
        return np.logical_or.reduce([self.walls[maze, corner[:, 1], corner[:, 0]] for corner in corners])

    def task_problem(self, tasks: Floats) -> str | None:
        """Whole numbers, free cells, and a start that is not the goal."""
        wanted = np.rint(tasks).astype(np.int64)
        if (wanted != tasks).any():
            return "mazes, rows and columns are whole numbers"
        for maze, *cells in np.unique(wanted, axis=0).tolist():
            walls = np.asarray(self.walls.any(axis=0) if maze < 0 else self.walls[maze])
            for name, (row, column) in (("start", cells[:2]), ("goal", cells[2:])):
                if (row < 0) != (column < 0):
                    return f"the {name} needs both a row and a column"
                if row >= 0 and walls[row, column]:
                    return f"the {name} ({row}, {column}) lies in a wall"
            start, goal = (row * self.width + column if row >= 0 else -1 for row, column in (cells[:2], cells[2:]))
            same = start >= 0 and start == goal
            if same or not (self._goals.can(maze, start) and self._starts.can(maze, goal)):
                return "start and goal would be the same cell"
        return None

    def remaining(self, physics: Floats) -> Floats:
        """The shortest way to the goal [M], in cells: to the middle of the next cell, then from middle to middle."""
        next_cell, distance = self._ahead(physics)
        x, y = next_cell % self.width + 0.5, next_cell // self.width + 0.5
        return np.sqrt((physics[:, 0] - x) ** 2 + (physics[:, 1] - y) ** 2) + distance

    def controller(self, obs: ArrayLike) -> NDArray[np.float32]:
        """Head for the middle of the next cell on the shortest path (of this environment's present mazes and goals)."""
        obs = np.asarray(obs, dtype=np.float64)
        physics = self._physics.copy()
        physics[:, :2] = obs[:, :2] * self._reach + self._centre
        next_cell, _ = self._ahead(physics)
        target = np.stack([next_cell % self.width, next_cell // self.width], axis=1) + 0.5
        return (4.0 * (target - physics[:, :2])).clip(-1.0, 1.0).astype(np.float32)

    def _cell(self, physics: Floats) -> NDArray[np.int64]:
        return physics[:, 1].astype(np.int64) * self.width + physics[:, 0].astype(np.int64)

    def _ahead(self, physics: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # The next cell towards the goal, and the steps from there on; a maze's tables are filled when first needed.
        maze = physics[:, 6].astype(np.int64)
        cells = self.height * self.width
        if not self._paths:
            self._paths = {name: np.zeros((len(self.walls), cells, cells), np.int16) for name in ("ahead", "distance")}
        for new in np.unique(maze[~self._known[maze]]).tolist():
            self._paths["distance"][new], self._paths["ahead"][new] = shortest_paths(self.walls[new])
            self._known[new] = True
        goal = physics[:, 5].astype(np.int64) * self.width + physics[:, 4].astype(np.int64)
        next_cell = self._paths["ahead"][maze, goal, self._cell(physics)].astype(np.int64)
        return next_cell, self._paths["distance"][maze, goal, next_cell].astype(np.int64)

    def draw_frame(self, index: int) -> NDArray[np.uint8]:
        """The walls, the goal, the point and its speed."""
        x, y, x_speed, y_speed, goal_x, goal_y, maze = self._physics[index]
        side = max(self.width, self.height) / 2
        (middle_x, middle_y), wall = self._centre, self.walls[int(maze)]
        canvas = Canvas(middle_x - side, middle_x + side, middle_y + side, middle_y - side)
        for row, column in np.argwhere(wall).tolist():
            canvas.rectangle((column, row), (column + 1, row + 1), INK, corner=0.1)
            # Neighbouring walls are joined, so that only outer corners are round.
            if column + 1 < self.width and wall[row, column + 1]:
                canvas.rectangle((column + 0.5, row), (column + 1.5, row + 1), INK)
            if row + 1 < self.height and wall[row + 1, column]:
                canvas.rectangle((column, row + 0.5), (column + 1, row + 1.5), INK)
        canvas.ring((goal_x, goal_y), 0.36, 0.1, GREEN)
        canvas.disc((goal_x, goal_y), 0.12, GREEN)
        canvas.disc((x, y), HALF_WIDTH * 1.2, BLUE)
        canvas.line([(x, y), (x + 2.5 * x_speed, y + 2.5 * y_speed)], 0.08, RED)
        return canvas.frame()


class PointMazeEnv(Single):
    """One point in a maze: see `PointMazeVectorEnv`."""

    world_class = PointMazeVectorEnv


class _Choice:
    """Draws one of the marked cells of a maze, other than a given one, from a uniform number."""

    def __init__(self, marked: NDArray[np.bool_]) -> None:
        flat = marked.reshape(len(marked), -1)
        self.counts = flat.sum(axis=1)
        self.cells = np.argsort(~flat, axis=1, kind="stable")[:, : self.counts.max()]  # marked cells first, in order
        self.rank = np.where(flat, flat.cumsum(axis=1) - 1, flat.shape[1])  # large where a cell is not marked

    def can(self, maze: int, but: int) -> bool:
        """Whether a cell other than `but` (-1: none) is marked in the maze (-1: in every maze)."""
        mazes = slice(None) if maze < 0 else slice(maze, maze + 1)
        taken = (self.rank[mazes, but] < self.rank.shape[1]) if but >= 0 else 0
        return bool((self.counts[mazes] - taken > 0).all())

    def draw(self, uniform: Floats, maze: NDArray[np.int64], but: NDArray[np.int64]) -> NDArray[np.int64]:
        """One cell for each uniform number in [0, 1), never `but` (-1: none)."""
        rank = np.where(but >= 0, self.rank[maze, but], self.rank.shape[1])
        count = self.counts[maze] - (rank < self.rank.shape[1])
        drawn = (uniform * count).astype(np.int64)
        return self.cells[maze, drawn + (drawn >= rank)]


@functools.lru_cache(maxsize=10_000)  # every copy of a SyncVectorEnv asks for the same pool
def generated_layout(size: int, pool_seed: int, maze: int, loops: float = 0.1) -> tuple[str, ...]:
    """Maze number `maze` of a pool, rows of text: `size` x `size` rooms joined by a randomised depth-first search.

    The search leaves one way between any two rooms; a share `loops` of the walls still between rooms is then opened.
    """
    rng = np.random.default_rng([pool_seed, maze])
    free = np.zeros((2 * size + 1, 2 * size + 1), dtype=np.bool_)
    free[1::2, 1::2] = True
    seen = {(0, 0)}
    path = [(0, 0)]
    while path:
        row, column = path[-1]
        around = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        new = [room for room in around if min(room) >= 0 and max(room) < size and room not in seen]
        if not new:
            path.pop()
            continue
        room = new[rng.integers(len(new))]
        free[row + room[0] + 1, column + room[1] + 1] = True
        seen.add(room)
        path.append(room)
    closed = [(r, c) for r in range(1, 2 * size) for c in range(1, 2 * size) if (r + c) % 2 and not free[r, c]]
    for index in rng.permutation(len(closed))[: round(loops * len(closed))]:
        free[closed[index]] = True
    return tuple("".join(" " if cell else "#" for cell in row) for row in free)


def shortest_paths(walls: NDArray[np.bool_]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Breadth-first search from every cell at once, for walls [H, W] closed by an outer ring.

    Returns (distance, ahead), each [H W, H W], indexed by goal and cell: the number of steps (-1: no way), and the
    next cell on a shortest path (the goal itself at the goal).
    """
    width = walls.shape[1]
    free = ~walls.ravel()
    distance = np.full((free.size, free.size), -1, dtype=np.int16)
    ahead = np.zeros_like(distance)
    goals = np.flatnonzero(free)
    distance[goals, goals], ahead[goals, goals] = 0, goals
    frontier = np.zeros(distance.shape, dtype=np.bool_)
    frontier[goals, goals] = True
    steps = 0
    while frontier.any():
        steps += 1
        grown = np.zeros_like(frontier)
        for shift in (1, -1, width, -width):
            # The outer ring is wall, so that rolling past the end of a row meets nothing free.
            new = np.roll(frontier, shift, axis=1) & free & (distance < 0)
            goal, cell = np.nonzero(new)
            distance[goal, cell], ahead[goal, cell] = steps, cell - shift
            grown |= new
        frontier = grown
    return distance, ahead


def _named(layout: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(layout, str):
        return tuple(layout)
    if layout not in LAYOUTS:
        raise ValueError(f'layout {layout!r} is unknown: use "generated", rows of text, or one of {", ".join(LAYOUTS)}')
    return LAYOUTS[layout]


def _cells(layout: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    if not layout or len({len(row) for row in layout}) != 1:
        raise ValueError("the layout's rows differ in length: fill them up with walls, #")
    text = np.array([list(row) for row in layout])
    strange = set(text.ravel().tolist()) - set("# SG")
    if strange:
        raise ValueError(f"the layout has a {min(strange)!r}: use # for a wall, a space, S for starts and G for goals")
    walls = text == "#"
    if not (walls[[0, -1]].all() and walls[:, [0, -1]].all()):
        raise ValueError("the layout is open at its edge: close its outer ring with walls, #")
    if (~walls).sum() < 2:
        raise ValueError("the layout has fewer than two free cells: it needs a start and a goal")
    unreached = _unreached(walls)
    if len(unreached):
        row, column = unreached[0].tolist()
        raise ValueError(f"the layout's cell ({row}, {column}) cannot be reached from the others: open a wall")
    starts, goals = text == "S", text == "G"
    if not starts.any() and not goals.any():
        return walls, ~walls, ~walls
    return walls, starts if starts.any() else ~walls & ~goals, goals if goals.any() else ~walls & ~starts


def _unreached(walls: NDArray[np.bool_]) -> NDArray[np.intp]:
    # The free cells [K, 2] that no way joins to the first one.
    reached = np.zeros_like(walls)
    reached[tuple(np.argwhere(~walls)[0])] = True
    count = 0
    while count < (count := int(reached.sum())):
        for axis in (0, 1):  # the outer ring is wall, so that nothing rolls past an edge
            reached |= np.roll(reached, 1, axis) | np.roll(reached, -1, axis)
            reached &= ~walls
    return np.argwhere(~walls & ~reached)


def _scenery(walls: NDArray[np.bool_], view: int | str) -> NDArray[np.float32]:
    # What is seen of the walls: [P, cells] for "all", else [P H W, cells], by maze and cell.
    if view == "all":
        return walls[:, 1:-1, 1:-1].reshape(len(walls), -1).astype(np.float32)
    if not isinstance(view, int) or view < 0:
        raise ValueError(f'view={view!r}: give "all", or how many cells are seen to each side')
    padded = np.pad(walls, ((0, 0), (view, view), (view, view)), constant_values=True)
    window = 2 * view + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window), axis=(1, 2))  # type: ignore[call-overload]
    seen = windows.reshape(walls.size, window * window)
    return np.delete(seen, window * window // 2, axis=1).astype(np.float32)
