"""The temperature: where it rests, which way it goes, and that it is Adam on one number."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import UsageError
from upslope.actor_critic.temperature import Automatic, Constant, alpha_of


@given(st.floats(-5, 5), st.integers(1, 8), st.sampled_from(["log", "alpha"]))
def test_it_rests_where_the_entropy_is_at_its_target(x, size, gradient):
    part = Automatic(gradient=gradient)
    assert part.slope({"x": x}, float(size), size) == 0.0


@pytest.mark.parametrize("gradient", ["log", "alpha"])
@pytest.mark.parametrize(("logp", "rises"), [(1.5, True), (-3.0, False)])
def test_it_falls_when_the_entropy_exceeds_the_target(gradient, logp, rises):
    part = Automatic(gradient=gradient)
    state = part.init()
    after = part(state, logp, 1)  # the target is -1, so log pi of 1.5 is too little entropy
    assert (part.value(after) > part.value(state)) == rises


@given(st.floats(-3, 3), st.floats(-4, 4))
def test_slopes_are_those_of_the_losses(x, logp):
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    for gradient, factor in (("log", leaf), ("alpha", leaf.exp())):
        (slope,) = torch.autograd.grad(-factor * (logp - 2.0), leaf)
        assert Automatic(gradient=gradient).slope({"x": x}, logp, 2) == pytest.approx(float(slope), abs=1e-12)


def test_it_is_adam_on_one_number():
    part = Automatic(lr=0.01, initial=0.5, target=-1.0)
    state = part.init()
    leaf = torch.tensor(math.log(0.5), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([leaf], 0.01)
    for logp in (2.0, -1.0, 0.3, 4.0):
        leaf.grad = torch.tensor(part.slope(state, logp, 3), dtype=torch.float64)
        adam.step()
        state = part(state, logp, 3)
        assert state["x"] == pytest.approx(float(leaf.detach()), rel=1e-12)


def test_it_settles_at_the_target_of_a_policy_that_follows_it():
    """A policy whose entropy is log alpha + 1: the fixed point is alpha = exp(target - 1)."""
    part = Automatic(lr=0.02, target=0.2)
    state = part.init()
    for _ in range(3000):
        state = part(state, -(math.log(part.value(state)) + 1.0), 1)
    assert part.value(state) == pytest.approx(math.exp(0.2 - 1.0), rel=1e-3)


def test_a_constant_and_none():
    part = Constant(0.3)
    assert alpha_of(part, part(part.init(), 5.0, 1)) == 0.3
    assert alpha_of(None, {}) == 0.0


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(UsageError, match=r"temperature.initial is 0.0; it must be above 0"):
        Automatic(initial=0.0)
