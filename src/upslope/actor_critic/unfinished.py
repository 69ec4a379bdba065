"""Episodes that still run: their transitions wait where a column is of what is to come, such as the return to go."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from upslope.actor_critic.log import Log
from upslope.actor_critic.replay import STEP, Layout


class Unfinished:
    """The steps of each copy's running episode, which become rows [length, width] when it ends.

    reward   (factor, offset) by which the learner changes rewards, of which returns to go are
    played   steps so far, those that wait among them
    """

    def __init__(self, copies: int, layout: Layout, discount: float, reward: tuple[float, float]) -> None:
        self.layout, self.discount, self.reward = layout, discount, reward
        self._columns = Layout(layout.observation, layout.action).columns()
        self._width = Layout(layout.observation, layout.action).width
        self._steps: list[list[np.ndarray]] = [[] for _ in range(copies)]
        self.played = 0

    def add(self, columns: Sequence[np.ndarray], valid: np.ndarray | None) -> list[Tensor]:
        """One step of all copies: the columns STEP as arrays [N] or [N, size]. Returns the rows of episodes that ended with it."""
        count = len(columns[2])
        rows = np.concatenate([np.asarray(column, np.float32).reshape(count, -1) for column in columns], 1)
        ended = np.asarray(columns[3], bool) | np.asarray(columns[4], bool)
        found = []
        for copy in range(count) if valid is None else np.flatnonzero(valid).tolist():
            self._steps[copy].append(rows[copy])
            self.played += 1
            if ended[copy]:
                found.append(self._finish(copy))
        return found

    def cut(self) -> list[Tensor]:
        """The rows of all episodes that run, as if time were up: for what nobody will play on."""
        return [self._finish(copy) for copy, steps in enumerate(self._steps) if steps]

    def _finish(self, copy: int) -> Tensor:
        rows = np.stack(self._steps[copy])
        self._steps[copy] = []
        arrays: dict[str, Any] = {name: rows[:, first:last] for name, (first, last) in self._columns.items()}
        for name in ("reward", "terminated", "truncated"):
            arrays[name] = arrays[name][:, 0]
        if not arrays["terminated"][-1]:
            arrays["truncated"][-1] = 1.0
        assert tuple(arrays) == STEP
        return Log(**arrays).rows(self.layout, self.discount, self.reward)

    def state(self) -> dict[str, Any]:
        """What waits, for a checkpoint."""
        steps = [np.stack(rows) if rows else np.empty((0, self._width), np.float32) for rows in self._steps]
        return {"played": self.played, "lengths": [len(rows) for rows in steps], "steps": np.concatenate(steps)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` returned."""
        self.played = int(state["played"])
        rows = iter(np.asarray(state["steps"]))
        self._steps = [[next(rows) for _ in range(length)] for length in state["lengths"]]
