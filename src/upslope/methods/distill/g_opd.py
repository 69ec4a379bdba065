"""G-OPD: opd that extrapolates what the teacher has learned beyond a reference (ExOPD, for lambda > 1).

    A     lambda (teacher_logp - ref_logp) - (old_logp - ref_logp), lambda = extrapolation             [R, T]
    loss  mean over the batch's tokens of -A r, r = exp(logp - old_logp)

Differs from opd:  lambda = 1.25, and with it the reference; one completion per prompt.
Limits:  lambda=1 is opd, whatever the reference; lambda=0 pulls back to the reference. At every prefix the policy that it tends to
    is proportional to ref^(1 - lambda) teacher^lambda.
Expects:  a teacher (--teacher) that was trained from what the reference is, here the policy at the start of the run. A forward
    pass of teacher and reference each. A large lambda is unbounded where the reference is nearly sure that a token is wrong.
Source:  arXiv:2602.12125; the authors' code (RUCBM/G-OPD, dp_actor.py, only_reverse_kl_advantages), lambda = 1.25.
Deviations:  their code weighs tokens by a truncated ratio between its sampling engine and its trainer, at most 5; here the
    log-probs before the update are the engine's. Their reward correction, a reference that is the teacher's own base, needs
    another reference than this trainer has; prompts are not routed to several teachers.
Not this:  a KL penalty against the reference beside opd, which would be lambda < 1.
Claim:  surpasses the teacher: not seen in the study "teachers" (5 seeds, equal teacher tokens), within 60 steps: 0.743
    [0.738, 0.772], the teacher 0.746; +0.046 [+0.039, +0.050] over opd.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.distill.opd import opd
from upslope.parts.distill import TeacherAdvantage
from upslope.parts.sampling import Sample
from upslope.recipe import Recipe
from upslope.registry import method


@dataclass(frozen=True)
class ExtrapolatedTeacherAdvantage(TeacherAdvantage):
    """TeacherAdvantage of extrapolation (teacher_logp - ref_logp) - (old_logp - ref_logp), [R, T]."""

    extrapolation: float = 1.25
    needs: ClassVar[frozenset[str]] = TeacherAdvantage.needs | {"ref_logp"}

    @property
    def difference(self) -> str:  # type: ignore[override]
        """In words."""
        return f"({self.extrapolation:g} (teacher_logp - ref_logp) - (old_logp - ref_logp))"

    def reward(self, batch: Batch) -> Tensor:
        return self.extrapolation * (batch.teacher_logp - batch.ref_logp) - (batch.old_logp - batch.ref_logp)


@method(
    paper="2602.12125",
    title="Learning beyond Teacher: Generalized On-Policy Distillation with Reward Extrapolation",
    parent="opd",
)
def g_opd() -> Recipe:
    return opd().replace(rollout=Sample(group_size=1), advantage=ExtrapolatedTeacherAdvantage(extrapolation=1.25))
