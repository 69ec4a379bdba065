"""Environments that step many copies at once: Gymnasium's batched CartPole, and vector environments of others.

A vector environment resets its copies itself, in one of three modes. All three end up as the same `Step`s: what an action led
to, what the next one is chosen on, and, in the mode that spends a step on a reset, `valid` False for that copy.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from upslope.errors import UsageError
from upslope.tasks.environments import Actions, EnvironmentFailure, Environments, Episode, Step
from upslope.tasks.snapshots import Snapshot
from upslope.tasks.spaces import ActionSpec, ObservationSpec, of_row


class BatchedCartPole(Environments):
    """Gymnasium's CartPoleVectorEnv, whose step wastes none on resets here: its arrays are reset where an episode ended.

    Restored from its arrays and from the seeds of the episodes.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        *,
        name: str,
        convention: Actions = "clip",
        limit: int | None = 500,
        **settings: Any,
    ) -> None:
        from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

        super().__init__(count, seed, convention=convention, limit=limit)
        self.name, self._settings = name, settings
        self._inner: Any = CartPoleVectorEnv(count, max_episode_steps=2**31 - 1, **settings)
        self._inner.reset(seed=0)
        self._inner.action_space = _Anything()  # type: ignore[assignment]  # the policy's actions are in range: 5 microseconds a step for nothing
        self.observations = ObservationSpec.of(self._inner.single_observation_space)
        self.actions = ActionSpec.of(self._inner.single_action_space)
        self._prepare()

    def state(self) -> dict[str, Any]:
        return {**super().state(), "arrays": self._inner.state.copy(), "observation": self.observation.copy()}

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        super().restore(state)
        self._inner.state = state["arrays"].copy()
        self.observation = state["observation"].copy()
        return []

    def spare(self, count: int) -> "BatchedCartPole":
        return BatchedCartPole(
            count, self.seed, name=self.name, convention=self.convention, limit=self.limit, **self._settings
        )

    def _state_of(self, row: int) -> np.ndarray:
        state: np.ndarray = self._inner.state[:, row].copy()
        return state

    def _put_copy(self, row: int, snapshot: Snapshot, seed: int) -> None:
        self._inner.state[:, row] = snapshot.state

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        observation, reward, terminated, truncated, _ = self._inner.step(action)
        self._inner.prev_done[:] = False  # who has ended is reset by `_restart`, in the same step
        return observation, reward, terminated, truncated

    def _restart(self, rows: np.ndarray, observation: np.ndarray) -> None:
        # The draws are those of CartPoleEnv.reset(seed): an episode is the same one in both.
        fresh = [np.random.default_rng(self.seed_of(row)).uniform(-0.05, 0.05, size=4) for row in rows.tolist()]
        self._inner.state[:, rows] = np.stack(fresh, axis=1)
        observation[rows] = self._inner.state[:, rows].T


class _Anything:
    def contains(self, _: object) -> bool:
        return True


