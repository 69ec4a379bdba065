"""Lightning OPD: on-policy distillation on completions that were sampled once, before the training.

    A     teacher_logp - anchor_logp, anchor_logp the policy's at the start of the step                [R, T]
    r     exp(logp - anchor_logp)                                                                      [R, T]
    loss  mean over sequences of the mean over tokens of max(-A r, -A clip(r, 0.8, 1.2))

Differs from opd:  completions of the data instead of samples; the policy at the start of the step in the place of old_logp; the
    clip; the mean per sequence.
Limits:  where the policy is the teacher every A is 0, whoever wrote the completions; with a writer that may say anything that is
    the only stationary point at each prefix. In its first step on the first policy's own completions the mean gradient is opd's.
Expects:  data with prompt and completion, sampled from the model that the run starts with (--data), after it was trained on
    completions of this same teacher (seqkd); another teacher's completions there make it worse. A forward pass of the teacher
    and one of the policy per step beside the update, and no sampling; no teacher where the data has its log-probs, the column
    teacher_logps, as `upslope diagnose teacher-logps` writes it. The loss is 0 at the teacher and below it on the way there:
    what falls is teacher/gap, the mean of |A|.
Source:  arXiv:2604.13010; the authors' code (jet-ai-projects/Lightning-OPD, configs/lightning_opd).
Deviations:  without the column teacher_logps the teacher is asked in every epoch; theirs once, with its log-probs kept in the
    data. At one pass over the data, as in their configuration of one sample per prompt, that is as many tokens.
Not this:  an importance correction for completions that an older policy wrote: there is none.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.distill.opd import opd
from upslope.parts.aggregate import SequenceMean
from upslope.parts.data import FromData
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class OfflineTeacherAdvantage(Part):
    """A = teacher_logp - anchor_logp [R, T], and anchor_logp as old_logp, which given completions do not have."""

    formula: ClassVar[str] = "teacher_logp - anchor_logp; old_logp = anchor_logp, the policy at the start of the step"
    needs: ClassVar[frozenset[str]] = frozenset({"teacher_logp", "anchor_logp"})
    makes: ClassVar[frozenset[str]] = frozenset({"old_logp"})

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return {"advantage": batch.teacher_logp - batch.anchor_logp, "old_logp": batch.anchor_logp}

    def stats(self, batch: Batch) -> Stats:
        """The difference of the log-probs and its size; no KL, which would take completions of the policy as it is."""
        ratio = batch.anchor_logp - batch.teacher_logp
        return {"teacher/log_ratio": ratio, "teacher/gap": ratio.abs()}


@method(
    paper="2604.13010",
    title="Lightning OPD: Efficient Post-Training for Large Reasoning Models with Offline On-Policy Distillation",
    parent="opd",
)
def lightning_opd() -> Recipe:
    return opd().replace(
        rollout=FromData(kind="demonstrations"),
        advantage=OfflineTeacherAdvantage(),
        surrogate=ClippedRatio(ratio_low=0.8, ratio_high=1.2),
        aggregate=SequenceMean(),
    )
