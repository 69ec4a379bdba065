"""Copies of one environment in lockstep, in process; the end of an episode is dealt with here, and nowhere else.

    environments = open_environments("CartPole-v1", count=8, seed=0)
    observation = environments.reset()
    step = environments.step(action)

Whatever the autoreset mode of what is wrapped, `step.next_observation` is what the action led to, `step.observation` what
the next action is chosen on. Every episode is reset with a seed of its own, made of (seed, copy, episode), so the running
episodes of a run that was killed are played again from their actions: nothing of an environment is ever pickled.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from upslope.errors import UsageError
from upslope.tasks.snapshots import Resettable, Snapshot
from upslope.tasks.spaces import ActionSpec, ObservationSpec

LONGEST = 100_000  # steps after which an episode without a time limit counts as one that never ends
Actions = Literal["clip", "scale"]


def episode_seed(seed: int, copy: int, number: int) -> int:
    """What the `number`-th episode of a copy is reset with."""
    return int(np.random.SeedSequence((seed, copy, number)).generate_state(1)[0])


class Episode(NamedTuple):
    """One that has ended: the copy it was played in, its number there, the sum of its rewards, its steps."""

    copy: int
    number: int
    total: float
    length: int


class Step(NamedTuple):
    """What came of one action in each of N copies.

    observation        what the next action is chosen on: after the reset, where an episode ended       [N, D] float32
    reward             of the action                                                                    [N] float32
    terminated         the episode ended, and nothing comes after it                                    [N] bool
    truncated          it was cut off by a time limit: what would have come is V(next_observation)      [N] bool
    next_observation   what the action led to; the last of its episode, where that ended                [N, D] float32
    episodes           those that ended in this step
    valid              False where no action was taken, since the copy only reset itself; None: all     [N] bool
    """

    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_observation: np.ndarray
    episodes: tuple[Episode, ...] = ()
    valid: np.ndarray | None = None


class EnvironmentFailure(UsageError):  # noqa: N818 - a UsageError that the trainer tells apart, to save before it ends
    """An environment raised, or gave what it may not give. The message names the copy, the episode and the step."""


class Environments(Resettable):
    """N copies of one environment in lockstep. Not safe for threads.

    name           of the environment
    count          N
    observations   what the columns of an observation are
    actions        what an action is; `convention` "clip": continuous ones are cut to the box, "scale": given in [-1, 1] and
                   mapped onto the box
    limit          steps after which an episode is truncated; None: the environment's own affair
    running        whether there are episodes to go on with: after `reset`, until `skip`
    observation    what the next action is chosen on, [N, D]
    """

    name: str
    observations: ObservationSpec
    actions: ActionSpec

    def __init__(self, count: int, seed: int, *, convention: Actions = "clip", limit: int | None = None) -> None:
        if count < 1:
            raise UsageError(f"{count} copies of an environment were asked for; at least 1 is needed.")
        if limit is not None and limit < 1:
            raise UsageError(f"an episode of {limit} steps was asked for; max_episode_steps must be at least 1.")
        self.count, self.seed, self.convention, self.limit = count, seed, convention, limit
        self.longest = LONGEST
        self.number = np.zeros(count, dtype=np.int64)
        self.length = np.zeros(count, dtype=np.int64)
        self.total = np.zeros(count)
        self.running = False
        self.observation = np.empty((count, 0), dtype=np.float32)

    def _prepare(self) -> None:
        """Called by subclasses once spaces are known."""
        spec = self.actions
        if spec.kind != "continuous":
            return
        if self.convention == "scale" and not spec.bounded:
            raise UsageError(
                f"{self.name}: its actions have no finite bounds, onto which actions in [-1, 1] could be mapped. Take a Gaussian "
                "policy, or wrap the environment so that its action space is a finite Box."
            )

    def reset(self) -> np.ndarray:
        """Starts the next episode of every copy; observation [N, D]."""
        if self.running:
            self.number += 1
        self.running = True
        self.length[:], self.total[:] = 0, 0.0
        observation = np.empty((self.count, self.observations.size), dtype=np.float32)
        self._restart(np.arange(self.count), observation)
        self._check(observation)
        self.observation = observation
        return observation

    def step(self, action: np.ndarray) -> Step:
        """One action in each copy: [N] int64 or [N, A]. Arrays of the result are not written to again.

        Raises EnvironmentFailure for an environment that raises, gives a NaN or another shape, or never ends an episode.
        """
        if not self.running:
            raise UsageError("Environments.step was called before reset.")
        given = self._given(np.asarray(action))
        reached, reward, terminated, truncated = self._advance(given)
        self.length += 1
        self.total += reward
        if self.limit is not None:
            truncated = truncated | (self.length >= self.limit)
        truncated = truncated & ~terminated
        ended = terminated | truncated
        self._check(reached, reward)
        if not ended.any():
            if self.limit is None:
                self._check_endless()
            self.observation = reached
            return Step(reached, reward, terminated, truncated, reached)
        rows = ended.nonzero()[0]
        episodes = tuple(
            Episode(int(row), int(self.number[row]), float(self.total[row]), int(self.length[row])) for row in rows
        )
        self.number[rows] += 1
        self.length[rows], self.total[rows] = 0, 0.0
        observation = reached.copy()
        self._restart(rows, observation)
        self._check(observation)
        self.observation = observation
        return Step(observation, reward, terminated, truncated, reached, episodes)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on from here, bit for bit: plain numbers and arrays."""
        arrays = {"number": self.number.copy(), "length": self.length.copy(), "total": self.total.copy()}
        return {**arrays, "running": self.running}

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        """Goes on from what `state` returned; returns what could not be brought back, a sentence each."""
        if len(state["number"]) != self.count:
            raise UsageError(
                f"the state is of {len(state['number'])} copies of {self.name}, and there are {self.count}. Set the number back."
            )
        self.number, self.length = state["number"].copy(), state["length"].copy()
        self.total, self.running = state["total"].copy(), state["running"]
        return []

    def skip(self) -> None:
        """Gives the running episodes up: the next `reset` starts others. For going on after an environment has failed."""
        self.number += 1
        self.length[:], self.total[:], self.running = 0, 0.0, False

    def rewind(self) -> None:
        """The next `reset` starts the very first episodes again: the same for every evaluation."""
        self.number[:], self.running = 0, False

    def close(self) -> None:
        """Closes the environments; a second call does nothing."""

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observation [N, D], reward, terminated, truncated [N]: new arrays, before any reset."""
        raise NotImplementedError

    def _restart(self, rows: np.ndarray, observation: np.ndarray) -> None:
        """Starts episode `number[row]` of the rows and writes their first observations."""
        raise NotImplementedError

    def seed_of(self, row: int) -> int:
        """The seed of the running episode of a copy."""
        return episode_seed(self.seed, int(row), int(self.number[row]))

    def _given(self, action: np.ndarray) -> np.ndarray:
        """The actions as the environment wants them, [N, ...]."""
        spec = self.actions
        if action.shape[:1] != (self.count,) or action.size != self.count * spec.size:
            wanted = [self.count] if spec.kind == "discrete" else [self.count, spec.size]
            raise UsageError(f"{self.name}: actions of shape {list(action.shape)} were given; it takes {wanted}.")
        shape = (self.count,) if spec.kind == "discrete" else (self.count, spec.size)
        return spec.to_environment(action, self.convention).reshape(shape)

    def _where(self, row: int) -> str:
        return (
            f"environment {self.name}, copy {row}, episode {int(self.number[row])}, step {int(self.length[row])} "
            f"(reset with seed {self.seed_of(row)})"
        )

    def _check(self, observation: np.ndarray, reward: np.ndarray | None = None) -> None:
        sums = float(observation.sum()) + (0.0 if reward is None else float(reward.sum()))
        if np.isfinite(sums):
            return
        bad = ~np.isfinite(observation)
        if bad.any():
            row, column = (int(x) for x in np.argwhere(bad)[0])
            raise EnvironmentFailure(
                f"{self._where(row)}: the observation's {self.observations.names[column]} is {observation[row, column]}. Bound "
                "the environment's dynamics, or end the episode before it diverges."
            )
        if reward is not None and not np.isfinite(reward).all():
            row = int((~np.isfinite(reward)).nonzero()[0][0])
            raise EnvironmentFailure(
                f"{self._where(row)}: the reward is {reward[row]}. Rewards must be finite numbers."
            )

    def _check_endless(self) -> None:
        if int(self.length.max()) >= self.longest:
            row = int(self.length.argmax())
            raise EnvironmentFailure(
                f"{self._where(row)}: the episode has not ended, and the environment has no time limit. Set one: "
                "task_settings.max_episode_steps=1000, or max_episode_steps where it is registered."
            )


class Copies(Environments):
    """Any Gymnasium environment: a list of copies that are stepped in turn, and restored by playing their actions again."""

    def __init__(
        self,
        make: Callable[[], Any],
        count: int,
        seed: int,
        *,
        name: str = "",
        convention: Actions = "clip",
        limit: int | None = None,
    ) -> None:
        super().__init__(count, seed, convention=convention, limit=limit)
        self._make = make
        self.copies = [make() for _ in range(count)]
        first = self.copies[0]
        self.name = name or str(getattr(getattr(first, "spec", None), "id", None) or type(first).__name__)
        self.observations = ObservationSpec.of(first.observation_space)
        self.actions = ActionSpec.of(first.action_space)
        self._dtype = first.action_space.dtype
        self._taken: list[np.ndarray] = []  # actions of the steps since `_since`, of all copies
        self._clock = self._since = 0
        self._begun = np.zeros(count, dtype=np.int64)  # the clock at which a copy's running episode began
        self._prepare()

    def state(self) -> dict[str, Any]:
        """Numbers of the episodes, and the actions of the running ones in order, with what they led to."""
        running = self._running if self.running else lambda row: []
        played = [np.stack([a[row] for a in running(row)] or [self._none()]) for row in range(self.count)]
        return {
            **super().state(),
            "played": [actions[: self.length[row]] for row, actions in enumerate(played)],
            "observation": self.observation.copy(),
        }

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        super().restore(state)
        if not self.running:
            return []
        self._taken, self._clock, self._since = [], 0, 0
        self._begun = -self.length  # as if the running episodes had begun before the clock
        observation = np.empty_like(state["observation"])
        longest = int(self.length.max())
        stacked = [np.broadcast_to(self._none(), (self.count, *self._none().shape)).copy() for _ in range(longest)]
        lost = []
        for row, actions in enumerate(state["played"]):
            self._reset_copy(row, observation)
            try:
                for index, action in enumerate(actions):
                    self._step_copy(row, action, observation)
                    stacked[longest - len(actions) + index][row] = action
            except EnvironmentFailure:
                observation[row] = np.nan
            if not np.array_equal(observation[row], state["observation"][row]):
                self.number[row] += 1
                self.length[row], self.total[row], self._begun[row] = 0, 0.0, 0
                self._reset_copy(row, observation)
                lost.append(
                    f"copy {row} of {self.name} does not repeat an episode from its seed and actions: it starts a new episode, and "
                    "the run goes on otherwise than it would have. An environment must draw from self.np_random alone"
                )
        self._taken, self._since = stacked, -longest
        self.observation = observation
        return lost

    def spare(self, count: int) -> "Copies":
        return Copies(self._make, count, self.seed, name=self.name, convention=self.convention, limit=self.limit)

    def _state_of(self, row: int) -> tuple[int, list[np.ndarray]]:
        return self.seed_of(row), [action[row] for action in self._running(row)]

    def _put_copy(self, row: int, snapshot: Snapshot, seed: int) -> None:
        """Plays the episode again up to the state."""
        first, actions = snapshot.state
        reached = np.empty((self.count, self.observations.size), dtype=np.float32)
        self._reset_copy(row, reached, first)
        for action in actions:
            self._step_copy(row, action, reached)
        if not np.array_equal(reached[row], snapshot.observation):
            raise EnvironmentFailure(
                f"{self.name} does not repeat an episode from its seed and actions, so it cannot be reset to a state. An "
                "environment must draw from self.np_random alone."
            )
        inner = getattr(self.copies[row], "unwrapped", self.copies[row])
        if hasattr(inner, "np_random"):
            inner.np_random = np.random.default_rng(seed)

    def close(self) -> None:
        for copy in self.copies:
            copy.close()
        self.copies = []

    def _none(self) -> np.ndarray:
        spec = self.actions
        shape = () if spec.kind == "discrete" else (spec.size,)
        return np.zeros(shape, dtype=np.float32 if spec.kind == "continuous" else np.int64)

    def _running(self, row: int) -> list[np.ndarray]:
        return self._taken[int(self._begun[row]) - self._since :]

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        count = self.count
        observation = np.empty((count, self.observations.size), dtype=np.float32)
        reward = np.empty(count, dtype=np.float32)
        terminated, truncated = np.empty(count, dtype=bool), np.empty(count, dtype=bool)
        self._taken.append(action if action.base is None else action.copy())
        self._clock += 1
        given = action.tolist() if self.actions.kind == "discrete" else action
        for row in range(count):
            reward[row], terminated[row], truncated[row] = self._step_copy(row, given[row], observation)
        return observation, reward, terminated, truncated

    def _restart(self, rows: np.ndarray, observation: np.ndarray) -> None:
        for row in rows.tolist():
            self._reset_copy(row, observation)
        self._begun[rows] = self._clock
        oldest = int(self._begun.min())
        if oldest - self._since > 64:  # forget the actions of episodes that are over
            del self._taken[: oldest - self._since]
            self._since = oldest

    def _step_copy(self, row: int, action: Any, observation: np.ndarray) -> tuple[float, bool, bool]:
        if self.actions.kind == "continuous":
            action = action.reshape(self.actions.shape).astype(self._dtype, copy=False)
        elif self.actions.kind == "multi_discrete":
            action = action.reshape(self.actions.shape)
        try:
            returned = self.copies[row].step(action)
            if not isinstance(returned, tuple | list) or len(returned) != 5:
                raise _other_values(returned, "observation, reward, terminated, truncated, info")
            seen, reward, terminated, truncated, _ = returned
            self.observations.flatten(seen, observation[row])
            return float(reward), bool(terminated), bool(truncated)
        except Exception as error:
            raise self._failure(row, "step", error) from error

    def _reset_copy(self, row: int, observation: np.ndarray, seed: int | None = None) -> None:
        try:
            returned = self.copies[row].reset(seed=self.seed_of(row) if seed is None else seed)
            if not isinstance(returned, tuple | list) or len(returned) != 2:
                raise _other_values(returned, "observation, info")
            seen, _ = returned
            self.observations.flatten(seen, observation[row])
        except Exception as error:
            raise self._failure(row, "reset", error) from error

    def _failure(self, row: int, where: str, error: Exception) -> EnvironmentFailure:
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        return EnvironmentFailure(f"{self._where(row)}: {where} failed: {what}. Correct the environment.")


def _other_values(returned: Any, names: str) -> ValueError:
    told = f"{len(returned)} values" if isinstance(returned, tuple | list) else type(returned).__name__
    return ValueError(f"it returned {told}, and an environment of Gymnasium returns ({names})")