class Vectorized(Environments):
    """A Gymnasium VectorEnv that somebody else has made, in any of the three autoreset modes.

    It seeds its episodes itself after the first, so it is restored only where it has `get_state()` and `set_state(state)`.
    """

    def __init__(
        self, inner: Any, seed: int, *, name: str = "", convention: Actions = "clip", limit: int | None = None
    ) -> None:
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

        super().__init__(inner.num_envs, seed, convention=convention, limit=None)
        self.name = name or str(getattr(getattr(inner, "spec", None), "id", None) or type(inner).__name__)
        if limit is not None:
            raise UsageError(
                f"{self.name} is a vector environment, which ends its episodes itself: max_episode_steps is not read. Set the "
                "limit where it is made."
            )
        self._inner = inner
        self.observations = ObservationSpec.of(inner.single_observation_space)
        self.actions = ActionSpec.of(inner.single_action_space)
        mode = inner.metadata.get("autoreset_mode")
        try:
            self.mode = mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)
        except ValueError:
            listed = ", ".join(mode.value for mode in AutoresetMode)
            raise UsageError(
                f'{self.name} does not say how it resets: set metadata["autoreset_mode"] to one of {listed}.'
            ) from None
        self._resets_some = self.mode is AutoresetMode.DISABLED or isinstance(
            getattr(inner, "unwrapped", inner), SyncVectorEnv | AsyncVectorEnv
        )
        self._same_step = self.mode is AutoresetMode.SAME_STEP
        self._ended = np.zeros(self.count, dtype=bool)
        self._prepare()

    def reset(self) -> np.ndarray:
        self.number += int(self.running)
        self.running = True
        self.length[:], self.total[:], self._ended[:] = 0, 0.0, False
        seen, _ = self._call("reset", seed=[self.seed_of(row) for row in range(self.count)])
        self.observation = self._flat(seen)
        self._check(self.observation)
        return self.observation

    def step(self, action: np.ndarray) -> Step:
        given = self._given(np.asarray(action))
        if self.actions.kind != "discrete":
            given = given.reshape(self.count, *self.actions.shape)
        seen, reward, terminated, truncated, info = self._call("step", given.astype(self._inner.action_space.dtype))
        valid = None
        if self._ended.any():  # these copies have reset themselves instead of acting
            valid = ~self._ended
            reward = np.where(valid, reward, 0.0)
            terminated, truncated = terminated & valid, truncated & valid
        reached = self._flat(seen)
        reward = np.asarray(reward, dtype=np.float32)
        self.length += 1 if valid is None else valid
        self.total += reward
        truncated = truncated & ~terminated
        ended = terminated | truncated
        observation = reached
        if self._same_step and ended.any():
            reached = self._with_finals(reached, info, ended)
        self._check(reached, reward)
        self._ended = np.zeros(self.count, dtype=bool)
        episodes = self._over(ended)
        if ended.any() and not self._same_step:
            if self._resets_some:
                observation = self._reset_some(ended, reached)
            else:
                self._ended = ended
        if not ended.any():
            self._check_endless()
        self.observation = observation
        return Step(observation, reward, terminated, truncated, reached, episodes, valid)

    def state(self) -> dict[str, Any]:
        inner = getattr(self._inner, "unwrapped", self._inner)
        kept = inner.get_state() if hasattr(inner, "get_state") else None
        return {**super().state(), "inner": kept, "ended": self._ended.copy(), "observation": self.observation.copy()}

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        super().restore(state)
        inner = getattr(self._inner, "unwrapped", self._inner)
        if not self.running:
            return []
        if state["inner"] is not None and hasattr(inner, "set_state"):
            self._inner.reset(seed=0)
            inner.set_state(state["inner"])
            self._ended, self.observation = state["ended"].copy(), state["observation"].copy()
            return []
        self.reset()
        return [
            f"{self.name} is a vector environment without get_state() and set_state(): new episodes start, and the run goes on "
            "otherwise than it would have. Pass a factory of single environments to resume bit for bit"
        ]

    def close(self) -> None:
        self._inner.close()

    def _over(self, ended: np.ndarray) -> tuple[Episode, ...]:
        rows = ended.nonzero()[0]
        episodes = tuple(
            Episode(int(row), int(self.number[row]), float(self.total[row]), int(self.length[row])) for row in rows
        )
        self.number[rows] += 1
        self.length[rows], self.total[rows] = 0, 0.0
        return episodes

    def _reset_some(self, ended: np.ndarray, reached: np.ndarray) -> np.ndarray:
        seeds = [self.seed_of(row) if ended[row] else None for row in range(self.count)]
        seen, _ = self._call("reset", seed=seeds, options={"reset_mask": ended.copy()})
        observation = np.where(ended[:, None], self._flat(seen), reached)
        self._check(observation)
        return observation

    def _with_finals(self, reached: np.ndarray, info: Mapping[str, Any], ended: np.ndarray) -> np.ndarray:
        finals = info.get("final_obs")
        if finals is None:
            raise EnvironmentFailure(
                f"{self.name} resets in the same step and gives no info['final_obs'], the last observations of the episodes."
            )
        reached = reached.copy()
        for row in ended.nonzero()[0].tolist():
            self._write(of_row(finals, row), reached[row], row)
        return reached

    def _flat(self, seen: Any) -> np.ndarray:
        out = np.empty((self.count, self.observations.size), dtype=np.float32)
        if not self.observations.nested and not self.observations.leaves[0].values:
            seen = np.asarray(seen)
            if seen.shape != (self.count, *self.observations.leaves[0].shape):
                raise EnvironmentFailure(
                    f"{self.name}: observations of shape {seen.shape} were given, and its space says "
                    f"{(self.count, *self.observations.leaves[0].shape)}."
                )
            out[:] = seen.reshape(self.count, -1)
            return out
        for row in range(self.count):
            self._write(of_row(seen, row), out[row], row)
        return out

    def _write(self, observation: Any, out: np.ndarray, row: int) -> None:
        try:
            self.observations.flatten(observation, out)
        except ValueError as error:
            raise EnvironmentFailure(f"{self._where(row)}: {error}. Correct the environment.") from error

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._inner, method)(*args, **kwargs)
        except Exception as error:
            if method == "reset" and "seed" in kwargs and "seed" in str(error).lower():
                raise UsageError(
                    f"{self.name}: reset(seed=[...]) failed: {type(error).__name__}: {error}. A vector environment must take a "
                    'list of seeds, one for each copy, as gymnasium.make_vec(..., vectorization_mode="sync") does.'
                ) from error
            raise EnvironmentFailure(
                f"environment {self.name}, after {int(self.length.max())} steps of its longest episode: {method} failed: "
                f"{type(error).__name__}: {error}. Correct the environment."
            ) from error
