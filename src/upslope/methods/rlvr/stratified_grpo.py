"""Stratified GRPO: completions are compared with those of the same structure, such as the same number of search calls.

    k_i    stratum of completion i: the column `stratum`
    S_i    (R_i - mean of stratum) / (deviation of stratum + eps), over the prompt's completions in k_i; 0 if i is alone in it
    G_i    (R_i - mean of group) / (deviation of group + eps)
    A_i    alpha S_i + (1 - alpha) G_i, copied to the tokens that the policy wrote                         [R]
    loss   mean over sequences of the mean over tokens of max(-A r, -A clip(r, 0.8, 1.2)) + beta k3

Differs from grpo:  the blend with the advantage within the stratum; the KL penalty is 0.001.
Limits:  alpha = 0, or one stratum, is grpo's A. Without scale, G_i = S_i + (mean of stratum - mean of group): what
    differs is the offset between strata. alpha = 1 removes it, and with it any incentive to search more or less.
Expects:  a reward function that gives `stratum` beside the score (a whole number, such as the number of tool
    calls), and groups large enough that most strata hold two completions or more.
Source:  Zhu et al. 2025 (arXiv:2510.06214): stratified advantage normalization and its blend with the global one.
Deviations:  alpha = 0.8 is a choice of ours: we could not verify the paper's (0.5 to 1 in third-party notes), nor which
    deviation it takes; here n - 1. There is no official code that we know of.
Not this:  a baseline per turn or per step; strata over several prompts.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline, split_groups
from upslope.parts.kl import KL
from upslope.recipe import Part, Recipe
from upslope.registry import method


@dataclass(frozen=True)
class StratifiedBaseline(Part):
    """A [R], as above. `scale` and `eps` are GroupBaseline's, for both parts. Raises UsageError unless 0 <= alpha <= 1."""

    alpha: float = 0.8
    scale: Literal["sample_std", "population_std"] | None = "sample_std"
    eps: float = 1e-6
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "stratum"})

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(
                f"StratifiedBaseline(alpha={self.alpha:g}): the share of the stratum's advantage is in [0, 1], e.g. 0.8."
            )

    def describe(self) -> str:
        group = GroupBaseline(scale=self.scale, eps=self.eps).describe()
        return f"{self.alpha:g} [{group.replace('group', 'stratum')}] + {1 - self.alpha:g} [{group}]"

    def __call__(self, batch: Batch) -> Tensor:
        baseline = GroupBaseline(scale=self.scale, eps=self.eps)
        within = baseline(split_groups(batch, batch.stratum))
        return self.alpha * within + (1 - self.alpha) * baseline(batch)


@method(
    paper="2510.06214",
    title="Stratified GRPO: Handling Structural Heterogeneity in Reinforcement Learning of LLM Search Agents",
    parent="grpo",
)
def stratified_grpo() -> Recipe:
    return grpo().replace(advantage=StratifiedBaseline(), regularizer=KL(beta=0.001, estimator="k3"))
