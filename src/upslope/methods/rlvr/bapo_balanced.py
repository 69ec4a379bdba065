"""BAPO: clip bounds widened in every mini-batch until tokens of positive advantage make up a target share of the objective.

    P, N    sum over tokens with A > 0 of mu min(r, c_high) A; with A < 0 of mu max(r, c_low) |A|; mu = exp(old_logp)
    search  c_low = 0.6, c_high = 1.2; while P / (P + N) < target: c_high + 0.05 up to 3, then c_low + 0.02 up to 0.9
    A_i     (R_i - mean of group) / (standard deviation of group + eps), copied to the tokens              [R]
    loss    mean over the batch's tokens of max(-A r, -A clip(r, c_low, c_high))

Differs from grpo:  the bounds, searched for by a control part over the whole mini-batch; the token mean; no KL.
Limits:  target = 0 is the clip (0.6, 1.2); so are ranges without width (low_end = low_start, high_end = high_start). At r = 1
    every bound gives grpo's gradient with beta = 0 and a token mean.
Expects:  stale data, such as several updates per batch of rollouts: with one, r = 1 and the bounds do not matter. Where a
    mini-batch spans several micro-batches, a control costs one more forward pass per update, about a third of the update.
Source:  Xi et al. 2025 (arXiv:2510.18927), its share, search, ranges and target 0.4 (0.5 in the README of WooooDyy/BAPO).
Deviations:  four mini-batches in two passes and 16 completions are those of the released script. Raising c_high raises the
    share, but raising c_low lowers it: the negatives that it clips count more, not less. So the paper's second phase moves the
    measured share away from the target, and c_low ends at low_end whenever c_high was not enough; it is kept, and the share
    logged. measure="gradient" counts a token beyond its bound as 0, as its gradient is: then both moves raise the share.
Not this:  bapo_balanced@released: c_low first, P / N >= 1 without mu, narrower ranges and a dual clip; there each micro-batch
    searches for itself. Two other papers are called BAPO. Bounds are of the ratio itself, not distances from 1.
Claim:  holds entropy and learns on stale data: not distinguishable from PPO's clip in the study "stale" (5 seeds,
    chain_sum): +0.007 [-0.019, +0.031] at 16 updates per step, entropy 0.158 beside 0.163.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import TokenMean
from upslope.parts.sampling import Sample, Update
from upslope.parts.surrogate import ControlledClip, check_interval, token_ratio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method, preset


@dataclass(frozen=True)
class BoundSearch(Part):
    """The columns ratio_low, ratio_high and positive_share [R], each one number for the mini-batch, as above.

    form       what reaches `target`: the "share" P / (P + N), or the "ratio" P / N
    first      the bound that is raised first
    weighted   with mu; False takes mu = 1
    measure    "value" counts tokens as in the formula, "gradient" those beyond their bound as 0
    """

    target: float = 0.4
    low_start: float = 0.6
    low_end: float = 0.9
    low_step: float = 0.02
    high_start: float = 1.2
    high_end: float = 3.0
    high_step: float = 0.05
    form: Literal["share", "ratio"] = "share"
    first: Literal["low", "high"] = "high"
    weighted: bool = True
    measure: Literal["value", "gradient"] = "value"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp"})
    makes: ClassVar[frozenset[str]] = frozenset({"ratio_low", "ratio_high", "positive_share"})

    def __post_init__(self) -> None:
        check_interval(self, self.low_end, self.high_start, around=1.0)
        for end in ("low", "high"):
            start, stop, step = (getattr(self, f"{end}_{name}") for name in ("start", "end", "step"))
            if not (0 <= start <= stop and step > 0):
                raise UsageError(
                    f"BoundSearch raises the {end} bound from {end}_start={start:g} to {end}_end={stop:g} by "
                    f"{end}_step={step:g}. Choose 0 <= {end}_start <= {end}_end and a step over 0."
                )

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        ratio = token_ratio(batch)
        weight = batch.advantage.abs()
        if self.weighted:
            weight = weight * batch.old_logp.exp()
        for low, high in self.bounds():
            positive, negative = self._sums(batch.advantage, ratio, weight, low, high)
            if positive >= self.target * (negative + (positive if self.form == "share" else 0)):
                break
        total = positive + negative
        found = {"ratio_low": low, "ratio_high": high, "positive_share": positive / total if total else 0.0}
        return {name: torch.full_like(ratio[:, 0], value, dtype=batch.dtype) for name, value in found.items()}

    def bounds(self) -> Iterator[tuple[float, float]]:
        """(c_low, c_high) in the order of the search: all of the first bound's values, then the second's further ones."""
        lows = _grid(self.low_start, self.low_end, self.low_step)
        highs = _grid(self.high_start, self.high_end, self.high_step)
        if self.first == "high":
            yield from ((lows[0], high) for high in highs)
            yield from ((low, highs[-1]) for low in lows[1:])
        else:
            yield from ((low, highs[0]) for low in lows)
            yield from ((lows[-1], high) for high in highs[1:])

    def _sums(self, advantage: Tensor, ratio: Tensor, weight: Tensor, low: float, high: float) -> tuple[float, float]:
        """P and N of these bounds."""
        rises, falls = advantage > 0, advantage < 0
        if self.measure == "gradient":
            rises, falls = rises & (ratio <= high), falls & (ratio >= low)
        positive = (weight * ratio.clamp(max=high))[rises].sum()
        negative = (weight * ratio.clamp(min=low))[falls].sum()
        return float(positive), float(negative)

    def stats(self, batch: Batch) -> Stats:
        return {f"clip/{name}": getattr(batch, name) for name in sorted(self.makes)}


def _grid(start: float, end: float, step: float) -> list[float]:
    """start, start + step, ... and `end`, at which the last step is cut off."""
    values = [start]
    while values[-1] < end:
        values.append(min(round(start + len(values) * step, 9), end))
    return values


@method(
    paper="2510.18927",
    title=(
        "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with Adaptive Clipping"
    ),
    parent="grpo",
)
def bapo_balanced() -> Recipe:
    return grpo().replace(
        rollout=Sample(group_size=16),
        control=BoundSearch(),
        surrogate=ControlledClip(),
        regularizer=None,
        aggregate=TokenMean(),
        update=Update(minibatches=4, epochs=2),
    )


@preset("released", version="3b8389c")
def bapo_balanced_released() -> Recipe:
    search = BoundSearch(
        target=1.0, low_end=0.8, low_step=0.05, high_end=2.0, form="ratio", first="low", weighted=False
    )
    advantage = GroupBaseline(eps=1e-6, lone="reward")
    return bapo_balanced().replace(advantage=advantage, control=search, surrogate=ControlledClip(dual=3.0))
