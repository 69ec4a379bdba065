"""Logged transitions: from a file, or from what another run has stored."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from upslope.actor_critic.episodes import by_episodes
from upslope.actor_critic.replay import EXTRAS, STEP, Layout, pieces
from upslope.config import read_config
from upslope.errors import UsageError
from upslope.offline.densities import EDGE
from upslope.offline.found import Found, Origin, noise_note
from upslope.offline.minari import task_of_minari
from upslope.offline.reading import read_log
from upslope.parts.gae import discounted_sum
from upslope.tasks.spaces import ActionSpec

NAMES = {
    "observation": ("observations", "observation"),
    "action": ("actions", "action"),
    "reward": ("rewards", "reward"),
    "terminated": ("terminals", "terminations", "terminated"),
    "truncated": ("timeouts", "truncations", "truncated"),
    "next_observation": ("next_observations", "next_observation"),
}
LOGP = "behavior_logp"


@dataclass(frozen=True)
class Log(Origin):
    """n logged transitions in the order of their steps, as float32 arrays; actions in [-1, 1].

    observation, next_observation [n, O], action [n, A], reward, terminated, truncated [n]; the last two are True at the last step
    of an episode, and so is the end of the arrays taken for. logp [n] float64: of the actions under what chose them;
    None where the log does not say.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_observation: np.ndarray
    logp: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def last(self) -> np.ndarray:
        """Whether a step is its episode's last, [n] bool."""
        found = (self.terminated + self.truncated) > 0
        found[-1:] = True
        return found

    def returns(self) -> np.ndarray:
        """The sum of rewards of each episode."""
        ends = self.last.nonzero()[0]
        total = np.cumsum(self.reward, dtype=np.float64)[ends]
        return np.diff(total, prepend=0.0)

    def return_to_go(self, discount: float) -> np.ndarray:
        """Discounted sum of an episode's rewards from each step on, [n]."""
        reward, kept = self.reward.astype(np.float64), np.where(self.last, 0.0, discount)
        return discounted_sum(torch.from_numpy(reward), torch.from_numpy(kept)).numpy()

    @property
    def episode(self) -> np.ndarray:
        """The number of the episode that a step is of, [n]: 0, 1, ..."""
        return np.cumsum(self.last) - self.last

    @property
    def first(self) -> np.ndarray:
        """Where each episode's first step stands, [episodes]."""
        return np.concatenate([[0], self.last.nonzero()[0][:-1] + 1])

    def at(self, steps: np.ndarray) -> "Log":
        """The log of these steps [n] bool, which must be whole episodes."""
        logp = None if self.logp is None else self.logp[steps]
        return replace(self, logp=logp, **{name: getattr(self, name)[steps] for name in STEP})

    def kept(self, layout: Layout) -> np.ndarray:
        """Which steps `rows` gives, [n] bool: where the next action is read, those that have one, or need none."""
        whole = np.ones(len(self), dtype=bool)
        return ~self.last | (self.terminated > 0) if "next_action" in layout.extras else whole

    def rows(self, layout: Layout, discount: float, reward: tuple[float, float] = (1.0, 0.0)) -> Tensor:
        """Rows [m, width] for a buffer, of the steps `kept`. `reward` (factor, offset) is what the learner makes of rewards:
        they stay as they are, and returns to go are of what it makes. Columns of `relabel` are 0."""
        columns: dict[str, np.ndarray] = {name: getattr(self, name) for name in STEP}
        columns |= {name: np.zeros(len(self)) for name in EXTRAS if name in layout.extras}
        keep = self.kept(layout)
        if "next_action" in layout.extras:
            columns["next_action"] = np.concatenate([self.action[1:], self.action[-1:]])
        if "return_to_go" in layout.extras:
            seen = replace(self, reward=self.reward * reward[0] + reward[1])
            columns["return_to_go"] = seen.return_to_go(discount)
        made = np.empty((int(keep.sum()), layout.width), dtype=np.float32)
        for name, (first, end) in layout.columns().items():
            made[:, first:end] = columns[name].reshape(len(self), -1)[keep]
        return torch.from_numpy(made)


