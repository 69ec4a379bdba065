"""Gymnasium's Pendulum, Acrobot and MountainCar for many copies at once, in NumPy: the same episodes, step for step.

Gymnasium itself has a batched version of CartPole alone. The arithmetic is that of its single environments, in their order and
their precision, so that an episode from a seed is the same one there and here.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from upslope.tasks.environments import Actions, Environments
from upslope.tasks.spaces import ActionSpec, ObservationSpec


class ClassicControl(Environments):
    """Copies whose whole state is the array `arrays` [K, N] float64; restored from it and from the seeds of the episodes."""

    ID: ClassVar[str]

    def __init__(
        self, count: int, seed: int, *, name: str = "", convention: Actions = "clip", limit: int | None = None
    ) -> None:
        import gymnasium

        super().__init__(count, seed, convention=convention, limit=limit)
        self.name = name or self.ID
        one = gymnasium.make(self.ID).unwrapped
        self.observations = ObservationSpec.of(one.observation_space)
        self.actions = ActionSpec.of(one.action_space)
        one.close()
        self.arrays = np.zeros((len(self._first(np.random.default_rng(0))), count))
        self._never = np.zeros(count, dtype=bool)
        self._prepare()

    def state(self) -> dict[str, Any]:
        return {**super().state(), "arrays": self.arrays.copy(), "observation": self.observation.copy()}

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        super().restore(state)
        self.arrays = state["arrays"].copy()
        self.observation = state["observation"].copy()
        return []

    def _restart(self, rows: np.ndarray, observation: np.ndarray) -> None:
        firsts = [self._first(np.random.default_rng(self.seed_of(row))) for row in rows.tolist()]
        self.arrays[:, rows] = np.stack(firsts, axis=1)
        observation[rows] = self._seen(self.arrays[:, rows])

    def _first(self, generator: np.random.Generator) -> np.ndarray:
        """The state [K] in which an episode begins."""
        raise NotImplementedError

    @staticmethod
    def _seen(arrays: np.ndarray) -> np.ndarray:
        """Observations [N, D] float32 of states [K, N]."""
        raise NotImplementedError


class Pendulum(ClassicControl):
    """Pendulum-v1."""

    ID = "Pendulum-v1"

    def _first(self, generator: np.random.Generator) -> np.ndarray:
        high = np.array([np.pi, 1.0])
        return generator.uniform(low=-high, high=high)

    @staticmethod
    def _seen(arrays: np.ndarray) -> np.ndarray:
        angle, speed = arrays
        return np.stack([np.cos(angle), np.sin(angle), speed], 1).astype(np.float32)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        angle, speed = self.arrays
        torque = np.clip(action[:, 0].astype(np.float32, copy=False), -2.0, 2.0)
        wrapped = ((angle + np.pi) % (2 * np.pi)) - np.pi
        cost = wrapped**2 + 0.1 * speed**2 + 0.001 * (torque**2)
        faster = np.clip(speed + (15.0 * np.sin(angle) + 3.0 * torque) * 0.05, -8, 8)
        self.arrays = np.stack([angle + faster * 0.05, faster])
        return self._seen(self.arrays), (-cost).astype(np.float32), self._never, self._never


class MountainCar(ClassicControl):
    """MountainCar-v0."""

    ID = "MountainCar-v0"

    def _first(self, generator: np.random.Generator) -> np.ndarray:
        return np.array([generator.uniform(low=-0.6, high=-0.4), 0.0])

    @staticmethod
    def _seen(arrays: np.ndarray) -> np.ndarray:
        return arrays.T.astype(np.float32)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        position, speed = self.arrays
        slope = np.array([math.cos(three) for three in (3 * position).tolist()])  # NumPy's may differ in the last bit
        speed = np.clip(speed + ((action - 1) * 0.001 + slope * (-0.0025)), -0.07, 0.07)
        position = np.clip(position + speed, -1.2, 0.6)
        speed[(position == -1.2) & (speed < 0)] = 0.0
        self.arrays = np.stack([position, speed])
        terminated = (position >= 0.5) & (speed >= 0)
        return self._seen(self.arrays), np.full(self.count, -1.0, dtype=np.float32), terminated, self._never


class Acrobot(ClassicControl):
    """Acrobot-v1."""

    ID = "Acrobot-v1"

    def _first(self, generator: np.random.Generator) -> np.ndarray:
        return generator.uniform(low=-0.1, high=0.1, size=(4,)).astype(np.float32)

    @staticmethod
    def _seen(arrays: np.ndarray) -> np.ndarray:
        first, second, one, two = arrays
        columns = [np.cos(first), np.sin(first), np.cos(second), np.sin(second), one, two]
        return np.stack(columns, 1).astype(np.float32)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        torque, state = action - 1.0, self.arrays
        k1 = _accelerated(state, torque)
        k2 = _accelerated(state + 0.1 * k1, torque)
        k3 = _accelerated(state + 0.1 * k2, torque)
        k4 = _accelerated(state + 0.2 * k3, torque)
        moved = state + 0.2 / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        turn = 2 * np.pi
        for angle in moved[:2]:
            while (angle > np.pi).any():
                angle[angle > np.pi] -= turn
            while (angle < -np.pi).any():
                angle[angle < -np.pi] += turn
        np.clip(moved[2], -4 * np.pi, 4 * np.pi, out=moved[2])
        np.clip(moved[3], -9 * np.pi, 9 * np.pi, out=moved[3])
        self.arrays = moved
        terminated = -np.cos(moved[0]) - np.cos(moved[1] + moved[0]) > 1.0
        return self._seen(moved), np.where(terminated, 0.0, -1.0).astype(np.float32), terminated, self._never


def _accelerated(state: np.ndarray, torque: np.ndarray) -> np.ndarray:
    """The derivative of Acrobot's state [4, N]: masses, lengths and moments of inertia 1, centres of mass at 0.5, g = 9.8."""
    first, second, one, two = state
    bent, cosine = np.sin(second), np.cos(second)
    d1 = 0.25 + (1.0 + 0.25 + cosine) + 1.0 + 1.0
    d2 = (0.25 + 0.5 * cosine) + 1.0
    phi2 = 4.9 * np.cos(first + second - np.pi / 2.0)
    phi1 = -0.5 * _squared(two) * bent - 1.0 * two * one * bent + 1.5 * 9.8 * np.cos(first - np.pi / 2) + phi2
    second_rate = (torque + d2 / d1 * phi1 - 0.5 * _squared(one) * bent - phi2) / (0.25 + 1.0 - _squared(d2) / d1)
    return np.stack([one, two, -(d2 * second_rate + phi1) / d1, second_rate])


def _squared(x: np.ndarray) -> np.ndarray:
    """x^2 [N] as the C library's pow rounds it, which the single environment calls: now and then not as x * x is rounded."""
    return np.array([value**2 for value in x.tolist()])


CLASSIC = {kind.ID: kind for kind in (Pendulum, MountainCar, Acrobot)}
