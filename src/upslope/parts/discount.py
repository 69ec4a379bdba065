"""What a step counts for by its place in the episode."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part


@dataclass(frozen=True)
class FromStart(Part):
    """gamma^t per step [R, T], t from 0 at the row's first: with returns discounted from t on, the gradient of the return
    that is discounted from the start. Rows are whole episodes. Source: Sutton et al. 2000, theorem 1.
    """

    gamma: float = 0.99
    formula: ClassVar[str] = "{gamma}^t"

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise UsageError(f"FromStart.gamma is {self.gamma:g}; it must be from 0 to 1.")

    def __call__(self, batch: Batch) -> Tensor:
        place = (batch.mask.cumsum(1) - 1).clamp(min=0).to(batch.dtype)
        return torch.where(batch.mask, self.gamma**place, 0.0)
