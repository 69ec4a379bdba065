"""What is differentiated: losses per token [R, T] or per sequence [R], to be minimised."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part, Stats


@dataclass(frozen=True)
class PolicyGradient(Part):
    """The score function: -A logp per token. Its gradient is REINFORCE's (Williams 1992)."""

    formula: ClassVar[str] = "-A logp"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        return -batch.advantage * batch.logp


@dataclass(frozen=True)
class ClippedRatio(Part):
    """PPO's pessimistic clip per token: max(-A r, -A clip(r, ratio_low, ratio_high)), r = exp(logp - old_logp).

    `dual` (c > 1) bounds the loss of negative advantages: min(loss, -A c) where A < 0. The log-ratio is kept within +-20, as
    verl does, so that r stays finite; a token beyond has no gradient. Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7.
    """

    ratio_low: float = 0.8
    ratio_high: float = 1.2
    dual: float | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_interval(self, self.ratio_low, self.ratio_high, around=1.0)
        if self.dual is not None and self.dual <= 1:
            raise UsageError(
                f"ClippedRatio(dual={self.dual:g}): it bounds ratios from above, so it must be over 1, e.g. 3."
            )

    def describe(self) -> str:
        clipped = f"max(-A r, -A clip(r, {self.ratio_low:g}, {self.ratio_high:g}))"
        return clipped if self.dual is None else f"[{clipped}; at most -{self.dual:g} A where A < 0]"

    def __call__(self, batch: Batch) -> Tensor:
        ratio = token_ratio(batch)
        loss = clip_loss(batch.advantage, ratio, self.ratio_low, self.ratio_high)
        if self.dual is not None:
            loss = torch.where(batch.advantage < 0, torch.minimum(loss, -batch.advantage * self.dual), loss)
        return loss

    def stats(self, batch: Batch) -> Stats:
        return clip_stats(batch.advantage, token_ratio(batch), self.ratio_low, self.ratio_high)


@dataclass(frozen=True)
class ClippedSequenceRatio(Part):
    """PPO's clip with one ratio per sequence, [R]: max(-A s, -A clip(s, ratio_low, ratio_high)).

    s = exp(mean over the sequence's tokens of logp - old_logp), GSPO's, whose interval is narrow because a mean moves little; or
    exp(sum over them), the true ratio of the sequence, with `length_normalized` False. The exponent is kept within +-20.
    Raises UsageError where the advantage differs within a sequence.
    """

    ratio_low: float = 1 - 3e-4
    ratio_high: float = 1 + 4e-4
    length_normalized: bool = True
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_interval(self, self.ratio_low, self.ratio_high, around=1.0)

    def describe(self) -> str:
        over = "mean" if self.length_normalized else "sum"
        return f"max(-A s, -A clip(s, {self.ratio_low:g}, {self.ratio_high:g})), s = exp({over} of logp - old_logp)"

    def __call__(self, batch: Batch) -> Tensor:
        return clip_loss(batch.per_row("advantage"), self._ratio(batch), self.ratio_low, self.ratio_high)

    def stats(self, batch: Batch) -> Stats:
        return clip_stats(batch.per_row("advantage"), self._ratio(batch), self.ratio_low, self.ratio_high)

    def _ratio(self, batch: Batch) -> Tensor:
        moved = (batch.logp - batch.old_logp).sum(1)
        exponent = moved / batch.length.clamp(min=1) if self.length_normalized else moved
        return exponent.clamp(-20.0, 20.0).exp()


def check_interval(part: Part, low: float, high: float, *, around: float) -> None:
    """Raises UsageError unless low <= around <= high: an interval that leaves out the unmoved policy clips every token."""
    if not low <= around <= high:
        example = "0.8 and 1.2 of the ratio for a clip of 0.2" if around else "-0.4 and 0.4 of the log-ratio"
        raise UsageError(
            f"{type(part).__name__} clips to [{low:g}, {high:g}], which leaves out {around:g}, where the policy has not moved. "
            f"Give the bounds of the interval itself, e.g. {example}."
        )


def token_ratio(batch: Batch) -> Tensor:
    """exp(logp - old_logp) [R, T], the exponent kept within +-20."""
    return (batch.logp - batch.old_logp).clamp(-20.0, 20.0).exp()


def clip_loss(advantage: Tensor, ratio: Tensor, low: float, high: float) -> Tensor:
    """max(-A r, -A clip(r, low, high)), elementwise; a tie takes the unclipped branch's gradient."""
    plain, clipped = -advantage * ratio, -advantage * ratio.clamp(low, high)
    return torch.where(clipped > plain, clipped, plain)


def clip_stats(advantage: Tensor, ratio: Tensor, low: float, high: float) -> Stats:
    """Shares of tokens (or rows) whose gradient the clip removes, by the bound, and the estimated KL(old || new)."""
    above = (ratio > high) & (advantage > 0)
    below = (ratio < low) & (advantage < 0)
    return {
        "ratio/clip_fraction": (above | below).to(ratio.dtype),
        "ratio/clip_fraction_high": above.to(ratio.dtype),
        "ratio/clip_fraction_low": below.to(ratio.dtype),
        "ratio/mean": ratio,
        "ratio/kl": ratio - 1 - ratio.log(),
    }
