"""Card: rlvr_core.md, entropy-mechanism."""

import math

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def off_policy(seed=5):
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=seed)
    return batch.replace(old_logp=batch.logp + 0.8 * (batch.entropy - 0.8))


def test_card_covariance_and_defaults():
    recipe = make("kl_cov", share=0.25)
    logp = [[-0.1, -2.0], [-0.1, -2.0001]]
    batch = Batch(logp=logp, old_logp=logp, advantage=[1.0, -1.0], trajectory=[0, 1])
    batch = recipe.minibatch(batch, {})[0]
    np.testing.assert_allclose(batch.covariance, [[0.95, -0.95], [-0.95, 0.95]], rtol=1e-4)
    assert batch.selected.tolist() == [[False, False], [False, True]]
    recipe = make("kl_cov")
    assert (recipe.control.share, recipe.regularizer.coefficient) == (2e-3, 1.0)
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high) == (0, math.inf)
    assert (recipe.rollout.group_size, recipe.update.minibatches) == (8, 8)
    assert make("kl_cov@verl").control.share == 2e-4


@pytest.mark.parametrize(("share", "number"), [(2e-3, 2), (2e-4, 1), (0.0, 0)])
def test_of_a_thousand_tokens(share, number):
    recipe = make("kl_cov", share=share)
    logp = -torch.rand(10, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = Batch(logp=logp, old_logp=logp, advantage=torch.arange(10.0), trajectory=torch.arange(10))
    assert int(recipe.minibatch(batch, {})[0].selected.sum()) == number


def numpy_loss(batch, held, logp):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    losses = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        moved = (logp[i] - batch.old_logp[i].numpy())[mask[i]]
        losses += list(-a * np.exp(moved) + 0.7 * held[i][mask[i]] * np.abs(moved))
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    recipe = make("kl_cov", share=0.3, coefficient=0.7)
    batch = recipe.prepare(off_policy())
    mask, a, lp = batch.mask.numpy(), batch.advantage.numpy(), batch.logp.numpy()
    cov = np.where(mask, (a - a[mask].mean()) * (lp - lp[mask].mean()), -np.inf)
    held = cov >= np.sort(cov[mask])[-int(0.3 * mask.sum())]
    assert (batch.selected.numpy() == held).all()
    loss, gradient = value_and_gradient(recipe, batch)
    assert float(loss) == pytest.approx(numpy_loss(batch, held, lp))
    expected = finite_differences(lambda logp: numpy_loss(batch, held, logp), lp)
    np.testing.assert_allclose(gradient, expected * mask, atol=1e-8)


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"coefficient": 0.0}])
def test_without_the_penalty_it_is_the_plain_ratio(settings):
    batch = off_policy()
    recipe = make("kl_cov", **settings)
    prepared = recipe.prepare(batch)
    loss, gradient = value_and_gradient(recipe, prepared)
    per_token = -prepared.advantage * (batch.logp - batch.old_logp).exp() * batch.mask / batch.mask.sum()
    torch.testing.assert_close(loss, per_token.sum())
    torch.testing.assert_close(gradient, per_token)


def test_at_the_policy_that_sampled_the_penalty_has_no_gradient():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]])
    recipe = make("kl_cov", share=0.5)
    held, free = (value_and_gradient(r, r.prepare(batch)) for r in (recipe, make("kl_cov", share=0.0)))
    for one, other in zip(held, free, strict=True):
        assert torch.equal(one, other)


def test_equal_covariances_are_told_apart_by_the_token_not_by_its_row():
    batch = off_policy().replace(reward=torch.ones(7))
    recipe = make("kl_cov", share=0.4)
    one = recipe.prepare(batch).selected
    order = torch.tensor([4, 2, 0, 6, 1, 5, 3])
    assert torch.equal(recipe.prepare(batch.select(order)).selected, one[order])
    assert int(one.sum()) == int(0.4 * batch.mask.sum())


def test_a_percentage_is_refused():
    with pytest.raises(UsageError, match=r"SelectCovariant\(share=2\): it is a fraction of the tokens"):
        make("kl_cov", share=2.0)
