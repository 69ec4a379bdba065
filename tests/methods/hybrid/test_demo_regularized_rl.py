"""Card: preference_distill_hybrid.md, demo-regularized-rl, and lines 10 and 11 of its cross-identities."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.exact import ExactLab
from upslope.parts.kl import KLInReward


def soft(clone, q, beta):
    """The policy clone * exp((Q - V) / beta) of a state, and its value V = beta log sum clone exp(Q / beta)."""
    value = beta * np.log((clone * np.exp(q / beta)).sum(-1))
    return clone * np.exp((q - value[..., None]) / beta), value


def test_card_numbers():
    policy, value = soft(np.array([0.7, 0.2, 0.1]), np.array([0.0, 1.0, 0.0]), 0.5)
    np.testing.assert_allclose(policy, [0.307313, 0.648786, 0.043902], atol=1e-6)
    assert value == pytest.approx(0.411607, abs=1e-6)
    np.testing.assert_allclose(
        soft(np.array([0.7, 0.2, 0.1]), np.array([0.0, 1.0, 0.0]), 0.01)[0], [0, 1, 0], atol=1e-9
    )
    np.testing.assert_allclose(
        soft(np.array([0.7, 0.2, 0.1]), np.array([0.0, 1.0, 0.0]), 1e6)[0], [0.7, 0.2, 0.1], atol=1e-6
    )
    counts = np.array([7, 2, 0])
    np.testing.assert_allclose((counts + 1) / (counts.sum() + 3), [0.666667, 0.25, 0.083333], atol=1e-6)


def backup(lab, clone, beta):
    """Logits [N, V] of the soft optimum against `clone` [N, V], by the backup from the leaves of the tree of prefixes."""
    place = {tuple(prefix): index for index, prefix in enumerate(lab.prefixes)}
    earned = {tuple(seq): reward for seq, reward in zip(lab.sequences.tolist(), lab.rewards.tolist(), strict=True)}
    optimum = torch.zeros_like(clone)
    values = {}
    for prefix in sorted(place, key=len, reverse=True):
        words = [(*prefix, word) for word in range(lab.vocabulary)]
        q = np.array([earned[word] if len(word) == lab.horizon else values[word] for word in words])
        chance, value = soft(clone[place[prefix]].softmax(-1).numpy(), q, beta)
        values[prefix] = float(value)
        optimum[place[prefix]] = torch.tensor(chance).log()
    return optimum


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_gradient_is_zero_at_the_soft_optimum_of_a_tree(beta):
    lab = ExactLab(vocabulary=2, horizon=3, seed=4)
    recipe = make("demo_regularized_rl", beta=beta)
    clone = lab.theta
    optimum = backup(lab, clone, beta)
    at_optimum = lab.estimate(recipe, theta=optimum, ref=clone, target=torch.ones_like(clone)).mean
    at_clone = lab.estimate(recipe, theta=clone, ref=clone, target=torch.ones_like(clone)).mean
    np.testing.assert_allclose(at_optimum, 0, atol=1e-10)
    assert at_clone.abs().max() > 1e-3

    def objective(theta):
        return lab.expected_reward(theta) - beta * lab.kl(theta, clone)

    np.testing.assert_allclose(lab.gradient(optimum, objective), 0, atol=1e-10)
    assert objective(optimum) > objective(clone)


def test_one_state_is_the_tilted_clone():
    lab = ExactLab(vocabulary=3, horizon=1, reward=lambda tokens: float(tokens[-1] == 1))
    clone = torch.tensor([[0.7, 0.2, 0.1]]).double().log()
    np.testing.assert_allclose(backup(lab, clone, 0.5).exp(), [[0.307313, 0.648786, 0.043902]], atol=1e-6)


def test_it_is_rloo_with_another_beta():
    assert make("demo_regularized_rl", beta=0.03) == make("rloo")
    assert make("demo_regularized_rl").reward == KLInReward(beta=0.1, level="sequence")
