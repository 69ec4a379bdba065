"""Card: rlvr_core.md, reinforce-pp (baseline variant)."""

import numpy as np
import pytest

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_card_numbers_a_group_without_signal_gets_an_advantage():
    batch = make("reinforce_pp_baseline").prepare(batch_of([[1, 0], [1, 1]], lengths=[2, 4, 1, 1]))
    expected = [1.4102] * 2 + [-0.8461] * 4 + [0.2820] * 2
    np.testing.assert_allclose(batch.advantage[batch.mask], expected, atol=5e-5)


def test_defaults():
    recipe = make("reinforce_pp_baseline")
    assert (recipe.regularizer.estimator, recipe.regularizer.beta, recipe.reward) == ("k2", 0.001, None)


def numpy_loss(batch, logp, beta):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    centered = np.array([reward[i] - reward[group == group[i]].mean() for i in range(len(reward))])
    flat = np.repeat(centered, mask.sum(1))
    losses = []
    for i in range(len(reward)):
        a = (centered[i] - flat.mean()) / np.sqrt(flat.var(ddof=1) + 1e-8)
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[mask[i]]
        penalty = beta / 2 * (logp[i] - batch.ref_logp[i].numpy())[mask[i]] ** 2
        losses += list(np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2)) + penalty)
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.4 * (batch.entropy - 0.8))
    recipe = make("reinforce_pp_baseline", beta=0.3)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), 0.3))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, 0.3), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_one_prompt_with_equal_lengths_is_grpo_up_to_n():
    batch = batch_of([[1, 0, 0.5, 0]], lengths=[3] * 4)
    ours = make("reinforce_pp_baseline", **{"advantage.eps": 0.0}).prepare(batch).advantage
    theirs = make("grpo", scale="population_std", eps=0.0).prepare(batch).advantage
    np.testing.assert_allclose(ours, theirs * np.sqrt(11 / 12))
