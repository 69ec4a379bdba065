"""Card: control_theory.md, ospo. Row order, padding, micro-batches: tests/methods/test_contract.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.methods.control.ospo import DoublingKL, StepWhitened, WhitenedReturn, unfairness
from upslope.testing import finite_differences, value_and_gradient


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def agents(rewards, mask=None, trajectory=None, **columns):
    """Rows are agents, positions steps: what each earned."""
    reward = f64(rewards)
    mask = torch.ones_like(reward, dtype=torch.bool) if mask is None else torch.tensor(mask)
    logp = columns.pop("logp", torch.full_like(reward, -0.7))
    columns = {"old_logp": logp.detach().clone(), "entropy": torch.ones_like(reward), **columns}
    return Batch(
        logp=logp,
        mask=mask,
        token_reward=reward,
        reward=reward.sum(1),
        trajectory=torch.zeros(len(reward)) if trajectory is None else torch.tensor(trajectory),
        **columns,
    )


def test_whitening_of_the_card():
    """r = (3, 1, 2): A = (1.224745, -1.224745, 0). Equal rewards: 0."""
    plain = StepWhitened(fairness=0.0)
    np.testing.assert_allclose(plain(agents([[3.0], [1.0], [2.0]]))[:, 0], [1.224745, -1.224745, 0.0], atol=5e-7)
    np.testing.assert_allclose(plain(agents([[2.0], [2.0], [2.0]])), 0.0)


def test_whitening_over_the_batch_of_the_card():
    """[[1, 0, 2], [0, 0, 4]]: -.113961, -.797724, .569803 / -.797724, -.797724, 1.937330."""
    part = WhitenedReturn(gamma=0.9, fairness=0.0)
    batch = agents([[1.0, 0, 2], [0, 0, 4]])
    white = [[-0.113961, -0.797724, 0.569803], [-0.797724, -0.797724, 1.937330]]
    np.testing.assert_allclose(part.whitened(batch), white, atol=5e-7)
    returns = [[a + 0.9 * b + 0.81 * c, b + 0.9 * c, c] for a, b, c in white]
    np.testing.assert_allclose(part(batch), returns, atol=3e-6)


def test_time_without_a_choice_discounts_too():
    part = WhitenedReturn(gamma=0.5, fairness=0.0)
    batch = agents([[1.0, 0, 0], [0, 0, 5.0]], mask=[[True, False, True], [True, False, True]])
    white = part.whitened(batch)
    np.testing.assert_allclose(part(batch)[:, 0], white[:, 0] + 0.25 * white[:, 2])
    np.testing.assert_allclose(part(batch)[:, 1], 0.0)


def numpy_advantage(rewards, mask, fairness):
    """Step by step and agent by agent, of one episode."""
    rewards, mask = np.array(rewards), np.array(mask)
    found, earned, last = np.zeros_like(rewards), np.zeros(len(rewards)), 0.0
    for t in range(rewards.shape[1]):
        acting = np.flatnonzero(mask[:, t])
        earned[acting] += rewards[acting, t]
        change, last = earned.std() - last, earned.std()
        for i in acting:
            found[i, t] = (rewards[i, t] - rewards[acting, t].mean()) / (rewards[acting, t].std() + 1e-8)
            found[i, t] -= fairness * change
    return found


def test_advantage_is_that_of_a_plain_loop_whatever_the_order_of_rows():
    draw = np.random.default_rng(0)
    mask = draw.random((2, 5, 6)) < 0.6
    rewards = np.where(mask, draw.normal(size=(2, 5, 6)), 0.0)
    expected = np.concatenate([numpy_advantage(r, m, 0.7) for r, m in zip(rewards, mask, strict=True)])
    batch = agents(rewards.reshape(10, 6), mask.reshape(10, 6).tolist(), [4] * 5 + [2] * 5)
    np.testing.assert_allclose(StepWhitened(fairness=0.7)(batch), expected, atol=1e-6)
    order = torch.tensor(draw.permutation(10))
    np.testing.assert_allclose(StepWhitened(fairness=0.7)(batch.select(order)), expected[order], atol=1e-6)


def test_the_punishment_is_the_change_of_the_spread_and_the_same_for_all():
    batch = agents([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    np.testing.assert_allclose(unfairness(batch), [[1.0, -1.0, 0.0]] * 2)
    fair, plain = StepWhitened(fairness=3.0), StepWhitened(fairness=0.0)
    np.testing.assert_allclose(plain(batch) - fair(batch), [[3.0, -3.0, 0.0]] * 2)
    with_failed = agents([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [9.0, 0.0, 0.0]]).replace(valid=[True, True, False])
    np.testing.assert_allclose(unfairness(with_failed)[:2], [[1.0, -1.0, 0.0]] * 2)


def test_loss_and_gradient_of_the_formula():
    logp = f64([[-0.5, -1.2], [-0.1, -2.0], [-0.9, -0.3]])
    old = f64([[-0.8, -1.2], [-0.1, -1.4], [-0.8, -0.7]])
    recipe = make("ospo")
    batch = agents([[3.0, 1.0], [1.0, 4.0], [2.0, 0.5]], logp=logp, old_logp=old)
    advantage = numpy_advantage([[3.0, 1.0], [1.0, 4.0], [2.0, 0.5]], np.ones((3, 2), bool), 1.0)

    def loss(x):
        ratio = np.exp(x - old.numpy())
        return np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 0.8, 1.28)).mean() - 0.05

    value, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(value) == pytest.approx(loss(logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss, logp.numpy()), atol=1e-8)


def test_defaults():
    recipe = make("ospo")
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high) == (0.8, 1.28)
    assert recipe.regularizer[0].coefficient == 0.05
    assert (recipe.update.epochs, recipe.control.beta, recipe.control.limit) == (10, 0.0, 0.01)
    assert (recipe.advantage.fairness, recipe.advantage.eps) == (1.0, 1e-8)
    assert recipe.critic is None
    assert make("ospo@grpo").advantage == WhitenedReturn(gamma=0.99)


def mini(step, kl, beta=0.5):
    """A mini-batch of one choice whose estimated KL(old || new) is `kl`, in step `step`."""
    low, high = 0.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.exp(middle) - 1 - middle < kl else (low, middle)
    return Batch(logp=f64([[low]]), old_logp=f64([[0.0]]), advantage=f64([[2.0]]), entropy=f64([[1.0]]), step=[step])


def test_beta_doubles_and_the_minibatch_is_left_out_until_the_next_step():
    part, state = DoublingKL(beta=0.5, limit=0.01), DoublingKL(beta=0.5).init()
    seen = []
    for step, kl in ((1, 0.005), (1, 0.02), (1, 0.03), (1, 0.005), (2, 0.005)):
        columns, state = part(mini(step, kl), state)
        seen.append((float(columns["kl_beta"][0]), float(columns["kept"][0]), float(columns["advantage"][0, 0])))
    assert seen == [(0.5, 1.0, 2.0), (0.5, 0.0, 0.0), (1.0, 0.0, 0.0), (2.0, 1.0, 2.0), (0.5, 1.0, 2.0)]
    off, _ = DoublingKL()(mini(1, 5.0), DoublingKL().init())
    assert (float(off["kl_beta"][0]), float(off["kept"][0])) == (0.0, 1.0)
    with pytest.raises(UsageError, match="beta must be at least 0"):
        DoublingKL(beta=-1.0)


def test_a_minibatch_that_is_left_out_has_no_gradient_and_beta_weighs_the_kl():
    recipe = make("ospo", beta=0.5)
    batch, _ = recipe.minibatch(mini(1, 0.02), recipe.init())
    assert not value_and_gradient(recipe, batch)[1].any()
    near = mini(1, 0.005)
    batch, _ = recipe.minibatch(near, recipe.init())
    ratio = near.logp.exp()
    expected = -2.0 * ratio + 0.5 * (ratio - 1)
    torch.testing.assert_close(value_and_gradient(recipe, batch)[1], expected)
