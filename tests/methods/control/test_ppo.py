"""Card: control_theory.md, ppo. Row order, padding, micro-batches: tests/methods/test_contract.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.parts.normalize import NormalizedAdvantage, ScaledReward
from upslope.parts.value import ClippedValue
from upslope.testing import value_and_gradient


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def transitions(ratio, advantage, **columns):
    logp = f64(ratio).log().unsqueeze(1)
    return Batch(logp=logp, old_logp=torch.zeros_like(logp), advantage=f64(advantage), **columns)


def test_surrogate_of_the_card():
    """Identity 4: A = (1, -1, 2), rho = (1.3, .7, 1): terms (-1.2, .8, -2), mean -.8; approx_kl .031437; clipfrac 2/3."""
    recipe = make("ppo", control=None, regularizer=None)
    batch = recipe.denominators(transitions([1.3, 0.7, 1.0], [1.0, -1.0, 2.0]))
    np.testing.assert_allclose(recipe.surrogate(batch)[:, 0], [-1.2, 0.8, -2.0])
    loss, stats = recipe.loss(batch)
    assert float(loss) == pytest.approx(-0.8)
    assert float(stats["ratio/kl"]) == pytest.approx(0.031437, abs=5e-7)
    assert float(stats["ratio/clip_fraction"]) == pytest.approx(2 / 3)
    _, gradient = value_and_gradient(recipe, batch)
    np.testing.assert_allclose(gradient[:, 0], [0.0, 0.0, -2.0 / 3], atol=1e-12)


def test_value_clip_of_the_card():
    """Identity 5: V_old = 1, V = 1.5, R = 2: .32, unclipped .125."""
    batch = Batch(logp=f64([[0.0]]), value=f64([[1.5]]), old_value=f64([[1.0]]), returns=f64([[2.0]]))
    assert float(ClippedValue(clip=0.2)(batch)) == pytest.approx(0.32)
    assert float(ClippedValue(clip=None)(batch)) == pytest.approx(0.125)


def test_advantages_are_normalised_with_n_minus_1():
    """Identity 6: (1, 2, 3, 4) becomes (-1.161895, -.387298, .387298, 1.161895)."""
    batch = transitions([1.0] * 4, [1.0, 2, 3, 4])
    found = NormalizedAdvantage()(batch)["advantage"][:, 0]
    np.testing.assert_allclose(found, [-1.161895, -0.387298, 0.387298, 1.161895], atol=5e-7)
    alone = NormalizedAdvantage()(batch.select(torch.tensor([2])))["advantage"]
    assert float(alone) == 3.0


def test_defaults():
    recipe = make("ppo")
    assert (recipe.rollout.environments, recipe.rollout.steps) == (4, 128)
    assert (recipe.update.epochs, recipe.update.minibatches, recipe.update.value_coefficient) == (4, 4, 0.5)
    assert (recipe.optimizer.lr, recipe.optimizer.eps, recipe.optimizer.grad_clip) == (2.5e-4, 1e-5, 0.5)
    assert recipe.regularizer.coefficient == 0.01
    continuous = make("ppo@continuous")
    assert (continuous.rollout.environments, continuous.rollout.steps) == (1, 2048)
    assert (continuous.update.epochs, continuous.update.minibatches) == (10, 32)
    assert continuous.policy.normalize
    assert continuous.regularizer is None
    assert continuous.reward == ScaledReward(gamma=0.99, clip=10.0)


def test_without_clip_and_normalising_it_is_a2c_on_the_same_batch():
    """Identities 1 and 2: where the policy has not moved the gradient is A2C's, clipped or not."""
    generator = torch.Generator().manual_seed(0)
    logp, entropy, advantage = (torch.randn(6, 1, generator=generator, dtype=torch.float64) for _ in range(3))
    batch = Batch(logp=logp, old_logp=logp, entropy=entropy, advantage=advantage)
    plain = make("a2c").denominators(batch)
    expected = value_and_gradient(make("a2c"), plain)[1]
    for recipe in (make("ppo", control=None), make("ppo", control=None, ratio_low=0.0, ratio_high=1e9)):
        torch.testing.assert_close(value_and_gradient(recipe, recipe.denominators(batch))[1], expected)


def test_reward_scaling_is_that_of_the_running_return():
    generator = np.random.default_rng(0)
    rewards, ended = generator.normal(size=(3, 2, 7)) * 5, generator.random((3, 2, 7)) < 0.2
    part, gamma, state = ScaledReward(gamma=0.9, clip=1.5), 0.9, ScaledReward(gamma=0.9, clip=1.5).init()
    running, seen = np.zeros(2), []
    for reward, end in zip(rewards, ended, strict=True):
        for t in range(7):
            running = gamma * running + reward[:, t]
            seen.append(running.copy())
            running = np.where(end[:, t], 0.0, running)
        batch = Batch(logp=torch.zeros(2, 7).double(), token_reward=f64(reward), ended=torch.tensor(end))
        found, state = part(batch, state)
        expected = np.clip(reward / np.sqrt(np.var(seen) + 1e-8), -1.5, 1.5)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
