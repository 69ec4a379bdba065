"""Card: preference_distill_hybrid.md, reward-model-bt."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.parts.preference import PreferenceLoss
from upslope.testing import batch_of, finite_differences


def pair(value, **columns):
    value = torch.tensor(value, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    at_last = torch.stack([torch.stack([value[0] * 0 + 9, value[0], value[0] * 0 + 7]), value[1].expand(3)])
    return Batch(logp=-torch.ones(2, 3), value=at_last, mask=mask, label=[1.0, 0.0], group=[0, 0], **columns)


def loss_of(value, **settings):
    return float(make("reward_model_bt", **settings)(pair(value))[0])


def test_card_numbers():
    assert loss_of([1.2, 0.5]) == pytest.approx(0.403186, abs=5e-7)
    assert loss_of([1.2, 0.5], margin=0.3) == pytest.approx(0.513015, abs=5e-7)
    assert loss_of([1.2, 0.5], centering=0.01) - loss_of([1.2, 0.5]) == pytest.approx(0.0289, abs=5e-7)


def test_value_and_gradient_against_numpy():
    batch = batch_of([[1, 0], [0, 1], [0.7, 0.3]], seed=3)
    last = batch.mask.sum(1).numpy() - 1
    best, worst = np.array([0, 3, 4]), np.array([1, 2, 5])
    p = batch.label.numpy()[best]

    def loss_at(value):
        r = value[range(6), last]
        gap = r[best] - r[worst]
        loss = p * np.logaddexp(0, 0.2 - gap) + (1 - p) * np.logaddexp(0, 0.2 + gap)
        return np.mean(loss + 0.05 * (r[best] + r[worst]) ** 2)

    value = batch.value.clone().requires_grad_()
    loss, _ = make("reward_model_bt", margin=0.2, centering=0.05)(batch.replace(value=value))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(loss_at(batch.value.numpy()))
    np.testing.assert_allclose(value.grad, finite_differences(loss_at, batch.value.numpy()), atol=1e-9)


def test_a_shift_of_all_rewards_changes_nothing_without_centering():
    assert loss_of([1.2, 0.5]) == pytest.approx(loss_of([-98.8, -99.5]), rel=1e-12)
    assert loss_of([1.2, 0.5], centering=0.01) < loss_of([2.2, 1.5], centering=0.01)


def test_dpo_is_this_loss_on_implicit_rewards(card):
    implicit = 0.1 * ((card.logp - card.ref_logp) * card.mask).sum(1, keepdim=True).expand_as(card.logp)
    torch.testing.assert_close(make("reward_model_bt")(card.replace(value=implicit))[0], make("dpo")(card)[0])
    assert make("dpo").surrogate == PreferenceLoss(beta=0.1)


def test_recovers_linear_rewards_up_to_a_shift():
    """Completions with 3 features, preferences of a known linear reward, as soft labels: its weights are the optimum."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    true = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    reward = features @ true + 5
    label = (reward - reward.view(-1, 2).flip(1).flatten()).sigmoid()
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=300, tolerance_grad=1e-12)
    recipe, group = make("reward_model_bt"), torch.arange(40) // 2

    def closure():
        optimizer.zero_grad()
        value = (features @ weights[:3] + weights[3])[:, None]
        loss, _ = recipe(Batch(logp=-torch.ones(40, 1).double(), value=value, label=label, group=group))
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(weights[:3].detach(), true, atol=1e-4)
    assert float(weights[3].detach()) == 0, "the shift is not determined, so nothing moves it"


def test_margins_from_scores():
    """A pair whose scores lie 0.6 apart, with score_margin = 0.5, is one with a margin of 0.3."""
    scored = pair([1.2, 0.5], reward=[0.8, 0.2])
    assert float(make("reward_model_bt", score_margin=0.5)(scored)[0]) == pytest.approx(0.513015, abs=5e-7)
    assert float(make("reward_model_bt", margin=0.1, score_margin=0.5)(scored)[0]) == pytest.approx(
        loss_of([1.2, 0.5], margin=0.4)
    )
    assert "reward" not in make("reward_model_bt").needs


def test_a_negative_centering_is_refused():
    with pytest.raises(UsageError, match="must not be negative"):
        make("reward_model_bt", centering=-1.0)
