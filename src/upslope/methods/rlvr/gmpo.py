"""GMPO: the geometric mean of the token ratios, each clipped before the mean, where it would go too far.

    A_i   (R_i - mean of group) / (standard deviation of group + eps)                                      [R]
    d     logp - old_logp; where A > 0 at most log_ratio_high, where A < 0 at least log_ratio_low          [R, T]
    rho_i exp(mean over tokens of d)                                                                       [R]
    loss  mean over sequences of -A rho

Differs from grpo:  the geometric mean per sequence; the clip in log space, on one side of it; no KL.
Limits:  with no token outside the interval rho is gspo's s; at r = 1 it is grpo with beta = 0.
Expects:  several updates per batch of rollouts: with one, nothing is ever clipped.
Source:  Zhao et al. 2025 (arXiv:2507.20673), eq. 4; the authors' train_zero_math_gmpo.py; ratios within exp(-0.4), exp(0.4).
Deviations:  each log-ratio is kept within +-20, so that rho stays finite. TRL and verl do not.
Not this:  bounds of the ratio: log_ratio_high=0.4 is a ratio of 1.49. gspo clips after the mean.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import RowMean
from upslope.parts.sampling import Update
from upslope.parts.surrogate import check_interval
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method, preset


@dataclass(frozen=True)
class GeometricMeanRatio(Part):
    """-A rho per sequence [R], as above. Raises UsageError where the advantage differs within a sequence."""

    log_ratio_low: float = -0.4
    log_ratio_high: float = 0.4
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_interval(self, self.log_ratio_low, self.log_ratio_high, around=0.0)

    def describe(self) -> str:
        bounds = f"at most {self.log_ratio_high:g} where A > 0, at least {self.log_ratio_low:g} where A < 0"
        return f"-A exp(mean of [logp - old_logp, {bounds}])"

    def __call__(self, batch: Batch) -> Tensor:
        advantage = batch.per_row("advantage")
        moved = (batch.logp - batch.old_logp).clamp(-20.0, 20.0)
        capped, raised = moved.clamp(max=self.log_ratio_high), moved.clamp(min=self.log_ratio_low)
        clipped = torch.where(advantage.unsqueeze(1) > 0, capped, raised)
        return -advantage * (clipped.sum(1) / batch.length.clamp(min=1)).exp()

    def stats(self, batch: Batch) -> Stats:
        moved = batch.logp - batch.old_logp
        above = (moved > self.log_ratio_high) & (batch.advantage > 0)
        below = (moved < self.log_ratio_low) & (batch.advantage < 0)
        return {
            "ratio/clip_fraction": (above | below).to(moved.dtype),
            "ratio/clip_fraction_high": above.to(moved.dtype),
            "ratio/clip_fraction_low": below.to(moved.dtype),
        }


@method(paper="2507.20673", title="Geometric-Mean Policy Optimization", parent="grpo")
def gmpo() -> Recipe:
    return grpo().replace(
        surrogate=GeometricMeanRatio(), regularizer=None, aggregate=RowMean(), update=Update(minibatches=4)
    )


@preset("trl", version="1.16.0")
def gmpo_trl() -> Recipe:
    return gmpo().replace(advantage=GroupBaseline(eps=1e-4), update=Update())
