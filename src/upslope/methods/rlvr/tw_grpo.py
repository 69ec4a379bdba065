"""TW-GRPO: more weight on positions at which the completions of a prompt have different next-token distributions.

    l_i   log-probs of the whole vocabulary, of completion i at position t; uniform behind its end            [R, T, V]
    m     mean over the group's completions of l_i, a mean of log-probs                                       [G, T, V]
    D_t   mean over the group of sum over the vocabulary of exp(m - l_i) - 1 - (m - l_i), m - l_i within +-11 [G, T]
    w_t   1 + (alpha - 1) (D_t - min) / (max - min), the extremes over the group's positions                  [G, T]
    loss  mean over the batch's tokens of w max(-A r, -A clip(r, 0.8, 1.2)), A and r as in grpo

Differs from grpo:  the weight of the position; the token mean; no KL.
Limits:  alpha=1, or completions with the same distributions, is grpo with a token mean and beta = 0.
Expects:  two or more completions per prompt, whose positions correspond. One more forward pass per step, and the distributions
    of all its tokens in memory at once: 64 completions of 200 tokens take 7.7 GB at 150 000 words. For small vocabularies.
    The paper's reward for questions with several right options is --reward choices, its format reward a regex added to it.
Source:  Dang et al. 2025 (arXiv:2505.24718) and the authors' grpo_trainer.py; alpha 1.7, 8 completions, one update per step.
Deviations:  the weights are constant. The authors' code lets the gradient flow through them: tw_grpo@released. The turning of
    single-choice questions into ones with several right options belongs to the data, and is not here.
Not this:  a KL against a reference: D compares the completions of a prompt with each other.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import TokenMean
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe
from upslope.registry import method, preset

LOWEST = -1e4  # log-prob of a token that cannot be: finite, so that a mean and a difference exist
CLAMP = 11.0


@dataclass(frozen=True)
class DivergenceWeight(Part):
    """w [R, T], as above."""

    alpha: float = 1.7
    formula: ClassVar[str] = "1 + ({alpha} - 1) * (divergence of the group's distributions, from 0 to 1 over positions)"
    needs: ClassVar[frozenset[str]] = frozenset({"log_distribution", "group"})

    def __call__(self, batch: Batch) -> Tensor:
        return divergence_weight(batch, self.alpha)


@dataclass(frozen=True)
class DivergenceWeightedRatio(ClippedRatio):
    """ClippedRatio times w [R, T], with the gradient through w of the released code."""

    alpha: float = 1.7
    needs: ClassVar[frozenset[str]] = ClippedRatio.needs | {"log_distribution", "group"}
    couples_group: ClassVar[bool] = True

    def describe(self) -> str:
        return f"w {super().describe()}, w not constant"

    def __call__(self, batch: Batch) -> Tensor:
        return divergence_weight(batch, self.alpha) * super().__call__(batch)


def divergence_weight(batch: Batch, alpha: float) -> Tensor:
    """w [R, T] of trained tokens, 1 elsewhere. Rows without a trained token are no completions of their group."""
    weight = torch.ones_like(batch.logp, dtype=batch.dtype)
    for group in batch.group[batch.trained].unique():
        rows = (batch.trained & (batch.group == group)).nonzero().squeeze(1)
        divergence = position_divergence(batch.log_distribution[rows].to(batch.dtype), batch.mask[rows])
        there = divergence[batch.mask[rows].any(0)]
        share = (divergence - there.min()) / (there.max() - there.min() + 1e-8)
        weight = weight.index_put((rows,), torch.where(batch.mask[rows], 1 + (alpha - 1) * share, 1.0))
    return weight


def position_divergence(log_distribution: Tensor, mask: Tensor) -> Tensor:
    """D [T] of one group's log-probs [r, T, V], those outside `mask` [r, T] taken as uniform."""
    uniform = -math.log(log_distribution.shape[-1])
    log_probs = torch.where(mask.unsqueeze(-1), log_distribution.clamp(min=LOWEST), uniform)
    difference = (log_probs.mean(0) - log_probs).clamp(-CLAMP, CLAMP)
    return (difference.exp() - 1 - difference).sum(-1).mean(0)


@method(paper="2505.24718", title="Reinforcing Video Reasoning with Focused Thinking", parent="grpo")
def tw_grpo() -> Recipe:
    return grpo().replace(weight=DivergenceWeight(alpha=1.7), regularizer=None, aggregate=TokenMean())


@preset("released", version="3abc3c3")
def tw_grpo_released() -> Recipe:
    return tw_grpo().replace(
        advantage=GroupBaseline(eps=1e-4), weight=None, surrogate=DivergenceWeightedRatio(alpha=1.7)
    )
