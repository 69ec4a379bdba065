"""Card: preference_distill_hybrid.md, minillm."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient

BARE = {"regularizer": None, "scale": 1.0, "discount": 0.0, "length_normalized": False, "whiten": False}


def earning(d, **settings):
    batch = batch_of([[0.0]], lengths=[len(d)])
    batch = batch.replace(teacher_logp=batch.old_logp + torch.tensor([d]).double())
    return make("minillm", scale=1.0, whiten=False, **settings).prepare(batch).advantage[0].numpy()


def test_card_numbers():
    np.testing.assert_allclose(earning([0.2, -0.1, 0.3], length_normalized=False), [0.4, 0.2, 0.3])
    np.testing.assert_allclose(earning([0.2, -0.1, 0.3]), [0.133333, 0.1, 0.3], atol=5e-7)
    np.testing.assert_allclose(earning([500.0, 0.0]), [50.0, 0.0])
    assert make("minillm").update.epochs == 4


def numpy_loss(batch, logp):
    mask, old, teacher = batch.mask.numpy(), batch.old_logp.numpy(), batch.teacher_logp.numpy()
    d = np.clip((teacher - old) / 0.5, -100, 100) * mask
    left = mask[:, ::-1].cumsum(1)[:, ::-1]
    a = d[:, ::-1].cumsum(1)[:, ::-1] / np.maximum(left, 1)
    a = (a - a[mask].mean()) / np.sqrt(a[mask].var(ddof=1) + 1e-8)
    r = np.exp(logp - old)
    return (np.maximum(-a * r, -a * np.clip(r, 0.8, 1.2)) + batch.divergence.numpy())[mask].mean()


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0], [0, 0, 1]], seed=3)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    recipe = make("minillm")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy()))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-7)


def test_the_divergence_counts_every_token_once():
    batch = batch_of([[1, 0], [0, 0, 1]])
    recipe = make("minillm")
    column = batch.divergence.clone().requires_grad_()
    recipe.loss(recipe.prepare(batch).replace(divergence=column))[0].backward()
    torch.testing.assert_close(column.grad, batch.mask.double() / batch.mask.sum())


def test_each_token_alone_and_without_whitening_it_is_opd():
    batch = batch_of([[1, 0], [0, 0, 1]])
    ours, theirs = make("minillm", **BARE), make("opd")
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_reverse_kl_keeps_to_a_mode_of_the_teacher_and_the_forward_one_covers_both():
    """A policy of one mode and a teacher of two: mass where the teacher has next to none."""
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    teacher = torch.logaddexp(-((x - 1.5) ** 2) / 0.1, -((x + 1.5) ** 2) / 0.1).log_softmax(-1)
    off = teacher.exp() < 1e-4
    mass = {}
    for beta in (0.0, 1.0):
        compare = make("minillm", beta=beta).regularizer.compares()["divergence"]
        place, width = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.2, 0.0))
        optimizer = torch.optim.Adam([place, width], lr=0.05)
        for _ in range(300):
            policy = (-((x - place) ** 2) / (2 * width.exp())).log_softmax(-1)
            optimizer.zero_grad()
            compare(policy[None], teacher[None]).sum().backward()
            optimizer.step()
        mass[beta] = float(policy.detach().exp()[off].sum())
    assert mass[1.0] < 0.01
    assert mass[0.0] > 0.2
