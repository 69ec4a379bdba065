"""Batches of a finite set, each counted once with its multiplicity."""

import math

import torch
from torch import Tensor


def multisets(items: int, size: int) -> Tensor:
    """Every way to choose `size` of `items` with repetition, in non-decreasing order, [C(items + size - 1, size), size]."""
    chosen = torch.arange(items).unsqueeze(1)
    for _ in range(size - 1):
        last = chosen[:, -1]
        branches = items - last
        start = (branches.cumsum(0) - branches).repeat_interleave(branches)
        following = torch.arange(int(branches.sum())) - start + last.repeat_interleave(branches)
        chosen = torch.cat([chosen.repeat_interleave(branches, 0), following.unsqueeze(1)], 1)
    return chosen


def multisets_count(items: int, size: int) -> int:
    """How many `multisets` there are."""
    return math.comb(items + size - 1, size)


def log_multiplicity(chosen: Tensor) -> Tensor:
    """Log of the number of orders of each multiset [M, size]: size! / product of the repetitions' factorials, [M] float64."""
    run = torch.ones(len(chosen), dtype=torch.float64)
    logs = torch.full_like(run, math.lgamma(chosen.shape[1] + 1))
    for position in range(1, chosen.shape[1]):
        run = torch.where(chosen[:, position] == chosen[:, position - 1], run + 1, 1.0)
        logs -= run.log()
    return logs
