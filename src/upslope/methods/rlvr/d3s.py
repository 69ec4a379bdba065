"""D3S: of each batch the samples whose advantages differ most, and of those the tokens with much advantage and entropy.

    A_i   (R_i - mean of group) / (standard deviation of group + eps)                                      [R]
    S     the n of the batch's N completions with the largest variance of A: k largest and n - k smallest, for the best k
    w     1 for the K % of S's tokens with the largest |A| H, else 0; H the sampling policy's entropy      [R, T]
    n, K  from N / 4 and 20 % at the start of the run to N and 100 % at its end, linearly
    loss  mean over the tokens with w = 1 of max(-A r, -A clip(r, 0.8, 1.2))

Differs from grpo:  the two selections and their schedule; the token mean; no KL.
Limits:  n = N and K = 100 % is grpo with beta = 0 and a token mean. -A selects the same tokens as A, but for ties.
Expects:  the selection drops completions without reweighting the rest, so it is biased towards extreme advantages. The engine
    records H while it samples: no extra pass. Completions outside S are not computed in the update.
Source:  Wang et al. 2025 (arXiv:2509.22115), at second hand: from summaries of its text; there is no public code.
Deviations:  the ends of the schedule are a proposal, the paper's figures being unknown to us. The denominator and the lack of a
    KL term are our reading. One summary selects within each group before it does across the batch; here across only. With
    GSPO as the base only completions are selected: tokens_start=1, tokens_end=1, surrogate and aggregate gspo's.
Not this:  PODS (arXiv:2504.13818) maximizes the variance of the rewards within each group, which selects as scope="group" does.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.aggregate import TokenMean
from upslope.recipe import Part, Recipe
from upslope.registry import method


@dataclass(frozen=True)
class DualSelection(Part):
    """w [R, T], as above. `rows_*` are n / N, `tokens_*` K / 100, both rounded up to whole completions and tokens.

    `scope="group"` selects completions within each group. Advantages are compared to 5 decimals, and among equals the earlier
    trajectory (then the earlier token) comes first, so that neither rounding nor the order of rows decides.
    """

    rows_start: float = 0.25
    rows_end: float = 1.0
    tokens_start: float = 0.2
    tokens_end: float = 1.0
    scope: Literal["batch", "group"] = "batch"

    def __post_init__(self) -> None:
        for name in ("rows_start", "rows_end", "tokens_start", "tokens_end"):
            share = getattr(self, name)
            if not 0 < share <= 1:
                raise UsageError(f"DualSelection.{name} is {share:g}; it is a share: over 0, at most 1, e.g. 0.25.")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads `group` where it selects within groups."""
        return frozenset({"advantage", "entropy", "trajectory"} | ({"group"} if self.scope == "group" else set()))

    def describe(self) -> str:
        rows, tokens = f"{self.rows_start:g} to {self.rows_end:g}", f"{self.tokens_start:g} to {self.tokens_end:g}"
        return (
            f"1 for the share {tokens} of tokens with the largest |A| H, in the share {rows} of the {self.scope}'s "
            "completions with the largest variance of A, else 0"
        )

    def __call__(self, batch: Batch) -> Tensor:
        order = batch.trajectory.argsort()
        mask, advantage, entropy = batch.mask[order], batch.advantage[order], batch.entropy[order]
        group = batch.group[order] if self.scope == "group" else torch.zeros_like(order)
        done, mean = float(batch.progress.max()), advantage.sum(1) / mask.sum(1).clamp(min=1)
        kept = torch.zeros_like(mask)
        for index in group.unique():
            rows = (mask.any(1) & (group == index)).nonzero().squeeze(1)
            count = share_of(len(rows), self.rows_start + (self.rows_end - self.rows_start) * done)
            kept[rows[most_varied(mean[rows], count)]] = True
        kept &= mask
        count = share_of(int(kept.sum()), self.tokens_start + (self.tokens_end - self.tokens_start) * done)
        score = torch.where(kept, advantage.abs() * entropy, -torch.inf).flatten()
        chosen = torch.zeros_like(score, dtype=batch.dtype)
        chosen[score.argsort(descending=True, stable=True)[:count]] = 1.0
        return chosen.view(mask.shape)[order.argsort()]


def share_of(total: int, share: float) -> int:
    """`share` of `total`, rounded up; an excess that is mere rounding does not count."""
    return math.ceil(total * share - 1e-9)


def most_varied(values: Tensor, count: int) -> Tensor:
    """Indices [count] of a subset of `values` [n] with the largest variance: the k largest and the count - k smallest.

    A largest one has this form, since the variance is convex in each value: moving it to one of the two sides never lowers it.
    """
    ordered, places = values.double().round(decimals=5).sort(stable=True)
    sums, squares = (torch.cat([column.new_zeros(1), column.cumsum(0)]) for column in (ordered, ordered**2))
    largest = torch.arange(count + 1)
    smallest, start = count - largest, len(values) - largest
    total, square = (column[smallest] + column[-1] - column[start] for column in (sums, squares))
    best = int((square - total**2 / max(count, 1)).argmax())
    return torch.cat([places[: count - best], places[len(values) - best :]])


@method(
    paper="2509.22115",
    title="Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy Optimization",
    parent="grpo",
)
def d3s() -> Recipe:
    return grpo().replace(weight=DualSelection(), regularizer=None, aggregate=TokenMean(denominator="kept"))
