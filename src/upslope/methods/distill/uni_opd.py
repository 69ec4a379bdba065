"""Uni-OPD: opd with groups balanced by outcome, and right completions lifted over wrong ones where the teacher does not.

    kept  in a group with both, as many right completions as wrong ones, the rest left out at random   [R]
    A     teacher_logp - old_logp                                                                      [R, T]
    m     mean over the group's right completions of the mean of A over tokens, minus that of the wrong ones
    A     plus max(delta - m, 0) / 2 for right ones, minus it for wrong ones, in groups with both      [R, T]
    loss  mean over the tokens of the kept of max(-A r, -A clip(r, 0.8, 1.28)), 0 where |logp - teacher_logp| >= 10

Differs from opd:  the balance, the margin delta, the clip and the tokens left out; groups of 16.
Limits:  where m >= delta nothing is shifted, and after a shift m is delta. A constant added to every A changes no shift. With
    delta = -inf, balanced=False and far=inf the advantage is opd's.
Expects:  rewards of which those above `threshold` are right; a teacher with the policy's tokens (--teacher), which may be one
    that prefers fluent wrong completions: share_inverted says how often. delta grows with how far apart they are.
Source:  arXiv:2605.03677; the authors' code (WenjinHou/Uni-OPD, margin_calibration and online_balance): mean gap, spread, 0.4.
Deviations:  the text derives a gap between the worst right and the best wrong completion, and a lift of the right ones alone;
    the released runs take the means and spread the shift, as here; shift="right" is the lift. Prompts are not upsampled by how
    many of 8 completions the policy got right before, nor routed to several teachers; the alternative of masking completions
    is left out.
Not this:  an outcome reward beside the teacher: the shift is only as large as the margin asks.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.distill.opd import opd
from upslope.parts.hashing import uniform_of
from upslope.parts.sampling import Sample
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class Balanced(Part):
    """The rows that are kept, [R] bool, as above. A group of one kind is kept whole."""

    threshold: float = 0.5
    formula: ClassVar[str] = "as many with a reward over {threshold} as others, in groups with both"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "trajectory", "prompt_key"})

    def __call__(self, batch: Batch) -> Tensor:
        there = batch.trained & batch.valid
        kind = 2 * batch.group + (batch.reward > self.threshold)
        size = 2 * int(batch.group.max()) + 2
        count = torch.zeros(size, dtype=torch.int64, device=kind.device).index_add(0, kind, there.to(torch.int64))
        other = count[kind ^ 1]
        lot = uniform_of(batch.prompt_key.cpu(), batch.trajectory.cpu(), batch.step.cpu()).to(kind.device)
        before = (kind.unsqueeze(0) == kind.unsqueeze(1)) & there.unsqueeze(0) & (lot.unsqueeze(0) < lot.unsqueeze(1))
        return there & ((before.sum(1) < other) | (other == 0))


@dataclass(frozen=True)
class MarginTeacherAdvantage(Part):
    """A [R, T], as above, with the margins of the rows that are kept. `shift` "both" halves it, "right" gives it to right ones."""

    delta: float = 0.4
    shift: Literal["both", "right"] = "both"
    balanced: bool = True
    threshold: float = 0.5
    needs: ClassVar[frozenset[str]] = Balanced.needs | {"old_logp", "teacher_logp"}

    def describe(self) -> str:
        side = "half up for right ones, half down for wrong ones" if self.shift == "both" else "up for right ones"
        return f"(teacher_logp - old_logp) shifted, {side}, to a margin of {self.delta:g} in the group"

    def __call__(self, batch: Batch) -> Tensor:
        right, margin, both = self._margin(batch)
        lacking = torch.where(both, (self.delta - margin).clamp(min=0.0), 0.0)[batch.group]
        half = 0.5 if self.shift == "both" else 1.0
        sign = torch.where(right, half, -half if self.shift == "both" else 0.0)
        return batch.teacher_logp - batch.old_logp + (lacking * sign).unsqueeze(1) * batch.mask

    def _margin(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows are right [R], each group's margin [G], and whether it has both kinds [G]."""
        right = batch.reward > self.threshold
        kept = Balanced(self.threshold)(batch) if self.balanced else batch.trained & batch.valid
        gain = (batch.teacher_logp - batch.old_logp).sum(1) / batch.length.clamp(min=1)
        (up, ups), (down, downs) = (_mean(batch, gain, kept & kind) for kind in (right, ~right))
        return right, up - down, (ups > 0) & (downs > 0)

    def stats(self, batch: Batch) -> Stats:
        _, margin, both = self._margin(batch)
        inverted = (both & (margin < 0)).to(batch.dtype)[batch.group]
        return {"teacher/kl": batch.old_logp - batch.teacher_logp, "teacher/share_inverted": inverted}


def _mean(batch: Batch, column: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [G] of a column [R] over some of a group's rows, and how many those are, [G]."""
    groups = int(batch.group.max()) + 1
    count = torch.zeros(groups, dtype=column.dtype, device=column.device).index_add(
        0, batch.group, rows.to(column.dtype)
    )
    total = torch.zeros_like(count).index_add(0, batch.group, torch.where(rows, column, 0.0))
    return total / count.clamp(min=1), count


@dataclass(frozen=True)
class NearClippedRatio(ClippedRatio):
    """ClippedRatio, 0 on tokens of which policy and teacher think very differently: |logp - teacher_logp| >= far."""

    far: float = 10.0
    needs: ClassVar[frozenset[str]] = ClippedRatio.needs | {"teacher_logp"}

    def describe(self) -> str:
        return f"{super().describe()} where |logp - teacher_logp| < {self.far:g}"

    def __call__(self, batch: Batch) -> Tensor:
        return torch.where((batch.logp.detach() - batch.teacher_logp).abs() < self.far, super().__call__(batch), 0.0)


@method(
    paper="2605.03677",
    title="Uni-OPD: Unifying On-Policy Distillation with a Dual-Perspective Recipe",
    parent="opd",
)
def uni_opd() -> Recipe:
    return opd().replace(
        rollout=Sample(group_size=16),
        advantage=MarginTeacherAdvantage(),
        rows=Balanced(),
        surrogate=NearClippedRatio(ratio_low=0.8, ratio_high=1.28),
    )
