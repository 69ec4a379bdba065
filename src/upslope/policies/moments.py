"""Running mean and variance over everything that has been seen, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Moments:
    """Mean and population variance [D] of all rows so far; before the first, 0 and 1. Exact: the same as of all rows at once.

    Source: Chan, Golub, LeVeque 1979, eq. 2.1, for joining two sets.
    """

    def __init__(self, size: int) -> None:
        self.count = 0.0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.squares = torch.zeros(size, dtype=torch.float64)  # sum of squared deviations from the mean

    @property
    def variance(self) -> Tensor:
        """[D]"""
        return self.squares / self.count if self.count else torch.ones_like(self.squares)

    def update(self, rows: Tensor) -> None:
        """Takes rows [M, D] in."""
        rows = rows.double()
        count = float(len(rows))
        if not count:
            return
        mean = rows.mean(0)
        gap, total = mean - self.mean, self.count + count
        self.squares = self.squares + ((rows - mean) ** 2).sum(0) + gap**2 * (self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """Tensors and a number."""
        return {"count": self.count, "mean": self.mean.clone(), "squares": self.squares.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` returned."""
        self.count = float(state["count"])
        self.mean, self.squares = state["mean"].clone().double(), state["squares"].clone().double()
