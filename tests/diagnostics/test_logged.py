"""Card: offline_imitation.md, dataset-tq-saco."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.diagnostics.logged import cells, positive_sided_variance, state_action_coverage, trajectory_quality
from upslope.errors import UsageError


def test_card_numbers():
    assert trajectory_quality(np.array([50.0, 70.0]), random=10, best=110) == 0.5
    assert trajectory_quality(np.array([10.0]), 10, 110) == 0
    reference, some = np.arange(5000)[:, None], np.arange(5000)[:, None] % 1200
    action = np.zeros((5000, 1))
    assert state_action_coverage(some, action, reference, action, bins=None) == 0.24


def test_positive_sided_variance_of_the_card():
    """harness-tw: G = (0, 50, 100): PSV = 50^2 / 3."""
    assert positive_sided_variance(np.array([0.0, 50.0, 100.0])) == pytest.approx(833.33, abs=5e-3)
    assert positive_sided_variance(np.array([-730.0, -680.0, -630.0])) == pytest.approx(833.33, abs=5e-3)
    assert positive_sided_variance(np.array([7.0, 7.0])) == 0.0
    with pytest.raises(UsageError, match="at least one episode"):
        positive_sided_variance(np.array([]))


def test_cells_are_equal_and_the_greatest_belongs_to_the_last():
    rows = np.array([[0.0], [0.099], [0.1], [0.95], [1.0], [1.05], [-0.01]])
    assert cells(rows, np.zeros(1), np.ones(1), 10)[:, 0].tolist() == [0, 0, 1, 9, 9, 10, -1]
    assert cells(np.array([[3.0], [3.0]]), np.full(1, 3.0), np.full(1, 3.0), 10)[:, 0].tolist() == [0, 0]


@given(st.integers(0, 100), st.integers(1, 50))
def test_itself_covers_itself_and_duplicates_add_nothing(seed, bins):
    rows = np.random.default_rng(seed).normal(size=(60, 2))
    action = np.random.default_rng(seed + 1).normal(size=(60, 1))
    assert state_action_coverage(rows, action, rows, action, bins) == 1
    half = state_action_coverage(rows[:30], action[:30], rows, action, bins)
    twice = [np.concatenate([array[:30], array[:30]]) for array in (rows, action)]
    assert state_action_coverage(*twice, rows, action, bins) == half <= 1


def test_what_lies_outside_of_the_reference_counts_apart():
    reference, action = np.array([[0.0], [1.0]]), np.zeros((2, 1))
    assert state_action_coverage(np.array([[5.0], [9.0]]), action, reference, action) == 1
    assert state_action_coverage(np.array([[5.0], [5.0]]), action, reference, action) == 0.5


def test_errors_name_what_is_wrong():
    with pytest.raises(UsageError, match="different environments"):
        state_action_coverage(np.zeros((2, 2)), np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((2, 1)))
    with pytest.raises(UsageError, match="best return above"):
        trajectory_quality(np.zeros(1), 1.0, 1.0)
