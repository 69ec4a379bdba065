"""Sources: arXiv:2107.03374 (pass@k); arXiv:2108.13264 (interquartile mean, stratified bootstrap, improvement)."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from upslope.errors import UsageError
from upslope.runs.statistics import (
    Interval,
    bootstrap,
    interquartile_mean,
    mean,
    paired_difference,
    pass_at_k,
    pass_at_k_interval,
    probability_of_improvement,
    ratio_interval,
)

COUNTS = st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
TABLES = st.tuples(st.integers(1, 6), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(st.floats(-5, 5), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda values: np.reshape(values, shape)
    )
)


@given(COUNTS)
def test_pass_at_k_is_the_average_over_all_subsets(counts):
    n, c, k = counts
    solved = [any(sample < c for sample in subset) for subset in combinations(range(n), k)]
    np.testing.assert_allclose(pass_at_k(n, [c], k), [np.mean(solved)], atol=1e-12)


def test_pass_at_k_of_prompts_with_different_numbers_of_samples():
    np.testing.assert_allclose(pass_at_k([4, 2, 300], [1, 2, 0], 2), [0.5, 1.0, 0.0])
    np.testing.assert_allclose(pass_at_k(10_000, [1], 100), [0.01])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((4, [1], 5), "pass@5 needs"), ((4, [1], 0), "pass@0 needs"), ((4, [1, 5], 2), "prompt 1 has 5 correct of 4")],
)
def test_pass_at_k_refuses(arguments, message):
    with pytest.raises(UsageError, match=message):
        pass_at_k(*arguments)


def test_pass_at_k_interval_agrees_with_scipy():
    correct = [0, 1, 4, 2, 3, 0, 4, 4, 1, 0]
    interval = pass_at_k_interval(4, correct, 2, draws=20_000)
    scores = pass_at_k(4, correct, 2)
    reference = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=20_000, rng=0).confidence_interval
    np.testing.assert_allclose([interval.value, interval.low, interval.high], [scores.mean(), *reference], atol=0.02)


@given(TABLES)
def test_interquartile_mean_is_scipys_trimmed_mean(table):
    np.testing.assert_allclose(interquartile_mean(table), stats.trim_mean(table.ravel(), 0.25), atol=1e-12)


@given(TABLES)
def test_interval_is_deterministic_and_moves_with_the_scores(table):
    interval = bootstrap(table, draws=200)
    assert interval == bootstrap(table, draws=200)
    shifted = bootstrap(table + 3, draws=200)
    np.testing.assert_allclose([shifted.low, shifted.high], [interval.low + 3, interval.high + 3], atol=1e-9)
    assert table.min() - 1e-9 <= interval.low <= interval.high <= table.max() + 1e-9


def test_bootstrap_is_stratified():
    """Tasks of different level do not widen the interval: only the runs within a task are resampled."""
    levels = np.array([[0.0, 100.0, 1000.0]] * 5)
    interval = bootstrap(levels, mean)
    np.testing.assert_allclose([interval.low, interval.high], interval.value)


def test_tasks_are_resampled_independently():
    """Sixteen tasks with the same scores: the mean's spread is a quarter of one task's, as of independent ones."""
    scores = np.random.default_rng(0).normal(size=(10, 1))
    one, sixteen = bootstrap(scores, mean, draws=5000), bootstrap(np.tile(scores, 16), mean, draws=5000)
    np.testing.assert_allclose((one.high - one.low) / (sixteen.high - sixteen.low), 4, rtol=0.1)


def test_bootstrap_draws_are_those_of_the_enumeration():
    """Three runs of one task have 27 resamples: quantiles of the mean over all of them."""
    scores = np.array([0.0, 1.0, 5.0])
    exact = np.quantile([np.mean(draw) for draw in product(scores, repeat=3)], [0.1, 0.9])
    interval = bootstrap(scores, mean, level=0.8, draws=20_000)
    np.testing.assert_allclose([interval.low, interval.high], exact, atol=1e-9)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.normal(size=40), mean, draws=300, seed=trial) for trial in range(300)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.9 < covered < 0.98


@given(TABLES, st.floats(-1, 1))
def test_probability_of_improvement_is_mann_whitney(table, shift):
    other = table[::-1] + shift
    sizes = len(table) * len(other)
    expected = np.mean([stats.mannwhitneyu(table[:, t], other[:, t]).statistic / sizes for t in range(table.shape[1])])
    forward, backward = (probability_of_improvement(*pair, draws=50) for pair in ((table, other), (other, table)))
    np.testing.assert_allclose(forward.value, expected, atol=1e-12)
    np.testing.assert_allclose(forward.value + backward.value, 1)
    assert 0 <= forward.low <= forward.high <= 1


def test_paired_difference_is_blind_to_what_the_seed_does_to_both():
    seeds = np.random.default_rng(1).normal(scale=100, size=(8, 1))
    gain = np.random.default_rng(2).normal(loc=1, scale=0.1, size=(8, 3))
    noise = np.zeros((8, 3))
    paired = paired_difference(seeds + gain, seeds + noise)
    np.testing.assert_allclose([paired.value], [gain.mean()])
    assert 0.8 < paired.low < paired.value < paired.high < 1.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap([]), "at least one of each"),
        (lambda: bootstrap([[1.0, 2.0], [1.0]]), "scores is ragged"),
        (lambda: bootstrap([[1.0, 2.0], [1.0, np.nan]]), "nan for run 1 of task 1"),
        (lambda: bootstrap([1.0], level=95), "between 0 and 1"),
        (lambda: bootstrap([1.0], draws=0), "draws >= 1"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "equal shapes"),
        (lambda: probability_of_improvement([[1.0, 2.0]], [[1.0]]), "x has 2 tasks and y has 1"),
    ],
)
def test_wrong_scores_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_many_draws_in_chunks_are_as_many_as_asked_for():
    seen = []

    def count(scores):
        seen.append(len(scores))
        return scores.mean(axis=(-2, -1))

    assert bootstrap(np.ones((2000, 3)), count, draws=1500) == Interval(1.0, 1.0, 1.0)
    assert sum(seen) == 1501
    assert len(seen) > 2


def test_the_ratio_of_sums_is_the_mean_over_tokens_and_its_interval_that_of_the_delta_method():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 20, size=400).astype(float)
    sums = tokens * 2 + rng.normal(size=400) * np.sqrt(tokens)
    found = ratio_interval(sums, tokens, draws=4000)
    assert found.value == pytest.approx(sums.sum() / tokens.sum())
    error = np.sqrt(((sums - found.value * tokens) ** 2).sum()) / tokens.sum()
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    scaled = ratio_interval(3 * sums, 3 * tokens, draws=4000)
    assert (scaled.low, scaled.high) == pytest.approx((found.low, found.high))


def test_terms_are_drawn_together():
    one, weights = np.array([1.0, 3.0, 8.0]), np.ones(3)
    opposed = ratio_interval(np.stack([one, -one], axis=1), np.ones((3, 2)))
    assert (opposed.low, opposed.value, opposed.high) == (0, 0, 0)
    empty = ratio_interval(np.stack([one, np.zeros(3)], axis=1), np.stack([weights, np.zeros(3)], axis=1))
    assert empty == ratio_interval(one, weights), "a term without weight is 0"


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ([1.0, 2.0], [1.0], r"parts has the shape \[2, 1\] and weights \[1, 1\]"),
        ([float("nan")], [1.0], "parts has nan"),
    ],
)
def test_ratios_of_what_does_not_fit(parts, weights, message):
    with pytest.raises(UsageError, match=message):
        ratio_interval(parts, weights)
