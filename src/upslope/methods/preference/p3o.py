"""P3O: the difference of two completions' rewards moves the difference of their log-probs, with a clip for pairs.

    r_i   reward_i - beta * (sum over tokens of old_logp - ref_logp)                [R]
    w_i   exp(sum over tokens of logp - old_logp), the ratio of the whole completion                     [R]
    joint     c = (r_1 - r_2) w_1 w_2 without gradient, l = log(w_1 / w_2):
              loss = -min(c l, c clip(l, -clip, clip))
    separate  loss = -sum over i of min(a w_-i w_i, a clip(w_-i) clip(w_i)), a = r_i - r_-i, the other's ratio without gradient,
              clip(w) to [1 - clip, 1 + clip]
    mean over prompts; of K completions the mean over the K - 1 others, summed over completions

Differs from rloo:  a pairwise clip and several passes over the rollouts; two completions per prompt; the sum over them.
Limits:  adding anything to all rewards of a prompt changes nothing. While the policy is the one that sampled, the gradient is
    rloo's, summed over a prompt's completions, in either form.
Expects:  two or more completions per prompt. Ratios of whole completions grow with the length: the joint form ends a pair's
    gradient once |l| > clip.
Source:  Wu et al. 2023 (arXiv:2310.00212). There is no public code. The gradient, the KL in the reward and the loop follow the
    paper; the two clipped forms, `joint` True (V2) and False (V1), are from memory.
Deviations:  beta = 0.1, clip = 0.2 and two epochs are our choice. Log-ratios are kept within +-20. More than two completions are
    our extension.
Not this:  PPO's clip, which looks at one completion, or at a token.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.rloo import rloo
from upslope.parts.aggregate import GroupSum
from upslope.parts.kl import KLInReward
from upslope.parts.sampling import Sample, Update
from upslope.parts.surrogate import log_ratio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class PairwiseClip(Part):
    """The loss of each completion against the others of its prompt, [R], as above: `joint` clip of both, or separate ones."""

    clip: float = 0.2
    joint: bool = True
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    couples_group: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "old_logp", "group"})

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1:
            raise UsageError(f"PairwiseClip(clip={self.clip:g}): it must be in (0, 1), e.g. 0.2.")

    def describe(self) -> str:
        if self.joint:
            return f"-min(c l, c clip(l, +-{self.clip:g})), c = sg[(r_i - r_j) w_i w_j], l = log(w_i / w_j)"
        return f"-min(a w_i sg[w_j], a clip(w_i) sg[clip(w_j)]), a = r_i - r_j, clip to 1 +- {self.clip:g}"

    def __call__(self, batch: Batch) -> Tensor:
        moved = log_ratio(batch, "sequence")
        mates, among = self._mates(batch)
        gap = torch.where(mates, batch.reward.unsqueeze(1) - batch.reward, 0.0)
        ratio = moved.exp()
        if self.joint:
            force = gap * (ratio * ratio.T).detach() / 2  # a pair stands in the rows of both
            difference = moved - moved.T
            gain = force * difference
            clipped = force * difference.clamp(-self.clip, self.clip)
        else:
            bounded = ratio.clamp(1 - self.clip, 1 + self.clip)
            gain, clipped = gap * ratio * ratio.T.detach(), gap * bounded * bounded.T.detach()
        return -torch.where(clipped < gain, clipped, gain).sum(1) / among.clamp(min=1)

    def stats(self, batch: Batch) -> Stats:
        """Share of pairs of which the difference of log-ratios is beyond the clip."""
        moved, (mates, among) = log_ratio(batch, "sequence"), self._mates(batch)
        beyond = mates & ((moved - moved.T).abs() > self.clip)
        return {"pairs/beyond_clip": beyond.sum(1) / among.clamp(min=1), "ratio/mean": moved.exp().squeeze(1)}

    def _mates(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which rows are compared, [R, R] bool, and with how many others each is, [R]."""
        fit = batch.trained & batch.valid
        mates = (batch.group.unsqueeze(1) == batch.group) & fit.unsqueeze(1) & fit
        mates = mates & ~torch.eye(len(batch), dtype=torch.bool, device=mates.device)
        return mates, mates.sum(1).to(batch.dtype)


@method(
    paper="2310.00212",
    title="Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment",
    parent="rloo",
)
def p3o() -> Recipe:
    return rloo().replace(
        rollout=Sample(group_size=2),
        reward=KLInReward(beta=0.1, level="sequence"),
        advantage=None,
        surrogate=PairwiseClip(clip=0.2, joint=True),
        aggregate=GroupSum(),
        update=Update(epochs=2),
    )
