"""APO (View-R1): less KL penalty on the correct answers of hard prompts, more blame on wrong answers that ramble.

    acc     share of the group's rewards that are 1, L+ the mean length of those completions                 [G]
    A_i     (R_i - mean of group) / (standard deviation of group + eps)                                      [R]
    kappa_i 1 - exp(-e acc) where A > 0 and 0 < acc < 1, else 1                                   (DADS)     [R]
    A_i     times 2 - base^-(length - L+) where A < 0 and length > L+                             (STCR)     [R]
    loss    mean over sequences of the mean over tokens of max(-A r, -A clip(r, 0.8, 1.2)) + beta kappa k3

Differs from grpo:  the weight kappa of the KL penalty and its beta; the factor on the advantage of long wrong answers.
Limits:  sharpness -> infinity (kappa = 1) and stcr_base=1 is grpo with this beta.
Expects:  two or more completions per prompt, rewards of 0 and 1; a correct one has at least correct_from. With the default base
    an excess of 1000 tokens changes A by 1 %: on short completions set stcr_base nearer to 1.01.
Source:  Hong et al. 2025 (arXiv:2506.21655) and the authors' experience_maker.py and ppo_actor.py: e = 2.718.
Deviations:  their code truncates the reward to an integer and compares with 1, so that 2 is wrong; here it is correct.
Not this:  the other methods of that name (anchored, anchor-based or adversarial policy optimization).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.kl import KL
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class AsymmetricAdvantage(Part):
    """Columns advantage [R] and kl_weight [R]: A after STCR, and kappa, as above."""

    eps: float = 1e-9
    sharpness: float = math.e
    stcr_base: float = 1.00001
    correct_from: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group"})
    makes: ClassVar[frozenset[str]] = frozenset({"kl_weight"})

    def __post_init__(self) -> None:
        if self.stcr_base < 1 or self.sharpness <= 0:
            raise UsageError(
                f"AsymmetricAdvantage(stcr_base={self.stcr_base:g}, sharpness={self.sharpness:g}): the base must be at "
                "least 1, e.g. 1.00001, and the sharpness positive, e.g. 2.718."
            )

    def describe(self) -> str:
        return f"{GroupBaseline(eps=self.eps).describe()}, times 2 - {self.stcr_base}^-(length - L+) where A < 0"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        advantage = GroupBaseline(eps=self.eps)(batch)
        correct = batch.valid & (batch.reward >= self.correct_from)
        share, _ = (column[batch.group] for column in batch.group_mean(correct.to(batch.dtype)))
        length, _ = (column[batch.group] for column in batch.group_mean(batch.length * correct))
        between = (share > 0) & (share < 1)
        kappa = 1 - torch.exp(-self.sharpness * share)
        excess = batch.length - length / torch.where(share > 0, share, 1.0)
        longer = 2 - self.stcr_base ** -excess.clamp(min=0)
        return {
            "advantage": advantage * torch.where((advantage < 0) & (share > 0), longer, 1.0),
            "kl_weight": torch.where((advantage > 0) & between, kappa, 1.0),
        }


@dataclass(frozen=True)
class WeightedKL(KL):
    """KL's penalty [R, T] times the column kl_weight [R]."""

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads kl_weight besides what KL reads."""
        return super().needs | {"kl_weight"}

    def describe(self) -> str:
        return f"kappa * {super().describe()}"

    def __call__(self, batch: Batch) -> Tensor:
        return batch.kl_weight.unsqueeze(1) * super().__call__(batch)

    def stats(self, batch: Batch) -> Stats:
        return {**super().stats(batch), "kl/weight": batch.kl_weight}


@method(
    paper="2506.21655",
    title="APO: Enhancing Reasoning Ability of MLLMs via Asymmetric Policy Optimization",
    parent="grpo",
)
def apo_asymmetric() -> Recipe:
    return grpo().replace(advantage=AsymmetricAdvantage(eps=1e-9), regularizer=WeightedKL(beta=1e-3))
