"""A path to a log, of whatever format: told apart by what is there, not by its name alone."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from upslope.errors import UsageError
from upslope.offline.found import Found, decoding, need_h5py
from upslope.offline.lerobot import is_lerobot, read_lerobot
from upslope.offline.minari import minari_folder, read_minari

HDF5 = (".hdf5", ".h5")
FLAT = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
LOGP = "action_log_probs"  # in D4RL's infos
READ = (
    "a run's folder, a Minari folder, a LeRobot folder (version 3), or a .npz, .safetensors or D4RL .hdf5 file with "
    "observations, actions, rewards, terminals (and timeouts, next_observations)"
)


def read_log(path: str) -> Found:
    """The log at `path`, but for runs' folders. Raises UsageError naming what is wrong with it."""
    place = Path(path)
    if not place.exists():
        raise UsageError(f"there is no log {path}. Give {READ}.")
    if place.is_dir():
        if is_lerobot(place):
            return read_lerobot(place)
        folder = minari_folder(place)
        if folder is None:
            raise UsageError(
                f"the folder {path} is no log: it has no stored transitions of a run, no metadata.json and no "
                f"meta/info.json. Give {READ}."
            )
        return read_minari(folder)
    if place.suffix in HDF5:
        return _hdf5(place)
    if place.suffix not in (".npz", ".safetensors"):
        raise UsageError(f"{path} is no log: give {READ}.")
    with decoding(path):
        if place.suffix == ".safetensors":
            return Found(load_file(place))
        with place.open("rb") as opened, np.load(opened, allow_pickle=False) as loaded:
            return Found(dict(loaded))


def _hdf5(place: Path) -> Found:
    """D4RL's: arrays at the top of one file. Minari's main file stands for its folder."""
    h5py = need_h5py()
    with decoding(place), h5py.File(place, "r") as file:
        names = set(file.keys())
        if "episode_0" in names:
            folder = minari_folder(place.parent)
            if folder is None:
                raise UsageError(
                    f"{place} is the data of a Minari log without its metadata.json. Give the whole folder."
                )
            return read_minari(folder)
        groups = [name for name in FLAT if name in names and hasattr(file[name], "keys")]
        if groups or not names & set(FLAT):
            raise UsageError(
                f"{place} is no D4RL log: it has {', '.join(sorted(names)) or 'nothing'}, and {', '.join(FLAT[:4])} must be "
                "arrays at its top."
            )
        arrays = {name: np.asarray(file[name][()]) for name in FLAT if name in names}
        infos: Any = file["infos"] if "infos" in names else {}
        if hasattr(infos, "keys") and LOGP in infos and not hasattr(infos[LOGP], "keys"):
            arrays["behavior_logp"] = np.asarray(infos[LOGP][()])
    return Found(arrays)
