"""SRFT: likelihood of a demonstration and of the policy's own right completions in one stage, weighted by entropy.

    H_i   mean entropy over the completion's tokens, without gradient                                      [R]
    A_i   R_i - mean of the group, the demonstration's reward included                                     [R]
    loss  sum over the batch's tokens / 8192 of
              -0.1 exp(H) logp for right completions of the policy, +logp for wrong ones,
              -A p / (p + 0.1) for the demonstration's, p = exp(logp)
          + mean over the demonstrations' tokens of -0.5 exp(-H) logp

Differs from luffy:  the policy's tokens: plain likelihood by right or wrong; the demonstration's likelihood; no entropy
    bonus.
Limits:  at H = 0 and without demonstrations it is REINFORCE with weight 0.1 for right and -1 for wrong completions. A
    demonstration that surprises the policy (large H) weighs less as likelihood; the policy's own right completions then
    weigh more.
Expects:  as luffy: rewards in {0, 1} (right: over correct_above), and a demonstration that the verifier accepts. Fresh
    rollouts: nothing corrects for a policy that has moved.
Source:  Fu et al. 2025 (arXiv:2506.19767), as HPT's authors implemented it (TsinghuaC3I/Unify-Post-Training,
    offline_loss_type "srft"); the original code was not read.
Deviations:  one update per step, where they take two mini-batches. As in luffy, 8192 is theirs and the sum is over the
    mini-batch.
Not this:  w_rl does not weigh wrong completions, nor the demonstration's shaped term.
Claim:  above GRPO and above imitation: not reproduced in the study "demonstrations" (5 seeds, 200 demonstrations and a
    verifier): 0.311 [0.271, 0.332] beside grpo's 0.410 and sft's 0.521. With aggregate.scale = 1 / max_tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.hybrid.luffy import expert_stats, luffy, shaped
from upslope.parts.aggregate import TokenMean
from upslope.parts.expert import ExpertRows, is_expert
from upslope.parts.sampling import Update
from upslope.recipe import Part, Recipe, Stats, Term
from upslope.registry import method


@dataclass(frozen=True)
class OutcomeLikelihood(Part):
    """The sum's loss per token [R, T], as above."""

    own_weight: float = 0.1
    gamma: float = 0.1
    correct_above: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "reward", "source", "entropy"})

    def describe(self) -> str:
        own = f"-{self.own_weight:g} exp(H) logp where right, logp where wrong"
        return f"{own}; for the demonstration's tokens -A p / (p + {self.gamma:g}), p = exp(logp)"

    def __call__(self, batch: Batch) -> Tensor:
        right = (batch.reward > self.correct_above).unsqueeze(1)
        own = torch.where(right, -self.own_weight * mean_entropy(batch).exp(), 1.0) * batch.logp
        return torch.where(is_expert(batch).unsqueeze(1), -batch.advantage * shaped(batch.logp, self.gamma), own)

    def stats(self, batch: Batch) -> Stats:
        return expert_stats(batch)


@dataclass(frozen=True)
class CertainLikelihood(Part):
    """-coefficient exp(-H) logp per token [R, T], H without gradient."""

    coefficient: float = 0.5
    formula: ClassVar[str] = "-{coefficient} exp(-H) logp"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, batch: Batch) -> Tensor:
        return -self.coefficient * (-mean_entropy(batch)).exp() * batch.logp


def mean_entropy(batch: Batch) -> Tensor:
    """H [R, 1]: the mean over each row's tokens of the entropy, without gradient."""
    total = (batch.entropy.detach() * batch.mask).sum(1)
    return (total / batch.length.clamp(min=1)).unsqueeze(1)


@method(
    paper="2506.19767",
    title="SRFT: A Single-Stage Method with Supervised and Reinforcement Fine-Tuning for Reasoning",
    parent="luffy",
)
def srft() -> Recipe:
    return luffy().replace(
        surrogate=OutcomeLikelihood(own_weight=0.1, gamma=0.1),
        terms=(Term(CertainLikelihood(coefficient=0.5), TokenMean(), rows=ExpertRows()),),
        update=Update(),
    )
