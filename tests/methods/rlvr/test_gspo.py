"""Card: rlvr_core.md, gspo."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient

CARD = torch.tensor([[0.9, -0.1, -0.5], [0, 0, 0]], dtype=torch.float64)
WIDE = {"ratio_low": 0.1, "ratio_high": 10.0}


def off_policy(moved, rewards=(1.0, 0.0)):
    batch = batch_of([list(rewards)], lengths=[moved.shape[1]] * len(moved))
    return batch.replace(old_logp=batch.logp - moved)


def test_card_ratio_and_its_gradient():
    recipe = make("gspo", **WIDE)
    batch = recipe.prepare(off_policy(CARD))
    np.testing.assert_allclose(recipe.surrogate(batch)[0], -batch.advantage[0, 0] * 1.10517, atol=1e-5)
    _, gradient = value_and_gradient(recipe, batch)
    np.testing.assert_allclose(gradient[0], -batch.advantage[0] * np.exp(0.1) / 3 / 2)


def test_defaults():
    recipe = make("gspo")
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high) == (1 - 3e-4, 1 + 4e-4)
    assert (recipe.regularizer, recipe.update.minibatches) == (None, 4)


def numpy_loss(batch, logp):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    losses = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        s = np.exp(np.mean((logp[i] - batch.old_logp[i].numpy())[mask[i]]))
        losses.append(max(-a * s, -a * np.clip(s, 0.9, 1.1)))
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    recipe = make("gspo", ratio_low=0.9, ratio_high=1.1)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy()))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)
    dropped = ~gradient.any(1)
    assert 0 < dropped.sum() < len(batch)  # a clipped sequence loses all its tokens


@given(st.permutations(range(3)))
def test_the_order_of_the_moves_does_not_matter(order):
    recipe = make("gspo")
    torch.testing.assert_close(recipe(off_policy(CARD[:, order]))[0], recipe(off_policy(CARD))[0])


def test_which_tokens_moved_matters_to_grpo():
    recipe = make("grpo", regularizer=None)
    together = torch.tensor([[0.6, 0.0, 0], [0, 0, 0]], dtype=torch.float64)
    spread = torch.tensor([[0.2, 0.2, 0.2], [0, 0, 0]], dtype=torch.float64)
    wide = make("gspo", **WIDE)
    torch.testing.assert_close(wide(off_policy(together))[0], wide(off_policy(spread))[0])
    assert float(recipe(off_policy(together))[0]) != pytest.approx(float(recipe(off_policy(spread))[0]))


def test_on_policy_it_is_grpo_without_kl():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    ours, theirs = make("gspo"), make("grpo", regularizer=None)
    (_, one), (_, other) = (value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs))
    torch.testing.assert_close(one, other)


def test_one_token_is_ppos_clip():
    batch = off_policy(torch.tensor([[0.4], [-0.5], [0.1]], dtype=torch.float64), (1.0, 0.0, 0.0))
    ours, theirs = make("gspo", ratio_low=0.8, ratio_high=1.2), make("grpo", regularizer=None)
    for one, other in zip(*(value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)
