"""How much better than expected: rewards become advantages, [R] or [R, T], without gradient."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part


@dataclass(frozen=True)
class GroupBaseline(Part):
    """Reward minus its group's baseline, over its group's spread:  a = (r - b) / (s + eps),  [R].

    "batch_mean" and "batch_std" (n - 1) are those of all rewards of the batch, whatever their group. A reward that has
    nothing to compare with, since its group (or the batch) has fewer than two valid rollouts, gets 0, or with
    `lone="reward"` (verl) the bare reward, b taken as 0 and s as 1. Raises UsageError for the batch's mean over a group's
    spread.
    """

    baseline: Literal["mean", "leave_one_out", "batch_mean"] = "mean"
    scale: Literal["sample_std", "population_std", "batch_std"] | None = "sample_std"
    eps: float = 1e-6
    lone: Literal["zero", "reward"] = "zero"

    def __post_init__(self) -> None:
        if self.baseline == "batch_mean" and self.scale not in ("batch_std", None):
            raise UsageError(
                f"GroupBaseline(baseline='batch_mean', scale='{self.scale}') divides by 0 where a group's rewards are "
                "equal but differ from the batch's mean. Use scale='batch_std' or scale=None."
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Groups are read unless the statistics are the batch's."""
        return frozenset({"reward"} if self.baseline == "batch_mean" else {"reward", "group"})

    def describe(self) -> str:
        baseline = {"mean": "mean of the group", "leave_one_out": "mean of the group's others"}
        centered = f"reward - {baseline.get(self.baseline, 'mean of the batch')}"
        if self.scale is None:
            return centered
        spread = "standard deviation of the batch" if self.scale == "batch_std" else f"{self.scale} of the group"
        return f"({centered}) / ({spread} + {self.eps:g})"

    def __call__(self, batch: Batch) -> Tensor:
        peers = as_one_group(batch) if self.baseline == "batch_mean" else batch
        mean, count = (column[peers.group] for column in peers.group_mean(batch.reward))
        advantage = torch.where(count > 1, batch.reward - mean, 0.0)
        if self.scale is not None:
            among = as_one_group(batch) if self.scale == "batch_std" else batch
            freedom = 0 if self.scale == "population_std" else 1
            advantage = advantage / (group_std(among, batch.reward, freedom)[among.group] + self.eps)
        if self.baseline == "leave_one_out":
            advantage = advantage * count / (count - 1).clamp(min=1)
        if self.lone == "zero":
            return advantage
        return torch.where(count > 1, advantage, batch.reward if self.scale is None else batch.reward / (1 + self.eps))


def as_one_group(batch: Batch) -> Batch:
    """The same rows, all of one group."""
    return batch.replace(group=torch.zeros(len(batch), dtype=torch.int64, device=batch.logp.device))


def split_groups(batch: Batch, label: Tensor) -> Batch:
    """The same rows, each group divided by an integer label [R], such as the completion's answer or stratum."""
    return batch.replace(group=torch.unique(torch.stack([batch.group, label]), dim=1, return_inverse=True)[1])


def group_std(batch: Batch, column: Tensor, freedom: int = 1) -> Tensor:
    """Standard deviation [G] of a row column [R] over the valid rows of each group, with n - freedom; 0 for fewer than two."""
    mean, count = batch.group_mean(column)
    variance, _ = batch.group_mean((column - mean[batch.group]) ** 2)
    return torch.where(count > 1, (variance * count / (count - freedom).clamp(min=1)).sqrt(), 0.0)


def whiten(batch: Batch, column: Tensor, eps: float = 1e-8) -> Tensor:
    """A token column [R, T] minus its mean, over sqrt(variance + eps), both over all trained tokens of the batch (n - 1).

    0 where nothing is trained. A long completion weighs more in the statistics than a short one.
    """
    centered = column - batch.masked_mean(column)
    return torch.where(batch.mask, centered / batch.masked_std(column, eps), 0.0)
