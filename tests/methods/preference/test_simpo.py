"""Card: preference_distill_hybrid.md, simpo."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_card_numbers(card):
    recipe = make("simpo")
    assert "ref_logp" not in recipe.needs
    loss, gradient = value_and_gradient(recipe, recipe.prepare(card.replace(ref_logp=None)))
    assert float(loss) == pytest.approx(1.313262, abs=5e-7)
    slope = -2 / (1 + np.exp(-1))
    np.testing.assert_allclose(gradient[:, 0], [slope / 4, -slope / 6])


def test_value_and_gradient_against_numpy():
    batch = batch_of([[1, 0], [0, 1]], seed=7)
    mask = batch.mask.numpy()

    def loss_at(logp):
        mean = (logp * mask).sum(1) / mask.sum(1)
        gap = np.array([mean[0] - mean[1], mean[3] - mean[2]])
        return np.mean(np.log1p(np.exp(-(2.5 * gap - 0.75))))

    recipe = make("simpo", beta=2.5, margin=0.75)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-8)


def test_a_longer_completion_of_the_same_mean_is_worth_the_same():
    """Winners that are long because they repeat themselves: no reward for it here, but in dpo's sum."""
    logp = torch.tensor([[-1.0, -0.5, -1.0, -0.5], [-2.0, 0.0, 0.0, 0.0]]).double()
    short = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    long = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    losses = {
        name: [
            float(make(name)(Batch(logp=logp, ref_logp=2 * logp, mask=mask, label=[1.0, 0.0], group=[0, 0]))[0])
            for mask in (short, long)
        ]
        for name in ("simpo", "dpo")
    }
    assert losses["simpo"][0] == pytest.approx(losses["simpo"][1])
    assert losses["dpo"][1] < losses["dpo"][0] - 0.01


def test_under_a_uniform_reference_and_equal_lengths_it_is_dpo():
    batch = batch_of([[1, 0], [0, 1]], lengths=[3] * 4)
    batch = batch.replace(ref_logp=torch.full_like(batch.logp, -2.0))
    ours, theirs = make("simpo", beta=0.3, margin=0.0), make("dpo", beta=0.1)  # the mean of 3 tokens
    for one, other in zip(
        value_and_gradient(ours, ours.prepare(batch)), value_and_gradient(theirs, theirs.prepare(batch)), strict=True
    ):
        torch.testing.assert_close(one, other)
