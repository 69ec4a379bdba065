"""OORL: REINFORCE++ on a verifiable reward, and GEPO, which treats all correct completions of a prompt as equivalent.

    s     sum over the completion's tokens of logp - ref_logp                       [R]
    gepo  mean over prompts of log(1 + exp(-beta (mean of s over the correct - mean over the wrong))) + spread * (variance of s
          among the correct); 0 where a prompt lacks either
    loss  reinforce_pp + coefficient * gepo

Differs from reinforce_pp:  the term gepo; eight completions per prompt, from which its groups are taken.
Limits:  one correct and one wrong completion make gepo dpo. coefficient = 0 is reinforce_pp. The variance is 0 where the log-ratio
    is the same for all correct completions: none of the equivalent ones is preferred to another.
Expects:  rewards of which those over correct_above are right. Where no prompt has both kinds the term adds nothing.
Source:  Wu et al. 2025 (arXiv:2505.12723): spread 1, weight of gepo 0.01. There is no public code, and the equations were read
    from a text in which they are images: whether the variance is that of the population, and of s without beta, is our reading.
Deviations:  the paper's groups of equivalent and inequivalent outputs are static data (intermediate representations of one
    program); here they are the policy's own completions of the same prompts, sorted by the verifier. The KL in the reward is
    reinforce_pp's.
Not this:  dpo with pairs="reward" over all pairs: it sums losses of pairs, here one loss has the means of the groups.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.reinforce_pp import reinforce_pp
from upslope.parts.aggregate import GroupSum
from upslope.parts.preference import sequence_score
from upslope.parts.sampling import Sample
from upslope.recipe import Part, Recipe, Stats, Term
from upslope.registry import method


@dataclass(frozen=True)
class GroupEquivalence(Part):
    """gepo of each prompt, times `coefficient`, in equal shares on its rows [R], as above."""

    coefficient: float = 0.01
    beta: float = 0.1
    spread: float = 1.0
    correct_above: float = 0.5
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    couples_group: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "ref_logp", "group"})
    formula: ClassVar[str] = (
        "{coefficient} [log(1 + exp(-{beta} (mean of s, reward > {correct_above} - mean of the rest))) "
        "+ {spread} variance of s among the former], s = sum of logp - ref_logp"
    )

    def __post_init__(self) -> None:
        if not self.beta > 0 or self.spread < 0:
            raise UsageError(
                f"GroupEquivalence(beta={self.beta:g}, spread={self.spread:g}): beta must be positive, spread at least 0."
            )

    def __call__(self, batch: Batch) -> Tensor:
        gap, variance, both = self._of_groups(batch)
        loss = torch.where(both, F.softplus(-self.beta * gap) + self.spread * variance, 0.0)
        fit = batch.trained & batch.valid
        rows = torch.zeros_like(loss).index_add(0, batch.group, fit.to(loss.dtype))
        return torch.where(fit, self.coefficient * (loss / rows.clamp(min=1))[batch.group], 0.0)

    def stats(self, batch: Batch) -> Stats:
        """Standard deviation of s among a prompt's correct completions, 0 where a prompt lacks correct or wrong ones."""
        _, variance, both = self._of_groups(batch)
        return {"gepo/spread": torch.where(both, variance, 0.0).sqrt()[batch.group]}

    def _of_groups(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Difference of the mean s of correct and wrong completions, variance of the correct, whether there are both, [G]."""
        score = sequence_score(batch, reference=True, normalized=False)
        correct, fit = batch.reward > self.correct_above, batch.trained & batch.valid
        right, rights = batch.replace(valid=fit & correct).group_mean(score)
        wrong, wrongs = batch.replace(valid=fit & ~correct).group_mean(score)
        variance, _ = batch.replace(valid=fit & correct).group_mean((score - right[batch.group]) ** 2)
        return right - wrong, variance, (rights > 0) & (wrongs > 0)


@method(
    paper="2505.12723",
    title="On-Policy Optimization with Group Equivalent Preference for Multi-Programming Language Understanding",
    parent="reinforce_pp",
)
def oorl_gepo() -> Recipe:
    return reinforce_pp().replace(rollout=Sample(group_size=8), terms=(Term(GroupEquivalence(), GroupSum()),))
