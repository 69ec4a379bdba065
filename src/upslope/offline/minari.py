"""Minari's folders (0.5): metadata.json with main_data.hdf5, or with a folder of Arrow or Parquet files per episode.

    main_data.hdf5 / episode_0, episode_1, ...     attributes id, total_steps, seed
        observations     [T + 1, *shape], the last one is what the last action led to; groups where the space is a Dict or Tuple
        actions, rewards, terminations, truncations    [T, ...]

Source: Farama-Foundation/Minari 0.5.4, dataset/_storages.
"""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import UsageError
from upslope.offline.found import Found, decoding, need_h5py, noise_note, numbers
from upslope.offline.spaces import space_of
from upslope.tasks.spaces import ActionSpec, Leaf, ObservationSpec

MAIN, METADATA = "main_data.hdf5", "metadata.json"
SCORES = ("ref_min_score", "ref_max_score")
FORMATS = ("hdf5", "arrow", "parquet")
COLUMNS = ("actions", "rewards", "terminations", "truncations")
LOGP = "infos/behavior_logp"  # ours: log-probs of the actions under what chose them

Leaves = dict[str, np.ndarray]
Episode = tuple[Leaves, dict[str, np.ndarray]]


def minari_folder(place: Path) -> Path | None:
    """The folder with metadata.json and data that a path stands for: itself, or its child `data`; None where it is none."""
    for folder in (place, place / "data"):
        if (folder / METADATA).is_file() and _is_minari(folder):
            return folder
    return None


def _is_minari(folder: Path) -> bool:
    try:
        about = json.loads((folder / METADATA).read_text())
    except (OSError, ValueError):
        return True  # damaged: said where it is read
    return isinstance(about, dict) and ("data_format" in about or "total_episodes" in about)


def read_minari(folder: Path) -> Found:
    """The log of such a folder. Raises UsageError naming what is missing, damaged, or of a form that is not read."""
    about = _metadata(folder)
    form = about.get("data_format", "hdf5")
    if form not in FORMATS:
        raise UsageError(
            f"the log {folder} has data_format {form!r}, which this version does not know; it reads {', '.join(FORMATS)} "
            f"(Minari 0.5; the log says {about.get('minari_version', 'nothing')})."
        )
    observations, actions, raw = _spaces(about, folder)
    spec = ObservationSpec.of(observations)
    episodes = _hdf5 if form == "hdf5" else _arrow
    found: dict[str, list[np.ndarray]] = {
        name: [] for name in ("observations", "next_observations", "rewards", "terminals", "timeouts", "actions")
    }
    logp: list[np.ndarray | None] = []
    for number, (leaves, columns) in enumerate(episodes(folder, int(about["total_episodes"]), spec, form)):
        logp.append(columns.pop(LOGP, None))
        _append(found, leaves, columns, spec, f"the log {folder}, episode {number}")
    if not found["rewards"]:
        raise UsageError(f"the log {folder} has no episodes.")
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    if known := [one for one in logp if one is not None]:
        if len(known) < len(logp) or sum(map(len, known)) != len(arrays["rewards"]):
            raise UsageError(
                f"the log {folder}: {LOGP} is not there for every step. Write it for all episodes, or for none."
            )
        arrays["behavior_logp"] = np.concatenate(known)
    task, settings = _played_in(about)
    notes, given = noise_note(_ours(about).get("observation_noise")), actions if raw else None
    return Found(arrays, task=task, task_settings=settings, actions=given, references=_scores(about), notes=notes)


def _ours(about: dict[str, Any]) -> dict[str, Any]:
    """What `upslope data make` has written."""
    found = about.get("upslope")
    return found if isinstance(found, dict) else {}


