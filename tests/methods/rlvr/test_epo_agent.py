"""Card: rlvr_core.md, epo-agent."""

import math

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def at(progress, entropy=None, seed=5):
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=seed)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8), progress=torch.full((7,), progress))
    return batch if entropy is None else batch.replace(entropy=torch.full_like(batch.logp, entropy))


def loss_and_entropy_gradient(recipe, prepared):
    entropy = prepared.entropy.detach().clone().requires_grad_()
    loss, _ = recipe.loss(prepared.replace(entropy=entropy))
    (gradient,) = torch.autograd.grad(loss, entropy)
    return float(loss.detach()), gradient.numpy()


def test_card_hinge_and_defaults():
    part = make("epo_agent", coefficient=-1.0, alpha=1.0, low=0.5, high=1.5).regularizer[1]
    entropy = torch.tensor([[0.3, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    batch = Batch(
        logp=-torch.ones(1, 3).double(),
        entropy=entropy,
        entropy_mean=torch.ones(1).double(),
        smoothing=torch.ones(1).double(),
    )
    penalty = entropy - part(batch)
    np.testing.assert_allclose(penalty.detach(), [[0.2, 0, 0.5]], atol=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(penalty.sum(), entropy)[0], [[-1, 0, 1]])
    part = make("epo_agent").regularizer[1]
    assert (part.coefficient, part.alpha, part.low, part.high) == (1e-3, 0.1, 0.0, 2.0)


def numpy_loss(batch, entropy, mean, beta):
    """The entropy's part of the loss alone."""
    mask = batch.mask.numpy()
    penalty = np.maximum(0.9 * mean - entropy, 0) + np.maximum(entropy - 1.1 * mean, 0)
    per = -0.3 * (entropy - beta * 0.2 * penalty)
    return np.mean([per[i][mask[i]].mean() for i in range(len(mask))])


def test_value_and_gradient_after_two_steps():
    recipe = make("epo_agent", coefficient=0.3, alpha=0.2, low=0.9, high=1.1, gamma=0.7)
    state = recipe.init()
    for progress, entropy in [(0.0, 0.9), (0.25, 0.5)]:
        _, state = recipe.prepare(at(progress, entropy), state)
    batch, _ = recipe.prepare(at(0.5), state)
    mean, beta = 0.7, 1 + math.exp(-0.7)
    np.testing.assert_allclose(batch.entropy_mean, mean)
    np.testing.assert_allclose(batch.smoothing, beta)
    loss, gradient = loss_and_entropy_gradient(recipe, batch)
    rest, policy_gradient = value_and_gradient(make("grpo"), make("grpo").prepare(at(0.5)))
    entropy = batch.entropy.numpy()
    assert loss == pytest.approx(float(rest) + numpy_loss(batch, entropy, mean, beta))
    expected = finite_differences(lambda h: numpy_loss(batch, h, mean, beta), entropy)
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)
    torch.testing.assert_close(value_and_gradient(recipe, batch)[1], policy_gradient)


def test_the_history_is_of_earlier_steps_whatever_the_number_of_mini_batches():
    recipe = make("epo_agent")
    state, seen = recipe.init(), []
    for progress, entropy in [(0.0, 1.0), (0.0, 3.0), (0.1, 5.0), (0.1, 5.0), (0.2, 0.0)]:
        before = dict(state["control"])
        prepared, after = recipe.prepare(at(progress, entropy), state)
        assert state["control"] == before, "the given state is not changed"
        seen.append((float(prepared.entropy_mean[0]), round(float(prepared.smoothing[0]), 6)))
        state = after
    beta = [round(1 + math.exp(-2 * progress), 6) for progress in (0.1, 0.2)]
    assert seen == [(0, 0), (0, 0), (2, beta[0]), (2, beta[0]), (3.5, beta[1])]


def test_a_steps_average_weighs_its_tokens_alike():
    recipe = make("epo_agent")
    state = recipe.init()
    batch = at(0.0)
    for rows in ([0, 1, 2, 3], [4, 5, 6]):
        _, state = recipe.minibatch(recipe.credit(batch.select(torch.tensor(rows)), {})[0], state)
    prepared, _ = recipe.prepare(at(0.5), state)
    expected = batch.entropy.numpy()[batch.mask.numpy()].mean()
    np.testing.assert_allclose(prepared.entropy_mean, expected)


def test_the_schedule_falls_from_2_to_1_plus_exp_minus_gamma_at_the_middle():
    recipe = make("epo_agent", gamma=1.5)
    _, state = recipe.prepare(at(0.0), recipe.init())
    early, middle, late = (recipe.prepare(at(progress), state)[0].smoothing[0] for progress in (1e-6, 0.5, 0.99))
    assert float(early) == pytest.approx(2, abs=1e-5)
    assert float(middle) == pytest.approx(1 + math.exp(-1.5))
    assert float(late) == pytest.approx(1 + math.exp(-2.97))


def test_coefficient_0_is_grpo():
    ours, theirs = make("epo_agent", coefficient=0.0), make("grpo")
    results = [value_and_gradient(r, r.prepare(at(0.0))) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_first_step_and_the_released_code_have_the_gradient_of_an_entropy_bonus():
    first, released = make("epo_agent", low=0.9, high=1.1), make("epo_agent@released", low=0.9, high=1.1)
    _, state = first.prepare(at(0.0, 3.0), first.init())
    bonus = -1e-3 * at(0.0).mask.numpy() / at(0.0).length.numpy()[:, None] / 7
    np.testing.assert_allclose(loss_and_entropy_gradient(first, first.prepare(at(0.0)))[1], bonus)
    later = released.prepare(at(0.5), state)[0]
    np.testing.assert_allclose(loss_and_entropy_gradient(released, later)[1], bonus)
    assert not np.allclose(loss_and_entropy_gradient(first, first.prepare(at(0.5), state)[0])[1], bonus)
    outside = ((later.entropy < 2.7) | (later.entropy > 3.3))[later.mask].double().mean()
    assert float(released.loss(later)[1]["entropy/outside"]) == pytest.approx(float(outside))


def test_an_empty_band_is_refused():
    with pytest.raises(UsageError, match=r"low=3, high=2\): the band around the average is empty"):
        make("epo_agent", low=3.0)
