"""Numbers for drawing: axes with round ticks, thinning of long series, light smoothing."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

POINTS = 240  # points of one drawn line; more would not be seen


@dataclass(frozen=True)
class Axis:
    """Values [low, high] mapped to drawing positions [start, end], linearly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, values: np.ndarray | float) -> np.ndarray:
        """Drawing positions of values, clipped to the axis."""
        clipped = np.clip(np.asarray(values, dtype=float), self.low, self.high)
        if self.log:
            share = (np.log(clipped) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            # Halves, since high - low overflows where the values span the whole range of a float.
            share = (clipped / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """At most about `count` round values on the axis."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            decades = [10.0**power for power in range(first, last + 1, max(1, (last - first) // count + 1))]
            return decades if len(decades) >= 2 else [self.low, self.high]
        step = _round_step((self.high / 2 - self.low / 2) * 2 / max(count, 1))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def value_axis(
    values: np.ndarray,
    start: float,
    end: float,
    *,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
) -> Axis:
    """An axis that holds all values, padded to round ticks; `low` and `high` widen it.

    With `log` it is logarithmic if all are positive and the largest would press the others to the ground.
    """
    smallest = min([float(values.min()), *([] if low is None else [low])])
    largest = max([float(values.max()), *([] if high is None else [high])])
    lowest = float(values.min())
    if log and lowest > 0 and largest / float(np.median(values)) > 20:
        return Axis(lowest / 1.15, min(largest * 1.15, 1e308), start, end, log=True)
    largest, smallest = min(largest, 1e307), max(smallest, -1e307)
    size = max(abs(largest), abs(smallest))
    if largest - smallest <= max(1e-9 * size, 1e-290):
        margin = 0.1 * size if size > 1e-280 else 0.5
        smallest, largest = (0.0 if 0 <= smallest <= margin else smallest - margin), largest + margin
    step = _round_step((largest - smallest) / 4)
    bottom, top = math.floor(smallest / step + 1e-6) * step, math.ceil(largest / step - 1e-6) * step
    return Axis(max(bottom, low) if low is not None and smallest >= low else bottom, top, start, end)


def step_axis(low: float, high: float, start: float, end: float) -> Axis:
    """An axis of training steps: exactly from the first to the last."""
    return Axis(low, high, start, end) if high > low else Axis(low - 1, high + 1, start, end)


def tick_labels(ticks: list[float]) -> list[str]:
    """Ticks with as many decimals as tell them apart."""
    if not ticks:
        return []
    largest = max(abs(tick) for tick in ticks)
    gap = min((b - a for a, b in pairwise(ticks)), default=largest) or 1.0
    if largest >= 1e6 or 0 < largest < 1e-3 or (largest / gap > 1e3 and largest < 1):
        return ["0" if tick == 0 else f"{tick:.3g}".replace("e+0", "e").replace("e-0", "e-") for tick in ticks]
    if len(ticks) > 1 and min(ticks) > 0 and max(ticks) / min(ticks) >= 100:
        return [f"{tick:g}" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    if abs(round(gap, decimals) - gap) > 1e-6 * gap:  # a step of 0.25 or 2.5
        decimals += 1
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Gaussian-weighted mean over neighbours [n], `width` their standard deviation in points; ends use what there is."""
    if len(values) < 3 or width <= 0:
        return values
    reach = min(math.ceil(3 * width), len(values) - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    total = np.convolve(values, kernel)[reach:-reach]
    weight = np.convolve(np.ones(len(values)), kernel)[reach:-reach]
    return total / weight


def smoothing_width(count: int) -> float:
    """Points of standard deviation that suit a series of `count`: none below 12, a fortieth of it above."""
    return 0.0 if count < 12 else max(1.0, count / 40)


def thin(values: np.ndarray, limit: int = POINTS) -> np.ndarray:
    """Indices [<= limit] that keep the ends and the extremes of every stretch, so that spikes stay visible."""
    count = len(values)
    if count <= limit:
        return np.arange(count)
    kept = {0, count - 1}
    for stretch in np.array_split(np.arange(count), (limit - 2) // 2):
        kept |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    return np.array(sorted(kept))


def _round_step(size: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is at least `size`."""
    power = 10.0 ** math.floor(math.log10(max(size, 1e-300)))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= size * (1 - 1e-9))
