"""Card: preference_distill_hybrid.md, rdpo."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_card_numbers_and_gradient(card):
    loss, gradient = value_and_gradient(make("rdpo"), make("rdpo").prepare(card))
    assert float(loss) == pytest.approx(0.602207, abs=5e-7)
    assert float(gradient[0, 0]) == pytest.approx(-0.058757, abs=5e-7)
    assert float(gradient[0, 0]) == pytest.approx(-0.1 * (sigmoid(-0.15) + 0.1 / 0.8)), "dpo's slope plus a constant"

    def loss_at(logp):
        gap = 0.1 * ((logp - card.ref_logp.numpy()) * card.mask.numpy()).sum(1) @ [1, -1]
        return (0.9 * np.log1p(np.exp(-gap)) - 0.1 * np.log1p(np.exp(gap))) / 0.8

    np.testing.assert_allclose(gradient, finite_differences(loss_at, card.logp.numpy()), atol=1e-9)


@pytest.mark.parametrize("e", [0.1, 0.3, 0.45])
def test_averaged_over_flips_it_is_dpo_on_the_true_labels(e):
    batch = batch_of([[1, 0], [0, 1], [0.8, 0.2]], seed=5)
    results = []
    for true, probability in ((True, 1 - e), (False, e)):
        labels = batch.label if true else 1 - batch.label
        recipe = make("rdpo", flip_rate=e)
        loss, gradient = value_and_gradient(recipe, recipe.prepare(batch.replace(label=labels)))
        results.append((probability * loss, probability * gradient))
    clean = value_and_gradient(make("dpo"), make("dpo").prepare(batch))
    for index in (0, 1):
        torch.testing.assert_close(results[0][index] + results[1][index], clean[index])


def test_without_flips_it_is_dpo(card):
    assert torch.equal(make("rdpo", flip_rate=0.0)(card)[0], make("dpo")(card)[0])


def test_a_pair_is_never_done_and_the_loss_has_no_lower_bound(card):
    recipe = make("rdpo")
    far = card.replace(ref_logp=card.logp - 1000.0 * (card.label[:, None] == 1))
    loss, gradient = value_and_gradient(recipe, recipe.prepare(far))
    assert float(loss) < -40
    np.testing.assert_allclose(gradient[0, :4], -0.1 * 0.1 / 0.8)
