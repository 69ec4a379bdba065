"""Ratios of Gaussian actions, such as the steps of a denoising sampler: normalized, and balanced over the steps.

A row is a trajectory, a position one of its steps: x ~ N(old_mean, s^2) in D dimensions, s the column `noise_scale`.
The columns logp and old_logp are means over the D dimensions of log N(x; mean, s^2), as Flow-GRPO has them, and ms() is a mean
square over them. Source: GRPO-Guard (arXiv:2510.22319) and its released script.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.parts.surrogate import check_interval, clip_loss, clip_stats
from upslope.recipe import Part, Stats


@dataclass(frozen=True)
class NormalizedRatio(Part):
    """PPO's clip per step [R, T], max(-A r, -A clip(r, ratio_low, ratio_high)), of the normalized ratio:

        log r = (logp - old_logp + ms(mean - old_mean) / (2 s^2)) s = mean over the dimensions of e (mean - old_mean)

    with e = (x - old_mean) / s, standard normal. The plain log-ratio has the mean -ms(mean - old_mean) / (2 s^2) and a factor
    1 / s, so that low-noise steps drift out of the interval on one side. The exponent is kept within +-20.
    """

    ratio_low: float = 1 - 2e-6
    ratio_high: float = 1 + 2e-6
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp", "mean", "old_mean", "noise_scale"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_interval(self, self.ratio_low, self.ratio_high, around=1.0)

    def describe(self) -> str:
        ratio = "log q = (logp - old_logp + ms(mean - old_mean) / (2 noise_scale^2)) noise_scale"
        return f"max(-A q, -A clip(q, {self.ratio_low:.8g}, {self.ratio_high:.8g})), {ratio}"

    def __call__(self, batch: Batch) -> Tensor:
        return clip_loss(batch.advantage, self._ratio(batch), self.ratio_low, self.ratio_high)

    def stats(self, batch: Batch) -> Stats:
        return clip_stats(batch.advantage, self._ratio(batch), self.ratio_low, self.ratio_high)

    def _ratio(self, batch: Batch) -> Tensor:
        scale = positive(batch, "noise_scale", self)
        bias = mean_square(batch.mean - batch.old_mean) / (2 * scale**2)
        return ((batch.logp - batch.old_logp + bias) * scale).clamp(-20.0, 20.0).exp()


@dataclass(frozen=True)
class StepBalance(Part):
    """One over the size of the step in the sampler's time, [R, T], a weight: gradients of all noise levels get alike."""

    formula: ClassVar[str] = "1 / step_size"
    needs: ClassVar[frozenset[str]] = frozenset({"step_size"})

    def __call__(self, batch: Batch) -> Tensor:
        return torch.where(batch.mask, 1 / positive(batch, "step_size", self), 0.0)


@dataclass(frozen=True)
class GaussianKL(Part):
    """beta times KL(N(mean, s^2), N(ref_mean, s^2)) per dimension and step: beta ms(mean - ref_mean) / (2 s^2), [R, T]."""

    beta: float = 0.04
    formula: ClassVar[str] = "{beta} ms(mean - ref_mean) / (2 noise_scale^2)"
    needs: ClassVar[frozenset[str]] = frozenset({"mean", "ref_mean", "noise_scale"})

    def __call__(self, batch: Batch) -> Tensor:
        scale = positive(batch, "noise_scale", self)
        return self.beta * mean_square(batch.mean - batch.ref_mean) / (2 * scale**2)


def mean_square(difference: Tensor) -> Tensor:
    """Mean of the squares over all axes behind [R, T]."""
    return (difference**2).flatten(2).mean(2)


def positive(batch: Batch, name: str, part: Part) -> Tensor:
    """A column [R, T] that has to be positive at trained steps; 1 at the others. Raises UsageError where it is not."""
    column: Tensor = torch.where(batch.mask, getattr(batch, name), 1.0)
    if not (column > 0).all():
        row, step = (column <= 0).nonzero()[0].tolist()
        raise UsageError(
            f"{type(part).__name__} divides by '{name}', which is {float(column[row, step]):g} at row {row}, step {step}. "
            "Leave deterministic steps out of the mask: they have no density."
        )
    return column
