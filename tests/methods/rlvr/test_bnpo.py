"""Card: rlvr_core.md, bnpo."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from upslope import UsageError, make
from upslope.parts.surrogate import ClippedRatio
from upslope.testing import batch_of, finite_differences, value_and_gradient

CARD = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]  # p = .25, .5, .75, so alpha = beta = 3/2


def advantage(rewards, name="bnpo", **settings):
    return make(name, **settings).prepare(batch_of(rewards)).advantage[:, 0].numpy()


def test_card_numbers_and_defaults():
    recipe = make("bnpo")
    assert recipe.surrogate == ClippedRatio(ratio_low=0.8, ratio_high=1.28, dual=10.0)
    assert (recipe.advantage.max_weight, recipe.regularizer, recipe.rollout.group_size) == (1e6, None, 16)
    np.testing.assert_allclose(advantage(CARD)[:2], [0.68017, -0.22672], atol=5e-6)


def numpy_advantage(reward, group):
    p = np.array([reward[group == g].mean() for g in np.unique(group)])
    m, v = p.mean(), p.var(ddof=1)
    k = m * (1 - m) / v - 1 if v > 1e-12 else 0
    f = np.maximum(stats.beta.pdf(p, max(1, 1 + k * m / 3), max(1, 1 + k * (1 - m) / 3)), 1e-6)
    return (reward - p[group]) / f[group]


@given(st.lists(st.lists(st.sampled_from([0, 0.3, 1]), min_size=3, max_size=3), min_size=2, max_size=6))
def test_equals_scipy(rewards):
    expected = numpy_advantage(np.concatenate(rewards), np.repeat(np.arange(len(rewards)), 3))
    np.testing.assert_allclose(advantage(rewards), expected, rtol=1e-6, atol=1e-9)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1], [0, 0, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 4.0 * (batch.entropy - 0.8))
    a = numpy_advantage(batch.reward.numpy(), batch.group.numpy())[:, None]
    mask, old = batch.mask.numpy(), batch.old_logp.numpy()

    def loss_of(logp):
        ratio = np.exp(logp - old)
        loss = np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.28))
        return (np.where(a < 0, np.minimum(loss, -10 * a), loss) * mask).sum() / len(a)

    assert (np.exp(batch.logp.numpy() - old) * mask * (a < 0) > 10).any()
    recipe = make("bnpo")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_of(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_of, batch.logp.numpy()) * mask, atol=1e-7)


def test_three_halves_is_grpo_times_pi_over_eight():
    grpo = advantage(CARD, "grpo", scale="population_std", eps=0.0)
    np.testing.assert_allclose(advantage(CARD), np.pi / 8 * grpo)


@pytest.mark.parametrize(
    "rewards", [[[1, 0, 0], [1, 1, 1], [0, 0, 0]], [[1, 0, 0]] * 3, [[1, 0, 0]]], ids=["k<0", "v=0", "one prompt"]
)
def test_uniform_density_is_the_mean_baseline(rewards):
    np.testing.assert_allclose(advantage(rewards), advantage(rewards, "grpo", scale=None))


def test_solved_and_hopeless_prompts_have_no_advantage():
    rewards = [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert not advantage(rewards)[:6].any()
    assert advantage(rewards)[6:].all()


def test_max_weight_bounds_the_weight():
    """p = .5, .5, .05: 1 / f at the last is over 1.1, at the others under it."""
    rewards = [[1, 0], [1, 0], [0.1, 0]]
    plain = advantage(rewards)
    assert plain[4] > 1.1 * 0.05
    np.testing.assert_allclose(advantage(rewards, max_weight=1.1), [*plain[:4], 1.1 * 0.05, -1.1 * 0.05])


def test_rewards_of_another_range():
    moved = [[4 * r - 1 for r in group] for group in CARD]
    np.testing.assert_allclose(advantage(moved, reward_range=(-1, 3)), advantage(CARD))


def test_reward_out_of_range_names_the_row_and_a_wrong_range_the_remedy():
    with pytest.raises(UsageError, match=r"BetaNormalized needs .* row 5 \(prompt 1\) has reward 2"):
        advantage([[1, 0, 0, 0], [1, 2, 0, 0]])
    with pytest.raises(UsageError, match=r"reward_range=\(1.0, 0.0\)\): give \(lowest, highest\)"):
        make("bnpo", reward_range=(1, 0))


def test_a_failed_reward_is_in_no_fit():
    batch = batch_of([*CARD, [1, 0]])
    valid = torch.ones(len(batch), dtype=torch.bool)
    valid[-2:] = False
    found = make("bnpo").advantage(batch.replace(valid=valid))
    np.testing.assert_allclose(found, [*advantage(CARD), 0, 0])