def open_log(path: str, actions: ActionSpec | None, *, strict: bool = True) -> Log:
    """The log at `path`: a run's folder, one of Minari's or LeRobot's, or a .npz, .safetensors or D4RL .hdf5 file.

    `actions` is what the environment takes: logged actions are mapped from its box onto [-1, 1]; without one from the box that
    the log names, and where it names none they must lie there. Not `strict` takes actions as they are where no box is known, and
    discrete ones, to look at a log rather than to learn from it. Raises UsageError naming what is missing or wrong.
    """
    place = Path(path)
    if pieces(place / "replay"):
        return run_log(place)
    if (place / "config.yaml").is_file():
        raise UsageError(f"{place} has no stored transitions: it is no run that learned from a replay buffer.")
    found = read_log(path)
    return checked(found, actions, path, strict=strict)


def checked(found: Found, actions: ActionSpec | None, path: str, *, strict: bool = True) -> Log:
    """The log of what was found at `path`, scaled and complete. Raises UsageError as `open_log`."""
    own = found.actions if found.actions is not None and found.actions.bounded else None
    if strict and found.actions is not None and found.actions.kind != "continuous":
        raise UsageError(
            f"the log {path} has {found.actions.kind} actions; methods that learn from a log take continuous ones."
        )
    named, box = _named(found.arrays, path), actions if actions is not None else own
    if strict or box is not None:
        named = _scaled(named, box, path)
    else:
        named["action"] = named["action"].reshape(len(named["reward"]), -1)
    logp = _logp(found.arrays, path)
    log, kept = _checked(named, path)
    return replace(
        log,
        logp=None if logp is None else logp[kept],
        task=found.task,
        task_settings=found.task_settings,
        actions=own,
        references=found.references,
        rewarded=found.rewarded,
        notes=found.notes,
    )


def run_log(folder: Path) -> Log:
    """What a run has stored, in the order of its steps, by copies of the environment. Raises UsageError where there is nothing."""
    stored = folder / "replay"
    found = pieces(stored)
    if not found:
        raise UsageError(f"{folder} has no stored transitions: it is no run that learned from a replay buffer.")
    try:
        about: dict[str, Any] = json.loads((stored / "about.json").read_text())
        layout, copies = Layout(int(about["observation"]), int(about["action"])), int(about["environments"])
        rows = np.concatenate([load_file(file)["rows"] for file in found])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(f"the stored transitions in {stored} are damaged: {error}.") from None
    if rows.ndim != 2 or rows.shape[1] < layout.width or copies < 1:
        raise UsageError(
            f"the stored transitions in {stored} are damaged: rows {list(rows.shape)} do not fit about.json."
        )
    rows = by_episodes(rows, layout, copies)
    arrays: dict[str, Any] = {
        name: np.ascontiguousarray(rows[:, first:last]) for name, (first, last) in layout.columns().items()
    }
    for name in ("reward", "terminated", "truncated"):
        arrays[name] = arrays[name][:, 0]
    task, settings = _played_in(folder, about)
    return Log(**arrays, task=task, task_settings=settings, notes=noise_note(about.get("observation_noise")))


def task_of_log(path: str) -> tuple[str | None, dict[str, Any]]:
    """(task, its settings) that a log names, without reading its transitions; (None, {}) where it names none or is not there."""
    place = Path(path)
    try:
        about = json.loads((place / "replay" / "about.json").read_text())
    except (OSError, ValueError):
        return task_of_minari(place)
    return _played_in(place, about) if isinstance(about, dict) else (None, {})


