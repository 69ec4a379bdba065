"""A point mass in the plane between two goals that are as good: upslope/TwoGoals-v0."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from upslope.errors import UsageError


class TwoGoals(gymnasium.Env[np.ndarray, np.ndarray]):
    """Push a mass to one of two goals, each 1 away from the start, on opposite sides of it.

        v' = v / 2 + a / 10,   p' = p + v', kept within [-2, 2]
        r  = -0.1 distance to the nearer goal - 0.01 |a|^2, and 1 more where it is reached, which ends the episode

    Observation (x, y, vx, vy); action a in [-1, 1]^2. The optimal policy from the middle is not unique: this is what policies
    with several modes are for. `info["goal"]` is 0 or 1 where one was reached, else -1.

    spread   standard deviation of the start around the middle; at rest
    angle    of the first goal, in radians
    radius   at which a goal is reached
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, spread: float = 0.05, angle: float = -np.pi / 4, radius: float = 0.2) -> None:
        if not spread >= 0 or not 0 < radius < 1:
            raise UsageError(f"TwoGoals: spread is {spread} and radius {radius}; at least 0, and between 0 and 1.")
        self.spread, self.radius = spread, radius
        first = np.array([np.cos(angle), np.sin(angle)])
        self.goals = np.stack([first, -first])
        bound = np.array([2.0, 2.0, 1.0, 1.0], dtype=np.float32)
        self.observation_space = spaces.Box(-bound, bound, dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.place, self.speed = np.zeros(2), np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A start near the middle, at rest."""
        super().reset(seed=seed)
        self.place = np.clip(self.spread * self.np_random.standard_normal(2), -2.0, 2.0)
        self.speed = np.zeros(2)
        return self._seen(), {"goal": -1}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One push."""
        push = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        self.speed = self.speed / 2 + push / 10
        self.place = np.clip(self.place + self.speed, -2.0, 2.0)
        distance = np.linalg.norm(self.goals - self.place, axis=1)
        nearest = int(distance.argmin())
        reached = bool(distance[nearest] < self.radius)
        reward = float(-0.1 * distance[nearest] - 0.01 * (push**2).sum() + reached)
        return self._seen(), reward, reached, False, {"goal": nearest if reached else -1}

    def _seen(self) -> np.ndarray:
        return np.concatenate([self.place, self.speed]).astype(np.float32)
