"""Processes that end with the one that started them, so that a killed run or comparison leaves none behind."""

import ctypes
import os
import signal
import sys

PARENT = "UPSLOPE_PARENT"
"""Environment variable of a run of a comparison: the process whose end is also its own."""
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """On Linux the kernel ends this process with its parent, even when it is stuck in C code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
