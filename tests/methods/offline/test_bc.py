"""Card: offline_imitation.md, bc."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.actor_critic.testing import GivenPolicy, minibatch_of
from upslope.parts.network import MLP


def test_value_and_gradient():
    action = torch.tensor([[0.5, 0.0], [0.2, -0.1]], dtype=torch.float64, requires_grad=True)
    m = minibatch_of([[0.0, 0.0], [0.2, 0.3]], policy=GivenPolicy(action, torch.zeros(2)))
    loss = make("bc").actor(m)
    apart = np.array([[0.5, 0.0], [0.0, -0.4]])
    assert float(loss) == pytest.approx((apart**2).mean())
    np.testing.assert_allclose(torch.autograd.grad(loss, action)[0], 2 * apart / 4, atol=1e-12)
    assert float(make("bc", reduce_actions="sum").actor(m)) == pytest.approx(2 * float(loss))


def test_the_gaussian_form():
    recipe = make("bc", actor="iql", policy=MLP(distribution="bounded"))
    logp = torch.tensor([-1.0, 3.0], dtype=torch.float64)
    m = minibatch_of([[0.0], [0.0]], policy=GivenPolicy(torch.zeros(2, 1), torch.zeros(2), density=logp))
    assert float(recipe.actor(m)) == -1.0


def test_it_has_no_critic():
    recipe = make("bc")
    assert recipe.critic is None
    assert recipe.target is None
