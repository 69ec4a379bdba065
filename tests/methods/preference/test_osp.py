"""Card: preference_distill_hybrid.md, osp."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.parts.preference import PreferenceLoss
from upslope.testing import batch_of, finite_differences, value_and_gradient


def log_odds(p):
    return np.log(p / (1 - p))


def test_card_numbers(card):
    judged = card.replace(reward=[log_odds(0.7), 0.0])
    loss, _ = make("osp")(judged)
    assert float(loss) == pytest.approx(0.665957, abs=5e-7)
    labelled = make("dpo")(card.replace(label=[0.7, 0.3]))[0]
    torch.testing.assert_close(loss, labelled, atol=1e-7, rtol=0)  # labels are float32


def test_a_pair_ends_at_a_finite_difference(card):
    judged = card.replace(reward=[log_odds(0.7), 0.0])
    gap = log_odds(0.7) / 0.1
    assert gap == pytest.approx(8.472979, abs=5e-7)
    moved = judged.replace(ref_logp=card.logp - torch.tensor([[gap / 4], [0.0]]).double() * card.mask)
    np.testing.assert_allclose(value_and_gradient(make("osp"), make("osp").prepare(moved))[1], 0, atol=1e-8)


def test_certain_labels_are_dpo_and_soft_ones_cdpo(card):
    certain = card.replace(reward=[200.0, 0.0])
    torch.testing.assert_close(make("osp")(certain)[0], make("dpo")(card)[0])
    soft = card.replace(reward=torch.tensor([log_odds(0.9), 0.0]).double())
    torch.testing.assert_close(make("osp")(soft)[0], make("cdpo")(card)[0])


@pytest.mark.parametrize("which", ["neighbours", "all", "extremes"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_optimum_is_the_reference_times_exponential_rewards(bandit, which, scale):
    batch, _, ref, reward = bandit
    best = ref * (reward / scale / 0.1).exp()
    theta = (best / best.sum()).log().requires_grad_()
    make("osp", which=which, reward_scale=scale)(batch(theta))[0].backward()
    np.testing.assert_allclose(theta.grad, 0, atol=1e-14)
    hard = make("osp", surrogate=PreferenceLoss(pairs="reward"))
    theta = theta.detach().requires_grad_()
    hard(batch(theta))[0].backward()
    assert abs(theta.grad).max() > 1e-5, "hard labels overshoot"


def test_value_and_gradient_against_numpy():
    batch = batch_of([[0.2, 1.4, -0.3, 0.9]], seed=2)
    ref, mask = batch.ref_logp.numpy(), batch.mask.numpy()
    ranking = [(1, 3, 0.5), (3, 0, 0.7), (0, 2, 0.5)]

    def loss_at(logp):
        z, losses = 0.1 * ((logp - ref) * mask).sum(1), []
        for winner, loser, gap in ranking:
            p = 1 / (1 + np.exp(-gap))
            losses.append(p * np.logaddexp(0, z[loser] - z[winner]) + (1 - p) * np.logaddexp(0, z[winner] - z[loser]))
        return np.mean(losses)

    recipe = make("osp")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-9)


def test_dno_step_with_win_rates(card):
    """Direct Nash optimization: labels sigma(r_t(y) - r_t(y')) of win rates, measured from the previous iterate."""
    rates = torch.tensor([0.7, 0.4]).double()
    assert float((rates[0] - rates[1]).sigmoid()) == pytest.approx(0.574443, abs=5e-7)
    previous = card.logp - torch.tensor([[1.3 / 4], [0.0]]).double() * card.mask  # eta times the difference: 0.65
    loss = make("osp", beta=0.5)(card.replace(reward=rates, ref_logp=previous))[0]
    assert float(loss) == pytest.approx(0.696668, abs=5e-7)
