"""Gymnasium's FrozenLake, which tells where a step is meant to lead: upslope/FrozenLake-v0."""

from typing import Any

import numpy as np
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

MOVES = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])  # left, down, right, up: row and column


class FrozenLake(FrozenLakeEnv):
    """The same environment, with the cell that would be reached if nothing slipped as the post-decision state.

    Settings are FrozenLakeEnv's: map_name, desc, is_slippery ...
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)

    def post_decision(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """The intended cell, one-hot [N, cells], for one-hot observations [N, cells] and actions [N].

        From a hole or the goal, where episodes end, it is the cell itself.
        """
        cells = np.asarray(observations).argmax(-1)
        place = np.stack([cells // self.ncol, cells % self.ncol], -1)
        ground = np.asarray(self.desc).ravel()
        moves = np.where(np.isin(ground[cells], [b"H", b"G"])[:, None], 0, MOVES[np.asarray(actions)])
        meant = np.clip(place + moves, 0, [self.nrow - 1, self.ncol - 1])
        return np.eye(self.nrow * self.ncol, dtype=np.float32)[meant[:, 0] * self.ncol + meant[:, 1]]
