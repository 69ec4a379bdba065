"""The clips: values and gradients at the corners, against NumPy in between."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope import Batch, UsageError
from upslope.parts.surrogate import (
    ClippedRatio,
    ClippedSequenceRatio,
    ControlledClip,
    PolicyGradient,
    ScheduledClip,
    log_ratio,
)


def loss_and_gradient(part, ratio, advantage):
    logp = torch.tensor(np.log([ratio]), dtype=torch.float64, requires_grad=True)
    batch = Batch(logp=logp, old_logp=torch.zeros_like(logp), advantage=torch.tensor([advantage]).expand_as(logp))
    loss = part(batch).sum()
    return loss.item(), torch.autograd.grad(loss, logp)[0].squeeze().tolist()


@pytest.mark.parametrize(
    ("advantage", "ratio", "dual", "loss", "gradient"),
    [
        (1.0, 1.5, None, -1.2, 0.0),
        (-1.0, 0.5, None, 0.8, 0.0),
        (-1.0, 5.0, 3.0, 3.0, 0.0),
        (-1.0, 5.0, None, 5.0, 5.0),
        (-1.0, 2.0, 3.0, 2.0, 2.0),
        (1.0, 5.0, 3.0, -1.2, 0.0),
        (1.0, 0.5, None, -0.5, -0.5),
        (-1.0, 1.5, None, 1.5, 1.5),
        (1.0, 1.0, None, -1.0, -1.0),
        (-1.0, 1.0, 3.0, 1.0, 1.0),
        (1.0, 1.0, 3.0, -1.0, -1.0),
    ],
)
def test_clipped_ratio_at_the_corners(advantage, ratio, dual, loss, gradient):
    found = loss_and_gradient(ClippedRatio(0.8, 1.2, dual=dual), [ratio], advantage)
    assert found == (pytest.approx(loss), pytest.approx(gradient))


@given(st.floats(-3, 3), st.floats(0.1, 9), st.floats(0.1, 1), st.floats(1, 4), st.none() | st.floats(4.5, 8))
def test_clipped_ratio_equals_numpy(advantage, ratio, low, high, dual):
    expected = max(-advantage * ratio, -advantage * np.clip(ratio, low, high))
    if dual is not None and advantage < 0:
        expected = min(expected, -advantage * dual)
    assert loss_and_gradient(ClippedRatio(low, high, dual=dual), [ratio], advantage)[0] == pytest.approx(expected)


@settings(deadline=None)  # a process's first backward pass may take long
@given(st.floats(-2, 2), st.floats(-5, 5))
def test_policy_gradient_is_the_ratio_gradient_on_policy(advantage, logp):
    batch = Batch(logp=torch.tensor([[logp]], requires_grad=True), advantage=torch.tensor([[advantage]]))
    batch = batch.replace(old_logp=batch.logp.detach())
    plain, ratio = (
        torch.autograd.grad(part(batch).sum(), batch.logp)[0] for part in (PolicyGradient(), ClippedRatio())
    )
    torch.testing.assert_close(plain, ratio)


def test_sequence_ratio_is_the_mean_or_the_sum():
    moved = np.array([0.9, -0.1, -0.5])
    for normalized, exponent in ((True, moved.mean()), (False, moved.sum())):
        part = ClippedSequenceRatio(0.2, 5.0, length_normalized=normalized)
        loss, gradient = loss_and_gradient(part, np.exp(moved), 2.0)
        assert loss == pytest.approx(-2 * np.exp(exponent))
        np.testing.assert_allclose(gradient, -2 * np.exp(exponent) * (1 / 3 if normalized else 1))


def test_clip_statistics_count_the_tokens_without_gradient():
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.0]])
    batch = Batch(logp=ratio.log(), old_logp=torch.zeros(1, 5), advantage=torch.tensor([[1.0, -1, 1, -1, 1]]))
    stats = ClippedRatio(0.8, 1.2).stats(batch)
    assert stats["ratio/clip_fraction"].tolist() == [[1, 0, 0, 1, 0]]
    assert stats["ratio/clip_fraction_high"].tolist() == [[1, 0, 0, 0, 0]]
    assert stats["ratio/clip_fraction_low"].tolist() == [[0, 0, 0, 1, 0]]


@pytest.mark.parametrize("dual", [None, 3.0])
def test_a_controlled_clip_is_a_clip_with_bounds_of_its_own_in_each_row(dual):
    ratio = torch.tensor([[0.3, 0.7, 1.0, 1.4, 5.0]], dtype=torch.float64)
    bounds = ((0.8, 1.2), (0.6, 1.5))
    for advantage in (1.0, -2.0):
        logp = ratio.log().repeat(2, 1).requires_grad_()
        batch = Batch(
            logp=logp,
            old_logp=torch.zeros_like(logp),
            advantage=torch.full((2,), advantage, dtype=torch.float64),
            ratio_low=torch.tensor([low for low, _ in bounds], dtype=torch.float64),
            ratio_high=torch.tensor([high for _, high in bounds], dtype=torch.float64),
        )
        part = ControlledClip(dual=dual)
        loss, stats = part(batch), part.stats(batch)
        (gradient,) = torch.autograd.grad(loss.sum(), logp)
        for row, (low, high) in enumerate(bounds):
            one = batch.select(torch.tensor([row]))
            fixed = ClippedRatio(low, high, dual=dual)
            torch.testing.assert_close(loss[row : row + 1], fixed(one))
            expected = loss_and_gradient(fixed, ratio[0].tolist(), advantage)[1]
            torch.testing.assert_close(gradient[row], torch.tensor(expected, dtype=torch.float64))
            for name, column in fixed.stats(one).items():
                torch.testing.assert_close(stats[name][row : row + 1], column)


def test_log_ratios_of_tokens_sequences_and_their_geometric_mean():
    moved = torch.tensor([[0.5, -0.1, 0.2], [30.0, 1.0, 7.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    batch = Batch(logp=moved, old_logp=torch.zeros_like(moved), mask=mask)
    torch.testing.assert_close(log_ratio(batch), torch.tensor([[0.5, -0.1, 0.2], [20.0, 1.0, 0.0]]))
    torch.testing.assert_close(log_ratio(batch, "sequence"), torch.tensor([[0.6], [20.0]]))
    torch.testing.assert_close(log_ratio(batch, "geometric_mean"), torch.tensor([[0.2], [15.5]]))


def test_impossible_intervals_are_refused():
    with pytest.raises(UsageError, match=r"ClippedRatio clips to \[0.2, 0.2\], which leaves out 1"):
        ClippedRatio(0.2, 0.2)
    for part in (ClippedRatio, ControlledClip):
        with pytest.raises(UsageError, match=f"{part.__name__}.*must be over 1"):
            part(dual=0.5)


def test_an_advantage_by_token_does_not_fit_a_sequence_ratio():
    batch = Batch(logp=torch.zeros(2, 2), old_logp=torch.zeros(2, 2), advantage=torch.tensor([[1.0, 1], [1, 2]]))
    part = ClippedSequenceRatio()
    with pytest.raises(
        UsageError, match=r"ClippedSequenceRatio gives one loss per sequence, but 'advantage' differs within row 1"
    ):
        part(batch.read_by(part))


def scheduled(progress, ratio, advantage, schedule="linear"):
    logp = torch.tensor(np.log(ratio), dtype=torch.float64).unsqueeze(1).requires_grad_()
    columns = {"advantage": torch.tensor(advantage).unsqueeze(1), "progress": torch.tensor(progress)}
    loss = ScheduledClip(0.8, 1.4, schedule=schedule)(Batch(logp=logp, old_logp=torch.zeros_like(logp), **columns))
    return loss.squeeze(1).tolist(), torch.autograd.grad(loss.sum(), logp)[0].squeeze(1).tolist()


def test_scheduled_clip_closes_on_one():
    """At 3/4 of the run 0.8 has become 0.95 and 1.4 has become 1.1."""
    ratio, advantage = [1.3, 1.3, 0.9, 0.9, 1.05], [1.0, 1.0, -1.0, -1.0, 1.0]
    loss, gradient = scheduled([0.0, 0.75, 0.0, 0.75, 0.75], ratio, advantage)
    assert loss == pytest.approx([-1.3, -1.1, 0.9, 0.95, -1.05])
    assert gradient == pytest.approx([-1.3, 0.0, 0.9, 0.0, -1.05])


def test_scheduled_clip_that_is_constant_is_clipped_ratio():
    part = ScheduledClip(0.8, 1.4)
    assert part.needs == ClippedRatio.needs
    assert ScheduledClip(0.8, 1.4, schedule="linear").needs == ClippedRatio.needs | {"progress"}
    assert scheduled([0.9], [1.3], [1.0], "constant") == ([pytest.approx(-1.3)], [pytest.approx(-1.3)])
    assert "closing on 1" in ScheduledClip(schedule="linear").describe()
