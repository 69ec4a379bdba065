"""One entry of a file: its values are taken one by one, checked on the way, and what nobody took is an error."""

import math
from collections.abc import Mapping
from typing import Any

from upslope.errors import UsageError
from upslope.hyperparameters.literals import parse_literal


class Entry:
    """Values by name. `settings` and `notes` are what they come to here.

    where   the file and the name of the entry, for messages
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.left, self.where = dict(values), where
        self.settings: dict[str, Any] = {}
        self.task_settings: dict[str, Any] = {}
        self.notes: list[str] = []
        self.refused: list[str] = []

    def note(self, name: str, value: Any, what: str) -> None:
        """What is done otherwise than a value says."""
        self.notes.append(f"{name}={value!r}: {what}")

    def refuse(self, name: str, value: Any, why: str) -> None:
        """A value that training cannot do without; told with all others of its kind by `check`."""
        self.refused.append(f"{name}={value!r}: {why}")

    def check(self) -> None:
        """Raises UsageError naming everything that was refused, and every name that nobody took."""
        for name, value in self.left.items():
            self.refuse(name, value, "no such hyper-parameter is known")
        if self.refused:
            raise UsageError(
                f"{self.where} asks for what has no counterpart here. {'; '.join(self.refused)}. Copy the entry to a file of your "
                "own without these, if they may be left out."
            )

    def put(self, setting: str, name: str, kind: str = "number") -> Any:
        """The setting of ours that a value is, where it is given; returns the value."""
        value = self.number(name, kind)
        if value is not None:
            self.settings[setting] = value
        return value

    def take(self, name: str, default: Any = None) -> Any:
        """A value as it is."""
        return self.left.pop(name, default)

    def number(self, name: str, kind: str = "number", default: Any = None) -> Any:
        """A finite number, with kind "whole" a whole one (1e6 is), with "count" one of at least 1; the default where there is none.

        Raises UsageError for anything else.
        """
        value = self.left.pop(name, None)
        if value is None:
            return default
        return self.as_number(name, value, kind)

    def as_number(self, name: str, value: Any, kind: str = "number") -> Any:
        """`value` as `number` reads it; YAML takes 1e-3 for a string."""
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            found = math.nan
        whole = kind in ("whole", "count")
        if not math.isfinite(found) or (whole and found != int(found)) or (kind == "count" and found < 1):
            wanted = {"whole": "a whole number", "count": "a whole number of at least 1"}.get(kind, "a number")
            raise UsageError(f"{self.where}: {name} is {value!r}; it must be {wanted}.")
        return int(found) if whole else found

    def flag(self, name: str, default: bool = False) -> bool:
        """True or False."""
        value = self.left.pop(name, default)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise UsageError(f"{self.where}: {name} is {value!r}; it must be true or false.")
        return value

    def schedule(self, name: str) -> tuple[float, str] | None:
        """(first value, "constant" or "linear") of a number or of "lin_NUMBER"; None where it is not given."""
        value = self.left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, str) and "_" in value:
            kind, _, text = value.partition("_")
            if kind not in ("lin", "linear"):
                raise UsageError(f"{self.where}: {name} is {value!r}; the schedules that are read are lin_NUMBER.")
            return self.as_number(name, text), "linear"
        return self.as_number(name, value), "constant"

    def mapping(self, name: str) -> dict[str, Any]:
        """A mapping, or text such as dict(key=value); {} where it is not given."""
        value = self.left.pop(name, None)
        if isinstance(value, str):
            value = parse_literal(value, f"{self.where}: {name}")
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise UsageError(
                f"{self.where}: {name} is {value!r}; it must be a mapping, such as dict(net_arch=[64, 64])."
            )
        return value
