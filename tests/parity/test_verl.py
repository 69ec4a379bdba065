"""The presets @verl against NumPy written from verl's verl/trainer/ppo/core_algos.py at commit 018f23b, with its defaults.

Not run, since verl needs a GPU stack: each function here states one of verl's, without its masks' guards.
"""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient

REWARDS = [[1, 0, 0, 1], [0.3, 0, 1], [0.7]]  # the last prompt has a lone completion


@pytest.fixture(scope="module")
def batch():
    batch = batch_of(REWARDS, seed=5)
    return batch.replace(old_logp=batch.logp + 4 * (batch.entropy - 0.8))


def masked_mean(values, mask):
    return (values * mask).sum() / mask.sum()


def masked_whiten(values, mask):
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask) * mask.sum() / (mask.sum() - 1)
    return (values - mean) / np.sqrt(variance + 1e-8) * mask


def grpo_advantage(batch, by_std=True):
    """compute_grpo_outcome_advantage: mean 0 and deviation 1 for a lone completion."""
    score, group = batch.reward.numpy().copy(), batch.group.numpy()
    for g in np.unique(group):
        rows = group == g
        lone = rows.sum() == 1
        mean, std = (0.0, 1.0) if lone else (score[rows].mean(), score[rows].std(ddof=1))
        score[rows] = (score[rows] - mean) / (std + 1e-6) if by_std else score[rows] - mean
    return score[:, None] * batch.mask.numpy()


def rloo_advantage(batch):
    score, group = batch.reward.numpy().copy(), batch.group.numpy()
    for g in np.unique(group):
        rows = group == g
        n = rows.sum()
        if n > 1:
            score[rows] = score[rows] * n / (n - 1) - score[rows].mean() * n / (n - 1)
    return score[:, None] * batch.mask.numpy()


def reinforce_pp_advantage(batch):
    reward, mask = last_token_reward(batch), batch.mask.numpy().astype(float)
    returns, running = np.zeros_like(reward), 0.0
    for t in reversed(range(reward.shape[1])):
        running = reward[:, t] + running
        returns[:, t] = running
        running = running * mask[:, t]
    return masked_whiten(returns, mask)


def reinforce_pp_baseline_advantage(batch):
    return masked_whiten(grpo_advantage(batch, by_std=False), batch.mask.numpy().astype(float))


def gae_advantage(batch):
    reward, value, mask = last_token_reward(batch), batch.old_value.numpy(), batch.mask.numpy().astype(float)
    next_value = last = np.zeros(len(reward))
    found = np.zeros_like(reward)
    for t in reversed(range(reward.shape[1])):
        delta = reward[:, t] + next_value - value[:, t]
        next_value = value[:, t] * mask[:, t] + (1 - mask[:, t]) * next_value
        last = (delta + last) * mask[:, t] + (1 - mask[:, t]) * last
        found[:, t] = last
    return masked_whiten(found, mask), found + value


def last_token_reward(batch):
    reward = np.zeros(batch.mask.shape)
    reward[np.arange(len(reward)), batch.mask.numpy().sum(1) - 1] = batch.reward.numpy()
    return reward


def vanilla(logp, old, a, high=0.2, dual=3.0):
    ratio = np.exp(np.clip(logp - old, -20, 20))
    clipped = np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1 + high))
    return np.where(a < 0, np.minimum(-a * dual, clipped), clipped)


def gspo(logp, old, a, mask):
    mean = ((logp - old) * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True)
    ratio = np.exp(np.minimum(mean, 10)) * np.ones_like(logp)
    return np.maximum(-a * ratio, -a * np.clip(ratio, 1 - 3e-4, 1 + 4e-4))


def cispo(logp, old, a, at):
    return -np.clip(np.exp(np.clip(at - old, -20, 20)), 0.8, 1.2) * a * logp


def aggregated(loss, mask, mode):
    if mode == "token-mean":
        return masked_mean(loss, mask)
    per_row = (loss * mask).sum(1)
    if mode == "seq-mean-token-sum-norm":
        return per_row.mean() / mask.shape[1]
    return {"seq-mean-token-sum": per_row, "seq-mean-token-mean": per_row / mask.sum(1)}[mode].mean()


