"""Card: preference_distill_hybrid.md, srft."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.batch import SOURCES
from upslope.testing import batch_of, check_method, finite_differences, value_and_gradient

TEACHER = SOURCES.index("teacher")
SOURCE = torch.tensor([0, 0, 0, TEACHER, 0, 0, TEACHER])
CONTRACT = torch.tensor([0, 0, 0, TEACHER, 0, 0, TEACHER, 0, 0, 0, 0, TEACHER, 0, TEACHER])


def test_contract_with_expert_rows():
    check_method("srft", source=CONTRACT)


def test_card_weights_at_an_entropy_of_one_half():
    batch = batch_of([[1, 0, 1]], lengths=[1, 1, 1], source=torch.tensor([0, 0, TEACHER]))
    recipe = make("srft", **{"aggregate.scale": 1.0})
    prepared = recipe.prepare(batch.replace(entropy=torch.full((3, 1), 0.5).double()))
    gradient = value_and_gradient(recipe, prepared)[1][:, 0]
    p = float(batch.logp[2].exp())
    shaped = (1 - 2 / 3) * 0.1 * p / (p + 0.1) ** 2
    np.testing.assert_allclose(gradient, [-0.164872, 1, -0.303265 - shaped], atol=1e-6)


def test_without_entropy_and_demonstrations_right_weighs_a_tenth_and_wrong_minus_one():
    batch = batch_of([[1, 0, 1, 0]]).replace(entropy=None)
    batch = batch.replace(entropy=torch.zeros_like(batch.logp))
    recipe = make("srft")
    gradient = 8192 * value_and_gradient(recipe, recipe.prepare(batch))[1]
    expected = torch.tensor([-0.1, 1, -0.1, 1]).double().unsqueeze(1) * batch.mask
    torch.testing.assert_close(gradient, expected)


def test_value_and_gradient_with_entropy_held():
    batch = batch_of([[0, 1, 0, 1], [0, 0, 1]], seed=5, source=SOURCE)
    recipe = make("srft", own_weight=0.2, coefficient=0.7, gamma=0.3, **{"aggregate.scale": 0.25})
    mask, reward, group = batch.mask.numpy(), batch.reward.numpy(), batch.group.numpy()
    a = np.array([r - reward[group == g].mean() for r, g in zip(reward, group, strict=True)])[:, None]
    entropy = np.array([row[kept].mean() for row, kept in zip(batch.entropy.numpy(), mask, strict=True)])[:, None]
    expert = (SOURCE == TEACHER).numpy()

    def numpy_loss(logp):
        p = np.exp(logp)
        own = np.where(reward[:, None] > 0.5, -0.2 * np.exp(entropy) * logp, logp)
        per = np.where(expert[:, None], -a * p / (p + 0.3), own)
        likelihood = (-0.7 * np.exp(-entropy) * logp)[expert][mask[expert]].mean()
        return 0.25 * per[mask].sum() + likelihood

    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(numpy_loss, batch.logp.numpy()) * mask, atol=1e-8)


def test_the_entropy_has_no_gradient():
    batch = batch_of([[0, 1, 0, 1], [0, 0, 1]], source=SOURCE)
    entropy = batch.entropy.clone().requires_grad_()
    logp = batch.logp.clone().requires_grad_()
    loss, _ = make("srft")(batch.replace(entropy=entropy, logp=logp))
    assert torch.autograd.grad(loss, entropy, allow_unused=True) == (None,)
