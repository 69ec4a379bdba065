import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.report.scale import Axis, smooth, smoothing_width, step_axis, thin, tick_labels, value_axis

values = st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=50).map(np.array)


@given(values, st.booleans())
def test_a_value_axis_holds_all_values_in_order(y, log):
    axis = value_axis(y, 200, 10, log=log)
    places = axis.place(np.sort(y))
    assert np.isfinite(places).all()
    assert (np.diff(places) <= 1e-6).all()
    assert places.min() >= 10 - 1e-6
    assert places.max() <= 200 + 1e-6


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_distinct_and_on_the_axis(low, size):
    axis = value_axis(np.array([low, low + size]), 200, 10)
    ticks = axis.ticks(4)
    slack = 1e-6 * (axis.high - axis.low)
    assert 2 <= len(ticks) <= 10
    assert min(ticks) >= axis.low - slack
    assert max(ticks) <= axis.high + slack


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0.0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
        ([0.0, 20.0, 40.0], ["0", "20", "40"]),
        ([0.0, 2.5, 5.0], ["0.0", "2.5", "5.0"]),
        ([0.0, 1e-6, 2e-6], ["0", "1e-6", "2e-6"]),
        ([0.01, 1.0, 100.0], ["0.01", "1", "100"]),
        ([10000.0, 20000.0], ["10,000", "20,000"]),
    ],
)
def test_tick_labels_tell_the_ticks_apart(ticks, labels):
    assert tick_labels(ticks) == labels


def test_log_axis_only_where_one_value_would_press_the_others_down():
    spike = np.array([1.0, 1.1, 0.9, 500.0])
    assert value_axis(spike, 200, 10, log=True).log
    assert not value_axis(spike, 200, 10).log
    assert not value_axis(spike - 0.9, 200, 10, log=True).log  # it has a zero
    assert not value_axis(np.array([1.0, 2.0, 3.0]), 200, 10, log=True).log
    axis = Axis(0.1, 1000.0, 0, 40, log=True)
    np.testing.assert_allclose(axis.place(np.array([0.1, 1, 10, 100, 1000])), [0, 10, 20, 30, 40])


def test_bounds_widen_the_axis_and_never_cut_it():
    assert (
        value_axis(np.array([0.4, 0.6]), 200, 10, low=0, high=1).low,
        value_axis(np.array([0.4]), 1, 0, low=0, high=1).high,
    ) == (0, 1)
    assert value_axis(np.array([-0.5, 0.6]), 200, 10, low=0, high=1).low <= -0.5
    assert value_axis(np.zeros(5), 200, 10).low == 0
    axis = step_axis(3.0, 3.0, 50, 400)
    assert float(axis.place(3)) == pytest.approx(225)


@given(values)
def test_smoothing_keeps_constants_and_bounds(y):
    smoothed = smooth(y / 1e10, 2.0)
    assert len(smoothed) == len(y)
    slack = 1e-9 * np.abs(y / 1e10).max()
    assert smoothed.min() >= (y / 1e10).min() - slack
    assert smoothed.max() <= (y / 1e10).max() + slack


def test_smoothing_removes_noise_and_not_the_trend():
    rng = np.random.default_rng(0)
    trend = np.linspace(0, 1, 400)
    noisy = trend + rng.normal(0, 0.2, 400)
    width = smoothing_width(400)
    assert np.abs(smooth(noisy, width) - trend)[20:-20].max() < 0.25 * np.abs(noisy - trend).max()
    assert smoothing_width(5) == 0
    np.testing.assert_array_equal(smooth(noisy, 0), noisy)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=2000).map(np.array), st.integers(10, 100))
def test_thinning_keeps_ends_and_extremes(y, limit):
    kept = thin(y, limit)
    assert len(kept) <= max(limit, 1)
    assert (np.diff(kept) > 0).all()
    assert (kept[0], kept[-1]) == (0, len(y) - 1)
    assert (y[kept].min(), y[kept].max()) == (y.min(), y.max())
