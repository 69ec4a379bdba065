"""config.yaml: the resolved settings of a run, and what a resumed run may change of them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from upslope.errors import UsageError
from upslope.runs.files import write_atomic

HEADER = "# The resolved settings of this run, written by Upslope. `upslope train --config` reads such a file.\n"

# Settings that leave the trained weights of a given step alone, with everything under them.
FREE_SETTINGS = frozenset(
    {"steps", "eval", "report", "log", "logging", "sinks", "save", "keep", "samples", "out", "resume", "overwrite"}
)


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write `config` as YAML, atomically. Raises UsageError for a value that YAML cannot hold, naming it."""
    settings = plain(config)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)
    if yaml.safe_load(text) != settings:  # PyYAML leaves a few rare line breaks unescaped, and folds them
        text = yaml.safe_dump(settings, sort_keys=False, width=120)
    write_atomic(path, HEADER + text)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in `path`. Raises UsageError if the file is missing or is no mapping in YAML."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"cannot read the settings of the run in {path}: {error}. Start anew with another --out."
        ) from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds no settings (expected `name: value` lines). Start anew with another --out.")
    return config


def changed_settings(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the settings that differ, each with (old, new); an absent one counts as its default, else as None."""
    usual = flatten(plain(defaults or {}))
    given = [flatten(plain(one)) for one in (old, new)]
    before, after = (
        {**{name: usual[name] for name in usual if name in given[0] or name in given[1]}, **one} for one in given
    )
    names = [*after, *(name for name in before if name not in after)]
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def is_free(name: str, free: Collection[str]) -> bool:
    """Whether the dotted setting `name` is one of `free`, or lies under one."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in free for end in range(1, len(parts) + 1))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty mapping stays as a value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def plain(value: Any, path: str = "") -> Any:
    """`value` as YAML gives it back: tuples and sets as lists, paths as strings."""
    if isinstance(value, Mapping):
        return {str(name): plain(item, f"{path}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted((plain(item, path) for item in value), key=str)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):  # NumPy's float64 is a float, an enumeration's member often a str
        if isinstance(value, kind):
            return kind(value)
    raise UsageError(
        f"the setting {path!r} is a {type(value).__name__}, which config.yaml cannot hold. "
        "Give numbers, strings, booleans, lists and mappings of them."
    )
