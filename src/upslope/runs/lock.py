"""One process per run folder."""

import errno
import fcntl
import json
import os
import platform
from pathlib import Path

from upslope.errors import UsageError
from upslope.runs.files import reason

HELD: set[int] = set()  # descriptors of the locks that this process holds


class RunLock:
    """An exclusive lock on a run folder, in its file `lock`, which names the holder's pid and host.

    The kernel releases it when the process ends, `kill -9` included. Forked workers close their copy of the
    descriptor at once: one that outlives the process must not keep the folder locked.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises UsageError, naming the holder, if another process (or this one) has it; or if the folder is read-only.
        """
        self.path = folder / "lock"
        try:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(_unwritable(folder, error)) from error
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = json.dumps({"pid": os.getpid(), "host": platform.node()}) + "\n"
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, holder.encode(), 0)
        except OSError as error:
            holder_text = self._holder()
            os.close(self.descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise UsageError(
                    f"the run folder {folder} is in use by {holder_text}. "
                    "Wait for it, stop it, or choose another folder with --out."
                ) from None
            raise UsageError(_unwritable(folder, error)) from error
        HELD.add(self.descriptor)

    def release(self) -> None:
        """Give the folder back; a second call does nothing."""
        if self.descriptor in HELD:
            HELD.discard(self.descriptor)
            os.close(self.descriptor)

    def _holder(self) -> str:
        try:
            holder = json.loads(os.pread(self.descriptor, 4096, 0))
            return f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has the lock, but has not written its name yet
            return "another process"


def _unwritable(folder: Path, error: OSError) -> str:
    return (
        f"cannot write and lock a file in the run folder {folder}: {reason(error, folder)}. "
        "Choose another folder with --out."
    )


def _close_in_child() -> None:
    for descriptor in HELD:
        os.close(descriptor)
    HELD.clear()


os.register_at_fork(after_in_child=_close_in_child)
