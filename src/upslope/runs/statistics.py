"""How sure a result is: pass@k, interquartile means, comparisons, each with a bootstrap interval.

pass@k is the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374). Interquartile mean, stratified bootstrap over
runs and probability of improvement follow Agarwal et al. 2021 (arXiv:2108.13264) and their package rliable.
Intervals are percentile intervals. They see only the spread within the sample: equal scores give an interval of width
zero, and with fewer than about ten runs it is narrower than it says. Equal seeds give equal intervals.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upslope.errors import UsageError

Floats = NDArray[np.float64]
CHUNK = 2**22  # numbers of resampled data in memory at once


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """The three as metrics: `name`, with _low and with _high."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def pass_at_k(samples: ArrayLike, correct: ArrayLike, k: int) -> Floats:
    """Probability that one of `k` samples, drawn without replacement from a prompt's n, is correct:  [P]

        1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1 .. n} (1 - k / i)

    samples: n, completions of each prompt [P] (or one number for all); correct: c, how many of them are correct [P].
    Raises UsageError where k > n (the estimator does not exist), or c is not within 0..n.
    """
    c = np.atleast_1d(np.asarray(correct, dtype=np.int64))
    n = np.broadcast_to(np.asarray(samples, dtype=np.int64), c.shape)
    if k < 1 or np.any(n < k):
        raise UsageError(
            f"pass@{k} needs 1 <= k <= samples per prompt, but a prompt has {n.min()}. Draw more, or lower k."
        )
    if np.any((c < 0) | (c > n)):
        row = int(np.argmax((c < 0) | (c > n)))
        raise UsageError(f"prompt {row} has {c[row]} correct of {n[row]} samples. Give 0 <= correct <= samples.")
    i = np.arange(1, n.max(initial=1) + 1)
    factor = np.where((i > (n - c)[:, None]) & (i <= n[:, None]), 1 - np.minimum(k / i, 1.0), 1.0)
    return 1 - factor.prod(axis=1)


def pass_at_k_interval(
    samples: ArrayLike, correct: ArrayLike, k: int, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean of `pass_at_k` over prompts, with a bootstrap interval over prompts."""
    return bootstrap(pass_at_k(samples, correct, k)[:, None], mean, level=level, draws=draws, seed=seed)


def mean(scores: Floats) -> Floats:
    """Mean over the last two axes, [..., runs, tasks] -> [...]."""
    return scores.mean(axis=(-2, -1))


def interquartile_mean(scores: Floats) -> Floats:
    """Mean of the middle half of all runs of all tasks together, [..., runs, tasks] -> [...].

    As rliable: of N scores, int(N / 4) are cut at either end, so that below four it is the mean.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def bootstrap(
    scores: ArrayLike,
    statistic: Callable[[Floats], Floats] = interquartile_mean,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """`statistic` of scores [runs, tasks] (or [runs]: one task), with a stratified bootstrap interval.

    Runs are resampled within each task, independently of the other tasks. `statistic` maps [draws, runs, tasks] to
    [draws]. Raises UsageError for empty, ragged or non-finite scores.
    """
    table = _table(scores, "scores")
    rng = np.random.default_rng(seed)
    values = [statistic(_resample(table, count, rng)) for count in _chunks(draws, table.size)]
    return _interval(statistic(table[None]), values, level)


def ratio_interval(
    parts: ArrayLike, weights: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Sum over terms of (sum of `parts`) / (sum of `weights`), with a bootstrap interval over instances.

    A mean over tokens (or rows) whose number differs between prompts: `parts` is each prompt's sum of values, `weights` its
    number of tokens; [instances] or, for a sum of several such means, [instances, terms]. All terms of an instance are drawn
    together. A term without weight is 0. Raises UsageError for empty, ragged or non-finite numbers, or unequal shapes.
    """
    over, under = _table(parts, "parts"), _table(weights, "weights")
    if over.shape != under.shape:
        raise UsageError(f"parts has the shape {list(over.shape)} and weights {list(under.shape)}. Give both alike.")

    def statistic(rows: NDArray[np.int64]) -> Floats:
        above, below = over[rows].sum(axis=1), under[rows].sum(axis=1)
        ratios: Floats = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
        return ratios.sum(axis=1)

    rng, count = np.random.default_rng(seed), len(over)
    values = [statistic(rng.integers(count, size=(some, count))) for some in _chunks(draws, 2 * over.size)]
    return _interval(statistic(np.arange(count)[None]), values, level)


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2, for a random run X of `x` and Y of `y`; 1/2 is no difference.

    x [runs of x, tasks], y [runs of y, tasks] (or [runs] each: one task); runs are not paired, and resampled apart.
    """
    tables = _table(x, "x"), _table(y, "y")
    if tables[0].shape[1] != tables[1].shape[1]:
        raise UsageError(f"x has {tables[0].shape[1]} tasks and y has {tables[1].shape[1]}. Give both the same tasks.")
    rng = np.random.default_rng(seed)
    cost = len(tables[0]) * len(tables[1]) * tables[0].shape[1]
    values = [_superiority(*(_resample(table, count, rng) for table in tables)) for count in _chunks(draws, cost)]
    return _interval(_superiority(tables[0][None], tables[1][None]), values, level)


def paired_difference(
    x: ArrayLike,
    y: ArrayLike,
    statistic: Callable[[Floats], Floats] = mean,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """`statistic` of x - y, where run i of `x` shares seed and prompts with run i of `y`; [runs, tasks] or [runs].

    Differences are resampled as pairs, which removes what a seed does to both.
    """
    a, b = _table(x, "x"), _table(y, "y")
    if a.shape != b.shape:
        raise UsageError(f"paired runs need equal shapes, but x is {a.shape} and y is {b.shape} (runs, tasks).")
    return bootstrap(a - b, statistic, level=level, draws=draws, seed=seed)


def _superiority(x: Floats, y: Floats) -> Floats:
    a, b = x[:, :, None, :], y[:, None, :, :]
    return ((a > b) + 0.5 * (a == b)).mean(axis=(1, 2, 3))


def _resample(table: Floats, draws: int, rng: np.random.Generator) -> Floats:
    rows = rng.integers(len(table), size=(draws, *table.shape))
    return table[rows, np.arange(table.shape[1])]


def _chunks(draws: int, cost: int) -> list[int]:
    if draws < 1:
        raise UsageError(f"a bootstrap interval needs draws >= 1, got {draws}.")
    size = max(1, CHUNK // cost)
    return [min(size, draws - start) for start in range(0, draws, size)]


def _interval(value: Floats, values: list[Floats], level: float) -> Interval:
    if not 0 < level < 1:
        raise UsageError(f"a confidence level lies between 0 and 1, got {level}. 0.95 is usual.")
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value[0]), float(low), float(high))


def _table(scores: ArrayLike, name: str) -> Floats:
    try:
        table = np.asarray(scores, dtype=np.float64)
    except ValueError as error:
        raise UsageError(f"{name} is ragged: {error}. Every task needs the same number of runs.") from error
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0:
        raise UsageError(f"{name} needs the shape [runs, tasks] with at least one of each, got {list(table.shape)}.")
    if not np.isfinite(table).all():
        run, task = np.argwhere(~np.isfinite(table))[0]
        raise UsageError(f"{name} has {table[run, task]} for run {run} of task {task}. Leave failed runs out.")
    return table
