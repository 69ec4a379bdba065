"""Card: preference_distill_hybrid.md, dft."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_value_and_gradient():
    batch, recipe = batch_of([[1, 1], [1]]), make("dft")
    logp, mask = batch.logp.numpy(), batch.mask.numpy()
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(-(np.exp(logp) * logp * mask).sum() / mask.sum())
    frozen = np.exp(logp)
    expected = finite_differences(lambda at: -(frozen * at * mask).sum() / mask.sum(), logp)
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


def test_its_gradient_is_that_of_minus_the_probability():
    batch, recipe = batch_of([[1, 1, 1]]), make("dft")
    mask = batch.mask.numpy()
    expected = finite_differences(lambda at: -(np.exp(at) * mask).sum() / mask.sum(), batch.logp.numpy())
    np.testing.assert_allclose(value_and_gradient(recipe, recipe.prepare(batch))[1], expected, atol=1e-8)


def test_certain_tokens_weigh_as_in_sft_and_impossible_ones_nothing():
    batch = batch_of([[1]], lengths=[2]).replace(logp=torch.tensor([[0.0, -800.0]]).double())
    gradients = [value_and_gradient(make(name), make(name).prepare(batch))[1] for name in ("dft", "sft")]
    np.testing.assert_allclose(gradients[0], [[-0.5, 0]], atol=1e-300)
    np.testing.assert_allclose(gradients[1], [[-0.5, -0.5]])
