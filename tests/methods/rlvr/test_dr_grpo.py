"""Card: rlvr_core.md, dr-grpo."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def numpy_loss(batch, logp, length):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    total = 0.0
    for i in range(len(reward)):
        a = reward[i] - reward[group == group[i]].mean()
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[mask[i]]
        total += np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2)).sum()
    return total / (len(reward) * length)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.7))
    recipe = make("dr_grpo", length=20)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), 20))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, 20), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-9)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=6))
def test_times_g_over_g_minus_one_is_rloo(rewards):
    batch = batch_of([rewards])
    ours, theirs = (make(name, reward=None).prepare(batch).advantage[:, 0] for name in ("dr_grpo", "rloo"))
    np.testing.assert_allclose(ours * len(rewards) / (len(rewards) - 1), theirs, atol=1e-12)


def test_a_token_weighs_the_same_in_a_long_answer_which_under_grpo_it_does_not():
    for name, factor in (("dr_grpo", 1.0), ("grpo", 0.5)):
        recipe = make(name, regularizer=None)
        gradients = []
        for length in (3, 6):
            batch = batch_of([[1.0, 0.0]], lengths=[length, 2])
            gradients.append(value_and_gradient(recipe, recipe.prepare(batch))[1][0, 0])
        torch.testing.assert_close(gradients[1], factor * gradients[0])


def test_the_constant_only_scales():
    batch = batch_of([[1, 0, 0], [0, 1]])
    short, long = (value_and_gradient(r, r.prepare(batch)) for r in (make("dr_grpo", length=n) for n in (10, 30)))
    torch.testing.assert_close(short[0], 3 * long[0])
    torch.testing.assert_close(short[1], 3 * long[1])


def test_defaults():
    recipe = make("dr_grpo")
    assert (recipe.advantage.scale, recipe.regularizer, recipe.aggregate.length) == (None, None, 1024)
