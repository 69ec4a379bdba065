"""What Upslope plays in, for others: a Gymnasium environment, a vector environment, and (sb3.py) a VecEnv.

    env = upslope.as_gymnasium("CartPole-v1")
    envs = upslope.as_vector_env(like="runs/ppo-HalfCheetah-v5", count=8)

Observations are flat [D] float32 as policies here see them; actions are flat, too, and mapped onto the box or cut to it here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from upslope.errors import UsageError
from upslope.tasks.environments import Actions, Environments, Step
from upslope.tasks.noise import noisy
from upslope.tasks.of_run import Scaling, run_environment
from upslope.tasks.opening import open_environments


class Wrapped:
    """Environments with their scaling and the spaces that others see; base of what is handed out."""

    def __init__(self, environments: Environments, scaling: Scaling) -> None:
        self.environments, self.scaling = environments, scaling
        limit = scaling.clip if scaling.shift is not None else np.inf
        self.observed = spaces.Box(-limit, limit, (environments.observations.size,), np.float32)
        spec = environments.actions
        self.acted: spaces.Space[Any]
        if spec.kind == "discrete":
            self.acted = spaces.Discrete(spec.values[0])
        elif spec.kind == "multi_discrete":
            self.acted = spaces.MultiDiscrete(np.array(spec.values))
        elif environments.convention == "scale":
            self.acted = spaces.Box(-1.0, 1.0, (spec.size,), np.float32)
        else:
            self.acted = spaces.Box(*spec.box, dtype=np.float32)

    def reset(self, seed: int | None = None) -> np.ndarray:
        """The first observations [N, D] of the next episodes; of the first ones of a seed, where that is given."""
        if seed is not None:
            inner = self.environments
            while isinstance(below := getattr(inner, "inner", None), Environments):
                inner = below
            inner.seed = seed
            self.environments.rewind()
        return self.scaling.observation(self.environments.reset())

    def step(self, action: np.ndarray) -> Step:
        """One step of every copy, scaled. Raises UsageError where a copy has only reset itself."""
        found = self.environments.step(action)
        if found.valid is not None:
            raise UsageError(
                f"{self.environments.name} spends a step of its own on every reset, which cannot be handed on. Make the vector "
                "environment with autoreset_mode=AutoresetMode.SAME_STEP."
            )
        reached = observation = self.scaling.observation(found.next_observation)
        if found.observation is not found.next_observation:
            observation = self.scaling.observation(found.observation)
        return found._replace(
            observation=observation, next_observation=reached, reward=self.scaling.reward(found.reward)
        )


def open_wrapped(
    what: Any = None,
    count: int = 1,
    *,
    settings: Mapping[str, Any] | None = None,
    convention: Actions | None = None,
    seed: int = 0,
    observation_noise: float | None = None,
    like: str | Path | None = None,
) -> Wrapped:
    """`count` copies of an environment as policies here see it.

    what                as for `upslope train --task`; None: that of the run `like`
    settings            its keywords, and max_episode_steps
    convention          of continuous actions: "clip" (where nothing says so) takes those of the box, "scale" ones in [-1, 1]
    observation_noise   standard deviation of noise on every observation
    like                a run's folder, or one of its checkpoints: its task with its settings, the convention, the noise where these
                        are not given, and the scales of observations and rewards as they were when it was saved
    Raises UsageError naming what is wrong.
    """
    scaling, own = Scaling(), dict(settings or {})
    if like is not None:
        run = run_environment(like)
        own = {**(run.settings if what is None or what == run.task else {}), **own}
        what = run.task if what is None else what
        convention, scaling = convention or run.convention, run.scaling
        observation_noise = run.noise if observation_noise is None else observation_noise
    if convention not in (None, *get_args(Actions)):
        raise UsageError(f"convention is {convention!r}; it must be {' or '.join(map(repr, get_args(Actions)))}.")
    if what is None:
        raise UsageError("which environment? Give an id such as CartPole-v1, a class, or like=RUN.")
    opened = open_environments(what, count, seed, settings=own, convention=convention or "clip")
    environments = noisy(opened, observation_noise or 0.0)
    if scaling.shift is not None and len(scaling.shift) != environments.observations.size:
        size = environments.observations.size
        environments.close()
        raise UsageError(f"{like} is of observations of {len(scaling.shift)} numbers, and those of {what} have {size}.")
    return Wrapped(environments, scaling)


def as_gymnasium(what: Any = None, **keywords: Any) -> "GymnasiumEnv":
    """A Gymnasium environment; keywords are those of `open_wrapped` but `count`. Raises UsageError naming what is wrong."""
    if "count" in keywords:
        raise UsageError("as_gymnasium makes one environment; several in lockstep are as_vector_env(..., count=8).")
    wrapped = open_wrapped(what, 1, **keywords)
    if wrapped.environments.count != 1:
        wrapped.environments.close()
        raise UsageError(
            f"{wrapped.environments.name} has {wrapped.environments.count} copies: take as_vector_env, or give one environment."
        )
    return GymnasiumEnv(wrapped)


def as_vector_env(what: Any = None, count: int = 1, **keywords: Any) -> "GymnasiumVectorEnv":
    """A Gymnasium vector environment of `count` copies, whose episodes begin anew in the step in which they end (SAME_STEP)."""
    return GymnasiumVectorEnv(open_wrapped(what, count, **keywords))


class GymnasiumEnv(gymnasium.Env[np.ndarray, Any]):
    """One copy. Without a seed, each reset starts the next episode of the first seed."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's attribute

    def __init__(self, wrapped: Wrapped) -> None:
        self.wrapped = wrapped
        self.observation_space, self.action_space = wrapped.observed, wrapped.acted
        self._next: np.ndarray | None = None  # the observation on which the next episode begins, once one has ended
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation of an episode [D]."""
        super().reset(seed=seed)
        begun = self._next if seed is None else None
        self._next, self._running = None, True
        return (self.wrapped.reset(seed)[0] if begun is None else begun), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Observation [D], reward, terminated, truncated; `info["episode"]` has the unscaled return where an episode ends."""
        if not self._running:
            raise gymnasium.error.ResetNeeded("call reset first: the episode is over, or has not begun.")
        found = self.wrapped.step(np.asarray(action)[None])
        info: dict[str, Any] = {}
        if found.episodes:
            self._running, self._next = False, found.observation[0]
            info["episode"] = {"r": found.episodes[0].total, "l": found.episodes[0].length}
        ended, cut = bool(found.terminated[0]), bool(found.truncated[0])
        return found.next_observation[0], float(found.reward[0]), ended, cut, info

    def close(self) -> None:
        """Closes the environment."""
        self.wrapped.environments.close()


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, Any, np.ndarray]):
    """N copies in lockstep. `info["final_obs"]` [N] holds what the last action of an episode led to, None for the others."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(self, wrapped: Wrapped) -> None:
        self.wrapped = wrapped
        self.num_envs = wrapped.environments.count
        self.single_observation_space, self.single_action_space = wrapped.observed, wrapped.acted
        self.observation_space = gymnasium.vector.utils.batch_space(wrapped.observed, self.num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(wrapped.acted, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observations [N, D]. Several seeds are made into one: copies are told apart here."""
        if isinstance(seed, list):
            given = [one for one in seed if one is not None]
            seed = int(np.random.SeedSequence(given).generate_state(1)[0]) if given else None
        super().reset(seed=seed)
        return self.wrapped.reset(seed), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Observations [N, D] to act on next, rewards, terminated, truncated [N]."""
        found = self.wrapped.step(np.asarray(actions))
        info: dict[str, Any] = {}
        if found.episodes:
            ended = found.terminated | found.truncated
            last = np.full(self.num_envs, None, dtype=object)
            totals, lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
            for episode in found.episodes:
                last[episode.copy] = found.next_observation[episode.copy]
                totals[episode.copy], lengths[episode.copy] = episode.total, episode.length
            info = {"final_obs": last, "_final_obs": ended, "episode": {"r": totals, "l": lengths}, "_episode": ended}
        return found.observation, found.reward, found.terminated, found.truncated, info

    def close_extras(self, **_: Any) -> None:
        """Closes the copies."""
        self.wrapped.environments.close()
