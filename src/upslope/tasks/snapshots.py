"""Going on from a state that an episode was in, in as many copies as wanted."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from upslope.errors import UsageError


class Snapshot(NamedTuple):
    """A state that a running episode was in: its steps and rewards so far, what was observed, and what leads back there."""

    length: int
    total: float
    observation: np.ndarray
    state: Any


class Resettable:
    """What environments can do that repeat themselves, or whose state is theirs to set: a part of `Environments`."""

    name: str
    count: int
    running: bool
    number: np.ndarray
    length: np.ndarray
    total: np.ndarray
    observation: np.ndarray

    def spare(self, count: int) -> Any:
        """`count` further copies of the same environment, to `put` into states of these. Raises UsageError where none can be."""
        raise UsageError(
            f"{self.name} cannot be reset to a state that it was in. Pass a registered id, or a class or function that makes a "
            "single environment, without observation_noise."
        )

    def snapshot(self, row: int) -> Snapshot:
        """The state that the running episode of a copy is in."""
        return Snapshot(
            int(self.length[row]), float(self.total[row]), self.observation[row].copy(), self._state_of(row)
        )

    def put(self, snapshots: Sequence[Snapshot], seeds: Sequence[int]) -> np.ndarray:
        """Goes on from a state in every copy; observation [N, D]. What the environment draws from there on is by `seeds`."""
        if len(snapshots) != self.count:
            raise UsageError(f"{len(snapshots)} states were given for {self.count} copies of {self.name}.")
        self.number += 1
        self.running = True
        self.length[:] = [snapshot.length for snapshot in snapshots]
        self.total[:] = [snapshot.total for snapshot in snapshots]
        self.observation = np.stack([snapshot.observation for snapshot in snapshots])
        for row, (snapshot, seed) in enumerate(zip(snapshots, seeds, strict=True)):
            self._put_copy(row, snapshot, seed)
        return self.observation

    def _state_of(self, row: int) -> Any:
        """What `_put_copy` needs, beside what was observed."""
        raise NotImplementedError

    def _put_copy(self, row: int, snapshot: Snapshot, seed: int) -> None:
        raise NotImplementedError
