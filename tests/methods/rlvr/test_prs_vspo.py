"""Card: rlvr_core.md, prs-vspo."""

import math

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.methods.rlvr.prs_vspo import StagedReward, ValueReplacement, prompt_values
from upslope.testing import batch_of, finite_differences, value_and_gradient

MIXED = [[1, 0, 0, 1], [1, 1, 1, 1], [0.5, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_stages_from_the_verifier():
    batch = batch_of([[0.9, 0.9, 0, 0.5, 1, 1]], stratum=[0, 1, 2, 2, 2, 3])
    np.testing.assert_allclose(StagedReward("stratum")(batch), [0, 0.1, 0.2, 0.6, 1, 1])
    assert StagedReward("stratum").needs == {"reward", "stratum"}


def test_stages_from_the_reward_alone():
    np.testing.assert_allclose(StagedReward()(batch_of([[0, 0.5, 1, 0.25]])), [0, 0.6, 1, 0.4])
    assert StagedReward().needs == {"reward"}


def numpy_values(groups):
    """v and Z of groups of qualities, staged by the reward alone."""
    staged = [np.array([0.2 + 0.8 * q if q else 0.0 for q in group]) for group in groups]
    p, u = np.array([np.mean(group) for group in groups]), np.array([group.std() for group in staged])
    return 4 * p * (1 - p) * (1 + u / u.max()) / 2, u == 0


def test_values_of_prompts():
    batch = batch_of(MIXED)
    value, low, present = prompt_values(batch.replace(reward=StagedReward()(batch)))
    expected, expected_low = numpy_values(MIXED)
    np.testing.assert_allclose(value, expected)
    assert low.tolist() == expected_low.tolist() == [False, True, False, True, False, True]
    assert present.all()
    np.testing.assert_allclose(value[0], 1.0)  # p = 1/2, the most uncertain


def numpy_loss(batch, logp, copies, limit):
    """Every prompt stands `copies` times, each time with the weight min(n, limit) / n."""
    reward, group, mask, old = (getattr(batch, name).numpy() for name in ("reward", "group", "mask", "old_logp"))
    total = 0.0
    for i in range(len(reward)):
        mates = np.array([0.2 + 0.8 * q if q else 0.0 for q in reward[group == group[i]]])
        own = 0.2 + 0.8 * reward[i] if reward[i] else 0.0
        a = (own - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        r = np.exp(logp[i] - old[i])[mask[i]]
        n = int(copies[group[i]])
        for _ in range(n):
            total += min(n, limit) / n * np.maximum(-a * r, -a * np.clip(r, 0.8, 1.2)).mean()
    return total / len(reward)


@pytest.mark.parametrize("limit", [1.0, 2.0, math.inf])
def test_value_and_gradient_off_policy(limit):
    batch = batch_of([*MIXED, [0, 0, 0, 0]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    recipe = make("prs_vspo", limit=limit)
    copies = recipe.weight.copies(batch.replace(reward=recipe.reward(batch)), 0)
    assert copies.max() >= 3
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), copies, limit))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, copies, limit), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_without_limit_it_is_grpo_on_the_replaced_batch():
    batch = batch_of(MIXED)
    recipe, theirs = make("prs_vspo", limit=math.inf), make("grpo", regularizer=None)
    prepared = recipe.prepare(batch)
    copies = prepared.weight[::4, 0].long()
    assert copies.sum() == len(MIXED)
    rows = torch.arange(24).view(6, 4).repeat_interleave(copies, dim=0)
    staged = batch.replace(reward=recipe.reward(batch))
    replaced = staged.select(rows.flatten()).replace(group=torch.arange(24) // 4)
    loss, gradient = value_and_gradient(recipe, prepared)
    expected, pieces = value_and_gradient(theirs, theirs.prepare(replaced))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient).index_add(0, rows.flatten(), pieces))


def test_prompts_are_drawn_by_their_value():
    groups = [[0, 0], [0, 0], [0, 0], [1, 0], [0.1, 0], [0.6, 0], [1, 1]]
    batch = batch_of(groups)
    batch = batch.replace(reward=StagedReward()(batch))
    drawn = torch.stack([ValueReplacement().copies(batch, step) for step in range(500)])
    assert (drawn.sum(1) == 7).all()
    assert not drawn[:, [0, 1, 2, 6]].any()
    value = numpy_values(groups)[0][3:6]
    np.testing.assert_allclose((drawn[:, 3:6] - 1).mean(0), 4 * value / value.sum(), atol=0.12)


def test_steps_draw_anew_and_resume_where_they_were():
    recipe, batch = make("prs_vspo"), batch_of([*MIXED, *MIXED])
    first, after = recipe.prepare(batch, recipe.init())
    second, later = recipe.prepare(batch, after)
    again, _ = recipe.prepare(batch, after)
    assert (after, later) == ({"weight": {"step": 1}}, {"weight": {"step": 2}})
    assert not torch.equal(first.weight, second.weight)
    assert torch.equal(second.weight, again.weight)


def test_every_prompt_with_signal_is_grpo_without_kl():
    batch = batch_of([[1, 0, 0], [0, 1], [1, 1, 0]])
    batch = batch.replace(old_logp=batch.logp + 0.3 * batch.entropy)
    ours, theirs = make("prs_vspo"), make("grpo", regularizer=None)
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_no_prompt_with_signal_has_no_gradient():
    recipe = make("prs_vspo")
    batch = recipe.prepare(batch_of([[1, 1], [0, 0]]))
    assert (batch.weight[batch.mask] == 1).all()
    assert not value_and_gradient(recipe, batch)[1].any()


def test_without_any_quality_all_prompts_with_signal_are_as_likely():
    batch = batch_of([[0.1, 0.1], [0.2, 0.1], [0.2, 0.1, 0]], lengths=[1] * 7)
    drawn = torch.stack([ValueReplacement().copies(batch, step) for step in range(300)])
    np.testing.assert_allclose(drawn.mean(0), [0, 1.5, 1.5], atol=0.1)


def test_settings_and_rewards_out_of_range_are_refused():
    with pytest.raises(UsageError, match="limit >= 1"):
        make("prs_vspo", limit=0.5)
    with pytest.raises(UsageError, match=r"StagedReward needs rewards in \[0, 1\]"):
        make("prs_vspo").prepare(batch_of([[2.0, 0.0]]))
