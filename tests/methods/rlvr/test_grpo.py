"""Card: rlvr_core.md, grpo."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient

BINARY = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=8)


def advantage(rewards, **settings):
    return make("grpo", **settings).prepare(batch_of(rewards)).advantage[:, 0].numpy()


def test_card_numbers_and_defaults():
    recipe = make("grpo")
    assert (recipe.regularizer.beta, recipe.regularizer.estimator) == (0.04, "k3")
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high, recipe.surrogate.dual) == (0.8, 1.2, None)
    np.testing.assert_allclose(advantage([[1, 0, 0, 0]]), [1.499997, -0.499999, -0.499999, -0.499999], atol=5e-7)
    assert np.abs(advantage([[1] + [0] * 7])).sum() == pytest.approx(4.95, abs=5e-3)
    assert np.abs(advantage([[1] * 4 + [0] * 4])).sum() == pytest.approx(7.48, abs=5e-3)
    sample, population = (advantage([[1, 0, 0]], scale=scale, eps=0) for scale in ("sample_std", "population_std"))
    np.testing.assert_allclose(population, sample * np.sqrt(3 / 2))


@given(BINARY, st.floats(0.5, 3), st.floats(-3, 3))
def test_affine_rewards_are_the_same(rewards, slope, offset):
    moved = [slope * reward + offset for reward in rewards]
    np.testing.assert_allclose(advantage([moved]), advantage([rewards]), atol=1e-5)


def numpy_loss(batch, logp, name="grpo"):
    """Value of the loss at `logp`, from the paper's formula, group by group and sequence by sequence."""
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    losses = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        keep = mask[i]
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[keep]
        back = (batch.ref_logp[i].numpy() - logp[i])[keep]
        clipped = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
        losses.append(np.mean(-clipped + 0.04 * (np.exp(back) - back - 1)))
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    noise = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=6).logp
    batch = batch.replace(old_logp=batch.logp + 0.4 * noise)
    loss, gradient = value_and_gradient(make("grpo"), make("grpo").prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy()))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_equal_rewards_leave_the_kl_alone():
    batch = batch_of([[1, 1, 1], [0, 0]])
    loss, gradient = value_and_gradient(make("grpo"), make("grpo").prepare(batch))
    without, nothing = value_and_gradient(make("grpo", beta=0.0), make("grpo", beta=0.0).prepare(batch))
    assert float(loss) > 0
    assert gradient.any()
    assert float(without) == 0
    assert not nothing.any()


def test_on_policy_it_is_reinforce_with_its_advantage():
    batch = batch_of([[1, 0, 0.5], [0, 1]])
    recipe = make("grpo", regularizer=None)
    theirs = make("reinforce", advantage="grpo", aggregate="grpo")
    gradients = [value_and_gradient(r, r.prepare(batch))[1].numpy() for r in (recipe, theirs)]
    np.testing.assert_allclose(*gradients, atol=1e-15)


def test_deepseekmath_preset_is_the_paper():
    recipe = make("grpo@deepseekmath")
    assert recipe.rollout.group_size == 64
    assert recipe.replace(rollout=make("grpo").rollout).parts() == make("grpo").parts()
