"""Card: preference_distill_hybrid.md, cdpo."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_card_numbers_and_gradient(card):
    loss, gradient = value_and_gradient(make("cdpo"), make("cdpo").prepare(card))
    assert float(loss) == pytest.approx(0.635957, abs=5e-7)

    def loss_at(logp):
        gap = 0.1 * ((logp - card.ref_logp.numpy()) * card.mask.numpy()).sum(1) @ [1, -1]
        return 0.9 * np.log1p(np.exp(-gap)) + 0.1 * np.log1p(np.exp(gap))

    np.testing.assert_allclose(gradient, finite_differences(loss_at, card.logp.numpy()), atol=1e-9)


def test_a_pair_ends_at_the_log_odds_of_its_label(card):
    recipe = make("cdpo", smoothing=0.2, beta=0.5)
    gap = np.log(0.8 / 0.2) / 0.5
    moved = card.replace(ref_logp=card.logp - torch.tensor([[gap / 4], [0.0]]).double() * card.mask)
    np.testing.assert_allclose(value_and_gradient(recipe, recipe.prepare(moved))[1], 0, atol=1e-15)


def test_without_errors_it_is_dpo_and_with_them_dpo_on_soft_labels():
    batch = batch_of([[1, 0], [0, 1]], seed=1)
    same(make("cdpo", smoothing=0.0), make("dpo"), batch, batch)
    same(make("cdpo", smoothing=0.3), make("dpo"), batch, batch.replace(label=0.3 + 0.4 * batch.label))


def same(one, other, batch, as_batch):
    results = [value_and_gradient(one, one.prepare(batch)), value_and_gradient(other, other.prepare(as_batch))]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
