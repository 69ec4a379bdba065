"""Card: preference_distill_hybrid.md, implicit-reward-sft."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.parts.aggregate import RowMean
from upslope.testing import batch_of, finite_differences, value_and_gradient

PHI = {
    "pearson": lambda r: r - r**2 / 4,
    "hellinger": lambda r: np.where(r > -0.9, r / (1 + np.maximum(r, -0.9)), -9 + 100 * (r + 0.9)),
    "total_variation": lambda r: r,
}


def at(reward, divergence):
    batch = Batch(logp=torch.tensor([[reward]]).double(), ref_logp=torch.zeros(1, 1).double())
    recipe = make("implicit_reward_sft", divergence=divergence)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    return float(loss), float(gradient)


def test_card_numbers():
    assert at(0.5, "pearson")[0] == pytest.approx(-0.4375)
    assert at(0.5, "hellinger")[0] == pytest.approx(-1 / 3)
    assert at(2.0, "pearson")[1] == 0, "the pull ends at r = 2"
    assert at(3.0, "pearson")[1] > 0


@pytest.mark.parametrize("divergence", PHI)
def test_the_first_step_is_that_of_sft(divergence):
    assert at(0.0, divergence) == (0.0, -1.0)


@pytest.mark.parametrize("per", ["token", "sequence"])
@pytest.mark.parametrize("divergence", PHI)
def test_value_and_gradient(divergence, per):
    batch = batch_of([[1, 1], [1]], seed=3)
    batch = batch.replace(ref_logp=batch.logp - torch.linspace(-0.4, 0.9, batch.logp.numel()).view_as(batch.logp))
    aggregate = {"aggregate": RowMean()} if per == "sequence" else {}
    recipe = make("implicit_reward_sft", divergence=divergence, beta=0.7, per=per, **aggregate)
    mask, ref = batch.mask.numpy(), batch.ref_logp.numpy()

    def numpy_loss(logp):
        r = 0.7 * (logp - ref) * mask
        return -PHI[divergence](r.sum(1)).mean() if per == "sequence" else -PHI[divergence](r)[mask].mean()

    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(numpy_loss, batch.logp.numpy()), atol=1e-7)


def test_total_variation_has_betas_times_the_gradient_of_sft():
    batch = batch_of([[1, 1], [1]])
    ours = make("implicit_reward_sft", divergence="total_variation", beta=0.3)
    one, other = (value_and_gradient(r, r.prepare(batch))[1] for r in (ours, make("sft")))
    torch.testing.assert_close(one, 0.3 * other)


def test_hellinger_goes_on_as_its_tangent_beyond_the_pole():
    for reward in (-0.9 - 1e-9, -1.0, -5.0):
        value, slope = at(reward, "hellinger")
        assert slope == pytest.approx(-100)
        assert value == pytest.approx(9 - 100 * (reward + 0.9))


def test_wrong_settings():
    with pytest.raises(UsageError, match=r"beta=0\): it must be positive"):
        make("implicit_reward_sft", beta=0.0)
    with pytest.raises(UsageError, match="one loss per sequence"):
        make("implicit_reward_sft", per="sequence")
