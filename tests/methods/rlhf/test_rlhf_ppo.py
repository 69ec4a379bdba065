"""Card: preference_distill_hybrid.md, rlhf-ppo. The critic and the ratio: tests/methods/rlvr/test_ppo_llm.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.parts.kl import KLInReward
from upslope.testing import batch_of, finite_differences, value_and_gradient

KL = torch.tensor([[0.1, -0.05, 0.2]]).double()
OLD = torch.tensor([[-1.0, -2.0, -0.5]]).double()
PLAIN = {"advantage.whiten": False}


def card(**columns):
    made = {"old_value": torch.tensor([[1.0, 1.2, 1.5]]).double(), "reward": torch.tensor([2.0]).double(), **columns}
    return Batch(logp=OLD.clone(), old_logp=OLD, ref_logp=OLD - KL, **made)


def test_card_rewards_and_advantages():
    batch = make("rlhf_ppo", **PLAIN).prepare(card())
    np.testing.assert_allclose(batch.token_reward, [[-0.005, 0.0025, 1.99]], atol=1e-12)
    np.testing.assert_allclose(batch.advantage, [[0.9246, 0.768, 0.49]], atol=1e-7)
    np.testing.assert_allclose(batch.returns, batch.advantage + batch.old_value)
    whitened = make("rlhf_ppo").prepare(card()).advantage[0].numpy()
    a = batch.advantage[0].numpy()
    np.testing.assert_allclose(whitened, (a - a.mean()) / np.sqrt(a.var(ddof=1) + 1e-8))


def test_k3_in_the_reward():
    kl = KL.numpy()
    rewards = make("rlhf_ppo", estimator="k3", **PLAIN).prepare(card()).token_reward
    np.testing.assert_allclose(rewards, -0.05 * (np.exp(-kl) - 1 + kl) + [[0, 0, 2]], atol=1e-12)


@pytest.mark.parametrize(("truncated", "reward"), [(True, 1.25), (False, 2.0)])
def test_a_missing_end_costs(truncated, reward):
    batch = card(truncated=torch.tensor([truncated]))
    rewards = make("rlhf_ppo", penalty=0.75, beta=0.0).prepare(batch).token_reward
    np.testing.assert_allclose(rewards, [[0, 0, reward]])
    assert "truncated" not in make("rlhf_ppo").needs


def test_rewards_of_unit_spread_keep_their_mean():
    batch = batch_of([[1, 0, 3], [2, -1]], seed=2)
    plain, scaled = (make("rlhf_ppo", on=on).prepare(batch).token_reward[batch.mask] for on in (False, True))
    mean, deviation = plain.mean(), np.sqrt(plain.var() + 1e-8)
    np.testing.assert_allclose(scaled, (plain - mean) / deviation + mean)


def test_defaults():
    recipe = make("rlhf_ppo")
    assert [part.beta for part in recipe.reward if isinstance(part, KLInReward)] == [0.05]
    assert (recipe.advantage.gamma, recipe.advantage.lam, recipe.advantage.whiten) == (1.0, 0.95, True)
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high, recipe.critic.clip) == (0.8, 1.2, 0.2)
    assert (recipe.update.epochs, recipe.update.minibatches) == (4, 1)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 3], [2, -1]], seed=2)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    recipe = make("rlhf_ppo")
    mask, old, ref, value = (getattr(batch, n).numpy() for n in ("mask", "old_logp", "ref_logp", "old_value"))
    a = np.zeros_like(old)
    for i, score in enumerate(batch.reward.tolist()):
        length, following = mask[i].sum(), 0.0
        for t in reversed(range(length)):
            r = -0.05 * (old[i, t] - ref[i, t]) + score * (t == length - 1)
            delta = r + (value[i, t + 1] if t + 1 < length else 0.0) - value[i, t]
            following = delta + 0.95 * following
            a[i, t] = following
    a = (a - a[mask].mean()) / np.sqrt(a[mask].var(ddof=1) + 1e-8)

    def numpy_loss(logp):
        ratio = np.exp(logp - old)
        return np.maximum(-a * ratio, -a * ratio.clip(0.8, 1.2))[mask].mean()

    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(numpy_loss, batch.logp.numpy()) * mask, atol=1e-8)


def test_without_critic_clip_and_whitening_it_is_reinforce_on_the_penalized_reward():
    batch = batch_of([[1, 0, 3], [2, -1]]).replace(old_value=None)
    batch = batch.replace(old_value=torch.zeros_like(batch.logp))
    ours = make("rlhf_ppo", ratio_low=0.0, ratio_high=1e9, lam=1.0, **PLAIN)
    parent = make("reinforce", reward=KLInReward(beta=0.05, level="token"), aggregate=ours.aggregate)
    one, other = (value_and_gradient(r, r.prepare(batch))[1] for r in (ours, parent))
    torch.testing.assert_close(one, other)


def test_a_bandit_converges_to_the_tilted_reference():
    """All arms at once, each weighed by its probability: the expected gradient, followed to its end."""
    beta, reward = 0.5, torch.tensor([0.0, 1.0, 0.3]).double()
    ref = torch.tensor([0.5, 0.3, 0.2]).double().log()
    recipe = make("rlhf_ppo", beta=beta, ratio_low=0.0, ratio_high=1e9, **PLAIN)
    logits = ref.clone()
    for _ in range(400):
        logits = logits.detach().requires_grad_()
        logp = logits.log_softmax(-1)
        column = logp.unsqueeze(1)
        batch = Batch(
            logp=column, old_logp=column.detach(), ref_logp=ref.unsqueeze(1), reward=reward,
            old_value=torch.zeros(3, 1).double(), weight=3 * column.detach().exp(),
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(recipe(batch)[0], logits)
        logits = logits - 2.0 * gradient
    expected = (ref + reward / beta).softmax(-1)
    np.testing.assert_allclose(logits.detach().softmax(-1), expected, atol=1e-6)
