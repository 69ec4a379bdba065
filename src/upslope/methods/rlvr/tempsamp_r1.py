"""TempSamp-R1: the reference answer takes the place of one completion of each group, and rewards are flattened near the top.

    S(r)  tau + gain ln(r - tau + 1)                                  where r >= tau
          tau - (exp(alpha (tau - r)) - 1) / (exp(alpha) - 1)         elsewhere                            [R]
    A_i   (S_i - mean of group) / (standard deviation of group + eps), reference included                 [R]
    loss  grpo's, with the clip [0.8, 1.28] and r = pi / pi_old on the reference's tokens, too; no KL

Differs from grpo:  a reference row per group; the reward S; the upper clip bound 1.28; no KL.
Limits:  reference_rows=0 is grpo on the reward S. S is continuous at tau; tau = 1 leaves the lower branch. A reference is not
    clipped away in the first update, where its ratio is 1, and has a negative advantage where the policy does better.
Expects:  rewards in [0, 1], graded rather than right or wrong, such as the overlap of intervals; tasks with a reference answer
    that the verifier takes as it stands. One more forward pass, over the references only: 1 / group_size of a pass.
Source:  Zhang et al. 2025 (arXiv:2509.18056); the authors' code (ZhangZikun6666/TempSamp-R1, timelens_tempsamp.yaml).
Deviations:  their 0.1 for the format is added after the shaping; here it is the verifier's to give, before it, within [0, 1].
    Not trained with and without reasoning in turn. They sample with top_p 0.85.
Not this:  importance sampling: the reference was not drawn from the old policy, so a ratio of 1 makes it supervised learning,
    weighted by its advantage. The paper's variant that keeps the reference out of the deviation is not in the code.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.sampling import Sample
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe
from upslope.registry import method


@dataclass(frozen=True)
class SoftReward(Part):
    """S [R], as above. Raises UsageError for rewards outside [0, 1]."""

    tau: float = 0.8
    alpha: float = 1.0
    gain: float = 0.01
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1 or not 0 < self.alpha <= 80:
            raise UsageError(
                f"SoftReward(tau={self.tau:g}, alpha={self.alpha:g}): tau must be in [0, 1], alpha in (0, 80], e.g. 0.8 and 1."
            )

    def describe(self) -> str:
        above = f"{self.tau:g} + {self.gain:g} ln(reward - {self.tau:g} + 1)"
        return f"{above} above {self.tau:g}, falling with exp({self.alpha:g} ({self.tau:g} - reward)) below"

    def __call__(self, batch: Batch) -> Tensor:
        reward = batch.reward_within(0.0, 1.0, part=self)
        above = self.tau + self.gain * (reward - self.tau).clamp(min=0.0).log1p()
        below = self.tau - (self.alpha * (self.tau - reward)).expm1() / math.expm1(self.alpha)
        return torch.where(reward >= self.tau, above, below)


@method(
    paper="2509.18056",
    title="TempSamp-R1: Effective Temporal Sampling with Reinforcement Fine-Tuning for Video LLMs",
    parent="grpo",
)
def tempsamp_r1() -> Recipe:
    return grpo().replace(
        rollout=Sample(group_size=8, reference_rows=1),
        reward=SoftReward(tau=0.8, alpha=1.0),
        surrogate=ClippedRatio(ratio_low=0.8, ratio_high=1.28),
        regularizer=None,
    )