def check(name, batch, advantage, token_loss, mode="token-mean"):
    """Value, gradient and advantage of the preset, against a NumPy loss of (logp, old_logp, advantage, mask)."""
    mask, at = batch.mask.numpy().astype(float), batch.logp.numpy()
    recipe = make(name)
    prepared = recipe.prepare(batch)
    loss, gradient = value_and_gradient(recipe, prepared)

    def numpy_loss(logp):
        return aggregated(token_loss(logp, batch.old_logp.numpy(), advantage, mask), mask, mode)

    np.testing.assert_allclose(prepared.advantage, advantage, atol=1e-12)
    assert float(loss) == pytest.approx(numpy_loss(at), rel=1e-9)
    np.testing.assert_allclose(gradient, finite_differences(numpy_loss, at) * mask, rtol=1e-6, atol=1e-7)
    assert np.abs(gradient.numpy()).max() > 1e-2


def test_grpo(batch):
    check("grpo@verl", batch, grpo_advantage(batch), lambda logp, old, a, mask: vanilla(logp, old, a))


def test_the_batch_reaches_the_dual_clip(batch):
    a, ratio = grpo_advantage(batch), np.exp((batch.logp - batch.old_logp).numpy())
    assert ((a < 0) & (ratio > 3)).any()
    assert ((a > 0) & (ratio > 1.2)).any()
    assert ((a < 0) & (ratio < 0.8)).any()


def test_dr_grpo(batch):
    advantage = grpo_advantage(batch, by_std=False)
    check("dr_grpo@verl", batch, advantage, lambda logp, old, a, mask: vanilla(logp, old, a), "seq-mean-token-sum-norm")


def test_rloo(batch):
    check("rloo@verl", batch, rloo_advantage(batch), lambda logp, old, a, mask: vanilla(logp, old, a))


def test_reinforce_pp(batch):
    check("reinforce_pp@verl", batch, reinforce_pp_advantage(batch), lambda logp, old, a, mask: vanilla(logp, old, a))


def test_reinforce_pp_baseline(batch):
    advantage = reinforce_pp_baseline_advantage(batch)
    check("reinforce_pp_baseline@verl", batch, advantage, lambda logp, old, a, mask: vanilla(logp, old, a))


def test_ppo(batch):
    advantage, returns = gae_advantage(batch)
    check("ppo_llm@verl", batch, advantage, lambda logp, old, a, mask: vanilla(logp, old, a))
    prepared, mask = make("ppo_llm@verl").prepare(batch), batch.mask.numpy()
    np.testing.assert_allclose(prepared.returns.numpy()[mask], returns[mask], atol=1e-12)
    value, old = batch.value.numpy(), batch.old_value.numpy()
    clipped = np.clip(value, old - 0.5, old + 0.5)
    expected = 0.5 * masked_mean(np.maximum((value - returns) ** 2, (clipped - returns) ** 2), mask)
    ours = (make("ppo_llm@verl").critic(prepared) * prepared.token_share).sum()
    assert float(ours) == pytest.approx(expected)


def test_dapo(batch):
    check("dapo@verl", batch, grpo_advantage(batch), lambda logp, old, a, mask: vanilla(logp, old, a, 0.28, 10.0))


def test_gspo(batch):
    nearby = batch.replace(old_logp=batch.logp + 1e-3 * (batch.entropy - 0.8))
    check("gspo@verl", nearby, grpo_advantage(batch), gspo, "seq-mean-token-mean")


def test_cispo(batch):
    at = batch.logp.numpy()
    check("cispo@verl", batch, grpo_advantage(batch), lambda logp, old, a, mask: cispo(logp, old, a, at))


def test_kl_terms_are_verls(batch):
    """kl_penalty: k1, k2, k3 and k3+ (its value, k2's gradient), k3 inside the bounds where verl clamps it."""
    u = batch.logp.numpy() - batch.ref_logp.numpy()
    values = {"k2": u**2 / 2, "k3": np.exp(-u) + u - 1, "k3_value_k2_gradient": np.exp(-u) + u - 1}
    slopes = {"k2": u, "k3": 1 - np.exp(-u), "k3_value_k2_gradient": u}
    for estimator, value in values.items():
        part = make("grpo", estimator=estimator, beta=1.0).regularizer
        logp = batch.logp.clone().requires_grad_()
        found = part(batch.replace(logp=logp))
        np.testing.assert_allclose(found.detach(), value * batch.mask.numpy(), atol=1e-12)
        slope = torch.autograd.grad(found.sum(), logp)[0]
        np.testing.assert_allclose(slope, slopes[estimator] * batch.mask.numpy(), atol=1e-12)
