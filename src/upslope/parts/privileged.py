"""Self-distillation: the policy, told something that it is not told when it is asked, as its own teacher."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.parts.distill import TeacherDivergence
from upslope.parts.expert import is_expert
from upslope.recipe import Part, State
from upslope.rollout import Rollouts


@dataclass(frozen=True)
class PrivilegedDivergence(TeacherDivergence):
    """TeacherDivergence from a teacher that reads a demonstration: `template` with the text in the place of {}.

    demonstration  "reference": the task's reference answer, among the group's rows by Sample.reference_rows; "sibling": of the
                   group's other completions the one of highest reward, if that is over `threshold`
    teacher, rate  see `upslope.teaching.Informs`
    """

    beta: float = 0.0
    demonstration: Literal["reference", "sibling"] = "reference"
    template: str = "A correct answer: {}\n"
    threshold: float = 0.5
    teacher: Literal["frozen", "live", "ema"] = "ema"
    rate: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{}" not in self.template:
            raise UsageError(
                f"{type(self).__name__}(template={self.template!r}): it has no place {{}} for the demonstration, e.g. "
                "'A correct answer: {}\\n'."
            )
        if not 0 < self.rate <= 1:
            raise UsageError(f"{type(self).__name__}(rate={self.rate:g}): the newest's share must be in (0, 1].")

    @property
    def reads_reward(self) -> bool:
        """Whether what the teacher is told depends on rewards: which sibling does."""
        return self.demonstration == "sibling"

    def describe(self) -> str:
        told = "the reference answer" if self.demonstration == "reference" else "another completion that was right"
        return f"{super().describe()}, the teacher ({self.teacher}) reading {told}"

    def context(self, rollouts: Rollouts, batch: Batch, state: State) -> tuple[list[str], State]:
        """What the teacher reads beside each row's prompt."""
        found = (self._reference if self.demonstration == "reference" else self._sibling)(rollouts, batch)
        return [self.template.replace("{}", text) if text else "" for text in found], state

    def _reference(self, rollouts: Rollouts, batch: Batch) -> list[str]:
        given = dict(
            zip(batch.group[is_expert(batch)].tolist(), is_expert(batch).nonzero()[:, 0].tolist(), strict=True)
        )
        return [rollouts.text[given[group]] if group in given else "" for group in batch.group.tolist()]

    def _sibling(self, rollouts: Rollouts, batch: Batch) -> list[str]:
        right: dict[int, list[int]] = {}
        for row in torch.where(batch.valid, batch.reward, -torch.inf).argsort(descending=True, stable=True).tolist():
            if batch.valid[row] and batch.reward[row] > self.threshold:
                right.setdefault(int(batch.group[row]), []).append(row)
        others = [
            [other for other in right.get(group, []) if other != row] for row, group in enumerate(batch.group.tolist())
        ]
        return [rollouts.text[rows[0]] if rows else "" for rows in others]


@dataclass(frozen=True)
class LateSequenceMean(Part):
    """Mean over a sequence's trained tokens after its first `skip`, then over sequences that have any. [R, T]"""

    skip: int = 0

    def describe(self) -> str:
        return "mean over sequences of the mean over tokens" + (f" after the first {self.skip}" if self.skip else "")

    def __call__(self, batch: Batch) -> Tensor:
        counted = batch.mask & (batch.mask.cumsum(1) > self.skip)
        each = counted.sum(1, keepdim=True)
        return counted.to(batch.dtype) / each.clamp(min=1) / (each > 0).sum().clamp(min=1)
