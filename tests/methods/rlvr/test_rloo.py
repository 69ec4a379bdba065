"""Card: rlvr_core.md, rloo."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import Batch, make
from upslope.parts.surrogate import PolicyGradient
from upslope.testing import batch_of, value_and_gradient

GROUP = st.lists(st.floats(-2, 2), min_size=2, max_size=5)
BANDIT, WORTH = torch.tensor([0.2, -0.4, 0.3], dtype=torch.float64), np.array([1.0, 0.0, -2.0])


def advantage(rewards, name="rloo", **settings):
    return make(name, **settings).prepare(batch_of(rewards)).advantage[:, 0].numpy()


def test_card_numbers_and_defaults():
    recipe = make("rloo")
    assert (recipe.reward.beta, recipe.reward.level, recipe.rollout.group_size) == (0.03, "sequence", 4)
    np.testing.assert_allclose(advantage([[1, 0, 0, 0]], reward=None), [1, -1 / 3, -1 / 3, -1 / 3])
    np.testing.assert_allclose(advantage([[1, 0]], reward=None), [1, -1])
    assert advantage([[7.0]], reward=None) == [0]
    assert advantage([[7.0]], "rloo@verl") == [7]


@given(GROUP)
def test_is_dr_grpo_times_g_over_g_minus_one(rewards):
    ours, theirs = advantage([rewards], reward=None), advantage([rewards], "dr_grpo")
    np.testing.assert_allclose(ours, theirs * len(rewards) / (len(rewards) - 1), atol=1e-12)


def test_value_and_gradient_with_the_kl_in_the_reward():
    batch = batch_of([[1, 0, 0.5], [1, 1]], seed=3)
    recipe = make("rloo", beta=0.3)
    kl = ((batch.old_logp - batch.ref_logp) * batch.mask).sum(1).numpy()
    shaped = batch.reward.numpy() - 0.3 * kl
    groups = [shaped[:3], shaped[3:]]
    expected = np.concatenate([g - (g.sum() - g) / (len(g) - 1) for g in groups])
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(-np.mean(expected * batch.logp.sum(1).numpy()))
    np.testing.assert_allclose(gradient, -expected[:, None] * batch.mask.numpy() / 5)


@pytest.mark.parametrize(("name", "factor"), [("rloo", 1.0), ("dr_grpo", 2 / 3)])
def test_unbiased_where_the_mean_shrinks(name, factor):
    recipe = make(name, reward=None, surrogate=PolicyGradient(), aggregate="reinforce")
    total = torch.zeros(3, dtype=torch.float64)
    for arms in map(list, itertools.product(range(3), repeat=3)):
        logits = BANDIT.clone().requires_grad_()
        logp = logits.log_softmax(0)[arms]
        loss, _ = recipe(Batch(logp=logp.unsqueeze(1), reward=WORTH[arms], group=[0, 0, 0]))
        total += logp.detach().sum().exp() * torch.autograd.grad(loss, logits)[0]
    probability = BANDIT.softmax(0).numpy()
    np.testing.assert_allclose(total, -factor * probability * (WORTH - probability @ WORTH), atol=1e-12)
