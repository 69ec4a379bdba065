"""Rows that nobody sampled beside those that were: of the task's reference answers, or of the data."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import SOURCES, Batch
from upslope.parts.advantage import GroupBaseline
from upslope.recipe import Part


def of_source(batch: Batch, *names: str) -> Tensor:
    """Rows that come from one of these SOURCES, [R] bool."""
    return torch.isin(batch.source, torch.tensor([SOURCES.index(name) for name in names], device=batch.source.device))


def is_expert(batch: Batch) -> Tensor:
    """Rows that were given: the task's reference answers (Sample.reference_rows) or the data's completions (FromData), [R] bool."""
    return of_source(batch, "teacher", "expert")


def sampled_now(batch: Batch) -> Tensor:
    """Rows that the policy of this step wrote, whose log-probs the sampler knows, [R] bool; all without a column `source`."""
    return of_source(batch, "policy", "tempered") if "source" in batch else torch.ones_like(batch.trained)


@dataclass(frozen=True)
class ExpertRows(Part):
    """A term's `rows`: those that were given, [R] bool."""

    formula: ClassVar[str] = "the given completions"
    needs: ClassVar[frozenset[str]] = frozenset({"source"})

    def __call__(self, batch: Batch) -> Tensor:
        return is_expert(batch)


@dataclass(frozen=True)
class PolicyRows(Part):
    """A term's `rows`: those that were sampled, [R] bool."""

    formula: ClassVar[str] = "the sampled completions"
    needs: ClassVar[frozenset[str]] = frozenset({"source"})

    def __call__(self, batch: Batch) -> Tensor:
        return ~is_expert(batch)


@dataclass(frozen=True)
class MixedBaseline(GroupBaseline):
    """GroupBaseline whose mean, deviation and count are those of `among`: all rows of the group, or the policy's alone.

    With "policy" the expert's rows are measured against the policy's. A group in which the policy has fewer than two valid
    rows has nothing to compare with.
    """

    among: Literal["all", "policy"] = "all"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads `source` where the expert's rows are left out."""
        return super().needs | ({"source"} if self.among == "policy" else set())

    def describe(self) -> str:
        return super().describe() + (", of the policy's rows" if self.among == "policy" else "")

    def __call__(self, batch: Batch) -> Tensor:
        if self.among == "policy":
            batch = batch.replace(valid=batch.valid & ~is_expert(batch))
        return super().__call__(batch)
