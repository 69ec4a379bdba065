"""LUFFY: one completion of each group is an expert's, learned from by a shaped probability instead of a ratio.

    A_i   R_i - mean of the group, the expert's reward included                                            [R]
    f(p)  p / (p + gamma), p = exp(logp)
    loss  sum over the batch's tokens / 8192 of -A r for the policy's tokens, -A f(p) for the expert's;
          less 0.001 times the mean of the entropy over the batch's tokens

Differs from dr_grpo:  an expert row per group; no clip; f for its tokens; the sum over tokens; the entropy bonus; two
    updates.
Limits:  an expert token's gradient is -A gamma p / (p + gamma)^2 times that of logp, which is largest at p = gamma:
    neither what the policy knows nor what it holds impossible. gamma=None is f(p) = p, the policy gradient as if the
    expert had chosen with probability 1. advantage.among="policy" leaves the expert out of the mean (the code's
    "grpo_split"). reference_rows=0 is dr_grpo without a clip, and with an entropy bonus.
Expects:  rewards in {0, 1} and an expert's completion that the verifier accepts: the task's reference answer, or, from a
    file, the column that rollout.reference_column names. group_size=8 are 7 of the policy and 1 of the expert. One more
    forward pass over the experts only, and the entropy with gradient.
Source:  Yan et al. 2025 (arXiv:2504.14945); the authors' code (ElliottYan/LUFFY, mix_core_alg.py, "p_div_p_0.1",
    train.sh): no clip, no deviation, T_max = 8192. lr 1e-6, 128 prompts.
Deviations:  8192 is theirs; it weighs the loss against the entropy bonus: set aggregate.scale to 1 / your max_tokens.
    Their sum is per micro-batch, so that it depends on its size; here it is over the mini-batch.
Not this:  importance sampling of the expert's tokens, whose probabilities are not known.
Claim:  learns from expert rows what rewards alone do not find: 0.505 [0.486, 0.520] in the study "demonstrations" (5 seeds,
    200 demonstrations and a verifier), beside grpo's 0.410; sft alone has 0.521. With aggregate.scale = 1 / max_tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.dr_grpo import dr_grpo
from upslope.parts.aggregate import TokenMean, TokenSum
from upslope.parts.expert import MixedBaseline, is_expert
from upslope.parts.sampling import Sample, Update
from upslope.parts.surrogate import EntropyLoss, token_ratio
from upslope.recipe import Part, Recipe, Stats, Term
from upslope.registry import method


@dataclass(frozen=True)
class ShapedExpert(Part):
    """-A r for the policy's tokens, -A f(p) for the expert's, [R, T], as above."""

    gamma: float | None = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp", "source"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.gamma is not None and not self.gamma > 0:
            raise UsageError(
                f"ShapedExpert(gamma={self.gamma:g}): it must be positive, e.g. 0.1, or None for f(p) = p."
            )

    def describe(self) -> str:
        shape = "p" if self.gamma is None else f"p / (p + {self.gamma:g})"
        return f"-A r; for the expert's tokens -A {shape}, p = exp(logp)"

    def __call__(self, batch: Batch) -> Tensor:
        return torch.where(
            is_expert(batch).unsqueeze(1),
            -batch.advantage * shaped(batch.logp, self.gamma),
            -batch.advantage * token_ratio(batch),
        )

    def stats(self, batch: Batch) -> Stats:
        return expert_stats(batch)


def shaped(logp: Tensor, gamma: float | None) -> Tensor:
    """f(p) of p = exp(logp): p / (p + gamma), or p with gamma None."""
    p = logp.exp()
    return p if gamma is None else p / (p + gamma)


def expert_stats(batch: Batch) -> Stats:
    """The expert's share of the tokens, and its tokens' probability times that share."""
    expert = is_expert(batch).unsqueeze(1).to(batch.dtype)
    return {"expert/share": expert.expand_as(batch.logp), "expert/probability_share": batch.logp.exp() * expert}


@method(paper="2504.14945", title="Learning to Reason under Off-Policy Guidance", parent="dr_grpo")
def luffy() -> Recipe:
    return dr_grpo().replace(
        rollout=Sample(group_size=8, reference_rows=1),
        advantage=MixedBaseline(scale=None),
        surrogate=ShapedExpert(gamma=0.1),
        aggregate=TokenSum(scale=1 / 8192),
        terms=(Term(EntropyLoss(coefficient=0.001), TokenMean()),),
        update=Update(minibatches=2),
    )
