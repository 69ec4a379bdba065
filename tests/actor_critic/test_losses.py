"""The formulas against numbers worked out by hand or by NumPy, in value and gradient."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope.actor_critic.losses import (
    advantage_weight,
    bootstrap,
    cloning_scale,
    conservative_gap,
    diversity,
    expectile,
    lowest,
    squared_error,
)
from upslope.testing import finite_differences


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def gradient(function, at):
    """Of a scalar function of an array, by autograd and by central differences: both, for comparison."""
    leaf = tensor(at).requires_grad_()
    (found,) = torch.autograd.grad(function(leaf), leaf)
    numeric = finite_differences(lambda x: float(function(torch.from_numpy(x))), np.array(at, dtype=float))
    return found.numpy(), numeric


def test_the_target_adds_nothing_after_an_end_and_everything_where_time_was_up():
    y = bootstrap(tensor([1.0, 1.0]), tensor([0.0, 1.0]), tensor([2.0, 2.0]), 0.99)
    np.testing.assert_allclose(y, [2.98, 1.0])


def test_lowest_of_any_number():
    q = tensor([[1.0, 5.0], [3.0, 2.0], [0.5, 9.0]])
    np.testing.assert_allclose(lowest(q), [0.5, 2.0])
    np.testing.assert_allclose(lowest(q[:2]), [1.0, 2.0])
    np.testing.assert_allclose(lowest(q[:1]), [1.0, 5.0])


@pytest.mark.parametrize(("across", "factor"), [("sum", 1.0), ("sum", 0.5), ("mean", 1.0)])
def test_squared_error(across, factor):
    q, y = np.array([[1.0, 2.0], [0.0, 4.0]]), np.array([0.5, 3.0])
    expected = factor * getattr(((q - y) ** 2).mean(1), across)()
    assert float(squared_error(tensor(q), tensor(y), factor=factor, across=across)) == pytest.approx(expected)
    by_autograd, by_differences = gradient(lambda x: squared_error(x, tensor(y), factor=factor, across=across), q)
    np.testing.assert_allclose(by_autograd, by_differences, atol=1e-7)


@pytest.mark.parametrize(("tau", "least"), [(0.5, 5 / 3), (0.7, 2.384615), (0.9, 3.363636), (0.99, 3.930693)])
def test_the_expectile_loss_is_least_at_the_expectile(tau, least):
    values = tensor([0.0, 1.0, 4.0])
    v = tensor(least).requires_grad_()
    (slope,) = torch.autograd.grad(expectile(values - v, tau), v)
    assert abs(float(slope)) < 1e-6
    grid = np.linspace(0, 4, 4001)
    best = grid[np.argmin([float(expectile(values - x, tau)) for x in grid])]
    assert best == pytest.approx(least, abs=1e-3)


@given(st.floats(0.01, 0.99))
def test_the_expectile_of_a_fair_coin_is_tau(tau):
    v = tensor(tau).requires_grad_()
    (slope,) = torch.autograd.grad(expectile(tensor([0.0, 1.0]) - v, tau), v)
    assert abs(float(slope)) < 1e-12


def test_the_gap_of_three_actions():
    def gap(q):
        return conservative_gap(q[None, None], q[None, None, 0])[0, 0]

    assert float(gap(tensor([1.0, 0.0, 2.0]))) == pytest.approx(1.407606, abs=5e-7)
    by_autograd, by_differences = gradient(gap, [1.0, 0.0, 2.0])
    np.testing.assert_allclose(by_autograd, [-0.755272, 0.090031, 0.665241], atol=5e-7)
    np.testing.assert_allclose(by_autograd, by_differences, atol=1e-7)


def test_a_low_temperature_takes_the_largest():
    q = tensor([[[1.0, 0.0, 2.0]]])
    assert float(conservative_gap(q, tensor([[0.0]]), 1e-3)) == pytest.approx(2.0)


def test_diversity():
    unit = tensor([[[1.0, 0.0]], [[0.6, 0.8]]])
    assert float(diversity(unit)) == pytest.approx(1.2)
    assert float(diversity(7.0 * unit)) == pytest.approx(1.2)
    assert float(diversity(tensor([[[0.3, 0.4]]]).expand(3, 1, 2))) == pytest.approx(3.0)
    rng = np.random.default_rng(0)
    g = rng.normal(size=(4, 5, 3))
    u = g / (np.linalg.norm(g, axis=-1, keepdims=True) + 1e-10)
    pairs = sum((u[i] * u[j]).sum(-1) for i in range(4) for j in range(4) if i != j)
    assert float(diversity(tensor(g))) == pytest.approx(pairs.mean() / 3)
    by_autograd, by_differences = gradient(diversity, g)
    np.testing.assert_allclose(by_autograd, by_differences, atol=1e-7)


def test_weights_are_cut_and_never_overflow():
    weights = advantage_weight(tensor([-1.0, 0.0, 0.5, 2.0, 1e6]), 3.0, 100.0)
    np.testing.assert_allclose(weights, [0.049787, 1.0, 4.481689, 100.0, 100.0], atol=5e-7)
    np.testing.assert_allclose(advantage_weight(tensor([-1.0, 3.0]), 0.0, 100.0), 1.0)


def test_the_scale_of_cloning():
    assert float(cloning_scale(tensor([2.0, -4.0]), 2.5)) == pytest.approx(0.833333, abs=5e-7)
    assert math.isfinite(float(cloning_scale(tensor([0.0, 0.0]), 2.5)))
