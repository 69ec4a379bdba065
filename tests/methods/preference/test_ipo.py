"""Card: preference_distill_hybrid.md, ipo."""

import numpy as np
import pytest

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_card_numbers(card):
    mean, total = make("ipo"), make("ipo@paper")
    assert float(total(card)[0]) == pytest.approx(12.25)
    assert float(mean(card)[0]) == pytest.approx(21.7778, abs=5e-5)
    _, gradient = value_and_gradient(total, total.prepare(card))
    np.testing.assert_allclose(gradient[0, :4], 2 * (1.5 - 5))
    _, gradient = value_and_gradient(mean, mean.prepare(card))
    np.testing.assert_allclose(gradient[1], -2 * (1 / 4 + 0.5 / 6 - 5) / 6)


def test_value_and_gradient_against_numpy():
    batch = batch_of([[1, 0], [0, 1]], seed=8)
    ref, mask = batch.ref_logp.numpy(), batch.mask.numpy()

    def loss_at(logp):
        score = ((logp - ref) * mask).sum(1) / mask.sum(1)
        gap = np.array([score[0] - score[1], score[3] - score[2]])
        return np.mean((gap - 1 / (2 * 0.3)) ** 2)

    recipe = make("ipo", beta=0.3)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-8)


@pytest.mark.parametrize("name", ["ipo", "ipo@paper"])
def test_a_pair_that_is_always_won_ends_at_a_finite_difference(card, name):
    recipe = make(name, beta=0.5)
    per_token = 1.0 if name == "ipo" else 1 / 4  # the mean, or the sum over 4 tokens, of the winner's log-ratios is 1
    moved = card.replace(ref_logp=card.logp - per_token * (card.label[:, None] == 1))
    loss, gradient = value_and_gradient(recipe, recipe.prepare(moved))
    assert float(loss) == pytest.approx(0, abs=1e-28)
    np.testing.assert_allclose(gradient, 0, atol=1e-14)
    _, dpo = value_and_gradient(make("dpo"), make("dpo").prepare(moved))
    assert abs(dpo[0, :4]).min() > 0.04, "dpo goes on"


def test_copg_where_rewards_differ_by_a_half(card):
    """Contrastive policy gradient: (R_b - R_b')^2 / (2 b), R_b = reward - b log-ratio; b / 2 times IPO on sums."""
    b, ratio = 0.3, [1.0, -0.5]
    contrastive = ((0.5 - b * ratio[0]) - (0.0 - b * ratio[1])) ** 2 / (2 * b)
    assert contrastive == pytest.approx(b / 2 * float(make("ipo@paper", beta=b)(card)[0]))
    gradient = value_and_gradient(make("ipo@paper", beta=b), make("ipo@paper", beta=b).prepare(card))[1]
    difference = (0.5 - b * ratio[0]) - (0.0 - b * ratio[1])
    np.testing.assert_allclose(b / 2 * gradient[:, 0], [-difference, difference])


@pytest.mark.parametrize(("eta", "tau", "previous"), [(0.2, 0.2, [-4.5, -5.2]), (0.5, 0.2, [-5.0, -5.5])])
def test_inpo_with_equal_temperatures_or_from_the_reference(card, eta, tau, previous):
    """Iterative Nash policy optimization: the previous iterate drops out, or is the reference."""
    lp, ref = [-4.0, -6.0], [-5.0, -5.5]
    h = (lp[0] - lp[1]) - tau / eta * (ref[0] - ref[1]) - (eta - tau) / eta * (previous[0] - previous[1])
    assert (h - 1 / (2 * eta)) ** 2 == pytest.approx(float(make("ipo@paper", beta=eta)(card)[0]))
