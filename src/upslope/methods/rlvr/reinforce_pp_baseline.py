"""REINFORCE++-baseline: the reward minus its prompt's mean, whitened over all tokens of the batch.

    s_i   R_i - mean of R over the prompt's completions, copied to the tokens                               [R]
    A     (s - mean) / sqrt(variance + eps), both over all tokens of the batch (n - 1)                      [R, T]
    loss  mean over the batch's tokens of max(-A r, -A clip(r, 0.8, 1.2)) + beta k2

Differs from reinforce_pp:  the prompt's mean as baseline; the KL penalty in the loss, as k2, in place of the reward.
Limits:  one prompt with equal lengths is grpo's A, up to n tokens in place of G completions in the deviation.
Expects:  two or more completions per prompt; a lone one has s = 0.
Source:  Hu et al. 2025 (arXiv:2501.03262), section on the -baseline variant; whitening as in verl.
Deviations:  none known; where lengths correlate with rewards the mean of s is not 0, so even a group of equal rewards gets a
    non-zero A. That is the method's, not this file's.
Not this:  grpo, which scales by each prompt's own deviation.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.reinforce_pp import reinforce_pp
from upslope.parts.advantage import GroupBaseline, whiten
from upslope.parts.kl import KL
from upslope.parts.sampling import Sample
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe
from upslope.registry import method, preset


@dataclass(frozen=True)
class WhitenedGroupBaseline(Part):
    """A [R, T], as above. A lone completion of a prompt: s = 0, or the bare reward with `lone="reward"` (verl)."""

    eps: float = 1e-8
    lone: Literal["zero", "reward"] = "zero"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group"})

    def describe(self) -> str:
        return "reward - mean of the group, whitened over the batch's tokens"

    def __call__(self, batch: Batch) -> Tensor:
        centered = GroupBaseline(scale=None, lone=self.lone)(batch)
        return whiten(batch, centered.unsqueeze(1).expand_as(batch.logp), self.eps)


@method(
    paper="2501.03262",
    title="REINFORCE++: An Efficient RLHF Algorithm with Robustness to Both Prompt and Reward Models",
    parent="reinforce_pp",
)
def reinforce_pp_baseline() -> Recipe:
    return reinforce_pp().replace(
        rollout=Sample(group_size=8),
        reward=None,
        advantage=WhitenedGroupBaseline(),
        regularizer=KL(beta=0.001, estimator="k2"),
    )


@preset("verl", version="018f23b")
def reinforce_pp_baseline_verl() -> Recipe:
    return reinforce_pp_baseline().replace(
        advantage=WhitenedGroupBaseline(lone="reward"), surrogate=ClippedRatio(0.8, 1.2, dual=3.0), regularizer=None
    )
