"""Completions that run into the length limit: punished softly, or left out of the loss."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part, Stats


@dataclass(frozen=True)
class OverlongPenalty(Part):
    """Takes up to `factor` off the reward [R] over the last `cache` tokens before `max_length` (DAPO, eq. 13):

        0 up to L = max_length - cache;  -factor (length - L) / cache up to max_length;  -factor beyond.

    `length` counts the tokens that the policy wrote. Set `max_length` to the generation budget: far above it, the penalty
    never acts. Raises UsageError unless 0 < cache <= max_length.
    """

    max_length: int = 20480
    cache: int = 4096
    factor: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.max_length:
            raise UsageError(
                f"OverlongPenalty(max_length={self.max_length}, cache={self.cache}): the penalty grows over the last `cache` "
                f"tokens before max_length. Choose 0 < cache <= max_length, e.g. cache={max(self.max_length // 5, 1)}."
            )

    def describe(self) -> str:
        free = self.max_length - self.cache
        return f"reward - {self.factor:g} * clip((length - {free}) / {self.cache}, 0, 1)"

    def __call__(self, batch: Batch) -> Tensor:
        return batch.reward - self._penalty(batch)

    def stats(self, batch: Batch) -> Stats:
        return {"reward/overlong_penalty": self._penalty(batch)}

    def _penalty(self, batch: Batch) -> Tensor:
        excess = (batch.length - (self.max_length - self.cache)) / self.cache
        return self.factor * excess.clamp(0.0, 1.0)


@dataclass(frozen=True)
class OverlongFilter(Part):
    """Rows that the loss reads, bool [R]: with `drop_truncated`, only completions that ended by themselves.

    A dropped row still counts for its group's baseline, but in no denominator of the loss.
    """

    drop_truncated: bool = False

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads `truncated` where it drops."""
        return frozenset({"truncated"} if self.drop_truncated else ())

    def describe(self) -> str:
        return "completions that ended by themselves" if self.drop_truncated else "all completions"

    def __call__(self, batch: Batch) -> Tensor:
        return ~batch.truncated if self.drop_truncated else torch.ones_like(batch.trained)
