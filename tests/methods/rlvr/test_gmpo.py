"""Card: rlvr_core.md, gmpo."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.testing import batch_of, finite_differences, value_and_gradient

MOVED = torch.tensor([[0.9, -0.1, -0.5], [0.9, -0.1, -0.5]], dtype=torch.float64)


def card_batch():
    batch = batch_of([[1.0, 0.0]], lengths=[3, 3])
    return batch.replace(old_logp=batch.logp - MOVED)


def test_card_ratios_and_gradients():
    recipe = make("gmpo")
    batch = recipe.prepare(card_batch())
    ratio = (recipe.surrogate(batch) / -batch.advantage[:, 0]).numpy()
    np.testing.assert_allclose(ratio, [0.93551, 1.14263], atol=5e-6)
    _, gradient = value_and_gradient(recipe, batch)
    kept = np.array([[0, 1, 1], [1, 1, 0]])  # above 0.4 where A > 0, below -0.4 where A < 0: no gradient
    np.testing.assert_allclose(gradient, -batch.advantage.numpy() * ratio[:, None] * kept / 3 / 2)


def numpy_loss(batch, logp):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    losses = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        sign, d = np.sign(a), (logp[i] - batch.old_logp[i].numpy())[mask[i]]
        d = sign * np.minimum(sign * d, sign * np.clip(d, -0.2, 0.3))
        losses.append(-a * np.exp(d.mean()))
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.6 * (batch.entropy - 0.8))
    recipe = make("gmpo", log_ratio_low=-0.2, log_ratio_high=0.3)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy()))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_inside_the_interval_it_is_gspo_without_its_clip():
    ours, theirs = make("gmpo", log_ratio_low=-1.0, log_ratio_high=1.0), make("gspo", ratio_low=0.1, ratio_high=9.0)
    results = [value_and_gradient(r, r.prepare(card_batch())) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_on_policy_it_is_grpo_without_kl():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    ours, theirs = make("gmpo"), make("grpo", regularizer=None)
    (_, one), (_, other) = (value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs))
    torch.testing.assert_close(one, other)


def test_bounds_of_the_ratio_are_refused():
    with pytest.raises(UsageError, match=r"GeometricMeanRatio clips to \[0.67, 1.49\], which leaves out 0"):
        make("gmpo", log_ratio_low=0.67, log_ratio_high=1.49)
