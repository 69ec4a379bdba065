"""NFT: maximum likelihood on right and wrong completions alike, the wrong ones under the policy that the right ones imply.

    q_g   share of right completions of the prompt, kept within [0.02, 0.98]                               [G]
    A_i   1 if right, -1 if wrong, 0 where all completions of the prompt are either                        [R]
    w_i   1 - q (by="failure"), or sqrt((1 - q) / q) (by="failure_odds")                                   [R]
    x     (1 - q r) / (1 - q), the ratio of the implied policy of wrong completions                        [R, T]
    loss  sum over the batch's tokens / 1000 of w times -ln r where right, -ln max(x, 1) where wrong;
          the gradient passes max as if x had been larger:  that of -ln max(x, 1) is -x' / max(x, 1)

Differs from dr_grpo:  the likelihood in place of the clipped ratio; the prompt's weight; the sum over tokens; dynamic sampling.
Limits:  at r = 1 its gradient is dr_grpo's with the same sum; with by="failure_odds" grpo's with the population deviation; both
    while q is inside [0.02, 0.98]. neg_weight=0 is weighted fine-tuning on right completions (RFT). A wrong token's gradient is
    w q r / ((1 - q) max(x, 1)): 0 for a token that became impossible, and growing with r for one that became likely.
Expects:  right means a reward over correct_above. Prompts with right and wrong completions among group_size=16.
Source:  Chen et al. 2025 (arXiv:2505.18116); NVlabs/NFT (dp_actor.py, train_7B.sh): all defaults.
Deviations:  a prompt that is all right or all wrong has no weight even where dynamic sampling gives up. As in the code,
    log-ratios above 10 are cut off, without gradient. The code sums sequences where ratio_level="sequence"; RowMean() averages.
Not this:  diffusion models' NFT. weight=None is the code's normalize=0. The wrong tokens' bound is 1: a small one would make
    the gradient of wrong tokens that became likely as many times larger.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.dr_grpo import dr_grpo
from upslope.parts.aggregate import TokenSum
from upslope.parts.sampling import DynamicSampling, Sample, Update
from upslope.parts.surrogate import token_ratio
from upslope.recipe import Level, Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class RightOrWrong(Part):
    """A [R] and the column accuracy [R], which is q of the row's prompt, as above."""

    correct_above: float = 0.5
    margin: float = 0.02
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group"})
    makes: ClassVar[frozenset[str]] = frozenset({"accuracy"})

    def __post_init__(self) -> None:
        if not 0 < self.margin <= 0.5:
            raise UsageError(f"RightOrWrong(margin={self.margin:g}): q stays that far from 0 and 1; choose e.g. 0.02.")

    def describe(self) -> str:
        return f"1 where reward > {self.correct_above:g}, else -1; 0 where the group agrees"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        right = (batch.reward > self.correct_above).to(batch.dtype)
        accuracy = batch.group_mean(right)[0][batch.group]
        mixed = (accuracy > 0) & (accuracy < 1)
        return {
            "advantage": torch.where(mixed, 2 * right - 1, 0.0),
            "accuracy": accuracy.clamp(self.margin, 1 - self.margin),
        }


@dataclass(frozen=True)
class PromptWeight(Part):
    """w of the row's prompt, [R, 1]: 1 - q, or the root of its odds (1 - q) / q."""

    by: Literal["failure", "failure_odds"] = "failure"
    needs: ClassVar[frozenset[str]] = frozenset({"accuracy"})

    def describe(self) -> str:
        return "1 - accuracy" if self.by == "failure" else "sqrt((1 - accuracy) / accuracy)"

    def __call__(self, batch: Batch) -> Tensor:
        failure = 1 - batch.accuracy
        weight = failure if self.by == "failure" else (failure / batch.accuracy).sqrt()
        return weight.unsqueeze(1)


@dataclass(frozen=True)
class ImplicitNegative(Part):
    """-ln r where A > 0, -neg_weight ln max(x, 1) where A < 0, 0 where A = 0: per token [R, T], or per sequence [R].

    `ratio_level` "sequence" takes the ratio of the whole sequence, and an aggregate per sequence.
    """

    neg_weight: float = 1.0
    ratio_level: Level = "token"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "accuracy", "old_logp"})
    vanishes_without_advantage: ClassVar[bool] = True

    @property
    def level(self) -> Level:
        """Whether the loss is per token or per sequence."""
        return self.ratio_level

    def describe(self) -> str:
        ratio = "r" if self.ratio_level == "token" else "exp(sum(logp - old_logp))"
        factor = "" if self.neg_weight == 1 else f"{self.neg_weight:g} "
        wrong = f"-{factor}ln max((1 - accuracy {ratio}) / (1 - accuracy), 1)"
        return f"[-ln {ratio} where A > 0; {wrong} where A < 0, straight through]"

    def __call__(self, batch: Batch) -> Tensor:
        moved, advantage, accuracy = batch.logp - batch.old_logp, batch.advantage, batch.accuracy.unsqueeze(1)
        if self.level == "sequence":
            moved, advantage, accuracy = moved.sum(1), batch.per_row("advantage"), batch.accuracy
        moved = moved.clamp(max=10.0)
        implied = (1 - accuracy * moved.exp()) / (1 - accuracy)
        bounded = implied.detach().clamp(min=1.0)
        straight = (implied - implied.detach()) / bounded  # 0, with the gradient that the clamp would stop
        wrong = -self.neg_weight * (bounded.log() + straight)
        return torch.where(advantage > 0, -moved, wrong) * advantage.abs()

    def stats(self, batch: Batch) -> Stats:
        ratio = token_ratio(batch)
        return {"ratio/mean": ratio, "ratio/kl": ratio - 1 - ratio.log()}


@method(
    paper="2505.18116",
    title="Bridging Supervised Learning and Reinforcement Learning in Math Reasoning",
    parent="dr_grpo",
)
def nft_negative() -> Recipe:
    return dr_grpo().replace(
        curriculum=DynamicSampling(max_rounds=10),
        rollout=Sample(group_size=16),
        advantage=RightOrWrong(),
        weight=PromptWeight(),
        surrogate=ImplicitNegative(),
        aggregate=TokenSum(scale=0.001),
        update=Update(minibatches=16),
    )
