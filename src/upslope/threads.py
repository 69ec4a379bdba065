"""Thread counts, set deliberately: two processes that each take every core run many times slower than one."""

import os


def use_threads(count: int | None) -> int:
    """Let torch use `count` threads; None: the cores this process may run on. Returns the number."""
    import torch

    chosen = count or available_cores()
    torch.set_num_threads(chosen)
    return chosen


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
