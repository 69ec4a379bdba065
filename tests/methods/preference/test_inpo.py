"""Card: preference_distill_hybrid.md, inpo."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.parts.iterate import IterateReference
from upslope.parts.preference import PreferenceLoss
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_card_numbers(card):
    """eta 1/2, tau 1/5; log-probs of the pair under pi_t -4.5 and -5.2: h = 1.38."""
    length = torch.tensor([[4.0], [6.0]]).double()
    sampled = card.replace(old_logp=torch.tensor([[-4.5], [-5.2]]).double() / length * card.mask)
    loss, _ = make("inpo", beta=0.5, share=0.4)(sampled)
    assert float(loss) == pytest.approx(0.1444)


def test_value_and_gradient_against_numpy():
    batch = batch_of([[0.2, 1.4, -0.3, 0.9], [1, 0, 0.5]], seed=2)
    batch = batch.replace(old_logp=batch.logp + 0.4 * (batch.entropy - 0.8))
    ref, old, mask = (getattr(batch, name).numpy() for name in ("ref_logp", "old_logp", "mask"))
    eta, tau = 0.3, 0.12

    def loss_at(logp):
        now, first, last = ((x * mask).sum(1) for x in (logp, ref, old))
        losses = []
        for w, lost in ((1, 2), (4, 5)):
            h = now[w] - now[lost] - tau / eta * (first[w] - first[lost]) - (eta - tau) / eta * (last[w] - last[lost])
            losses.append((h - 1 / (2 * eta)) ** 2)
        return np.mean(losses)

    recipe = make("inpo", beta=eta, share=tau / eta)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-7)


def test_against_the_first_reference_alone_and_in_the_first_step_it_is_ipo():
    batch = batch_of([[1, 0], [0, 1]], seed=3)
    moved = batch.replace(old_logp=batch.logp - 0.3 * batch.entropy)
    first = batch.replace(old_logp=batch.ref_logp)
    ipo = make("ipo@paper", beta=0.0075)
    for recipe, rows in ((make("inpo", share=1.0), moved), (make("inpo"), first)):
        one, expected = (value_and_gradient(r, r.prepare(rows)) for r in (recipe, ipo))
        torch.testing.assert_close(one, expected)


def test_the_exact_step_is_a_stationary_point():
    """All pairs of a bandit with a cyclic preference, drawn by pi_t, labelled by P: the gradient vanishes at the closed form."""
    beats = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]]).double()
    ref, last = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]).double()
    eta, tau = 0.5, 0.2
    best = (beats @ last / eta).exp() * ref ** (tau / eta) * last ** (1 - tau / eta)
    theta = (best / best.sum()).log().requires_grad_()
    recipe = make("inpo", share=tau / eta, surrogate=PreferenceLoss(beta=eta, link="square", pairs="reward"))
    assert recipe.control == IterateReference(tau / eta)
    total = torch.zeros(()).double()
    for y in range(3):
        for other in range(3):
            if y == other:
                continue
            arms = torch.tensor([y, other])
            batch = Batch(
                logp=theta.log_softmax(0)[arms, None], ref_logp=ref[arms, None].log(), old_logp=last[arms, None].log(),
                reward=[1.0, 0.0], group=[0, 0],
            )  # fmt: skip
            total = total + last[y] * last[other] * beats[y, other] * recipe(batch)[0]
    (gradient,) = torch.autograd.grad(total, theta)
    np.testing.assert_allclose(gradient, 0, atol=1e-8)
