"""Card: rlvr_core.md, cispo."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def token(ratio, advantage, **settings):
    recipe = make("cispo", advantage=None, **settings)
    old = torch.zeros(1, 1, dtype=torch.float64)
    batch = Batch(logp=old + np.log(ratio), old_logp=old, advantage=torch.full_like(old, advantage))
    return value_and_gradient(recipe, recipe.prepare(batch))[1].item()


def test_card_gradient_where_ppo_has_none():
    assert token(3.0, 1.0, ratio_max=1.28) == pytest.approx(-1.28)
    assert token(3.0, -1.0, ratio_max=1.28) == pytest.approx(1.28)
    assert token(1.1, 1.0, ratio_max=1.28) == pytest.approx(-1.1)
    assert token(0.01, -1.0) == pytest.approx(0.01)
    assert token(0.01, -1.0, ratio_min=0.8) == pytest.approx(0.8)


def numpy_loss(batch, logp):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    losses = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        weight = np.minimum(np.exp((batch.logp - batch.old_logp)[i].numpy()), 1.3)  # of the batch's logp: constant
        losses += list((-weight * a * logp[i])[mask[i]])
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp - 0.4 * (batch.entropy - 0.3))
    recipe = make("cispo", ratio_max=1.3)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy()))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)
    assert (gradient != 0)[batch.mask].all()  # no token loses its gradient


def test_on_policy_it_is_grpo_with_a_token_mean():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    ours, theirs = make("cispo"), make("grpo", regularizer=None, aggregate="dapo")
    (_, one), (_, other) = (value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs))
    torch.testing.assert_close(one, other)


def test_without_a_bound_it_is_the_gradient_of_the_ratio_times_the_advantage():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    batch = batch.replace(old_logp=batch.logp - batch.entropy)
    ours, theirs = make("cispo", ratio_max=1e9), make("dapo", ratio_low=0.0, ratio_high=1e9, reward=None)
    (_, one), (_, other) = (value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs))
    torch.testing.assert_close(one, other)


def test_a_bound_that_is_an_offset_is_refused():
    with pytest.raises(UsageError, match=r"ClippedWeight clips to \[0, 0.28\], which leaves out 1"):
        make("cispo", ratio_max=0.28)


def test_presets_name_the_bound_itself():
    assert (make("cispo").surrogate.ratio_max, make("cispo").surrogate.ratio_min) == (5.0, 0.0)
    assert (make("cispo@verl").surrogate.ratio_max, make("cispo@verl").surrogate.ratio_min) == (1.2, 0.8)
