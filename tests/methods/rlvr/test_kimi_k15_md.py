"""Card: rlvr_core.md, kimi-k15-md."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.methods.rlvr.kimi_k15_md import LengthReward
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_card_weights():
    """R = (1, 0), moves of the sequence (0.2, -0.1): weights (R - mean) - tau * move = 0.48, -0.49."""
    batch = batch_of([[1.0, 0.0]], lengths=[2, 2])
    moved = torch.tensor([[0.3, -0.1], [0.1, -0.2]], dtype=torch.float64)
    recipe = make("kimi_k15_md", reward=None)
    prepared = recipe.prepare(batch.replace(old_logp=batch.logp - moved))
    _, gradient = value_and_gradient(recipe, prepared)
    np.testing.assert_allclose(-2 * gradient, [[0.48, 0.48], [-0.49, -0.49]])


@pytest.mark.parametrize(("correct", "bonus"), [(1.0, [0.5, 0, -0.5]), (0.0, [0, 0, -0.5])])
def test_card_length_reward(correct, bonus):
    mask = torch.arange(300) < torch.tensor([[100], [200], [300]])
    batch = Batch(logp=torch.zeros(3, 300), mask=mask, reward=[correct] * 3, group=[0, 0, 0])
    part = LengthReward()
    np.testing.assert_allclose(part(batch, part.init())[0], correct + np.array(bonus), atol=1e-6)


def test_length_reward_by_group_without_failed_rows_and_after_its_warmup():
    batch = batch_of([[1, 0, 1], [1, 1]], lengths=[1, 3, 5, 4, 4]).replace(
        valid=torch.tensor([True, True, False, True, True])
    )
    part = LengthReward(weight=2.0, warmup_steps=1)
    state = part.init()
    first, state = part(batch, state)
    second, state = part(batch, state)
    np.testing.assert_allclose(first, [1, 0, 1, 1, 1])
    np.testing.assert_allclose(second[[0, 1, 3, 4]], [1 + 2 * 0.5, 0 - 2 * 0.5, 1, 1])
    assert state == {"step": 2}


def numpy_loss(batch, logp, tau):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    losses = []
    for i in range(len(reward)):
        a = reward[i] - reward[group == group[i]].mean()
        now, before = (logp[i] * mask[i]).sum(), (batch.old_logp[i].numpy() * mask[i]).sum()
        losses.append(-a * now + tau / 2 * (now - before) ** 2)
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.6 * (batch.entropy - 0.8))
    recipe = make("kimi_k15_md", reward=None, tau=0.7)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), 0.7))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, 0.7), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_the_first_step_and_tau_zero_are_reinforce_with_the_groups_mean():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    moved = batch.replace(old_logp=batch.logp + batch.entropy)
    theirs = make("reinforce", advantage="dr_grpo")
    _, expected = value_and_gradient(theirs, theirs.prepare(batch))
    for tau, rows in ((0.5, batch), (0.0, moved)):
        recipe = make("kimi_k15_md", reward=None, tau=tau)
        torch.testing.assert_close(value_and_gradient(recipe, recipe.prepare(rows))[1], expected)


def test_the_fixed_point_is_the_mirror_step():
    """Where the log-ratio of every sequence is A / tau, the gradient vanishes."""
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    recipe = make("kimi_k15_md", reward=None, tau=2.0)
    advantage = recipe.prepare(batch).per_row("advantage")
    move = (advantage / 2.0 / batch.length).unsqueeze(1) * batch.mask
    prepared = recipe.prepare(batch.replace(old_logp=batch.logp - move))
    assert value_and_gradient(recipe, prepared)[1].abs().max() < 1e-12


def exact_mirror_step_error(tau):
    """Distance of the loss's minimum over a bandit's policies from old * exp(R / tau) / Z, all arms weighted exactly."""
    old, worth = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.0, 0.5])
    logits = torch.tensor(np.log(old), requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        move = logits.log_softmax(0) - torch.tensor(np.log(old))
        loss = (torch.tensor(old) * (-torch.tensor(worth - old @ worth) * move + tau / 2 * move**2)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    target = old * np.exp(worth / tau)
    return np.abs(logits.detach().softmax(0).numpy() - target / target.sum()).max()


def test_the_mean_reward_stands_for_tau_log_z_the_better_the_larger_tau():
    errors = [exact_mirror_step_error(tau) for tau in (0.5, 2.0, 8.0)]
    assert errors[0] > 8 * errors[1] > 64 * errors[2]


def test_every_step_starts_without_the_moments_of_the_last():
    assert make("kimi_k15_md").update.before_step(7) == {"reset_optimizer"}
    assert make("reinforce").update.before_step(7) == frozenset()
