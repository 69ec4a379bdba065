"""Card: preference_distill_hybrid.md, cpl."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.testing import batch_of, finite_differences, value_and_gradient


@pytest.mark.parametrize(("bias", "loss"), [(1.0, 0.126928), (0.5, 0.474077)])
def test_card_numbers(bias, loss):
    """S = -1 and -3, over 2 and 3 steps."""
    logp = torch.tensor([[-5.0, -5.0, 0.0], [-10.0, -10.0, -10.0]]).double()
    batch = Batch(logp=logp, mask=[[True, True, False], [True] * 3], label=[1.0, 0.0], group=[0, 0])
    assert float(make("cpl", bias=bias)(batch)[0]) == pytest.approx(loss, abs=5e-7)


def test_value_and_gradient_with_soft_labels_against_numpy():
    batch = batch_of([[1, 0], [0.3, 0.7], [0, 1]], seed=2)
    mask, label = batch.mask.numpy(), batch.label.numpy()

    def loss_at(logp):
        s = 0.1 * (logp * mask).sum(1)
        losses = []
        for first, second in ((0, 1), (2, 3), (4, 5)):
            p = label[first]
            one, other = (np.logaddexp(0, 0.5 * s[b] - s[a]) for a, b in ((first, second), (second, first)))
            losses.append(p * one + (1 - p) * other)
        return np.mean(losses)

    recipe = make("cpl")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-9)


def test_without_a_bias_and_with_a_reference_it_is_dpo(card):
    cpl, dpo = (value_and_gradient(r, r.prepare(card)) for r in (make("cpl", bias=1.0, reference=True), make("dpo")))
    torch.testing.assert_close(cpl, dpo)


@pytest.mark.parametrize(("bias", "same"), [(1.0, True), (0.5, False)])
def test_only_a_bias_sees_a_constant_added_to_all_log_probs(bias, same):
    batch = batch_of([[1, 0], [0, 1]], lengths=[3] * 4)
    moved = batch.replace(logp=batch.logp - 2.0)
    recipe = make("cpl", bias=bias)
    assert (float(recipe(batch)[0]) == pytest.approx(float(recipe(moved)[0]))) is same


def test_gaussian_segments_of_control():
    """logp = -|mean - action|^2: the gradient in the means pulls to the preferred segment's actions."""
    means = torch.zeros(2, 4, 3).double().requires_grad_()
    actions = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    batch = Batch(logp=-((means - actions) ** 2).sum(-1), label=[1.0, 0.0], group=[0, 0])
    (gradient,) = torch.autograd.grad(make("cpl")(batch)[0], means)
    slope = 1 / (1 + np.exp(0.1 * float((-(actions[0] ** 2)).sum() + 0.5 * (actions[1] ** 2).sum())))
    torch.testing.assert_close(gradient[0], -2 * 0.1 * slope * actions[0])
    torch.testing.assert_close(gradient[1], 2 * 0.1 * 0.5 * slope * actions[1])


def test_ranked_segments_are_all_ordered_pairs():
    batch = batch_of([[3.0, 1.0, 2.0]], seed=1)
    s = 0.1 * (batch.logp * batch.mask).sum(1).numpy()
    expected = np.mean([np.logaddexp(0, 0.5 * s[b] - s[a]) for a, b in ((0, 1), (0, 2), (2, 1))])
    assert float(make("cpl", pairs="reward")(batch)[0]) == pytest.approx(expected)


def test_wrong_bias():
    with pytest.raises(UsageError, match=r"bias=0\b"):
        make("cpl", bias=0.0)
