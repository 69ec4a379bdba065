"""TOPR: REINFORCE on stale data; completions that failed count less, the less likely the policy has become to write them.

    R_i   2 (reward_i - low) / (high - low) - 1, so that it lies in [-1, 1];  A_i = R_i - baseline          [R]
    w_i   exp(sum over tokens of logp - old_logp), clipped to (1, 1) where A > 0, to (0, 1) where A < 0, constant      [R]
    loss  mean over sequences of the mean over tokens of -w A logp

Differs from reinforce:  the tapered weight; rewards of -1 and 1; the mean over tokens.
Limits:  on-policy it is reinforce with R, over the length; negative=(0, 0) is fine-tuning on what succeeded (STaR); (0, inf)
    for both is full importance sampling, unbiased with aggregate=SequenceSum(); (1, 1) for both is reinforce that takes stale
    data for fresh, and whose loss on failures has no lower bound.
Expects:  rewards in reward_range, [0, 1] unless set; stale data, such as several updates per batch of rollouts: with one update
    w = 1. The paper wants 10 to 20 % of the weight on positives. Of R = -1, 1 with a share p of 1, a baseline c makes it
    p (1 - c) / (1 + c (1 - 2 p)); c = -1 leaves the positives alone.
Source:  Le Roux et al. 2025 (arXiv:2503.14286), the tapered gradient and the effective share; verl's and ROLL's documentation.
Deviations:  the paper's gradient is the sum over tokens; the mean is verl's. The exponent is kept within +-20. Data are the
    policy's own of the latest step, not a fixed dataset, and neither is resampled. Mini-batches: ours.
Not this:  a clip that removes gradients, as ppo_llm's: here a failure whose probability fell keeps a gradient, times w. verl's
    ratio is ratio_level="geometric_mean" (gspo's), with the sign of A; ROLL's "token", with advantages in place of R.
Claim:  stable on stale data: reproduced in the study "stale" (5 seeds, chain_sum): the highest pass@1 at 1, 4 and 16
    updates per step, at 16 +0.059 [+0.031, +0.087] of PPO's clip. Part of it is its fixed baseline, which is ahead with one
    update already, +0.017 [+0.012, +0.021].
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.reinforce import reinforce
from upslope.parts.aggregate import SequenceMean
from upslope.parts.sampling import Update
from upslope.parts.surrogate import RatioLevel, log_ratio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class SignedReward(Part):
    """A [R], as above. `baseline` in [-1, 1], so that no sign changes. Raises UsageError for rewards outside `reward_range`."""

    reward_range: tuple[float, float] = (0.0, 1.0)
    baseline: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def __post_init__(self) -> None:
        if not (self.reward_range[0] < self.reward_range[1] and -1 <= self.baseline <= 1):
            raise UsageError(f"{self}: needs a reward_range that rises, and a baseline in [-1, 1].")

    def describe(self) -> str:
        low, high = self.reward_range
        signed = f"2 (reward - {low:g}) / ({high:g} - {low:g}) - 1"
        return f"{signed} - {self.baseline:g}" if self.baseline else signed

    def __call__(self, batch: Batch) -> Tensor:
        low, high = self.reward_range
        return 2 * (batch.reward_within(low, high, part=self) - low) / (high - low) - 1 - self.baseline


@dataclass(frozen=True)
class TaperedWeight(Part):
    """-w A logp per token [R, T], w the ratio clipped to `positive` or `negative` by the sign of A, constant.

    `ratio_level`: that of the whole sequence, of each token, or the geometric mean over the sequence's tokens.
    """

    positive: tuple[float, float] = (1.0, 1.0)
    negative: tuple[float, float] = (0.0, 1.0)
    ratio_level: RatioLevel = "sequence"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise UsageError(
                    f"TaperedWeight({name}=({low:g}, {high:g})): needs 0 <= low <= high, e.g. (0, 1); (1, 1) ignores the ratio."
                )

    def describe(self) -> str:
        positive, negative = ("({:g}, {:g})".format(*bounds) for bounds in (self.positive, self.negative))
        return f"-[clip({self.ratio_level} ratio, {positive} where A > 0, {negative} where A < 0)] A logp, [.] constant"

    def __call__(self, batch: Batch) -> Tensor:
        return -self._weight(batch) * batch.advantage * batch.logp

    def stats(self, batch: Batch) -> Stats:
        return {"ratio/weight": self._weight(batch).expand_as(batch.logp)}

    def _weight(self, batch: Batch) -> Tensor:
        ratio = log_ratio(batch, self.ratio_level).detach().exp()
        return torch.where(batch.advantage > 0, ratio.clamp(*self.positive), ratio.clamp(*self.negative))


@method(
    paper="2503.14286",
    title="Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs",
    parent="reinforce",
)
def topr() -> Recipe:
    return reinforce().replace(
        advantage=SignedReward(), surrogate=TaperedWeight(), aggregate=SequenceMean(), update=Update(minibatches=4)
    )
