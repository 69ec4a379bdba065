"""Card: preference_distill_hybrid.md, opa-dpo."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_numbers_of_the_cards_pair(card):
    """beta s of the preferred one is 0.1: the anchor adds log(1 + exp(-0.1)) to dpo's 0.620957."""
    loss, _ = make("opa_dpo")(card)
    assert float(loss) == pytest.approx(0.620957 + np.log1p(np.exp(-0.1)), abs=1e-6)


def test_value_and_gradient_against_numpy():
    batch = batch_of([[1, 0], [0, 1], [0.8, 0.2]], seed=2)
    ref, mask = batch.ref_logp.numpy(), batch.mask.numpy()

    def loss_at(logp):
        z, total = 0.1 * ((logp - ref) * mask).sum(1), 0.0
        for winner, loser, p in ((0, 1, 1), (3, 2, 1), (4, 5, 0.8)):
            gap = z[winner] - z[loser]
            total += p * np.logaddexp(0, -gap) + (1 - p) * np.logaddexp(0, gap) + np.logaddexp(0, -z[winner])
        return total / 3

    recipe = make("opa_dpo")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()), rel=1e-6)
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-8)


def test_without_the_anchor_it_is_dpo(card):
    assert make("opa_dpo").replace(terms=()).parts() == make("dpo").parts()
    torch.testing.assert_close(make("opa_dpo", coefficient=0.0)(card)[0], make("dpo")(card)[0])


def test_the_anchor_pulls_the_preferred_completion_up_alone(card):
    with_anchor, without = (value_and_gradient(r, r.prepare(card))[1] for r in (make("opa_dpo"), make("dpo")))
    added = with_anchor - without
    assert (added[0, :4] < 0).all()
    assert not added[1].any()
