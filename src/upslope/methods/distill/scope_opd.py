"""SCOPE: maximum likelihood of right completions, distillation of wrong ones, each weighted by a perplexity.

    P, Q  exp(-mean over a completion's tokens of old_logp, of teacher_logp)                           [R]
    w_i   P_i^(1/tau) / (sum over the group's right ones of P^(1/tau))         for a right completion  [R]
          Q_i^(-1/tau) / (sum over the group's wrong ones of Q^(-1/tau))       for a wrong one
    A     w for a right completion, w (teacher_logp - old_logp) for a wrong one                        [R, T]
    loss  mean over groups of the sum over completions and tokens of -A r, r = exp(logp - old_logp)

Differs from opd:  the route by outcome, the weights, the sum over a group; groups of 8 at temperature 0.6.
Limits:  tau to infinity weighs all of a kind alike; a group without right completions is then opd with a mean over the group. On
    policy a right completion's gradient is that of its likelihood.
Expects:  rewards of which those above `threshold` are right, e.g. 0 and 1; a teacher with the policy's tokens (--teacher), on which
    a forward pass is spent for every completion.
Source:  arXiv:2604.10688, sections 3.1 to 3.3; no code of the authors' was found. The group size is ours.
Deviations:  none known. Sums over tokens are not divided by the length, as in the paper's equations, so that long completions
    weigh more; aggregate=TokenMean() removes that.
Not this:  a reward beside the teacher: a right completion does not ask the teacher, and a wrong one is not pushed away as such.
Claim:  better than opd alone: reproduced in the study "teachers" (5 seeds, equal teacher tokens): +0.086 [+0.070, +0.102],
    above the teacher itself (0.790, 0.746); it has a verifier, too.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.distill.opd import opd
from upslope.parts.sampling import Sample
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class RoutedTeacherAdvantage(Part):
    """A [R, T], as above; rows whose reward is over `threshold` are right."""

    tau: float = 1.0
    threshold: float = 0.5
    formula: ClassVar[str] = "w where the reward is over {threshold}, else w (teacher_logp - old_logp); tau = {tau}"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "old_logp", "teacher_logp"})

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise UsageError(f"RoutedTeacherAdvantage(tau={self.tau:g}): it must be above 0; .inf weighs all alike.")

    def __call__(self, batch: Batch) -> Tensor:
        right, length = batch.reward > self.threshold, batch.length.clamp(min=1)
        score = torch.where(right, -batch.old_logp.sum(1), batch.teacher_logp.sum(1)) / length / self.tau
        weight = _softmax(score, 2 * batch.group + right, batch.trained & batch.valid)
        wrong = batch.teacher_logp - batch.old_logp
        return weight.unsqueeze(1) * torch.where(right.unsqueeze(1), 1.0, wrong)

    def stats(self, batch: Batch) -> Stats:
        return {
            "teacher/kl": batch.old_logp - batch.teacher_logp,
            "route/right": (batch.reward > self.threshold).to(batch.dtype),
        }


def _softmax(score: Tensor, label: Tensor, counted: Tensor) -> Tensor:
    """exp(score) [R] over its sum among the counted rows with the same label; 0 for others."""
    size = int(label.max()) + 1
    masked = torch.where(counted, score, -torch.inf)
    highest = torch.full((size,), -torch.inf, dtype=score.dtype, device=score.device).scatter_reduce(
        0, label, masked, "amax"
    )
    share = torch.where(counted, (score - highest[label]).exp(), 0.0)
    total = torch.zeros(size, dtype=score.dtype, device=score.device).index_add(0, label, share)
    return torch.where(counted, share / total[label], 0.0)


@dataclass(frozen=True)
class GroupTokenSum(Part):
    """Sum over a group's tokens, then the mean over the groups that have a trained token. [R, T]"""

    formula: ClassVar[str] = "mean over groups of the sum over completions and tokens"
    needs: ClassVar[frozenset[str]] = frozenset({"group"})

    def __call__(self, batch: Batch) -> Tensor:
        return batch.mask.to(batch.dtype) / len(batch.group[batch.trained].unique())


@method(
    paper="2604.10688",
    title="SCOPE: Signal-Calibrated On-Policy Distillation Enhancement with Dual-Path Adaptive Weighting",
    parent="opd",
)
def scope_opd() -> Recipe:
    return opd().replace(
        rollout=Sample(group_size=8, temperature=0.6), advantage=RoutedTeacherAdvantage(), aggregate=GroupTokenSum()
    )
