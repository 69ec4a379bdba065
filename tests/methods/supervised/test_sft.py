"""Card: preference_distill_hybrid.md, sft. Training on a file: tests/test_given.py."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.parts.data import FromData
from upslope.testing import batch_of, value_and_gradient


def test_recipe():
    recipe = make("sft")
    assert recipe.rollout == FromData(kind="demonstrations")
    assert recipe.needs == frozenset()
    assert (recipe.advantage, recipe.regularizer) == (None, None)


def test_gradient_on_logits_is_probabilities_minus_one_hot():
    logits = torch.tensor([0.7, 0.2, 0.1]).double().log().requires_grad_()
    batch = batch_of([[1]], lengths=[1]).replace(logp=logits.log_softmax(-1)[1].view(1, 1))
    make("sft")(batch)[0].backward()
    np.testing.assert_allclose(logits.grad, [0.7, -0.8, 0.1], atol=1e-12)


def test_mean_over_the_tokens_of_the_whole_step():
    batch = batch_of([[1], [1]], lengths=[1, 3])
    loss, gradient = value_and_gradient(make("sft"), make("sft").prepare(batch))
    assert float(loss) == pytest.approx(-batch.logp.numpy().sum() / 4)
    np.testing.assert_allclose(gradient, batch.mask.numpy() / -4)


def test_it_is_the_policy_gradient_of_reward_one_with_weight_one_over_the_probability():
    """The gradient of the probability, which is dft's, over the probability."""
    batch = batch_of([[1, 1, 1]])
    weighted = make("dft").prepare(batch.replace(weight=1 / batch.logp.detach().exp()))
    _, expected = value_and_gradient(make("sft"), make("sft").prepare(batch))
    torch.testing.assert_close(value_and_gradient(make("dft"), weighted)[1], expected)
