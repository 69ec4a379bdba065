"""How much better than expected: rewards become advantages, [R] or [R, T], without gradient."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.recipe import Part


@dataclass(frozen=True)
class GroupBaseline(Part):
    """Reward minus its group's baseline, over its group's spread:  a = (r - b_g) / (s_g + eps),  [R].

    A group with fewer than two valid rollouts has nothing to compare with: 0, or with `lone="reward"` (verl) the bare reward, b
    taken as 0 and s as 1.
    """

    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale: Literal["sample_std", "population_std"] | None = "sample_std"
    eps: float = 1e-6
    lone: Literal["zero", "reward"] = "zero"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group"})

    def describe(self) -> str:
        baseline = "mean of the group" if self.baseline == "mean" else "mean of the group's others"
        centered = f"reward - {baseline}"
        return centered if self.scale is None else f"({centered}) / ({self.scale} of the group + {self.eps:g})"

    def __call__(self, batch: Batch) -> Tensor:
        mean, count = (column[batch.group] for column in batch.group_mean(batch.reward))
        centered = torch.where(count > 1, batch.reward - mean, 0.0)
        scaled = centered
        if self.scale is not None:
            freedom = count - 1 if self.scale == "sample_std" else count
            variance = batch.group_mean(centered**2)[0][batch.group] * count / freedom.clamp(min=1)
            scaled = centered / (variance.sqrt() + self.eps)
        advantage = scaled * count / (count - 1).clamp(min=1) if self.baseline == "leave_one_out" else scaled
        if self.lone == "zero":
            return advantage
        return torch.where(count > 1, advantage, batch.reward if self.scale is None else batch.reward / (1 + self.eps))


def whiten(batch: Batch, column: Tensor, eps: float = 1e-8) -> Tensor:
    """A token column [R, T] minus its mean, over sqrt(variance + eps), both over all trained tokens of the batch (n - 1).

    0 where nothing is trained. A long completion weighs more in the statistics than a short one.
    """
    centered = column - batch.masked_mean(column)
    return torch.where(batch.mask, centered / batch.masked_std(column, eps), 0.0)
