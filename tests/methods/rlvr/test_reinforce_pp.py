"""Card: rlvr_core.md, reinforce-pp (plain)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_card_numbers_and_defaults():
    recipe = make("reinforce_pp", beta=0.0)
    batch = recipe.prepare(batch_of([[1.0], [0.0]], lengths=[2, 3]))
    np.testing.assert_allclose(batch.advantage[batch.mask], [1.0954] * 2 + [-0.7303] * 3, atol=5e-5)
    recipe = make("reinforce_pp")
    assert (recipe.reward.beta, recipe.reward.level, recipe.rollout.group_size) == (0.01, "token", 1)


def numpy_advantage(batch, beta, gamma):
    returns = []
    for i, keep in enumerate(batch.mask.numpy()):
        rho = -beta * (batch.old_logp - batch.ref_logp)[i].numpy()[keep]
        rho[-1] += batch.reward[i]
        returns.append([sum(gamma ** (s - t) * rho[s] for s in range(t, len(rho))) for t in range(len(rho))])
    flat = np.concatenate(returns)
    white = (flat - flat.mean()) / np.sqrt(flat.var(ddof=1) + 1e-8)
    return np.split(white, np.cumsum([len(row) for row in returns])[:-1])


def numpy_loss(batch, logp, beta, gamma):
    losses = []
    for i, a in enumerate(numpy_advantage(batch, beta, gamma)):
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[batch.mask[i].numpy()]
        losses += list(np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2)))
    return np.mean(losses)


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_value_and_gradient_off_policy(gamma):
    batch = batch_of([[1], [0], [0.5], [1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.4 * (batch.entropy - 0.8))
    recipe = make("reinforce_pp", beta=0.2, gamma=gamma)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), 0.2, gamma))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, 0.2, gamma), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


@given(st.floats(0.5, 3), st.floats(-3, 3))
def test_affine_rewards_are_the_same(slope, offset):
    recipe, batch = make("reinforce_pp", reward=None), batch_of([[1], [0], [0.5]], lengths=[2, 4, 1])
    moved = recipe.prepare(batch.replace(reward=slope * batch.reward + offset)).advantage
    np.testing.assert_allclose(moved, recipe.prepare(batch).advantage, atol=1e-6)
