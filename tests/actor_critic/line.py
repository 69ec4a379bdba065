"""A small environment: go to the right end of a line."""

import gymnasium
import numpy as np


class Line(gymnasium.Env):
    """Go beyond `goal` within `limit` steps, by `speed` of the action a step; fails at step `fails_at` of its life."""

    observation_space = gymnasium.spaces.Box(-5, 5, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    goal, limit, speed = 3.0, 10, 0.3
    failure = "the motor has burnt out"

    def __init__(self, fails_at=None):
        self.fails_at, self.steps = fails_at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.clock = self.np_random.uniform(-1, 1), 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.fails_at:
            raise ValueError(self.failure)
        self.clock += 1
        self.place = float(np.clip(self.place + self.speed * float(action[0]), -5, 5))
        done = self.place > self.goal
        return np.array([self.place], np.float32), float(action[0]), done, self.clock >= self.limit and not done, {}
