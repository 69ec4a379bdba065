"""What is differentiated: losses per token [R, T] or per sequence [R], to be minimised."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part, Stats

RatioLevel = Literal["token", "sequence", "geometric_mean"]
Bound = TypeVar("Bound", float, Tensor)


@dataclass(frozen=True)
class PolicyGradient(Part):
    """The score function: -A logp per token. Its gradient is REINFORCE's (Williams 1992)."""

    formula: ClassVar[str] = "-A logp"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        return -batch.advantage * batch.logp


@dataclass(frozen=True)
class ImportanceRatio(Part):
    """-A r per token, r = exp(logp - old_logp) without a clip; the exponent is kept within +-20."""

    formula: ClassVar[str] = "-A r"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        return -batch.advantage * token_ratio(batch)


@dataclass(frozen=True)
class EntropyLoss(Part):
    """-coefficient times the entropy of the next-token distribution, per token, with gradient."""

    coefficient: float = 0.001
    formula: ClassVar[str] = "-{coefficient} entropy"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, batch: Batch) -> Tensor:
        return -self.coefficient * batch.entropy


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
        check_dual(self, self.dual)

    def describe(self) -> str:
        return dual_text(f"max(-A r, -A clip(r, {self.ratio_low:g}, {self.ratio_high:g}))", self.dual)

    def __call__(self, batch: Batch) -> Tensor:
        loss = clip_loss(batch.advantage, token_ratio(batch), self.ratio_low, self.ratio_high)
        return dual_clip(loss, batch.advantage, self.dual)

    def stats(self, batch: Batch) -> Stats:
        return clip_stats(batch.advantage, token_ratio(batch), self.ratio_low, self.ratio_high)


@dataclass(frozen=True)
class ScheduledClip(ClippedRatio):
    """ClippedRatio; with schedule "linear" its interval closes on 1 as the run goes on: 1 + (bound - 1) (1 - progress).

    progress is the share of the run's steps that are over: 0 in the first, (n - 1) / n in the last of n.
    """

    schedule: Literal["constant", "linear"] = "constant"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The share of the run that is over too, where the interval follows it."""
        return ClippedRatio.needs | ({"progress"} if self.schedule == "linear" else frozenset())

    def describe(self) -> str:
        closing = ", closing on 1 linearly over the run" if self.schedule == "linear" else ""
        return super().describe() + closing

    def __call__(self, batch: Batch) -> Tensor:
        return dual_clip(
            clip_loss(batch.advantage, token_ratio(batch), *self._bounds(batch)), batch.advantage, self.dual
        )

    def stats(self, batch: Batch) -> Stats:
        return clip_stats(batch.advantage, token_ratio(batch), *self._bounds(batch))

    def _bounds(self, batch: Batch) -> tuple[Any, Any]:
        if self.schedule == "constant":
            return self.ratio_low, self.ratio_high
        left = (1 - batch.progress).unsqueeze(1)
        return 1 + (self.ratio_low - 1) * left, 1 + (self.ratio_high - 1) * left


@dataclass(frozen=True)
class ControlledClip(Part):
    """ClippedRatio between bounds that a control part sets: the columns ratio_low and ratio_high [R]."""

    dual: float | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp", "ratio_low", "ratio_high"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_dual(self, self.dual)

    def describe(self) -> str:
        return dual_text("max(-A r, -A clip(r, ratio_low, ratio_high))", self.dual)

    def __call__(self, batch: Batch) -> Tensor:
        low, high = batch.ratio_low.unsqueeze(1), batch.ratio_high.unsqueeze(1)
        return dual_clip(clip_loss(batch.advantage, token_ratio(batch), low, high), batch.advantage, self.dual)

    def stats(self, batch: Batch) -> Stats:
        low, high = batch.ratio_low.unsqueeze(1), batch.ratio_high.unsqueeze(1)
        return clip_stats(batch.advantage, token_ratio(batch), low, high)


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
        return log_ratio(batch, "geometric_mean" if self.length_normalized else "sequence").squeeze(1).exp()


def check_interval(part: Part, low: float, high: float, *, around: float) -> None:
    """Raises UsageError unless low <= around <= high: an interval that leaves out the unmoved policy clips every token."""
    if not low <= around <= high:
        example = "0.8 and 1.2 of the ratio for a clip of 0.2" if around else "-0.4 and 0.4 of the log-ratio"
        raise UsageError(
            f"{type(part).__name__} clips to [{low:g}, {high:g}], which leaves out {around:g}, where the policy has not moved. "
            f"Give the bounds of the interval itself, e.g. {example}."
        )


def check_dual(part: Part, dual: float | None) -> None:
    """Raises UsageError unless the bound of negative advantages' ratios is over 1, or None."""
    if dual is not None and dual <= 1:
        raise UsageError(
            f"{type(part).__name__}(dual={dual:g}): it bounds ratios from above, so it must be over 1, e.g. 3."
        )


def dual_text(clipped: str, dual: float | None) -> str:
    """The formula of a clip, with its dual clip if there is one."""
    return clipped if dual is None else f"[{clipped}; at most -{dual:g} A where A < 0]"


def log_ratio(batch: Batch, level: RatioLevel = "token") -> Tensor:
    """logp - old_logp, kept within +-20: of each token [R, T], or of each row its tokens' sum or mean, [R, 1].

    Exponentiated: the ratio of a token, of the whole sequence, or the geometric mean of its tokens' ratios.
    """
    moved = batch.logp - batch.old_logp
    if level != "token":
        moved = moved.sum(1, keepdim=True)
    if level == "geometric_mean":
        moved = moved / batch.length.clamp(min=1).unsqueeze(1)
    return moved.clamp(-20.0, 20.0)


def token_ratio(batch: Batch) -> Tensor:
    """exp(logp - old_logp) [R, T], the exponent kept within +-20."""
    return log_ratio(batch).exp()


def dual_clip(loss: Tensor, advantage: Tensor, dual: float | None) -> Tensor:
    """The loss, at most -A dual where A < 0 (Ye et al. 2020, arXiv:1912.09729); `dual` None leaves it as it is."""
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual), loss)


def clip_loss(advantage: Tensor, ratio: Tensor, low: Bound, high: Bound) -> Tensor:
    """max(-A r, -A clip(r, low, high)), elementwise; a tie takes the unclipped branch's gradient."""
    plain, clipped = -advantage * ratio, -advantage * ratio.clamp(low, high)
    return torch.where(clipped > plain, clipped, plain)


def clip_stats(advantage: Tensor, ratio: Tensor, low: Bound, high: Bound) -> Stats:
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
