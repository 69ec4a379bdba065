"""The one public exception."""


class UsageError(ValueError):
    """Something the caller can put right: the message says what was wrong, where, and what to do.

    The command line prints it in one line, without a traceback, and exits with 2.
    """
