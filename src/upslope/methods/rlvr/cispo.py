"""CISPO: the policy gradient weighted by a clipped ratio that is held constant, so that every token keeps a gradient.

    A_i   (R_i - mean of group) / (standard deviation of group + eps), copied to the tokens                [R]
    w     clip(r, ratio_min, ratio_max), constant                                                          [R, T]
    loss  mean over the batch's tokens of -w A logp

Differs from grpo:  the clip bounds a weight, not the objective; the token mean; no KL.
Limits:  at r = 1 its gradient is grpo's with beta = 0 and a token mean; ratio_max to infinity is the importance-weighted
    policy gradient, the gradient of r A.
Expects:  several updates per batch of rollouts: with one, w = 1 and it is REINFORCE with grpo's A.
Source:  MiniMax-M1 (arXiv:2506.13585), eq. 4 and 5; the bound 5 from ScaleRL (arXiv:2510.13786).
Deviations:  the paper tunes the upper bound but does not give it; the lower bound is effectively absent, here 0.
Not this:  ratio_max bounds the ratio itself, as TRL's epsilon_high does (cispo@trl; left unset there, it bounds it by 0.2).
    verl adds its clip_ratio_high to 1, and keeps a lower bound: cispo@verl is (0.8, 1.2).
Claim:  keeps learning from clipped tokens: in the study "stale" (5 seeds, chain_sum) as PPO's clip at one update per step,
    behind it at 16, -0.040 [-0.066, -0.013].
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import TokenMean
from upslope.parts.sampling import Update
from upslope.parts.surrogate import check_interval, token_ratio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method, preset


@dataclass(frozen=True)
class ClippedWeight(Part):
    """-w A logp per token [R, T], as above. The log-ratio is kept within +-20."""

    ratio_max: float = 5.0
    ratio_min: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_interval(self, self.ratio_min, self.ratio_max, around=1.0)

    def describe(self) -> str:
        return f"-[clip(r, {self.ratio_min:g}, {self.ratio_max:g})] A logp, [.] constant"

    def __call__(self, batch: Batch) -> Tensor:
        weight = token_ratio(batch).detach().clamp(self.ratio_min, self.ratio_max)
        return -weight * batch.advantage * batch.logp

    def stats(self, batch: Batch) -> Stats:
        ratio = token_ratio(batch)
        clipped = (ratio > self.ratio_max) | (ratio < self.ratio_min)
        return {
            "ratio/clip_fraction": clipped.to(ratio.dtype),
            "ratio/mean": ratio,
            "ratio/kl": ratio - 1 - ratio.log(),
        }


@method(
    paper="2506.13585",
    title="MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
    parent="grpo",
)
def cispo() -> Recipe:
    return grpo().replace(
        surrogate=ClippedWeight(ratio_max=5.0), regularizer=None, aggregate=TokenMean(), update=Update(minibatches=4)
    )


@preset("trl", version="1.16.0")
def cispo_trl() -> Recipe:
    return cispo().replace(advantage=GroupBaseline(eps=1e-4), update=Update())


@preset("verl", version="018f23b")
def cispo_verl() -> Recipe:
    return cispo().replace(
        advantage=GroupBaseline(eps=1e-6, lone="reward"), surrogate=ClippedWeight(ratio_max=1.2, ratio_min=0.8)
    )
