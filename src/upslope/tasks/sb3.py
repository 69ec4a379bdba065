"""What Upslope plays in, as a VecEnv of Stable-Baselines3's; the other way round: vec_env.py."""

import time
from typing import Any

import numpy as np

from upslope.errors import UsageError
from upslope.tasks.wrappers import open_wrapped


def need_sb3() -> None:
    """Raises UsageError where Stable-Baselines3 is not installed, saying how to install it."""
    try:
        import stable_baselines3  # noqa: F401
    except ImportError:
        raise UsageError(
            "a VecEnv needs the package stable-baselines3, which is not installed. Run: pip install stable-baselines3"
        ) from None


def as_sb3(what: Any = None, count: int = 1, **keywords: Any) -> Any:
    """A VecEnv of `count` copies, for Stable-Baselines3's algorithms; keywords as for `as_gymnasium`.

        model = stable_baselines3.PPO("MlpPolicy", upslope.as_sb3("CartPole-v1", count=8))

    Infos are those of their Monitor: terminal_observation, TimeLimit.truncated, and `episode` with the unscaled return. Raises
    UsageError where the package is not installed, or naming what is wrong.
    """
    need_sb3()
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv

    class UpslopeVecEnv(VecEnv):
        """Copies of an environment of ours."""

        def __init__(self) -> None:
            self.wrapped = open_wrapped(what, count, **keywords)
            self._started = time.monotonic()
            self._actions = np.zeros(0)
            super().__init__(self.wrapped.environments.count, self.wrapped.observed, self.wrapped.acted)

        def reset(self) -> np.ndarray:
            seed = next((seed for seed in self._seeds if seed is not None), None)
            self._reset_seeds()
            self._reset_options()
            self.reset_infos = [{} for _ in range(self.num_envs)]
            return self.wrapped.reset(seed)

        def step_async(self, actions: np.ndarray) -> None:
            self._actions = np.asarray(actions)

        def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
            found = self.wrapped.step(self._actions)
            infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(cut)} for cut in found.truncated]
            passed = time.monotonic() - self._started
            for episode in found.episodes:
                info = infos[episode.copy]
                info["terminal_observation"] = found.next_observation[episode.copy]
                info["episode"] = {"r": episode.total, "l": episode.length, "t": passed}
            return found.observation, found.reward, found.terminated | found.truncated, infos

        def close(self) -> None:
            self.wrapped.environments.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(self.wrapped.environments, attr_name, None) for _ in self._get_indices(indices)]

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise AttributeError(f"copies of {self.wrapped.environments.name} take no attribute {attr_name}")

        def env_method(self, method_name: str, *_: Any, indices: Any = None, **__: Any) -> list[Any]:
            raise AttributeError(f"copies of {self.wrapped.environments.name} have no method {method_name}")

        def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
            return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    return UpslopeVecEnv()
