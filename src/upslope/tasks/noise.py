"""Environments whose observations reach the policy with fresh Gaussian noise; the environment's own state has none."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from upslope.collect import seeded
from upslope.errors import UsageError
from upslope.parts.steps import check_noise
from upslope.tasks.environments import Environments, Step


def noisy(environments: Environments, std: float) -> Environments:
    """The same environments with N(0, std^2) on each number of every observation; themselves where std is 0."""
    return NoisyObservations(environments, std) if std else environments


class NoisyObservations(Environments):
    """Adds N(0, std^2 I) to what is seen, drawn once for every observation that an environment emits, [N, D].

    What an action led to and what the next one is chosen on are one observation, with one noise, unless the episode ended. The
    noise is on observations as the environment gives them, flattened, in its units: before anything normalises them. Its
    generator is seeded by the environments' seed, rewound by `rewind`, and part of `state`.
    Source: Kumar, Levine, Feizi 2022 (arXiv:2106.11420), section 4: the smoothed policy.
    """

    def __init__(self, inner: Environments, std: float) -> None:
        check_noise(std)
        self.inner, self.std = inner, std
        self._generator = self._fresh()
        self.observation = inner.observation

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _fresh(self) -> torch.Generator:
        return seeded(self.inner.seed, "observation noise")

    def _noise(self) -> np.ndarray:
        size = (self.inner.count, self.inner.observations.size)
        return torch.randn(size, generator=self._generator).mul_(self.std).numpy()

    def reset(self) -> np.ndarray:
        self.observation = self.inner.reset() + self._noise()
        return self.observation

    def step(self, action: np.ndarray) -> Step:
        found = self.inner.step(action)
        reached = found.next_observation + self._noise()
        observation = reached
        if found.observation is not found.next_observation:  # some have begun anew
            rows = (found.terminated | found.truncated).nonzero()[0]
            observation = reached.copy()
            observation[rows] = found.observation[rows] + self._noise()[rows]
        self.observation = observation
        return found._replace(observation=observation, next_observation=reached)

    def state(self) -> dict[str, Any]:
        own = {"generator": self._generator.get_state(), "observation": self.observation.copy()}
        return {"inner": self.inner.state(), **own}

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        if "generator" not in state:
            raise UsageError(
                "the run was started without noise on observations, and now has some. Set rollout.observation_noise=0."
            )
        lost = self.inner.restore(state["inner"])
        self._generator.set_state(state["generator"])
        self.observation = state["observation"].copy()
        if lost:  # some episodes have begun anew
            self.observation = self.inner.observation + self._noise()
        return lost

    def skip(self) -> None:
        self.inner.skip()

    def rewind(self) -> None:
        self.inner.rewind()
        self._generator = self._fresh()

    def close(self) -> None:
        self.inner.close()
