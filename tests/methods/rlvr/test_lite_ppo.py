"""Card: rlvr_core.md, lite-ppo."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.parts.aggregate import TokenMean
from upslope.parts.surrogate import ClippedRatio
from upslope.testing import batch_of, finite_differences, value_and_gradient


def advantage(rewards, name="lite_ppo", **settings):
    return make(name, **settings).prepare(batch_of(rewards)).advantage[:, 0].numpy()


def test_card_numbers_and_defaults():
    np.testing.assert_allclose(
        advantage([[1, 0, 0, 0], [1, 1, 1, 1]]), [1.44914, -0.48305, -0.48305, -0.48305, 0, 0, 0, 0], atol=5e-6
    )
    recipe = make("lite_ppo")
    assert recipe.surrogate == ClippedRatio(ratio_low=0.8, ratio_high=1.2)
    assert (recipe.advantage.eps, recipe.rollout.group_size) == (1e-6, 8)
    assert (recipe.regularizer, recipe.aggregate) == (None, TokenMean())
    assert make("lite_ppo@trl").advantage.eps == 1e-4


def numpy_loss(batch, logp, baseline="mean", high=1.2, drop=False, mean="token"):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    losses = []
    for i in range(len(reward)):
        if drop and batch.truncated[i]:
            continue
        center = (reward[group == group[i]] if baseline == "mean" else reward).mean()
        a = (reward[i] - center) / (reward.std(ddof=1) + 1e-6)
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[mask[i]]
        losses.append(np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, high)))
    return np.concatenate(losses).mean() if mean == "token" else np.mean([row.mean() for row in losses])


@pytest.mark.parametrize(
    ("settings", "study"),
    [
        ({}, {}),
        ({"baseline": "batch_mean"}, {"baseline": "batch"}),
        ({"ratio_high": 1.28}, {"high": 1.28}),
        ({"drop_truncated": True}, {"drop": True}),
        ({"aggregate": "grpo"}, {"mean": "sequence"}),
    ],
    ids=["lite", "global mean", "clip-higher", "overlong filter", "sequence mean"],
)
def test_value_and_gradient_of_every_trick_off_policy(settings, study):
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    truncated = torch.tensor([False, True, False, False, False, False, True])
    batch = batch.replace(old_logp=batch.logp + 0.5 * (batch.entropy - 0.8), truncated=truncated)
    recipe = make("lite_ppo", **settings)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), **study))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, **study), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_local_deviation_is_grpo_and_none_is_dr_grpo():
    rewards = [[1, 0, 0, 0], [1, 1, 0.5]]
    np.testing.assert_allclose(advantage(rewards, scale="sample_std"), advantage(rewards, "grpo"))
    np.testing.assert_allclose(advantage(rewards, scale=None), advantage(rewards, "dr_grpo"))


def test_one_prompt_with_equal_lengths_is_grpo_without_kl():
    batch = batch_of([[1, 0, 0.2, 0]], lengths=[3] * 4)
    batch = batch.replace(old_logp=batch.logp + 0.3 * batch.entropy)
    results = [value_and_gradient(r, r.prepare(batch)) for r in (make("lite_ppo"), make("grpo", regularizer=None))]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_equal_rewards_have_no_advantage():
    assert not advantage([[1, 1, 1], [1, 1]]).any()


def test_a_prompts_weight_is_that_of_dr_grpo_up_to_one_factor():
    """Sum over a prompt of |A|: p (1 - p), not its root."""
    found = np.abs(advantage([[1] + 7 * [0], 4 * [1] + 4 * [0]])).reshape(2, 8).sum(1)
    assert found[0] / found[1] == pytest.approx((1 / 8 * 7 / 8) / (1 / 4))
