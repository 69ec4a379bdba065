"""Card: rlvr_core.md, ppo-llm. The parts' numbers: tests/parts/test_gae.py, test_value.py, test_surrogate.py."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def numpy_advantage(batch, beta, gamma, lam):
    advantages, returns = [], []
    for i, keep in enumerate(batch.mask.numpy()):
        value = batch.old_value[i].numpy()[keep]
        rho = -beta * (batch.old_logp - batch.ref_logp)[i].numpy()[keep]
        rho[-1] += batch.reward[i]
        delta = rho + gamma * np.append(value[1:], 0) - value
        n = len(delta)
        a = np.array([sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)])
        advantages.append(a)
        returns.append(a + value)
    flat = np.concatenate(advantages)
    return [(a - flat.mean()) / np.sqrt(flat.var(ddof=1) + 1e-8) for a in advantages], returns


def numpy_loss(batch, logp, advantages, dual):
    losses = []
    for i, a in enumerate(advantages):
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[batch.mask[i].numpy()]
        clipped = np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2))
        losses += list(clipped if dual is None else np.where(a < 0, np.minimum(clipped, -a * dual), clipped))
    return np.mean(losses)


@pytest.mark.parametrize("dual", [None, 1.3])
def test_value_and_gradient_off_policy(dual):
    batch = batch_of([[1], [0], [0.5], [1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.6 * (batch.entropy - 0.8))
    recipe = make("ppo_llm", beta=0.2, gamma=0.9, lam=0.8, dual=dual)
    advantages, returns = numpy_advantage(batch, 0.2, 0.9, 0.8)
    prepared = recipe.prepare(batch)
    np.testing.assert_allclose(prepared.advantage[batch.mask], np.concatenate(advantages))
    np.testing.assert_allclose(prepared.returns[batch.mask], np.concatenate(returns))
    loss, gradient = value_and_gradient(recipe, prepared)
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), advantages, dual))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, advantages, dual), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_the_critics_loss_reads_what_prepare_made():
    recipe, batch = make("ppo_llm"), batch_of([[1], [0], [0.5]], seed=5)
    prepared = recipe.prepare(batch)
    assert recipe.critic.needs == {"value", "old_value", "returns"}
    assert recipe.critic.needs - {"value"} <= set(prepared)
    loss = (recipe.critic(prepared.read_by(recipe.critic)) * prepared.token_share).sum()
    v, old, returns = (getattr(prepared, name)[batch.mask].numpy() for name in ("value", "old_value", "returns"))
    clipped = np.clip(v, old - 0.2, old + 0.2)
    assert float(loss) == pytest.approx(np.mean(np.maximum((v - returns) ** 2, (clipped - returns) ** 2)) / 2)


def test_defaults():
    recipe = make("ppo_llm")
    assert (recipe.advantage.gamma, recipe.advantage.lam, recipe.advantage.whiten) == (1.0, 0.95, True)
    assert (recipe.critic.clip, recipe.surrogate.dual, recipe.rollout.group_size) == (0.2, None, 1)


def test_without_critic_kl_and_whitening_it_is_reinforce():
    batch = batch_of([[1], [0], [0.5]])
    ours = make("ppo_llm", reward=None, lam=1.0, whiten=False, aggregate="reinforce")
    for value, baseline in ((0.0, "none"), (0.5, "batch_mean")):
        constant = batch.replace(old_value=torch.full_like(batch.logp, value))
        theirs = make("reinforce", baseline=baseline)
        gradients = [value_and_gradient(r, r.prepare(constant))[1] for r in (ours, theirs)]
        torch.testing.assert_close(*gradients)
