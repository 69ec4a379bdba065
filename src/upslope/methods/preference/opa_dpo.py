"""OPA-DPO: DPO from a reference that has first been taught the preferred completions, with an anchor that keeps them likely.

    s       sum over the completion's tokens of logp - ref_logp                     [R]
    dpo     as in dpo, with beta
    anchor  mean over preferred completions of log(1 + exp(-(beta s - delta)))
    loss    dpo + 1 * anchor

Differs from dpo:  the anchor; the reference, which is what the run's --model must be.
Limits:  without the anchor it is dpo. The optimum of a KL-penalized objective is ref * exp(r / beta) / Z: a completion that the
    reference hardly ever writes stays rare, and one that it writes 100 times as often gets 100 times the odds.
Expects:  as dpo, with pairs of an answer (the data's, or an expert's minimal revision of the policy's own) against the policy's
    own completion; both against the same own completion are two pairs. First `upslope train sft` on the answers: its checkpoint
    is --model, and so both the initial policy and the reference.
Source:  Yang et al. 2025 (arXiv:2501.09695); the authors' dpo_trainer.py. beta 0.1, anchor 1, delta 0.
Deviations:  the text form: the terms that contrast an image with a masked one, and the weights of single sentences in the
    log-ratios of a revision, are not there. The authors' code applies the logistic loss per position, padding included, and the
    signs of two of its four anchors look exchanged; this is the paper's form, summed over tokens, for preferred completions.
    Sampling the own completions and revising them is not part of the run.
Not this:  rpo_sft keeps the preferred completions likely by their likelihood, without an end.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.preference.dpo import dpo
from upslope.parts.aggregate import RowMean
from upslope.parts.preference import Preferred, sequence_score
from upslope.recipe import Part, Recipe, Stats, Term
from upslope.registry import method


@dataclass(frozen=True)
class Anchor(Part):
    """coefficient log(1 + exp(-(beta s - delta))) per completion [R], s as above: holds beta s over delta."""

    coefficient: float = 1.0
    beta: float = 0.1
    delta: float = 0.0
    formula: ClassVar[str] = "{coefficient} log(1 + exp({delta} - {beta} s)), s = sum of logp - ref_logp"
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})

    def __call__(self, batch: Batch) -> Tensor:
        score = sequence_score(batch, reference=True, normalized=False)
        return self.coefficient * F.softplus(self.delta - self.beta * score)

    def stats(self, batch: Batch) -> Stats:
        """Mean of beta s over all rows, both of a pair."""
        return {"anchor/reward": self.beta * sequence_score(batch, reference=True, normalized=False)}


@method(
    paper="2501.09695",
    title="Mitigating Hallucinations in Large Vision-Language Models via DPO: On-Policy Data Hold the Key",
    parent="dpo",
)
def opa_dpo() -> Recipe:
    return dpo().replace(terms=(Term(Anchor(beta=0.1, delta=0.0), RowMean(), rows=Preferred()),))
