"""Random numbers that belong to a token or a row, not to its place in the batch."""

import torch
from torch import Tensor

_PRIME = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio, as a signed number: the increment of splitmix64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64  # splitmix64's multipliers


def uniform_of(*numbers: Tensor | int) -> Tensor:
    """A number in [0, 1), float64, for each element of the broadcast integers: the same integers give the same number.

    A choice made by these does not depend on the order of rows, on padding or on the split into micro-batches.
    Source: the mixing function of splitmix64 (Steele et al. 2014), once per argument.
    """
    state = torch.zeros((), dtype=torch.int64)
    for number in numbers:
        state = _mix(state + torch.as_tensor(number, dtype=torch.int64) + _PRIME)
    return _shifted(state, 11).to(torch.float64) / 2**53


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's is arithmetic."""
    return (x >> by) & (2 ** (64 - by) - 1)
