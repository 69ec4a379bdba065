"""Settings of a command that are numbers, from --set."""

from collections.abc import Mapping
from typing import Any

from upslope.config import merge_overrides
from upslope.errors import UsageError


def numbers_of(overrides: tuple[str, ...], settings: Mapping[str, float | int | None], command: str) -> dict[str, Any]:
    """`settings` with NAME=NUMBER laid over; a whole number where the default is one, which must be at least 1.

    Raises UsageError for another name, and for what is no such number.
    """
    merged = merge_overrides({}, overrides)
    given = {**merged.pop("settings", {}), **merged}
    if unknown := sorted(set(given) - set(settings)):
        raise UsageError(f"{command} has no setting {', '.join(unknown)}. It has {', '.join(settings)}.")
    for name, value in given.items():
        whole = isinstance(settings[name], int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise UsageError(f"{command}: {name} is {value!r}; it must be a {'whole ' if whole else ''}number.")
        if whole and value < 1:
            raise UsageError(f"{command}: {name} is {value}; it must be at least 1.")
    return {**settings, **given}
