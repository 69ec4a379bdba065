"""Card: preference_distill_hybrid.md, slic-hinge."""

import numpy as np
import pytest

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_card_numbers(card):
    assert float(make("slic_hinge")(card)[0]) == pytest.approx(0.4)
    assert float(make("slic_hinge@trl")(card)[0]) == pytest.approx(0.85)
    assert "ref_logp" not in make("slic_hinge").needs


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_value_and_gradient_against_numpy(margin):
    batch = batch_of([[1, 0], [0, 1], [0.2, 0.8]], seed=6)
    label, mask = batch.label.numpy().reshape(-1, 2), batch.mask.numpy()

    def loss_at(logp):
        total = (logp * mask).sum(1).reshape(-1, 2)
        best = label.argmax(1)
        gap = total[range(3), best] - total[range(3), 1 - best]
        p = label.max(1)
        hinge = p * np.maximum(0, 1 + margin - gap) + (1 - p) * np.maximum(0, 1 + margin + gap)
        return np.mean(hinge - 0.1 * total[range(3), best])

    recipe = make("slic_hinge", margin=margin)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-8)


def test_past_the_margin_there_is_no_gradient_but_the_anchors(card):
    _, gradient = value_and_gradient(make("slic_hinge"), make("slic_hinge").prepare(card))
    np.testing.assert_allclose(gradient, -0.1 * (card.label[:, None] * card.mask))
    met = card.replace(ref_logp=card.logp - 3.0 * (card.label[:, None] == 1))  # beta times 12
    recipe = make("slic_hinge@trl")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(met))
    assert float(loss) == 0
    assert not gradient.any()
