"""A point that is pushed through a maze to a goal: two dimensions, walls, plain NumPy.

    state          position p and velocity v; a cell of the maze is 1 long, a step takes 0.1 seconds
    action         a in [-1, 1]^2
    dynamics       v <- 0.8 v + 0.5 a;  p <- p + 0.1 v, one axis after the other, each stopped by a wall
    observation    p, v, the goal                                                                        [6] float32
    reward         1 where |p - goal| < 0.3, which ends the episode;  "dense": and what the step made of the way to the goal;
                   less step_cost

The fastest is 2.5 cells per second. The way is the shortest one from cell to cell: added so, it leaves the best policies the best
where rewards are not discounted (Ng, Harada and Russell 1999).
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np

from upslope.errors import UsageError

MAZES: dict[str, tuple[str, ...]] = {
    "open": ("#####", "#   #", "#   #", "#   #", "#####"),
    "u": ("#####", "#G  #", "### #", "#   #", "#####"),
    "medium": ("########", "#  ##  #", "#  #   #", "##   ###", "#  #   #", "# #  # #", "#   #  #", "########"),
}
"""Walls (#), free cells, where goals are (G; none: anywhere) and where episodes start (S; none: anywhere)."""

FRICTION, PUSH, SECONDS, NEAR, SPREAD = 0.8, 0.5, 0.1, 0.3, 0.25
FASTEST = PUSH / (1.0 - FRICTION)
EDGE = 1e-6  # how far from a wall a point stops that ran into it
PIXELS = 32


class PointMaze(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point mass in a maze, as above. An episode has no end but the goal: the time limit is registered as 150 steps.

    maze        a name in MAZES, or rows of "#", " ", "S" and "G" that walls surround
    reward      "dense" or "sparse"
    step_cost   of every step
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as Gymnasium declares it
    REWARDS: ClassVar[tuple[str, ...]] = ("dense", "sparse")

    def __init__(
        self,
        maze: str | Sequence[str] = "u",
        reward: Literal["dense", "sparse"] = "dense",
        step_cost: float = 0.01,
        render_mode: str | None = None,
    ) -> None:
        rows = _rows(maze)
        if reward not in self.REWARDS:
            raise UsageError(f"the point maze has no reward {reward!r}. There are {' and '.join(self.REWARDS)}.")
        self.dense, self.step_cost, self.render_mode = reward == "dense", float(step_cost), render_mode
        self.walls = tuple(tuple(mark == "#" for mark in row) for row in rows)
        free = [(x, y) for y, row in enumerate(rows) for x, mark in enumerate(row) if mark != "#"]
        self.starts = [cell for cell in free if rows[cell[1]][cell[0]] == "S"] or free
        self.goals = [cell for cell in free if rows[cell[1]][cell[0]] == "G"] or free
        self._ways: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
        self._refuse_walled(free)
        size = (len(rows[0]), len(rows))
        low = np.array([0, 0, -FASTEST, -FASTEST, 0, 0], dtype=np.float32)
        high = np.array([*size, FASTEST, FASTEST, *size], dtype=np.float32)
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.place, self.speed, self.goal = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A start and a goal that it is not at, each up to a quarter of a cell beside the middle of one."""
        super().reset(seed=seed)
        goal = self.goals[int(self.np_random.integers(len(self.goals)))]
        others = [cell for cell in self.starts if cell != goal]
        start = others[int(self.np_random.integers(len(others)))]
        beside = self.np_random.uniform(-SPREAD, SPREAD, size=4).tolist()
        self.place = [start[0] + 0.5 + beside[0], start[1] + 0.5 + beside[1]]
        self.goal = [goal[0] + 0.5 + beside[2], goal[1] + 0.5 + beside[3]]
        self.speed = [0.0, 0.0]
        self._left = self.way() if self.dense else 0.0
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Pushes by `action` [2], which is cut to [-1, 1]."""
        for axis in (0, 1):
            pushed = PUSH * min(1.0, max(-1.0, float(action[axis])))
            self.speed[axis] = min(FASTEST, max(-FASTEST, FRICTION * self.speed[axis] + pushed))
            self._move(axis)
        reached = math.dist(self.place, self.goal) < NEAR
        reward = float(reached) - self.step_cost
        if self.dense:
            before, self._left = self._left, self.way()
            reward += before - self._left
        return self._seen(), reward, reached, False, {"success": reached}

    def way(self) -> float:
        """The length of the way from where the point is to the goal, by the middles of the cells between."""
        here, goal = self._cell(self.place), self._cell(self.goal)
        if here == goal:
            return math.dist(self.place, self.goal)
        steps = self._steps_to(goal)
        last = math.dist((goal[0] + 0.5, goal[1] + 0.5), self.goal)
        ways = [math.dist(self.place, self.goal)] if steps[here] == 1 else []
        for x, y in (here, *_beside(here)):
            if (x, y) in steps:
                ways.append(math.dist(self.place, (x + 0.5, y + 0.5)) + steps[x, y] + last)
        return min(ways)

    def render(self) -> np.ndarray | None:
        """An image [height, width, 3] uint8: walls dark, the goal green, the point blue. None without render_mode."""
        if self.render_mode is None:
            return None
        walls = np.repeat(np.repeat(np.array(self.walls), PIXELS, 0), PIXELS, 1)
        image = np.where(walls[:, :, None], np.uint8(60), np.uint8(240)).repeat(3, axis=2)
        rows, columns = np.mgrid[: walls.shape[0], : walls.shape[1]] / PIXELS
        for centre, radius, colour in ((self.goal, NEAR, (60, 170, 90)), (self.place, 0.12, (40, 90, 200))):
            image[(columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 < radius**2] = colour
        return image

    def _move(self, axis: int) -> None:
        """A step along one axis, up to a wall; a step is shorter than a cell."""
        moved = self.place.copy()
        moved[axis] += SECONDS * self.speed[axis]
        x, y = self._cell(moved)
        if self.walls[y][x]:
            cell = (x, y)[axis]
            moved[axis] = cell - EDGE if self.speed[axis] > 0 else cell + 1 + EDGE
            self.speed[axis] = 0.0
        self.place = moved

    def _cell(self, place: Sequence[float]) -> tuple[int, int]:
        return int(place[0]), int(place[1])

    def _seen(self) -> np.ndarray:
        return np.array([*self.place, *self.speed, *self.goal], dtype=np.float32)

    def _steps_to(self, goal: tuple[int, int]) -> dict[tuple[int, int], int]:
        """How many cells away from the goal's a free cell is, for those from which it can be reached."""
        if goal not in self._ways:
            found, waiting = {goal: 0}, deque([goal])
            while waiting:
                cell = waiting.popleft()
                for x, y in _beside(cell):
                    if not self.walls[y][x] and (x, y) not in found:
                        found[x, y] = found[cell] + 1
                        waiting.append((x, y))
            self._ways[goal] = found
        return self._ways[goal]

    def _refuse_walled(self, free: Sequence[tuple[int, int]]) -> None:
        """Raises UsageError where an episode could have no start, no goal or no way."""
        if any(not set(self.starts) - {goal} for goal in self.goals):
            raise UsageError("the point maze needs a start and another cell for the goal.")
        reached = self._steps_to(self.goals[0])
        if lost := [cell for cell in free if cell not in reached]:
            raise UsageError(f"the point maze has a free cell at {lost[0]} (column, row) that no way leads to.")


def _beside(cell: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    x, y = cell
    return (x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)


def _rows(maze: str | Sequence[str]) -> tuple[str, ...]:
    """The rows of a maze. Raises UsageError for an unknown name, and for rows that walls do not surround."""
    if isinstance(maze, str):
        if maze not in MAZES:
            raise UsageError(
                f"there is no point maze {maze!r}. There are {', '.join(MAZES)}, or give rows of your own."
            )
        return MAZES[maze]
    rows = tuple(str(row) for row in maze)
    if len(rows) < 3 or len({len(row) for row in rows}) > 1 or set("".join(rows)) - set("# SG"):
        raise UsageError('a point maze is at least three rows of equal length, of "#", " ", "S" and "G".')
    edge = rows[0] + rows[-1] + "".join(row[0] + row[-1] for row in rows)
    if set(edge) != {"#"}:
        raise UsageError("the point maze must have walls (#) all around.")
    return rows
