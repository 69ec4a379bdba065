"""RL-PLUS: one completion of each group is an expert's, with a ratio against a mixture and a bonus for improbable tokens.

    A_i    R_i - mean of the group, the expert's reward included                                           [R]
    omega  (p_old + uniform) / 2, a guess of the expert's probability, p_old = exp(old_logp)               [R, T]
    q      2 p / (p_old + omega), p = exp(logp)                                                            [R, T]
    C      (1 - p)^exploration, without gradient                                                           [R, T]
    loss   sum over the batch's tokens / 8192 of -A r for the policy's tokens, -A q C for the expert's;
           less 0.001 times the mean of the entropy over the batch's tokens

Differs from luffy:  the expert's tokens: q C in the place of f(p).
Limits:  where the policy has not moved q = 2 p / (1.5 p + 0.5): 1 at p = 1, about 4 p for small p. exploration=0 is C =
    1. With p / (p + 0.1) in the place of q C it is luffy.
Expects:  as luffy: rewards in {0, 1}, and an expert's completion that the verifier accepts.
Source:  Dong et al. 2025 (arXiv:2508.00222); the authors' code (YihongDong/RL-PLUS, rlplus_core_alg.py,
    train_RL-PLUS.sh).
Deviations:  the code's choices where they differ from the paper's: uniform = 1, the paper has 1 / vocabulary; no division
    by the group's deviation, which the paper has: advantage.scale="sample_std". As in luffy, 8192 is theirs and the sum
    is over the mini-batch.
Not this:  an estimate without bias: nobody knows the expert's probabilities.
Claim:  ahead of luffy: 0.528 [0.516, 0.544] beside 0.505 [0.486, 0.520] in the study "demonstrations" (5 seeds, 200
    demonstrations and a verifier), and grpo's 0.410; sft alone has 0.521. With aggregate.scale = 1 / max_tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.hybrid.luffy import expert_stats, luffy
from upslope.parts.expert import is_expert
from upslope.parts.surrogate import token_ratio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class MixtureRatio(Part):
    """-A r for the policy's tokens, -A q C for the expert's, [R, T], as above."""

    exploration: float = 0.5
    uniform: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp", "source"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.exploration < 0 or not 0 < self.uniform <= 1:
            raise UsageError(
                f"MixtureRatio(exploration={self.exploration:g}, uniform={self.uniform:g}): exploration is an exponent, at "
                "least 0, and uniform a probability in (0, 1]: 1, or 1 / size of the vocabulary."
            )

    def describe(self) -> str:
        ratio = f"2 p / (1.5 p_old + {self.uniform / 2:g})"
        return f"-A r; for the expert's tokens -A {ratio} sg[(1 - p)^{self.exploration:g}], p = exp(logp)"

    def __call__(self, batch: Batch) -> Tensor:
        p, old = batch.logp.exp(), batch.old_logp.exp()
        explore = (1 - p.detach()).clamp(min=0.0) ** self.exploration
        mixed = 2 * p / (old + (old + self.uniform) / 2) * explore
        return -batch.advantage * torch.where(is_expert(batch).unsqueeze(1), mixed, token_ratio(batch))

    def stats(self, batch: Batch) -> Stats:
        return expert_stats(batch)


@method(
    paper="2508.00222",
    title="RL-PLUS: Countering Capability Boundary Collapse of LLMs in Reinforcement Learning with Hybrid-policy Optimization",
    parent="luffy",
)
def rl_plus() -> Recipe:
    return luffy().replace(surrogate=MixtureRatio(exploration=0.5, uniform=1.0))
