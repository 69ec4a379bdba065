"""Card: preference_distill_hybrid.md, dpo."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from upslope import make
from upslope.parts.sampling import Sample
from upslope.testing import batch_of, finite_differences, value_and_gradient


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gradient_at(recipe, bandit, policy):
    """The gradient of the loss with respect to the bandit's logits."""
    theta = policy.log().requires_grad_()
    recipe(bandit[0](theta))[0].backward()
    return theta.grad.numpy()


def test_card_numbers(card):
    recipe = make("dpo")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(card))
    assert float(loss) == pytest.approx(0.620957, abs=5e-7)
    per_token = -0.1 * sigmoid(-0.15)
    assert per_token == pytest.approx(-0.046257, abs=5e-7)
    np.testing.assert_allclose(gradient[0], [per_token] * 4 + [0, 0])
    np.testing.assert_allclose(gradient[1], [-per_token] * 6)
    _, stats = recipe(card)
    assert (float(stats["pairs/margin"]), float(stats["pairs/accuracy"])) == (pytest.approx(0.15), 1.0)


def test_value_and_gradient_against_numpy():
    batch = batch_of([[1, 0], [0, 1], [0.7, 0.3]], seed=3)
    label, ref, mask = batch.label.numpy(), batch.ref_logp.numpy(), batch.mask.numpy()

    def loss_at(logp):
        gap = ((logp - ref) * mask).sum(1).reshape(-1, 2) @ [1, -1]
        p = label.reshape(-1, 2)[:, 0]
        return np.mean(-p * np.log(sigmoid(0.1 * gap)) - (1 - p) * np.log(sigmoid(-0.1 * gap)))

    recipe = make("dpo")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-9)


def test_at_the_reference_every_pair_costs_log_two():
    batch = batch_of([[1, 0], [0.2, 0.8]])
    assert float(make("dpo")(batch.replace(logp=batch.ref_logp))[0]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_population_optimum_is_the_reference_times_exponential_rewards(bandit, beta):
    _, _, ref, reward = bandit
    best = ref * (reward / beta).exp()
    best = best / best.sum()
    if beta == 1.0:
        np.testing.assert_allclose(best, [0.179, 0.291944, 0.529056], atol=5e-7)
    recipe = make("dpo", beta=beta)
    np.testing.assert_allclose(gradient_at(recipe, bandit, best), 0, atol=1e-16)
    assert abs(gradient_at(recipe, bandit, ref)).max() > 0.01
    theta = best.log().requires_grad_()  # and the same policy maximizes the reward less beta KL
    policy = theta.softmax(0)
    (policy * (reward - beta * (policy / ref).log())).sum().backward()
    np.testing.assert_allclose(theta.grad, 0, atol=1e-15)


@pytest.mark.parametrize(
    ("settings", "inverse"),
    [
        ({"alpha": 1.0}, lambda v: 1 / (1 - v)),
        ({"alpha": 0.5}, lambda v: (1 - 0.5 * v) ** -2),
        ({"divergence": "js"}, lambda v: 1 / (2 * np.exp(-v) - 1)),
    ],
    ids=["forward KL", "alpha 1/2", "Jensen-Shannon"],
)
def test_optima_under_other_divergences(bandit, settings, inverse):
    """policy / ref = f'^-1((reward - nu) / beta), with nu such that it is a distribution."""
    _, _, ref, reward = bandit
    beta, low, high = 1.0, float(reward.max()) - (math.log(2) if settings.get("divergence") else 1.0) + 1e-9, 50.0
    for _ in range(200):
        nu = (low + high) / 2
        total = float((ref.numpy() * inverse((reward.numpy() - nu) / beta)).sum())
        low, high = (nu, high) if total > 1 else (low, nu)
    best = ref * torch.tensor(inverse((reward.numpy() - nu) / beta))
    assert float(best.sum()) == pytest.approx(1)
    recipe = make("dpo", beta=beta, **settings)
    np.testing.assert_allclose(gradient_at(recipe, bandit, best), 0, atol=1e-12)
    plain = ref * reward.exp()
    assert abs(gradient_at(recipe, bandit, plain / plain.sum())).max() > 1e-3


def test_is_logistic_regression_on_differences_of_log_ratios():
    generator = np.random.default_rng(0)
    features, beta = generator.normal(size=(30, 2, 3)), 0.7  # completions with 3 features, policies linear in them
    wins = generator.random(30) < sigmoid(2 * (features[:, 0] - features[:, 1]) @ [1.0, -0.5, 0.2])
    labels = torch.tensor(np.stack([wins, ~wins], 1).ravel().astype(float))
    recipe, group = make("dpo", beta=beta), torch.arange(60) // 2
    template = batch_of([[1, 0]] * 30, lengths=[1] * 60).replace(label=labels, group=group)

    def ours(weights):
        logp = torch.tensor(features.reshape(60, 3) @ weights)[:, None] + template.ref_logp
        return float(recipe(template.replace(logp=logp))[0])

    def regression(weights):
        difference = beta * (features[:, 0] - features[:, 1]) @ weights
        return np.mean(np.logaddexp(0, np.where(wins, -difference, difference)))

    fitted = minimize(regression, np.zeros(3)).x
    for weights in (np.zeros(3), fitted, np.array([1.0, 2.0, -1.0])):
        assert ours(weights) == pytest.approx(regression(weights), rel=1e-12)
    assert np.abs(finite_differences(ours, fitted)).max() < 1e-4


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo"])
def test_online_it_pairs_by_reward(name):
    batch = batch_of([[1, 0], [0, 1]], seed=2)
    online = make(f"{name}@online")
    assert torch.equal(online(batch)[0], make(name)(batch)[0])
    assert "label" not in online.needs
    assert isinstance(online.rollout, Sample)
    by_hand = make(name, rollout="grpo", pairs="reward")
    assert by_hand.parts() == online.parts(), "a preset, and two settings"
    equal = online.prepare(batch.replace(reward=torch.ones(4).double()))
    loss, gradient = value_and_gradient(online, equal)
    assert float(loss) == 0.0, "equal rewards make no pair"
    assert not gradient.any()


def test_an_iteration_is_a_setting():
    recipe = make("dpo@iterative")
    assert recipe.replace(update=make("dpo").update).parts() == make("dpo@online").parts()
    assert recipe.update.fresh_reference == 20
    assert make("dpo", fresh_reference=5).update.fresh_reference == 5, "of given pairs, too"
