"""Scores and labels of a data file's rows: numbers, also where a CSV file has them as texts."""

import math
from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

from upslope.errors import UsageError
from upslope.tasks.columns import dig
from upslope.tasks.rows import Row, json_kind
from upslope.tasks.scorers import excerpt

DESIRABLE = frozenset({"desirable", "good", "true", "yes", "chosen", "accepted", "positive", "thumbs_up"})
UNDESIRABLE = frozenset({"undesirable", "bad", "false", "no", "rejected", "negative", "thumbs_down"})


def as_number(value: Any) -> float | None:
    """A number, or a text that is one; None for anything else. Infinite where it is too large."""
    if not isinstance(value, Real | Decimal | str):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None


def read_number(row: Row, column: str) -> float | None:
    """The row's value of a column, None where it has none. Raises UsageError for what is no finite number."""
    value = dig(row.columns, column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = as_number(value)
    if number is None:
        shown = excerpt(value) if isinstance(value, str) else json_kind(value)
        raise UsageError(f"{row.place}: {column} is {shown}, not a number.")
    if not math.isfinite(number):
        raise UsageError(f"{row.place}: {column} is {number}. It must be a finite number, or null where there is none.")
    return number


def read_label(row: Row, column: str) -> float:
    """1 for desirable, 0 for undesirable. Raises UsageError with the row's place for anything else."""
    value = dig(row.columns, column)
    if value is None and column.partition(".")[0] not in row.columns:
        raise UsageError(f"{row.place} has no column '{column}'. Its columns: {', '.join(row.columns) or 'none'}.")
    word = value.strip().lower() if isinstance(value, str) else ""
    if word in DESIRABLE or word in UNDESIRABLE:
        return float(word in DESIRABLE)
    number = as_number(value)
    if number not in (1, 0, -1):
        shown = excerpt(value) if isinstance(value, str) else f"{number:g}" if number is not None else json_kind(value)
        raise UsageError(
            f"{row.place}: {column} is {shown}. It must be true or false, 1 or 0, 1 or -1, or a word such as desirable or "
            "undesirable. Another column: --set task_settings.label_key=COLUMN."
        )
    return float(number == 1)


def require_one_sign(rows: Sequence[Row], column: str) -> None:
    """Raise UsageError if 0 and -1 both occur, since only one of them can be the opposite of 1."""
    places: dict[float | None, str] = {}
    for row in rows:
        places.setdefault(as_number(dig(row.columns, column)), row.place)
    if 0 in places and -1 in places:
        raise UsageError(
            f"{column} is 0 in {places[0]} and -1 in {places[-1]}. Use one of them for undesirable and remove neutral rows."
        )
