"""Card: rlvr_core.md, tempsamp-r1. The reference rows themselves: tests/test_collect_parts.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.batch import SOURCES
from upslope.methods.rlvr.tempsamp_r1 import SoftReward
from upslope.testing import batch_of, finite_differences, value_and_gradient


def shaped(rewards, **settings):
    return SoftReward(**settings)(Batch(logp=torch.zeros(len(rewards), 1), reward=torch.tensor(rewards).double()))


def test_card_rewards():
    np.testing.assert_allclose(shaped([1, 0.9, 0.8, 0.5, 0]), [0.801823, 0.800953, 0.8, 0.596390, 0.086764], atol=1e-6)


def test_limits_of_the_reward():
    rewards = np.linspace(0, 1, 11)
    np.testing.assert_allclose(
        shaped(rewards.tolist(), tau=1.0), 1 - (np.exp(1 - rewards) - 1) / (np.e - 1), atol=1e-12
    )
    low, high = shaped([0.8 - 1e-9, 0.8 + 1e-9])
    assert float(high - low) == pytest.approx(0, abs=1e-8)
    assert (np.diff(shaped(rewards.tolist())) > 0).all()


def test_wrong_settings_and_rewards():
    with pytest.raises(UsageError, match=r"SoftReward\(tau=1.2, alpha=1\)"):
        make("tempsamp_r1", tau=1.2)
    with pytest.raises(UsageError, match=r"SoftReward needs rewards in \[0, 1\]"):
        shaped([0.5, 1.5])


def test_defaults():
    recipe = make("tempsamp_r1")
    assert (recipe.rollout.group_size, recipe.rollout.reference_rows) == (8, 1)
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high, recipe.surrogate.dual) == (0.8, 1.28, None)
    assert recipe.regularizer is None


def numpy_loss(batch, logp):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    soft = [
        0.6 + 0.02 * np.log(r - 0.6 + 1) if r >= 0.6 else 0.6 - (np.exp(2 * (0.6 - r)) - 1) / (np.exp(2) - 1)
        for r in reward
    ]
    soft, losses = np.array(soft), []
    for i in range(len(reward)):
        mates = soft[group == group[i]]
        a = (soft[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[mask[i]]
        losses.append(np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.28)).mean())
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0.1, 0.7, 0.4], [0.3, 0.9, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    recipe = make("tempsamp_r1", tau=0.6, alpha=2.0, gain=0.02)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy()))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_without_shaping_and_with_grpos_clip_it_is_grpo_without_kl():
    batch = batch_of([[1, 0.1, 0.7], [0.3, 0.9]])
    ours, theirs = make("tempsamp_r1", reward=None, ratio_high=1.2), make("grpo", regularizer=None)
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_reference_lifts_a_group_that_fails_and_is_pushed_down_where_the_policy_is_better():
    teacher = SOURCES.index("teacher")
    batch = batch_of([[0, 0, 0, 1], [1, 1, 1, 0.5]], source=torch.tensor([0, 0, 0, teacher] * 2))
    recipe = make("tempsamp_r1")
    prepared = recipe.prepare(batch)
    _, gradient = value_and_gradient(recipe, prepared)
    assert (gradient[3][batch.mask[3]] < 0).all(), "its log-prob rises; the ratio is 1, so nothing is clipped"
    assert (prepared.advantage[:3][batch.mask[:3]] < 0).all()
    assert (gradient[7][batch.mask[7]] > 0).all()
