"""The one public exception, and a check that raises it."""


class UsageError(ValueError):
    """Something the caller can put right: the message says what was wrong, where, and what to do.

    The command line prints it in one line, without a traceback, and exits with 2.
    """


def check_within(owner: object, low: float, high: float, *settings: str) -> None:
    """Raises UsageError naming the first of these settings of `owner` that is not a number from `low` to `high`."""
    for name in settings:
        value = getattr(owner, name)
        if not low <= value <= high or value == float("inf"):
            bounds = f"a finite number of at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
            raise UsageError(f"{type(owner).__name__}.{name} is {value:g}; it must be {bounds}.")
