"""A grid of four rooms with a goal in each that may be reached: many good answers, of which a policy may know one or all."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from upslope.errors import UsageError

MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left


class FourRooms(gymnasium.Env[np.int64, np.int64]):
    """Walk from the first room to any goal: reward 1 and the end there, 0 before. Observed is the number of the cell.

    size    cells on a side, odd: a wall runs through the middle both ways, with a door in each of its four halves
    goals   how many, from 1 to 8: four in the rooms' outer corners (the first room's among them), then four beside the doors'
            far ends. One is nearer than the others, all are worth the same
    slip    chance that a move goes in a direction drawn at random
    Four actions: up, right, down, left; into a wall is staying where one is. Registered with a limit of 60 steps.
    After Sutton, Precup, Singh 1999 (Artificial Intelligence 112), section 4, whose rooms have one goal.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, size: int = 11, goals: int = 4, slip: float = 0.0) -> None:
        if size < 7 or size % 2 == 0:
            raise UsageError(f"FourRooms: size is {size}; it must be odd and at least 7, e.g. 11.")
        if not 1 <= goals <= 8:
            raise UsageError(f"FourRooms: goals is {goals}; there are 1 to 8.")
        if not 0 <= slip <= 1:
            raise UsageError(f"FourRooms: slip is {slip}; it is a chance, from 0 to 1.")
        self.slip = slip
        middle, last = size // 2, size - 1
        free = np.ones((size, size), dtype=bool)
        free[middle], free[:, middle] = False, False
        for door in (
            (middle // 2, middle),
            (middle, last - middle // 2 + 1),
            (last - 1, middle),
            (middle, middle // 2),
        ):
            free[door] = True
        self.cells = np.argwhere(free)
        number = np.full((size + 2, size + 2), -1)  # with a wall around
        number[1:-1, 1:-1][free] = np.arange(len(self.cells))
        around = self.cells[:, None] + MOVES + 1
        reached = number[around[..., 0], around[..., 1]]
        self._next = np.where(reached >= 0, reached, np.arange(len(self.cells))[:, None])
        corners = [(0, 0), (0, last), (last, last), (last, 0)]
        inner = [(0, middle + 1), (middle + 1, last), (last, middle - 1), (middle + 1, 0)]
        self.goals = [int(number[row + 1, column + 1]) for row, column in (corners + inner)[:goals]]
        self.start = int(number[middle, middle])  # the first room's cell nearest to the middle
        self.observation_space = spaces.Discrete(len(self.cells))
        self.action_space = spaces.Discrete(4)
        self._cell = self.start

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Starts in the first room."""
        super().reset(seed=seed)
        self._cell = self.start
        return np.int64(self._cell), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """One move; `info["goal"]` is the index of the goal that was reached, or -1."""
        if self.slip and self.np_random.random() < self.slip:
            action = self.np_random.integers(4)
        self._cell = int(self._next[self._cell, int(action)])
        goal = self.goals.index(self._cell) if self._cell in self.goals else -1
        return np.int64(self._cell), float(goal >= 0), goal >= 0, False, {"goal": goal}
