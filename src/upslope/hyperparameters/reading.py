"""A file's entry for one environment, as settings of a run."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.config import read_config
from upslope.errors import UsageError
from upslope.hyperparameters.entry import Entry
from upslope.hyperparameters.off_policy import sac, td3
from upslope.hyperparameters.on_policy import a2c, ppo, trpo

Mapper = Callable[[Entry], int | None]
MAPPERS: dict[str, tuple[str, Mapper]] = {
    "ppo": ("ppo@sb3", ppo),
    "a2c": ("a2c@sb3", a2c),
    "trpo": ("trpo", trpo),
    "sac": ("sac@sb3", sac),
    "td3": ("td3@sb3", td3),
}
"""By method: the name of what holds where an entry says nothing, and what puts an entry's values into its settings; that returns
the steps of the run, where the file says how many."""


@dataclass(frozen=True)
class Hyperparameters:
    """What an entry comes to here.

    method          the preset whose settings hold where the entry says nothing: METHOD@sb3, or trpo
    settings        of its recipe, by stage.field
    steps           of the run; None where the entry does not say
    task_settings   of the environment
    notes           what is done otherwise than the entry says, a sentence each
    entry           its name in the file
    """

    method: str
    entry: str
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    task_settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_hyperparameters(file: str, method: str, task: str) -> Hyperparameters:
    """The entry of a YAML file in rl-baselines3-zoo's format for a task: of its name, else `default`.

    file      the path, or PATH:ENTRY for the entry of another name (HalfCheetah-v4 for HalfCheetah-v5)
    method    ppo, a2c, trpo, sac or td3
    Values that are given as Python expressions are parsed as data; nothing is run. Raises UsageError naming every value that has no
    counterpart here.
    """
    base, _, _ = method.partition("@")
    if base not in MAPPERS or method not in (base, MAPPERS[base][0]):
        there = ", ".join(MAPPERS)
        raise UsageError(
            f"--hyperparameters is read for {there}, over the defaults of Stable-Baselines3, and not for '{method}'. "
            "Set the settings one by one: --set NAME=VALUE."
        )
    path, name = _split(file)
    entries = read_config(path)
    chosen = _choose(entries, name, task, path)
    entry = Entry(_values(entries[chosen], f"{path}, {chosen}"), f"{path}, {chosen}")
    holding, mapper = MAPPERS[base]
    steps = mapper(entry)
    entry.check()
    return Hyperparameters(holding, chosen, entry.settings, steps, entry.task_settings, tuple(entry.notes))


def _split(file: str) -> tuple[Path, str | None]:
    """The path and the entry that is asked for by name."""
    if Path(file).exists() or ":" not in file:
        return Path(file), None
    path, _, name = file.partition(":")
    return Path(path), name


def _choose(entries: dict[str, Any], name: str | None, task: str, path: Path) -> str:
    wanted = task if name is None else name
    if wanted in entries:
        return wanted
    if name is None and "default" in entries:
        return "default"
    names = [str(key) for key in entries]
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.7)
    hint = f" To take that of {close[0]}: --hyperparameters {path}:{close[0]}" if close else ""
    raise UsageError(f"{path} has no entry for {wanted}; it has {', '.join(names[:20])}.{hint}")


def _values(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
        raise UsageError(f"{where} is {entry!r}; an entry has lines such as `n_envs: 8`.")
    return entry
