"""HyPO: DPO on given pairs, and a KL penalty on completions that the policy writes to their prompts in the same step.

    s     sum over the completion's tokens of logp - ref_logp                       [R]
    dpo   as in dpo on the given pairs, with beta
    k     s of a sampled completion, constant                                       [sampled rows]
    A     k - mean of k over the prompt's other samples                             [sampled rows]
    kl    mean over sampled completions of k, its gradient that of A * (sum over tokens of logp)
    loss  dpo + coefficient * kl

Differs from dpo:  the term kl, on samples that need neither labels nor rewards; beta 0.05.
Limits:  coefficient = 0 is dpo. The gradient of kl is without bias that of KL(policy || ref) of whole completions, while the
    policy is the one that sampled: the baseline changes its variance alone. Without mates (samples=1) there is no baseline.
Expects:  data as for dpo; rollout.samples completions of up to max_tokens to every prompt of a step, which the policy writes first.
    coefficient is what is tuned: too small and it is dpo at a higher price, too large and the policy stays at the reference.
    loss/1 is the KL of the samples. update.minibatches=1, or the later ones are off-policy.
Source:  Song et al. 2024 (arXiv:2406.01462). No public code was found. samples 2, beta 0.05 and coefficient 1e-4 (summarization)
    are from memory, and so is the leave-one-out baseline.
Deviations:  none known in the objective. Given and sampled rows have denominators of their own: prompts, and completions.
Not this:  another HyPO, of 2026, which cuts the reference's margin off at 0. A KL on given completions: those say nothing of
    what the policy writes where the data has none.
Claim:  lower reverse KL, better reward: not seen with the published 1e-4 in the study "over_optimization" (5 seeds), where
    it is dpo's run; reproduced at 0.1, 0.718 [0.711, 0.730] at half a nat beside dpo's 0.459 [0.437, 0.474] at 4.3.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.preference.dpo import dpo
from upslope.parts.aggregate import RowMean
from upslope.parts.data import FromData
from upslope.parts.expert import ExpertRows, PolicyRows
from upslope.parts.preference import PreferenceLoss, sequence_score
from upslope.recipe import Part, Recipe, Term
from upslope.registry import method


@dataclass(frozen=True)
class SampledKL(Part):
    """k per completion [R], whose gradient is that of A * (sum of logp), as above: KL(policy || ref) on samples of the policy."""

    formula: ClassVar[str] = "k = sum of logp - ref_logp, grad (k - mean of others) sum(logp)"
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    couples_group: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp", "group"})

    def __call__(self, batch: Batch) -> Tensor:
        k = sequence_score(batch, reference=True, normalized=False).detach()
        fit = batch.replace(valid=batch.valid & batch.trained)
        mean, count = (column[batch.group] for column in fit.group_mean(k))
        others = (count * mean - k) / (count - 1).clamp(min=1)  # 0 for a sample without mates
        logp = (batch.logp * batch.mask).sum(1)
        return k + (k - others) * (logp - logp.detach())


@method(
    paper="2406.01462",
    title="The Importance of Online Data: Understanding Preference Fine-tuning via Coverage",
    parent="dpo",
    aliases=("hypo",),
)
def hypo_online_kl() -> Recipe:
    return dpo().replace(
        rollout=FromData(kind="pairs", samples=2),
        surrogate=PreferenceLoss(beta=0.05),
        rows=ExpertRows(),
        terms=(Term(SampledKL(), RowMean(), rows=PolicyRows(), coefficient=1e-4),),
    )
