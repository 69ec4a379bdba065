"""RiskPO: bundles of prompts, whose joint score counts most in the lower tail and not at all beyond the upper quantile.

    S_j    sum of the rewards of paper j: the j-th completion of each of a bundle's prompts
    q, q'  quantiles of S at the levels a and a', tracked over the steps: q <- q + tracker_lr (a - share of papers with S < q)
    V_j    [(S - q)+ - (S - q')+ + c] / (a' - a),  c = q - q', the natural baseline, or 0
    C_j    -(q - S)+ / a;  risk="seeking": (S - q')+ / (1 - a')
    P_j    (w C + V) / (w + 1), over the standard deviation of S in the bundle
    A_i    P of the completion's paper, by `credit`: "std", over the deviation of the prompt's rewards; "uniform", as it is;
           "score", times 1/2 if rewarded, 3/2 if not; "sum-mean", times R_i - mean of prompt over the paper's sum of those  [R]
    loss   mean over sequences of the mean over tokens of max(-A r, -A clip(r, 0.8, 1.2))

Differs from grpo:  the advantage; groups of 5; two mini-batches; no KL.
Limits:  w = 0 with quantiles at the lowest and highest score, c on and no scale is reinforce with the highest score as
    baseline. V is flat below q and above q', C above q: with c on, a paper beyond q' has A = 0.
Expects:  batches of several bundles (bundle_size prompts each; the last may be smaller), groups of equal size: a
    completion whose number exceeds the bundle's smallest group is in no paper and has A = 0. With c on, every A is
    negative or 0 (credit "sum-mean" and risk "seeking" aside), so every token is pushed down, which the clip bounds.
    riskpo@dapo_math is the authors' setting for hard tasks, c off. risk="seeking" is the paper's control, in which
    entropy collapses.
Source:  Ren et al. 2025 (arXiv:2510.00911); the authors' code (RTkenny/RiskPO, 8dce3fa), core_algos.py and
    ray_trainer.py.
Deviations:  quantiles: "track" uses the tracked ones (in the first step the batch's, with which they start), "batch" each
    bundle's own, "mix" the mean of both. In their code every batch is new, and the tracked quantiles are put into it
    after its advantages: all three are "batch" there, as in riskpo@released. A bundle whose papers score alike has 1 for
    its deviation: theirs is 0, and a tracked quantile elsewhere makes A a million. Only the two levels are tracked, not
    their grid of 19, since no level reads another; their baseline by the integral over the grid is off in their scripts
    and absent here.
Not this:  a risk measure over tokens or over one prompt's completions; bundles are of different prompts.
Claim:  more from hard prompts: not seen in the study "degenerate" (5 seeds): -0.026 [-0.041, -0.012] on very easy prompts;
    on very hard ones no method learns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import group_std
from upslope.parts.aggregate import TokenMean
from upslope.parts.sampling import Sample, Update
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe, State
from upslope.registry import method, preset


@dataclass(frozen=True)
class BundledRisk(Part):
    """A [R], as above. The state: the steps taken, the tracked quantiles `low` and `high`.

    Groups are bundled in their order, completions numbered by `trajectory`; failed rewards are in no paper. Raises UsageError
    unless 0 < level_low < level_high < 1.
    """

    bundle_size: int = 5
    level_low: float = 0.2
    level_high: float = 0.9
    tail_weight: float = 1.5
    risk: Literal["averse", "seeking"] = "averse"
    natural_baseline: bool = True
    scale: Literal["bundle_std"] | None = "bundle_std"
    credit: Literal["std", "uniform", "score", "sum-mean"] = "std"
    quantiles: Literal["track", "batch", "mix"] = "track"
    tracker_lr: float = 0.1
    eps: float = 1e-6
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "trajectory"})

    def __post_init__(self) -> None:
        if not 0 < self.level_low < self.level_high < 1:
            raise UsageError(
                f"BundledRisk(level_low={self.level_low:g}, level_high={self.level_high:g}): choose 0 < level_low < level_high "
                "< 1, e.g. 0.2 and 0.9."
            )
        if self.bundle_size < 1:
            raise UsageError(f"BundledRisk.bundle_size is {self.bundle_size}; it must be at least 1.")

    def init(self) -> State:
        return {"step": 0, "low": 0.0, "high": 0.0}

    def describe(self) -> str:
        tail = "lower" if self.risk == "averse" else "upper"
        return (
            f"mixed value at risk of the sum of reward over bundles of {self.bundle_size} prompts, levels "
            f"{self.level_low:g} and {self.level_high:g}, {tail} tail times {self.tail_weight:g}, credit '{self.credit}'"
        )

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        papers = papers_of(batch, self.bundle_size)
        scores = papers.sum(batch.reward)
        levels = scores.new_tensor([self.level_low, self.level_high])
        tracked = scores.new_tensor([state["low"], state["high"]]) if state["step"] else scores.quantile(levels)
        performance = self._risk(scores, self._quantiles(papers, scores, levels, tracked))
        if self.scale is not None:
            performance = performance / (papers.by_bundle(scores, spread) + self.eps)
        advantage = torch.zeros_like(batch.reward)
        advantage[papers.rows] = performance[papers.paper] * self._credit(batch, papers)
        if state["step"]:
            tracked = tracked + self.tracker_lr * (levels - (scores.unsqueeze(1) < tracked).to(scores.dtype).mean(0))
        low, high = tracked.tolist()
        return advantage, {"step": state["step"] + 1, "low": low, "high": high}

    def _quantiles(self, papers: "Papers", scores: Tensor, levels: Tensor, tracked: Tensor) -> Tensor:
        """Low and high quantile for each paper, [P, 2]."""
        if self.quantiles == "track":
            return tracked.expand(len(scores), 2)
        own = papers.by_bundle(scores, lambda values: values.quantile(levels))
        return own if self.quantiles == "batch" else (own + tracked) / 2

    def _risk(self, scores: Tensor, quantiles: Tensor) -> Tensor:
        """(w C + V) / (w + 1) of scores [P]."""
        low, high = quantiles.unbind(1)
        between = (scores - low).clamp(min=0) - (scores - high).clamp(min=0)
        if self.natural_baseline:
            between = between + low - high
        between = between / (self.level_high - self.level_low + self.eps)
        if self.risk == "averse":
            tail = -(low - scores).clamp(min=0) / (self.level_low + self.eps)
        else:
            tail = (scores - high).clamp(min=0) / (1 - self.level_high + self.eps)
        return (self.tail_weight * tail + between) / (self.tail_weight + 1)

    def _credit(self, batch: Batch, papers: "Papers") -> Tensor:
        """What a paper's performance is multiplied by for each of its rows, [rows in papers]."""
        reward, prompt = batch.reward[papers.rows], batch.group[papers.rows]
        if self.credit == "std":
            return 1 / (or_one(group_std(batch, batch.reward))[prompt] + self.eps)
        if self.credit == "score":
            return torch.where(reward > 0, 0.5, 1.5)
        if self.credit == "sum-mean":
            above = batch.reward - batch.group_mean(batch.reward)[0][batch.group]
            total = papers.sum(above)[papers.paper]
            clear = total.abs() > self.eps
            equal = 1 / papers.sum(torch.ones_like(above))[papers.paper]
            return torch.where(clear, above[papers.rows] / torch.where(clear, total, 1.0), equal)
        return torch.ones_like(reward)