def _played_in(about: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """(task, its settings) of a log."""
    task, settings = _environment(about.get("env_spec"))
    own = _ours(about).get("task")  # which env_spec cannot name
    return (own if task is None and isinstance(own, str) else task), settings


def task_of_minari(path: Path) -> tuple[str | None, dict[str, Any]]:
    """(task, its settings) in the metadata of a Minari log; (None, {}) where there are none, or there is no such log."""
    folder = minari_folder(path) if path.is_dir() else None
    return (None, {}) if folder is None else _played_in(_metadata(folder))


def reference_scores(path: Path) -> tuple[float, float] | None:
    """(random, expert) in the metadata of a Minari log; None where there are none, or there is no such log."""
    folder = minari_folder(path) if path.is_dir() else None
    return None if folder is None else _scores(_metadata(folder))


def _scores(about: dict[str, Any]) -> tuple[float, float] | None:
    found = [about.get(name) for name in SCORES]
    for name, value in zip(SCORES, found, strict=True):
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
        if value is not None and not number:
            raise UsageError(f"the log's {METADATA} has {name} {value!r}; it must be a finite number.")
    low, high = found
    return (float(low), float(high)) if low is not None and high is not None and high != low else None


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / METADATA).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {folder / METADATA}: {error}.") from None
    if not isinstance(about, dict) or not isinstance(about.get("total_episodes"), int):
        raise UsageError(
            f"{folder / METADATA} has no total_episodes: it is no Minari log of a version that is read (0.5)."
        )
    return about


def _spaces(about: dict[str, Any], folder: Path) -> tuple[Any, ActionSpec, bool]:
    """The observation space, the actions, and whether these were given."""
    try:
        given = [about.get(f"{name}_space") for name in ("observation", "action")]
        if None in given:
            observed, acted = _spaces_of_environment(about)
            found = [
                space_of(text) if text is not None else own for text, own in zip(given, (observed, acted), strict=True)
            ]
        else:
            found = [space_of(text) for text in given if text is not None]
        spec = ActionSpec.of(found[1])
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{folder / METADATA}: {error}.") from None
    return found[0], spec, True


def _spaces_of_environment(about: dict[str, Any]) -> tuple[Any, Any]:
    import gymnasium

    task, settings = _environment(about.get("env_spec"))
    if task is None:
        raise ValueError("it has no observation_space and action_space, nor an environment that is registered here")
    made = gymnasium.make(task, **settings)
    made.close()
    return made.observation_space, made.action_space


def _environment(text: str | None) -> tuple[str | None, dict[str, Any]]:
    """(id, keywords) of Minari's env_spec, where that environment is registered here."""
    import gymnasium

    try:
        spec = json.loads(text or "{}")
        name = spec["id"]
        if name not in gymnasium.registry:
            return None, {}
        settings = {key: value for key, value in (spec.get("kwargs") or {}).items() if key != "render_mode"}
        limit = spec.get("max_episode_steps")
        if limit and limit != gymnasium.registry[name].max_episode_steps:
            settings["max_episode_steps"] = limit
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, {}
    return name, settings


def _append(
    found: dict[str, list[np.ndarray]],
    leaves: Leaves,
    columns: dict[str, np.ndarray],
    spec: ObservationSpec,
    where: str,
) -> None:
    """Adds an episode, with its last step marked. Raises UsageError where shapes disagree."""
    for name, array in columns.items():
        numbers(array, f"{where}: {name}")
    count = len(columns["rewards"])
    if count == 0:
        return
    for name, array in columns.items():
        if len(array) != count:
            raise UsageError(f"{where}: {name} has {len(array)} rows and rewards {count}. They must be as many.")
        if name != "actions" and array.size != count:
            raise UsageError(f"{where}: {name} has shape {list(array.shape)}; one number per step is needed.")
    acts = columns["actions"]
    if found["actions"] and acts.shape[1:] != found["actions"][-1].shape[1:]:
        was = list(found["actions"][-1].shape[1:])
        raise UsageError(f"{where}: actions have shape {list(acts.shape[1:])} a step, those before {was}.")
    flat = np.empty((count + 1, spec.size), np.float32)
    place = 0
    for leaf in spec.leaves:
        with np.errstate(over="ignore"):  # what a float32 does not hold is told with all else that is not finite
            flat[:, place : place + leaf.size] = _leaf_rows(leaf, leaves[leaf.name], count + 1, where)
        place += leaf.size
    reward, ended, cut = (columns[name].reshape(count) for name in ("rewards", "terminations", "truncations"))
    ended, cut = ended.astype(bool), cut.astype(bool) & ~ended.astype(bool)
    cut[-1] |= not ended[-1]
    for name, array in zip(found, (flat[:-1], flat[1:], reward, ended, cut, acts), strict=True):
        found[name].append(array)


