"""Stopping on request: the first signal finishes the step, the second one stops at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def tell_stderr(message: str) -> None:
    """Write the message to standard error, past Python's buffers, which a signal handler must not enter twice."""
    try:
        os.write(sys.stderr.fileno(), f"\n{message}\n".encode())
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something without a descriptor
        return


class GracefulStop:
    """While entered, SIGINT and SIGTERM ask for a stop instead of stopping; the earlier handlers come back after.

        with GracefulStop() as stop:
            while not stop.requested: ...

    The first signal sets `requested` and tells the user, the second one raises KeyboardInterrupt. `signal` is the name
    of the first one. Outside the main thread, where Python has no signal handlers, entering changes nothing.
    """

    def __init__(self, tell: Callable[[str], object] = tell_stderr) -> None:
        self.requested = False
        self.signal: str | None = None
        self._tell = tell
        self._earlier: dict[int, object] = {}
        self._process = os.getpid()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._earlier[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._earlier:
            number, handler = self._earlier.popitem()
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker has inherited this handler: it is to end as if it had not
            self.__exit__(None, None, None)
            os.kill(os.getpid(), number)
            return
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.signal = signal.Signals(number).name
        self._tell(f"{self.signal}: finishing the step, then saving. Press Ctrl-C again to stop at once.")
