"""MiniLLM: distillation by the reverse KL of whole completions, by a policy gradient and an exact one-step term.

    d     (teacher_logp - old_logp) / 0.5, within +-100                                                [R, T]
    A     mean of d over the token and those that follow it, whitened over the batch's tokens          [R, T]
    loss  mean over the batch's tokens of max(-A r, -A clip(r, 0.8, 1.2)) + KL(policy || teacher), the latter of whole next-token
          distributions and differentiated through the policy

Differs from opd:  what a token earns reaches back to those before it; whitening; the clip; the KL of whole distributions; 4 epochs.
Limits:  with scale=1, discount=0, length_normalized=False and whiten=False the first term is opd's. The one-step KL is gkd's with
    beta=1.
Expects:  a teacher with the policy's tokens (--teacher), and completions of one length or so: a mean over what follows makes
    early and late tokens count alike. Beside opd's passes one of the teacher in each of the 4 epochs, for the KL.
Source:  Gu et al. 2023 (arXiv:2306.08543); the authors' code (microsoft/LMOps, minillm/losses.py): division by 0.5, gamma 1, clip
    0.2, 4 epochs.
Deviations:  they sample from a mixture of policy and teacher (0.2 of it) and correct for it by a ratio per token; here the policy
    alone samples. Their further loss on a corpus of plain text is left out. TRL's MiniLLM differentiates the advantage, too:
    more noise, the same mean; here it is a constant.
Not this:  whitening takes the mean off, so that the first term on its own no longer vanishes only at the teacher.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.distill.opd import opd
from upslope.parts.advantage import whiten
from upslope.parts.distill import TeacherDivergence
from upslope.parts.gae import gae
from upslope.parts.sampling import Update
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class TeacherReturn(Part):
    """A [R, T], as above: the discounted sum of d from each token on, over the number of trained tokens left."""

    scale: float = 2.0
    bound: float = 100.0
    discount: float = 1.0
    length_normalized: bool = True
    whiten: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher_logp", "old_logp"})

    def describe(self) -> str:
        over = "mean" if self.length_normalized else "sum"
        discounted = "" if self.discount == 1 else f", discounted by {self.discount:g},"
        found = f"{over} over the tokens from t on{discounted} of {self.scale:g} (teacher_logp - old_logp) within +-{self.bound:g}"
        return f"{found}, whitened" if self.whiten else found

    def __call__(self, batch: Batch) -> Tensor:
        earned = (self.scale * (batch.teacher_logp - batch.old_logp)).clamp(-self.bound, self.bound)
        none, ones = torch.zeros_like(earned), batch.mask.to(earned.dtype)
        found = gae(earned, none, batch.mask, self.discount, 1.0)
        if self.length_normalized:
            found = found / gae(ones, none, batch.mask, 1.0, 1.0).clamp(min=1)
        return whiten(batch, found) if self.whiten else found

    def stats(self, batch: Batch) -> Stats:
        return {"teacher/kl": batch.old_logp - batch.teacher_logp}


@method(paper="2306.08543", title="MiniLLM: Knowledge Distillation of Large Language Models", parent="opd")
def minillm() -> Recipe:
    return opd().replace(
        advantage=TeacherReturn(),
        surrogate=ClippedRatio(ratio_low=0.8, ratio_high=1.2),
        regularizer=TeacherDivergence(beta=1.0),
        update=Update(epochs=4),
    )
