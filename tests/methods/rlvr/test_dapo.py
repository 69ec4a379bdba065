"""Card: rlvr_core.md, dapo."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.parts.overlong import OverlongPenalty
from upslope.parts.sampling import DynamicSampling
from upslope.testing import batch_of, finite_differences, value_and_gradient


@pytest.mark.parametrize(("length", "penalty"), [(16384, 0), (18432, -0.5), (20480, -1), (30000, -1), (10, 0)])
def test_card_penalties(length, penalty):
    batch = Batch(logp=torch.zeros(1, length), reward=[1.0])
    assert make("dapo").reward(batch).tolist() == [1.0 + penalty]


def test_defaults():
    recipe = make("dapo")
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high, recipe.surrogate.dual) == (0.8, 1.28, None)
    assert (recipe.rollout.group_size, recipe.update.minibatches, recipe.update.epochs) == (16, 16, 1)
    assert recipe.curriculum == DynamicSampling(max_rounds=10)
    assert recipe.regularizer is None
    assert make("dapo@verl").surrogate.dual == 10


def numpy_loss(batch, logp):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    length = mask.sum(1)
    shaped = reward - np.clip((length - 2) / 3, 0, 1)
    losses = []
    for i in range(len(reward)):
        mates = shaped[group == group[i]]
        a = (shaped[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[mask[i]]
        losses += list(np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.28)))
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, -1, -1, 1], [1, -1, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    recipe = make("dapo", max_length=5, cache=3)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy()))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_equal_bounds_no_penalty_and_equal_lengths_is_grpo_without_kl():
    batch = batch_of([[1, 0, 0], [0, 1]], lengths=[3] * 5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * batch.entropy)
    ours, theirs = make("dapo", ratio_high=1.2), make("grpo", regularizer=None)
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_dropping_groups_without_signal_changes_the_denominator_only():
    batch = batch_of([[1, 0, 1], [1, 1], [0, 0, 0]])
    recipe = make("dapo")
    keep = recipe.curriculum.keep(batch)[batch.group]
    assert keep.tolist() == [True] * 3 + [False] * 5
    _, whole = value_and_gradient(recipe, recipe.prepare(batch))
    _, kept = value_and_gradient(recipe, recipe.prepare(batch.select(keep)))
    torch.testing.assert_close(kept, whole[keep] * batch.mask.sum() / batch.mask[keep].sum())


def test_the_curriculum_judges_before_the_penalty():
    batch = batch_of([[-1, -1, -1]], lengths=[1, 3, 5])
    shaped = OverlongPenalty(max_length=5, cache=4)(batch)
    assert not DynamicSampling().keep(batch).any()
    assert DynamicSampling().keep(batch.replace(reward=shaped)).all()
