"""The environment of a finished run, as its policy saw it when it was saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import UsageError
from upslope.tasks.environments import Actions


@dataclass(frozen=True)
class Scaling:
    """(observation - shift) * scale, cut to +- clip, where `shift` is given; reward * factor + offset, cut to +- reward_clip."""

    shift: np.ndarray | None = None
    scale: np.ndarray | None = None
    clip: float = np.inf
    factor: float = 1.0
    offset: float = 0.0
    reward_clip: float = np.inf

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """[N, D] or [D] float32."""
        if self.shift is None or self.scale is None:
            return observation
        return ((observation - self.shift) * self.scale).clip(-self.clip, self.clip).astype(np.float32)

    def reward(self, reward: np.ndarray) -> np.ndarray:
        """[N] float32."""
        return (reward * self.factor + self.offset).clip(-self.reward_clip, self.reward_clip).astype(np.float32)


@dataclass(frozen=True)
class RunEnvironment:
    """The task of a run and what was done to its actions, observations and rewards."""

    task: str | None
    settings: dict[str, Any]
    convention: Actions
    scaling: Scaling
    noise: float


def with_task(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings (its config.yaml) with the task of the log that it learned from, where they name none themselves."""
    from upslope.actor_critic.log import task_of_log

    data = values.get("data")
    task, settings = task_of_log(data) if values.get("task") is None and isinstance(data, str) else (None, {})
    if task is None:
        return dict(values)
    return {**values, "task": task, "task_settings": {**settings, **values.get("task_settings", {})}}


def run_environment(run: str | Path) -> RunEnvironment:
    """Of a run's folder (its newest checkpoint), or of one of its checkpoints. Raises UsageError where there is no policy."""
    from upslope.config import config_from, read_config
    from upslope.policies.control import ControlPolicy
    from upslope.registry import make
    from upslope.runs.checkpoint import model_folder, run_of

    folder = Path(model_folder(str(run)))
    policy = ControlPolicy.load(folder)
    scaled = policy.scaling()
    seen: dict[str, Any] = {}
    if scaled is not None:
        seen = {"shift": scaled[0].copy(), "scale": scaled[1].copy(), "clip": policy.settings.normalize_clip}
    place = run_of(folder)
    if place is None:
        return RunEnvironment(None, {}, policy.convention, Scaling(**seen), 0.0)
    config = config_from(with_task(read_config(place / "config.yaml")), where=str(place / "config.yaml"))
    recipe = make(config.method, **config.settings)
    noise = float(getattr(recipe.rollout, "observation_noise", 0.0))
    scaling = Scaling(**(seen | _of_reward(recipe.reward, place, folder)))
    return RunEnvironment(config.task, dict(config.task_settings), policy.convention, scaling, noise)


def _of_reward(part: Any, run: Path, checkpoint: Path) -> dict[str, float]:
    """factor, offset and reward_clip of a recipe's `reward`. Raises UsageError for a part whose scale is not known here."""
    from upslope.actor_critic.data import Affine
    from upslope.parts.normalize import ScaledReward
    from upslope.policies.moments import Moments
    from upslope.runs.checkpoint import load_checkpoint

    if part is None:
        return {}
    if isinstance(part, Affine):
        return {"factor": part.scale, "offset": part.shift}
    if not isinstance(part, ScaledReward):
        raise UsageError(
            f"the rewards of {run} are changed by {type(part).__name__}, which cannot be applied step by step. Give the task and "
            "its settings instead of like=."
        )
    state = load_checkpoint(run, int(checkpoint.name.rpartition("-")[2])).tree()["agent"]["parts"]["reward"]
    moments = Moments(1)
    moments.load_state_dict(state["moments"])
    spread = float(np.sqrt(float(moments.variance) + part.eps))
    return {"factor": 1 / spread, "reward_clip": part.clip}
