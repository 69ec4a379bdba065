"""Rows of an expert (source "teacher": Sample.reference_rows) beside the policy's own in the same groups."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from upslope.batch import SOURCES, Batch
from upslope.parts.advantage import GroupBaseline
from upslope.recipe import Part

TEACHER = SOURCES.index("teacher")


def is_expert(batch: Batch) -> Tensor:
    """Rows that an expert wrote, [R] bool."""
    return batch.source == TEACHER


@dataclass(frozen=True)
class ExpertRows(Part):
    """A term's `rows`: those of the expert, [R] bool."""

    formula: ClassVar[str] = "the expert's completions"
    needs: ClassVar[frozenset[str]] = frozenset({"source"})

    def __call__(self, batch: Batch) -> Tensor:
        return is_expert(batch)


@dataclass(frozen=True)
class PolicyRows(Part):
    """A term's `rows`: all but the expert's, [R] bool."""

    formula: ClassVar[str] = "the policy's completions"
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
