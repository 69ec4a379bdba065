"""Datasets of the reasoning-gym package by name: their settings checked, their descriptions listed.

Shared by the task and by its scorer in the worker; nothing here imports torch.
"""

import dataclasses
import datetime
import enum
import hashlib
from collections.abc import Mapping
from typing import Any

from upslope.errors import UsageError
from upslope.tasks.base import unknown_name

STREAM = 2**30
SHORT_STREAM = {
    "acre": 5_000,
    "composite": 20_000,
    "gsm_symbolic": 20_000,
    "list_functions": 20_000,
    "word_ladder": 20_000,
}
"""Datasets that lay out all their instances when they are made, or refuse a larger size."""

HASH_DEPENDENT = frozenset({"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note"})
"""Datasets that iterate over sets of strings, whose order changes from process to process."""

OWN_SETTINGS = ("seed", "size")


def make_dataset(name: str, settings: Mapping[str, Any], seed: int, size: int | None = None) -> Any:
    """The package's dataset object, of `size` instances (None: as many as it can have).

    Raises UsageError for an unknown name, a setting that the dataset lacks, or a bad value.
    """
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise unknown_name(name, sorted(DATASETS))
    dataset_class, config_class = DATASETS[name]
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.name not in OWN_SETTINGS}
    for setting in settings:
        if setting in OWN_SETTINGS:
            raise UsageError(f"task '{name}': '{setting}' is no setting of a task; the run's seed and sizes decide it.")
        if setting not in fields:
            there = ", ".join(f"{key}={default_of(field)!r}" for key, field in fields.items()) or "none"
            raise UsageError(f"task '{name}' has no setting '{setting}'. Its settings: {there}.")
    values = {key: coerce(name, key, value, default_of(fields[key])) for key, value in settings.items()}
    size = size or SHORT_STREAM.get(name, STREAM)
    digest = hashlib.sha256(f"upslope {seed}".encode()).digest()
    try:
        config = config_class(**values, seed=int.from_bytes(digest[:4], "big") % STREAM, size=size)
        if hasattr(config, "validate"):
            config.validate()
        return dataset_class(config=config)
    except Exception as error:
        there = ", ".join(f"{key}={values.get(key, default_of(field))!r}" for key, field in fields.items())
        raise UsageError(f"task '{name}' does not accept these settings: {told(error)}. They are: {there}.") from None


def default_of(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def coerce(task: str, key: str, value: Any, default: Any) -> Any:
    """A value as it comes from YAML or the command line, as the type that the setting's default has."""
    expected = type(default)
    try:
        if isinstance(default, enum.Enum) and isinstance(value, str):
            return expected[value] if value in expected.__members__ else expected(value)
        if isinstance(default, datetime.date | datetime.time) and isinstance(value, str):
            return expected.fromisoformat(value)
        if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
            return expected(**value)
        if isinstance(default, list | tuple) and isinstance(value, list | tuple):
            sample = default[0] if default else None
            like = sample if isinstance(sample, enum.Enum | tuple) else None
            return expected(coerce(task, key, one, like) for one in value)
        if key == "datasets" and isinstance(value, list | tuple):
            from reasoning_gym.composite import DatasetSpec

            return [DatasetSpec(**{"weight": 1.0, "config": {}, **one}) for one in value]
    except (TypeError, ValueError) as error:
        raise UsageError(f"task '{task}': setting {key} cannot be {value!r}: {told(error)}.") from None
    fits = isinstance(value, expected) and isinstance(value, bool) == (expected is bool)
    if default is None or value is None or fits:
        return value
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    raise UsageError(f"task '{task}': setting {key} takes {expected.__name__} such as {default!r}, got {value!r}.")


def told(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def list_procedural() -> list[dict[str, Any]]:
    """{name, source, description, settings with their defaults as plain JSON} of every dataset."""
    from reasoning_gym.factory import DATASETS

    rows = []
    for name, (dataset_class, config_class) in sorted(DATASETS.items()):
        fields = [field for field in dataclasses.fields(config_class) if field.name not in OWN_SETTINGS]
        first_line = (dataset_class.__doc__ or name.replace("_", " ")).strip().splitlines()[0]
        settings = {field.name: plain(default_of(field)) for field in fields}
        rows.append({"name": name, "source": "reasoning-gym", "description": first_line, "settings": settings})
    return rows


def plain(value: Any) -> Any:
    """The value as JSON can say it."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple | set) else value
