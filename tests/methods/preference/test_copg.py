"""Card: preference_distill_hybrid.md, copg."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.parts.data import FromData
from upslope.testing import batch_of, finite_differences, value_and_gradient

from .conftest import REFERENCE, REWARD


def test_card_numbers():
    """R = (1, 0), beta 1/2, log-ratios (1, -1/2): x = (0.5, 0.25)."""
    logp = torch.tensor([[-1.0], [-2.0]]).double()
    batch = Batch(logp=logp, ref_logp=logp - torch.tensor([[1.0], [-0.5]]), reward=[1.0, 0.0], group=[0, 0])
    recipe = make("copg", beta=0.5)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(0.0625)
    np.testing.assert_allclose(gradient[:, 0], [-0.25, 0.25])


def test_value_and_gradient_against_numpy():
    batch = batch_of([[0.2, 1.4, -0.3, 0.9], [1, 0], [3.0]], seed=2)
    reward, group, ref, mask = (getattr(batch, name).numpy() for name in ("reward", "group", "ref_logp", "mask"))

    def loss_at(logp):
        x, total = reward - 0.3 * ((logp - ref) * mask).sum(1), 0.0
        for g in range(3):
            rows = np.flatnonzero(group == g)
            pairs = [(x[i] - x[j]) ** 2 / (2 * 0.3) for i in rows for j in rows if i > j]
            total += sum(pairs) / max(len(rows) - 1, 1)
        return total / 3

    recipe = make("copg", beta=0.3)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-7)


@pytest.mark.parametrize("sizes", [[2, 2, 2], [5, 5]])
def test_on_policy_it_is_rloo_with_the_kl_in_the_reward_summed_over_samples(sizes):
    rewards = [list(np.linspace(0, 1 + i, size)) for i, size in enumerate(sizes)]
    batch = batch_of(rewards, seed=4)
    gradients = []
    for name in ("copg", "rloo"):
        recipe = make(name, beta=0.2)
        gradients.append(value_and_gradient(recipe, recipe.prepare(batch))[1])
    torch.testing.assert_close(gradients[0], gradients[1] * sizes[0])


def test_rewards_that_differ_by_one_half_make_half_beta_times_ipo(card):
    halves = card.replace(reward=[0.5, 0.0])
    for beta in (0.1, 0.7):
        (one, gradient), (other, expected) = (
            value_and_gradient(recipe, recipe.prepare(halves))
            for recipe in (make("copg", beta=beta), make("ipo@paper", beta=beta))
        )
        torch.testing.assert_close(one, beta / 2 * other)
        torch.testing.assert_close(gradient, beta / 2 * expected)


@pytest.mark.parametrize("behavior", [[0.9, 0.05, 0.05], [0.1, 0.1, 0.8]])
def test_any_behaviour_leads_to_the_reference_times_exponential_rewards(behavior):
    """All pairs of a bandit, weighted by how often a behaviour policy draws them: descent ends where REINFORCE would not."""
    chances = torch.tensor(behavior).double()
    recipe, theta = make("copg", beta=0.5), torch.zeros(3).double().requires_grad_()
    arms = torch.tensor([0, 1, 0, 2, 1, 2])
    columns = {"ref_logp": REFERENCE[arms, None].log(), "reward": REWARD[arms], "group": torch.arange(6) // 2}
    weight = (chances[arms[::2]] * chances[arms[1::2]]).repeat_interleave(2).unsqueeze(1)
    optimizer = torch.optim.LBFGS([theta], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        batch = Batch(logp=theta.log_softmax(0)[arms, None], **columns, weight=weight.expand(6, 1))
        loss = recipe(batch)[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    best = REFERENCE * (REWARD / 0.5).exp()
    np.testing.assert_allclose(theta.detach().softmax(0), best / best.sum(), atol=1e-6)


def test_offline_takes_the_scores_of_pairs():
    recipe = make("copg@offline")
    assert recipe.rollout == FromData(kind="pairs")
    assert recipe.needs == {"reward", "ref_logp", "group"}


def test_a_shift_of_a_prompts_rewards_changes_nothing():
    recipe, batch = make("copg"), batch_of([[1, 0, 0.5], [0, 1]], seed=3)
    shifted = batch.replace(reward=batch.reward + 7.0 * batch.group)
    torch.testing.assert_close(recipe(batch)[0], recipe(shifted)[0])
