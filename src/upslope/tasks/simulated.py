"""Many copies of a `Dynamics` stepped as one tensor, and whole episodes' noise for gradients through them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.environments.dynamics import Dynamics
from upslope.tasks.environments import Actions, Environments
from upslope.tasks.spaces import ActionSpec, ObservationSpec

BLOCK = 128  # steps whose noise is drawn at once where episodes have no limit


class Simulated(Environments):
    """N copies of an environment whose `dynamics` are known. Its episodes are those of N `Simulation`s with the same seeds.

    Noise is drawn per episode, from its seed, so it is restored from states and seeds alone.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        count: int,
        seed: int,
        *,
        name: str,
        convention: Actions = "clip",
        limit: int | None = None,
    ) -> None:
        super().__init__(count, seed, convention=convention, limit=limit)
        self.name, self.dynamics = name, dynamics
        self.observations = ObservationSpec.of(dynamics.observation_space)
        self.actions = ActionSpec.of(dynamics.action_space)
        self._block = min(limit or BLOCK, BLOCK)
        self._state = np.zeros((count, self.observations.size), dtype=np.float32)
        self._noise = np.empty((count, 0, 0), dtype=np.float32)
        self._prepare()

    def traces(self, steps: int) -> tuple[Tensor, Tensor]:
        """First states [N, S] and noise [N, steps, W] of the next episode of every copy. Running episodes are given up."""
        if self.running:
            self.skip()
        drawn = [self._drawn(row, steps) for row in range(self.count)]
        self.skip()
        start, noise = (torch.from_numpy(np.stack(column)) for column in zip(*drawn, strict=True))
        return start, noise

    def post_decision(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        seen = torch.from_numpy(np.asarray(observation, dtype=np.float32))
        given = torch.from_numpy(self.actions.to_environment(np.asarray(action), self.convention))
        with torch.no_grad():
            return self.dynamics.post_decision(seen, given).numpy()

    def state(self) -> dict[str, Any]:
        return {**super().state(), "state": self._state.copy()}

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        super().restore(state)
        self._state = state["state"].copy()
        self.observation = self._state.copy()
        self._block = max(self._block, int(self.length.max(initial=0)))
        if self.running:
            self._draw(np.arange(self.count))
        return []

    def _drawn(self, row: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """First state [S] and noise [steps, W] of the running episode of a copy."""
        generator = np.random.default_rng(self.seed_of(row))
        return self.dynamics.start(generator), self.dynamics.noise(generator, steps)

    def _draw(self, rows: np.ndarray) -> np.ndarray:
        """Makes the noise of the rows' running episodes; their first states [r, S]."""
        drawn = [self._drawn(row, self._block) for row in rows.tolist()]
        if self._noise.shape[1] != self._block:  # all rows are drawn
            self._noise = np.empty((self.count, *drawn[0][1].shape), dtype=np.float32)
        self._noise[rows] = np.stack([noise for _, noise in drawn])
        return np.stack([start for start, _ in drawn])

    @torch.no_grad()
    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        if int(self.length.max()) >= self._block:
            self._block *= 2
            self._draw(np.arange(self.count))
        noise = self._noise[np.arange(self.count), self.length]
        state, reward = self.dynamics.step(
            torch.from_numpy(self._state), torch.from_numpy(action), torch.from_numpy(noise)
        )
        self._state = state.numpy()
        never = np.zeros(self.count, dtype=bool)
        return self._state.copy(), reward.numpy().astype(np.float32), never, never.copy()

    def _restart(self, rows: np.ndarray, observation: np.ndarray) -> None:
        self._state[rows] = observation[rows] = self._draw(rows)
