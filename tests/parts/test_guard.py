"""Ratios of Gaussian actions against NumPy, from samples and densities rather than by the normalized formula."""

import math

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError
from upslope.parts.guard import GaussianKL, NormalizedRatio, StepBalance
from upslope.testing import finite_differences


def log_density(x, mean, scale):
    """Mean over the dimensions of log N(x; mean, scale^2), one scale per step."""
    return (-((x - mean) ** 2) / (2 * scale[..., None] ** 2)).mean(-1) - np.log(scale) - 0.5 * math.log(2 * math.pi)


def sampled(rows=4, steps=5, dimensions=8, moved=0.1, low=0.05, seed=0):
    """Means, scales and noise of `rows` trajectories; noise scales fall from 0.5 to `low`."""
    random = np.random.default_rng(seed)
    old = random.normal(size=(rows, steps, dimensions))
    scale = np.tile(np.geomspace(0.5, low, steps), (rows, 1))
    noise = random.normal(size=old.shape)
    return old, old + moved * random.normal(size=old.shape), scale, noise


def batch_from(old, mean, scale, noise, advantage=-1.0, **columns):
    x = old + scale[..., None] * noise
    return Batch(
        logp=log_density(x, mean, scale),
        old_logp=log_density(x, old, scale),
        mean=mean,
        old_mean=old,
        noise_scale=scale,
        advantage=np.full(scale.shape, advantage),
        **columns,
    )


def test_card_algebra():
    old, mean, scale, noise = sampled()
    ratio = NormalizedRatio(0.1, 9.0)(batch_from(old, mean, scale, noise))
    np.testing.assert_allclose(ratio.log(), (noise * (mean - old)).mean(-1), atol=1e-12)


def test_a_policy_that_has_not_moved_has_ratio_one():
    old, _, scale, noise = sampled()
    np.testing.assert_allclose(NormalizedRatio()(batch_from(old, old, scale, noise)), 1.0)


def test_the_drift_of_the_plain_ratio_is_gone():
    old, mean, scale, _ = sampled(rows=1, steps=1, low=0.3)
    noise = np.random.default_rng(1).normal(size=(20_000, 1, 8))
    old, mean, scale = (np.repeat(column, 20_000, axis=0) for column in (old, mean, np.full((1, 1), 0.3)))
    batch = batch_from(old, mean, scale, noise)
    drift = -((mean[0] - old[0]) ** 2).mean() / (2 * 0.3**2)
    np.testing.assert_allclose((batch.logp - batch.old_logp).mean(), drift, rtol=0.1)
    assert abs(NormalizedRatio(0.1, 9.0)(batch).log().mean()) < abs(drift) / 20


@pytest.mark.parametrize("advantage", [1.0, -2.0])
def test_gradient_flows_through_the_means(advantage):
    old, mean, scale, noise = sampled(moved=0.3)
    x = old + scale[..., None] * noise

    def numpy_loss(at):
        r = np.exp((noise * (at - old)).mean(-1))
        return np.maximum(-advantage * r, -advantage * np.clip(r, 0.95, 1.05)).sum()

    moving = torch.tensor(mean, requires_grad=True)
    spread = torch.tensor(scale).unsqueeze(-1)
    logp = (-((torch.tensor(x) - moving) ** 2) / (2 * spread**2) - spread.log() - 0.5 * math.log(2 * math.pi)).mean(-1)
    batch = batch_from(old, mean, scale, noise, advantage).replace(logp=logp, mean=moving)
    loss = NormalizedRatio(0.95, 1.05)(batch).sum()
    assert loss.item() == pytest.approx(numpy_loss(mean))
    (gradient,) = torch.autograd.grad(loss, moving)
    np.testing.assert_allclose(gradient, finite_differences(numpy_loss, mean), atol=1e-8)
    assert (gradient == 0).any()
    assert (gradient != 0).any()


def test_balance_is_one_over_the_step():
    old, mean, scale, noise = sampled(rows=1, steps=3)
    mask, size = [[True, True, False]], [[0.5, 0.1, 0.0]]
    weight = StepBalance()(batch_from(old, mean, scale, noise, mask=mask, step_size=size))
    np.testing.assert_allclose(weight, [[2.0, 10.0, 0.0]])


def test_kl_of_gaussians():
    old, mean, scale, noise = sampled()
    batch = batch_from(old, mean, scale, noise, ref_mean=old + 0.2)
    expected = ((mean - old - 0.2) ** 2 / (2 * scale[..., None] ** 2)).mean(-1)
    np.testing.assert_allclose(GaussianKL(beta=0.5)(batch), 0.5 * expected)
    target = [torch.distributions.Normal(torch.tensor(m), torch.tensor(scale)[..., None]) for m in (mean, old + 0.2)]
    np.testing.assert_allclose(torch.distributions.kl_divergence(*target).mean(-1), expected)


def test_masked_steps_may_be_deterministic_and_others_not():
    old, mean, _, _ = sampled(rows=1, steps=2)
    scale = np.array([[0.5, 0.0]])
    columns = {
        "logp": [[-1.0, 0.0]],
        "old_logp": [[-1.0, 0.0]],
        "mean": mean,
        "old_mean": old,
        "advantage": [[1.0, 1.0]],
    }
    batch = Batch(**columns, noise_scale=scale, mask=[[True, False]])
    assert NormalizedRatio()(batch).isfinite().all()
    with pytest.raises(UsageError, match="NormalizedRatio divides by 'noise_scale', which is 0 at row 0, step 1"):
        NormalizedRatio()(Batch(**columns, noise_scale=scale))
    with pytest.raises(UsageError, match="leaves out 1"):
        NormalizedRatio(2e-6, 4e-6)