def _leaf_rows(leaf: Leaf, array: np.ndarray, count: int, where: str) -> np.ndarray:
    """The flat rows [count, size] of one entry of the observation; one-hot where it is discrete."""
    shape = () if leaf.values and not leaf.shape else leaf.shape
    numbers(array, f"{where}: the observations {leaf.name}")
    if array.shape != (count, *shape):
        raise UsageError(
            f"{where}: the observations {leaf.name} have shape {list(array.shape)}, and {count - 1} steps in their space need "
            f"{[count, *shape]} (one more than actions)."
        )
    if not leaf.values:
        return array.reshape(count, -1)
    chosen = array.reshape(count, len(leaf.values)).astype(np.int64) - leaf.start
    if (chosen < 0).any() or (chosen >= np.array(leaf.values)).any():
        raise UsageError(f"{where}: the observations {leaf.name} are not all among the values of their space.")
    return np.concatenate([np.eye(n, dtype=np.float32)[chosen[:, i]] for i, n in enumerate(leaf.values)], 1)


def _hdf5(folder: Path, episodes: int, spec: ObservationSpec, form: str) -> Iterator[Episode]:
    h5py = need_h5py()
    if not (folder / MAIN).is_file():
        raise UsageError(f"the log {folder} has no {MAIN}, only {METADATA}. Fetch the whole folder.")
    with decoding(folder / MAIN), h5py.File(folder / MAIN, "r") as file:
        for number in range(episodes):
            group = file.get(f"episode_{number}")
            if group is None:
                raise UsageError(f"the log {folder} has no episode_{number}; metadata.json says {episodes} episodes.")
            yield _episode(functools.partial(_dataset, group), spec, f"{folder}, episode {number}")


def _dataset(group: Any, name: str) -> np.ndarray | None:
    """An entry by path, "a/b"; the second part of a tuple is "_index_1" there."""
    for key in name.split("/"):
        if not hasattr(group, "keys"):
            return None
        group = group[key] if key in group else group.get(f"_index_{key}")
    return None if group is None or hasattr(group, "keys") else np.asarray(group[()])


def _arrow(folder: Path, episodes: int, spec: ObservationSpec, form: str) -> Iterator[Episode]:
    """Rows T + 1, the last of which has an observation alone."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    for number in range(episodes):
        where = folder / str(number)
        with decoding(where):
            table = ds.dataset(where, format=form, ignore_prefixes=["_", ".", METADATA]).to_table().combine_chunks()

        def entry(name: str, table: Any = table) -> np.ndarray | None:
            found: Any = table
            for key in name.split("/"):
                names = found.column_names if isinstance(found, pa.Table) else [field.name for field in found.type]
                if key not in names:
                    return None
                found = found.column(key).combine_chunks() if isinstance(found, pa.Table) else found.field(key)
            return _array(found) if name.startswith("observations") else _array(found)[:-1]

        with decoding(where):
            leaves, columns = _episode(entry, spec, f"{folder}, episode {number}")
            shaped = {leaf.name: leaves[leaf.name].reshape(-1, *leaf.shape) for leaf in spec.leaves}
        yield shaped, columns


def _array(column: Any) -> np.ndarray:
    """A column of numbers or of lists of equal length, [n] or [n, k]."""
    import pyarrow as pa

    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type) or pa.types.is_large_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def _episode(entry: Callable[[str], np.ndarray | None], spec: ObservationSpec, where: str) -> Episode:
    paths = {leaf.name: f"observations/{leaf.name}" if spec.nested else "observations" for leaf in spec.leaves}
    leaves = {name: entry(path) for name, path in paths.items()}
    columns = {name: entry(name) for name in COLUMNS}
    logp = entry(LOGP)
    missing = [paths[name] for name, array in leaves.items() if array is None]
    missing += [name for name, array in columns.items() if array is None]
    if missing:
        raise UsageError(f"the log {where}: there is no {', '.join(missing)}. It is no Minari log of version 0.5.")
    return (
        {name: array for name, array in leaves.items() if array is not None},
        {name: array for name, array in {**columns, LOGP: logp}.items() if array is not None},
    )
