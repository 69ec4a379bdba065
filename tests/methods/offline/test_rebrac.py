"""Card: offline_imitation.md, rebrac."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.actor_critic.testing import GivenPolicy, minibatch_of
from upslope.parts.network import MLP


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_target_of_the_card():
    policy = GivenPolicy(tensor([[0.5, 0.0]]), tensor([0.0]))
    m = minibatch_of(
        [[0.0, 0.0]],
        reward=[1.0],
        target_q=lambda x: tensor([[10.0], [12.0]]),
        target_policy=policy,
        next_action=[[0.0, 0.0]],
    )
    np.testing.assert_allclose(make("rebrac", noise=0.0).target(m), [10.897525])
    np.testing.assert_allclose(make("rebrac", noise=0.0, **{"target.coefficient": 0.0}).target(m), [10.9])


def actor(recipe, q, action):
    value, given = tensor(q).requires_grad_(), tensor(action).requires_grad_()
    m = minibatch_of(
        np.zeros_like(action), q=lambda x: value + 0.0 * x[:, -1].sum(), policy=GivenPolicy(given, tensor([0.0, 0.0]))
    )
    loss = recipe.behavior(m, recipe.actor(m))
    return float(loss), *torch.autograd.grad(loss, [value, given])


def test_actor_in_value_and_gradient():
    q, action = [[2.0, -4.0], [3.0, -5.0]], [[0.5, 0.1], [0.0, 0.2]]
    loss, by_q, by_action = actor(make("rebrac"), q, action)
    least = np.array([2.0, -5.0])
    scale = 1 / np.abs(least).mean()
    summed = (np.array(action) ** 2).sum(1)
    assert loss == pytest.approx((0.01 * summed - scale * least).mean())
    np.testing.assert_allclose(by_q, [[-scale / 2, 0], [0, -scale / 2]])
    np.testing.assert_allclose(by_action, 0.01 * np.array(action), atol=1e-12)
    loss, _, _ = actor(make("rebrac", **{"behavior.normalize": False}), q, action)
    assert loss == pytest.approx((0.01 * summed - least).mean())


def test_without_its_penalty_it_is_td3_bc_with_another_alpha():
    """alpha = 1 / (A beta_a): sum against mean over A, and where the weight stands."""
    q, action = [[2.0, -4.0], [3.0, -5.0]], [[0.5, 0.1], [0.0, 0.2]]
    beta = 0.05
    one = actor(make("rebrac", critics="first", **{"behavior.coefficient": beta}), q, action)
    other = actor(make("td3_bc", alpha=1 / (2 * beta)), q, action)
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(np.array(mine) / (2 * beta), theirs)


def test_card_defaults():
    recipe = make("rebrac")
    assert recipe.policy.hidden == recipe.critic.hidden == (256, 256, 256)
    assert (recipe.critic.layer_norm, recipe.policy.layer_norm) == (True, False)
    assert (recipe.data.batch_size, recipe.update.actor_lr, recipe.update.actor_every) == (1024, 1e-3, 2)
    assert recipe.needs == {"next_action"}


def test_a_shared_network_is_refused():
    with pytest.raises(UsageError, match=r"does not read policy.shared"):
        make("rebrac", policy=MLP(shared=True))
