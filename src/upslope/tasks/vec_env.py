"""A VecEnv of Stable-Baselines3's, to be played in here. The package itself is not needed: it is known by what it has."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode


def is_vec_env(what: Any) -> bool:
    """Whether it is a VecEnv of Stable-Baselines3's, without importing that."""
    return all(hasattr(what, name) for name in ("num_envs", "step_wait", "env_is_wrapped"))


class FromVecEnv:
    """A VecEnv as a Gymnasium vector environment in SAME_STEP mode, as far as it is played in here."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    spec = None

    def __init__(self, inner: Any) -> None:
        self.inner, self.num_envs = inner, int(inner.num_envs)
        self.single_observation_space, self.single_action_space = inner.observation_space, inner.action_space
        self.action_space = inner.action_space

    def reset(self, *, seed: Sequence[int], options: Any = None) -> tuple[Any, dict[str, Any]]:
        """First observations; a VecEnv gives copy i the seed plus i."""
        self.inner.seed(int(seed[0]) % 2**31)
        return self.inner.reset(), {}

    def step(self, action: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step, with the last observations of episodes in `final_obs`."""
        observation, reward, done, infos = self.inner.step(action)
        done = np.asarray(done, dtype=bool)
        truncated = done & np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        finals = {"final_obs": [info.get("terminal_observation") for info in infos]} if done.any() else {}
        return observation, np.asarray(reward), done & ~truncated, truncated, finals

    def close(self) -> None:
        """Closes the copies."""
        self.inner.close()
