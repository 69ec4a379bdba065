"""Writes a log in Minari's layout: DIR/data/main_data.hdf5 and DIR/data/metadata.json, as Minari 0.5 reads them."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import UsageError
from upslope.offline.found import need_h5py
from upslope.offline.minari import LOGP, MAIN, METADATA
from upslope.offline.spaces import json_of
from upslope.runs.files import DISK_ERRORS, RunError, reason, write_atomic

MINARI = "0.5.4"
"""The version of Minari whose layout is written."""


@dataclass(frozen=True)
class LoggedEpisode:
    """T steps: observations [T + 1, *], actions [T, *] in the environment's units, rewards, terminations, truncations [T].

    logp   of the actions under what chose them, [T], in the units of densities.py; None: not known. Written as infos/behavior_logp
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    logp: np.ndarray | None = None

    @property
    def total(self) -> float:
        """The sum of its rewards."""
        return float(self.rewards.sum(dtype=np.float64))


def write_minari(
    folder: Path, episodes: Sequence[LoggedEpisode], observation_space: Any, action_space: Any, about: dict[str, Any]
) -> None:
    """Writes the log durably: another log in `folder` is replaced only once the new one is whole.

    The spaces are a Box or a Discrete one each. `about` goes into metadata.json beside what Minari needs: dataset_id,
    algorithm_name, env_spec, ref_min_score, ref_max_score and whatever else is to be kept. Raises RunError where the disk refuses.
    """
    if not episodes:
        raise UsageError(f"there is no episode to write to {folder}.")
    h5py = need_h5py()
    target, fresh = folder / "data", folder / ".data.tmp"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        with h5py.File(fresh / MAIN, "w", track_order=True) as file:
            for number, episode in enumerate(episodes):
                _put(file.create_group(f"episode_{number}"), number, episode)
        size = os.path.getsize(fresh / MAIN) / 1e6
        facts = {
            "total_episodes": len(episodes),
            "total_steps": sum(len(episode.rewards) for episode in episodes),
            "data_format": "hdf5",
            "jpeg_encoding": True,
            "observation_space": json.dumps(json_of(observation_space)),
            "action_space": json.dumps(json_of(action_space)),
            "minari_version": MINARI,
            "dataset_size": round(size, 1),
        }
        write_atomic(fresh / METADATA, json.dumps({**facts, **about}, indent=1) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    except DISK_ERRORS as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise RunError(f"cannot write the log to {folder}: {reason(error, folder)}.") from error


def _put(group: Any, number: int, episode: LoggedEpisode) -> None:
    group.attrs["id"] = number
    group.attrs["total_steps"] = len(episode.rewards)
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        array = getattr(episode, name)
        group.create_dataset(name, data=array, chunks=True, maxshape=(None, *array.shape[1:]))
    if episode.logp is not None:
        group.create_dataset(LOGP, data=episode.logp, chunks=True, maxshape=(None,))