def _played_in(folder: Path, about: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    task = about.get("task")
    settings = about["task_settings"] if "task_settings" in about else _task_settings(folder)
    return (task if isinstance(task, str) else None), dict(settings or {})


def _task_settings(folder: Path) -> dict[str, Any]:
    """Those of a run whose store does not say them: it was written by a version that did not."""
    place = folder / "config.yaml"
    found = read_config(place).get("task_settings") if place.is_file() else None
    return found if isinstance(found, dict) else {}


def _named(arrays: dict[str, np.ndarray], path: str) -> dict[str, np.ndarray]:
    found = {column: arrays[name] for column, names in NAMES.items() for name in names if name in arrays}
    missing = {"observation", "action", "reward", "terminated"} - set(found)
    if missing:
        there = ", ".join(sorted(arrays)) or "nothing"
        raise UsageError(
            f"the log {path} has no {', '.join(NAMES[name][0] for name in sorted(missing))}; it has {there}."
        )
    for name, array in found.items():
        if array.dtype.kind not in "fiub" or array.ndim == 0:
            raise UsageError(f"the log {path}: {NAMES[name][0]} is no array of numbers ({array.dtype}, {array.shape}).")
    count = len(found["reward"])
    if count == 0:
        raise UsageError(f"the log {path} has no transitions.")
    for name, array in found.items():
        shape = list(array.shape)
        if len(array) != count:
            raise UsageError(
                f"the log {path}: {NAMES[name][0]} has {len(array)} rows and rewards {count}. They must be as many."
            )
        if name in ("reward", "terminated", "truncated") and array.size != count:
            raise UsageError(f"the log {path}: {NAMES[name][0]} has shape {shape}; one number per row is needed.")
        if name == "next_observation" and array.shape != found["observation"].shape:
            was = list(found["observation"].shape)
            raise UsageError(f"the log {path}: next_observations has shape {shape} and observations {was}.")
        with np.errstate(over="ignore"):
            found[name] = array = array.astype(np.float32)
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array.reshape(count, -1)))[0][0])
            raise UsageError(
                f"the log {path}: {NAMES[name][0]} of row {row} is not finite, as float32. Leave such rows out."
            )
    return found


def _scaled(found: dict[str, np.ndarray], actions: ActionSpec | None, path: str) -> dict[str, np.ndarray]:
    action = found["action"].reshape(len(found["reward"]), -1)
    if actions is not None:
        if actions.size != action.shape[1]:
            raise UsageError(
                f"the log {path} has actions of {action.shape[1]} numbers; the environment takes {actions.size}."
            )
        with np.errstate(over="ignore"):
            low, high = np.asarray(actions.low, np.float32), np.asarray(actions.high, np.float32)
        if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
            raise UsageError(
                f"the log {path}: actions cannot be scaled from the bounds {list(actions.low)} to {list(actions.high)}. Each must "
                "be a finite range; --task names an environment with others."
            )
        action = (action - low) / (high - low) * 2.0 - 1.0
    if float(np.abs(action).max()) > 1.0 + 1e-4:
        row = int(np.abs(action).max(1).argmax())
        raise UsageError(
            f"the log {path}: the action of row {row} is outside of the bounds (of the environment, or of [-1, 1] without --task)."
        )
    return {**found, "action": action.clip(-EDGE, EDGE).astype(np.float32)}


def _logp(arrays: dict[str, np.ndarray], path: str) -> np.ndarray | None:
    """The behavior's log-probs [n] of the log; a NaN is one that is not known."""
    if LOGP not in arrays:
        return None
    found = np.asarray(arrays[LOGP])
    if found.dtype.kind != "f" or found.size != len(arrays[next(name for name in NAMES["reward"] if name in arrays)]):
        raise UsageError(
            f"the log {path}: {LOGP} has shape {list(found.shape)} of {found.dtype}; one number per row is needed."
        )
    return found.reshape(-1).astype(np.float64)


def _checked(found: dict[str, np.ndarray], path: str) -> tuple[Log, np.ndarray]:
    """The log, with what it lacks: truncated as none, and the next observation as the next row's; which rows it has, [n] bool."""
    count = len(found["reward"])
    found["observation"] = found["observation"].reshape(count, -1)
    found["reward"], found["terminated"] = found["reward"].reshape(count), found["terminated"].reshape(count)
    found["truncated"] = found.get("truncated", np.zeros(count, np.float32)).reshape(count)
    if "next_observation" in found:
        found["next_observation"] = found["next_observation"].reshape(count, -1)
        return Log(**found), np.ones(count, dtype=bool)  # type: ignore[arg-type]
    found["next_observation"] = np.concatenate([found["observation"][1:], found["observation"][-1:]])
    whole = Log(**found)  # type: ignore[arg-type]
    keep = ~whole.last | (whole.terminated > 0)  # of the others nobody knows what they led to
    before = np.flatnonzero(~keep) - 1
    ended = found["truncated"].copy()
    ended[before[before >= 0]] = np.where(keep[before[before >= 0]], 1.0, ended[before[before >= 0]])
    kept = {name: array[keep] for name, array in {**found, "truncated": ended}.items()}
    if not len(kept["reward"]):
        raise UsageError(f"the log {path} has no step whose next observation is known. Add next_observations.")
    return replace(whole, **kept), keep  # type: ignore[arg-type]
