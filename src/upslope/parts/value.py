"""What the critic learns: losses per token [R, T], averaged over the batch's tokens by the trainer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part, Stats


@dataclass(frozen=True)
class ClippedValue(Part):
    """Half the squared error of the critic, V kept within `clip` of its value before the update:

        max((V - returns)^2, (clip(V, V_old - clip, V_old + clip) - returns)^2) / 2                     [R, T]

    `clip` None is the plain squared error. Source: Schulman's baselines (ppo2); its use here follows verl.
    """

    clip: float | None = 0.2
    needs: ClassVar[frozenset[str]] = frozenset({"value", "old_value", "returns"})

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"ClippedValue.clip is {self.clip:g}; it must be above 0, or None for no clip.")

    def describe(self) -> str:
        if self.clip is None:
            return "(V - returns)^2 / 2"
        return f"max((V - returns)^2, (clip(V, old_value -+ {self.clip:g}) - returns)^2) / 2"

    def __call__(self, batch: Batch) -> Tensor:
        error = (batch.value - batch.returns) ** 2
        if self.clip is not None:
            clipped = (self._clipped(batch, self.clip) - batch.returns) ** 2
            error = torch.where(clipped > error, clipped, error)
        return error / 2

    def stats(self, batch: Batch) -> Stats:
        if self.clip is None:
            return {}
        worse = (self._clipped(batch, self.clip) - batch.returns) ** 2 > (batch.value - batch.returns) ** 2
        return {"critic/clip_fraction": worse.to(batch.value.dtype)}

    @staticmethod
    def _clipped(batch: Batch, clip: float) -> Tensor:
        return batch.old_value + (batch.value - batch.old_value).clamp(-clip, clip)
