"""LeRobot's folders, version 3: meta/info.json, meta/stats.json, and frames of several episodes per Parquet file in data/.

Observations are the numeric features `observation.*`, in the order of info.json; images and videos are left out, and a note says
so. `next.reward` is the reward; a log without it can be imitated only. `next.done` ends an episode unless `next.truncated` says
that it was cut; an episode without either was cut. Actions are mapped from the range [min, max] of meta/stats.json.

Source: huggingface/lerobot, src/lerobot/utils/constants.py and datasets/ (codebase_version v3.0).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import UsageError
from upslope.offline.found import Found, decoding, numbers
from upslope.offline.minari import _array as column_array
from upslope.tasks.spaces import ActionSpec

INFO = Path("meta", "info.json")
VERSION = "v3."
NUMERIC = ("float", "int", "bool")


def is_lerobot(place: Path) -> bool:
    """Whether a folder is one of LeRobot's, of any version."""
    return (place / INFO).is_file()


def read_lerobot(folder: Path) -> Found:
    """The log in a folder of LeRobot's. Raises UsageError naming what is missing, damaged, or of another version."""
    info = _json(folder / INFO)
    version = str(info.get("codebase_version", "none"))
    if not version.startswith(VERSION):
        raise UsageError(
            f"the log {folder} is of LeRobot version {version}; version 3 is read. Convert it with "
            "lerobot.datasets.v30.convert_dataset_v21_to_v30."
        )
    features: Any = info.get("features", {})
    if not isinstance(features, dict) or not all(isinstance(about, dict) for about in features.values()):
        raise UsageError(f'{folder / INFO}: features must be an object of objects, such as {{"action": {{...}}}}.')
    numeric = [name for name, about in features.items() if str(about.get("dtype")).startswith(NUMERIC)]
    seen = [name for name in numeric if name.startswith("observation.")]
    if not seen or "action" not in numeric:
        raise UsageError(
            f"the log {folder} needs a feature action and at least one numeric feature observation.*; it has "
            f"{', '.join(features) or 'none'}. Images alone are not learned from."
        )
    wanted = [*seen, "action", "episode_index", "frame_index"]
    optional: list[str] = [
        name for name in ("next.reward", "next.done", "next.truncated", "next.success") if name in features
    ]
    columns = _frames(folder, wanted, optional)
    order = np.lexsort((columns["frame_index"], columns["episode_index"]))
    columns = {name: array[order] for name, array in columns.items()}
    count = len(order)
    ended, cut = _ends(columns)
    arrays = {
        "observations": np.concatenate([columns[name].reshape(count, -1) for name in seen], 1),
        "actions": columns["action"].reshape(count, -1),
        "rewards": columns["next.reward"].reshape(count) if "next.reward" in columns else np.zeros(count, np.float32),
        "terminals": ended,
        "timeouts": cut,
    }
    left = [name for name in features if name.startswith("observation.") and name not in seen]
    notes = (f"left out of the observations: {', '.join(left)}",) if left else ()
    box = _range(folder, arrays["actions"].shape[1])
    return Found(arrays, actions=box, rewarded="next.reward" in columns, notes=notes)


def _frames(folder: Path, wanted: list[str], optional: list[str]) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    files = sorted(folder.glob("data/*/*.parquet"))
    if not files:
        raise UsageError(f"the log {folder} has no data/chunk-*/file-*.parquet. Fetch the whole folder.")
    parts: dict[str, list[np.ndarray]] = {}
    for file in files:
        with decoding(file):
            there = pq.read_schema(file).names
            missing = [name for name in (*wanted, *optional) if name not in there]
            if missing:
                raise UsageError(
                    f"{file} has no column {', '.join(missing)}, which meta/info.json or the format names."
                )
            table = pq.read_table(file, columns=[*wanted, *optional])
            columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        for name, column in columns.items():
            try:
                array = column_array(column)
            except ValueError:
                raise UsageError(f"{file}: the rows of {name} are not of one length.") from None
            parts.setdefault(name, []).append(numbers(array, f"{file}: the column {name}"))
    try:
        found = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    except ValueError:
        raise UsageError(f"the files in {folder / 'data'} have features of different shapes.") from None
    for name in ("episode_index", "frame_index", *optional):
        if found[name].size != len(found[name]):
            raise UsageError(
                f"the log {folder}: {name} has shape {list(found[name].shape)}; one number per frame is needed."
            )
        found[name] = found[name].reshape(-1)
    if not len(found["action"]):
        raise UsageError(f"the log {folder} has no frames.")
    return found


def _ends(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(terminated, truncated) [n]: what the log says, and a cut at each episode's last frame that has neither."""
    episode = columns["episode_index"].reshape(-1)
    last = np.append(episode[1:] != episode[:-1], True)
    nothing = np.zeros(len(episode), bool)
    cut = columns["next.truncated"].reshape(-1).astype(bool) if "next.truncated" in columns else nothing
    done = columns["next.done"].reshape(-1).astype(bool) if "next.done" in columns else nothing
    ended = done & ~cut
    return ended, (cut | last) & ~ended


def _range(folder: Path, size: int) -> ActionSpec | None:
    """The box [min, max] of the actions, widened where they never change; None where stats.json does not say."""
    place = folder / "meta" / "stats.json"
    if not place.is_file():
        return None
    stats = _json(place).get("action") or {}
    try:
        low, high = (np.asarray(stats[name], dtype=np.float64).reshape(size) for name in ("min", "max"))
    except (KeyError, ValueError, TypeError):
        return None
    flat = high - low < 1e-8
    low, high = np.where(flat, low - 1.0, low), np.where(flat, high + 1.0, high)
    return ActionSpec("continuous", (size,), low=tuple(low.tolist()), high=tuple(high.tolist()))


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}: {error}.") from None
    if not isinstance(found, dict):
        raise UsageError(f"cannot read {file}: it is no JSON object.")
    return found