@dataclass(frozen=True)
class Papers:
    """Which rows make up which of P papers.   rows [r]: those in a paper; paper [r]: theirs; bundle [P]: that of each paper."""

    rows: Tensor
    paper: Tensor
    bundle: Tensor

    def sum(self, column: Tensor) -> Tensor:
        """Sum of a row column [R] over each paper, [P]."""
        return column.new_zeros(len(self.bundle)).index_add_(0, self.paper, column[self.rows])

    def by_bundle(self, scores: Tensor, statistic: Callable[[Tensor], Tensor]) -> Tensor:
        """A statistic of the scores [P] of each bundle's papers, for each paper, [P, ...]."""
        names, bundle = self.bundle.unique(return_inverse=True)
        return torch.stack([statistic(scores[self.bundle == name]) for name in names])[bundle]


def papers_of(batch: Batch, bundle_size: int) -> Papers:
    """Papers of the valid rows: bundles of prompts in the order of their groups, completions in that of `trajectory`."""
    count = batch.group_mean(batch.reward)[1].long()
    bundle = (count > 0).cumsum(0).sub(1).clamp(min=0) // bundle_size
    fewest = count.new_full(count.shape, len(batch)).scatter_reduce(0, bundle[count > 0], count[count > 0], "amin")
    rows = batch.valid.nonzero().squeeze(1)
    rows = rows[batch.trajectory[rows].argsort(stable=True)]
    rows = rows[batch.group[rows].argsort(stable=True)]
    group = batch.group[rows]
    number = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[group]
    inside = number < fewest[bundle[group]]
    keys, paper = (bundle[group] * len(batch) + number)[inside].unique(return_inverse=True)
    return Papers(rows[inside], paper, keys // len(batch))


def spread(scores: Tensor) -> Tensor:
    """Standard deviation (n - 1) of the scores, 1 where they are alike or there is one."""
    return or_one(scores.std() if len(scores) > 1 else scores.new_zeros(()))


def or_one(deviation: Tensor) -> Tensor:
    """The deviation where it is over 0.001, else 1."""
    return torch.where(deviation > 1e-3, deviation, 1.0)


@method(
    paper="2510.00911",
    title="RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training",
    parent="grpo",
)
def riskpo() -> Recipe:
    return grpo().replace(
        rollout=Sample(group_size=5), advantage=BundledRisk(), regularizer=None, update=Update(minibatches=2)
    )


@preset("dapo_math", version="8dce3fa")
def riskpo_dapo_math() -> Recipe:
    return riskpo().replace(
        rollout=Sample(group_size=10),
        advantage=BundledRisk(level_high=0.8, natural_baseline=False, credit="sum-mean"),
        update=Update(minibatches=4),
    )


@preset("released", version="8dce3fa")
def riskpo_released() -> Recipe:
    return riskpo().replace(
        advantage=BundledRisk(quantiles="batch"), surrogate=ClippedRatio(0.8, 1.2, dual=3.0), aggregate=TokenMean()
    )
