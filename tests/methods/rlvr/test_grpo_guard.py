"""Card: rlvr_core.md, grpo-guard. The algebra of the ratio: tests/parts/test_guard.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.parts.guard import GaussianKL
from upslope.testing import batch_of, finite_differences, value_and_gradient


def columns(batch):
    names = ("reward", "group", "mask", "old_logp", "mean", "old_mean", "noise_scale", "step_size")
    return (getattr(batch, name).numpy() for name in names)


def numpy_loss(batch, logp, mean, eps):
    reward, group, mask, old, _, old_mean, scale, size = columns(batch)
    losses = []
    for i in range(len(reward)):
        mates, t = reward[group == group[i]], mask[i]
        a = np.clip((reward[i] - mates.mean()) / (mates.std() + 1e-4), -5, 5)
        s = scale[i][t]
        bias = ((mean[i][t] - old_mean[i][t]) ** 2).mean(-1) / (2 * s**2)
        r = np.exp(((logp[i] - old[i])[t] + bias) * s)
        losses.append((np.maximum(-a * r, -a * np.clip(r, 1 - eps, 1 + eps)) / size[i][t]).mean())
    return np.mean(losses)


@pytest.mark.parametrize("eps", [2e-6, 0.1])
def test_value_and_gradient_off_policy(eps):
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    recipe = make("grpo_guard", ratio_low=1 - eps, ratio_high=1 + eps)
    prepared = recipe.prepare(batch)
    logp, mean = batch.logp.numpy(), batch.mean.numpy()
    loss, gradient = value_and_gradient(recipe, prepared)
    assert loss.item() == pytest.approx(numpy_loss(batch, logp, mean, eps))
    expected = finite_differences(lambda at: numpy_loss(batch, at, mean, eps), logp, 1e-7)
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-6)
    moving = prepared.mean.clone().requires_grad_()
    (of_mean,) = torch.autograd.grad(recipe.loss(prepared.replace(mean=moving))[0], moving)
    expected = finite_differences(lambda at: numpy_loss(batch, logp, at, eps), mean, 1e-7)
    np.testing.assert_allclose(of_mean, expected * batch.mask.numpy()[..., None], atol=1e-6)


def test_defaults():
    recipe = make("grpo_guard")
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high) == (1 - 2e-6, 1 + 2e-6)
    assert (recipe.rollout.group_size, recipe.advantage.eps, recipe.advantage.limit) == (24, 1e-4, 5.0)
    assert (recipe.regularizer, recipe.update.minibatches) == (None, 2)


def test_the_bound_of_the_advantage_acts_in_groups_of_more_than_26():
    for size, bounded in ((26, False), (30, True)):
        batch = batch_of([[1.0] + [0.0] * (size - 1)], lengths=[2] * size)
        advantage = make("grpo_guard").prepare(batch).advantage[0, 0].item()
        assert (advantage == 5) == bounded
        assert make("grpo_guard", limit=9.0).prepare(batch).advantage[0, 0] == pytest.approx(
            (size - 1) ** 0.5, rel=1e-3
        )


def test_one_denoising_run_by_hand():
    """Two trajectories of three steps in two dimensions, a policy that has not moved: the score function, balanced."""
    size = torch.tensor([[0.5, 0.3, 0.2]]).expand(2, 3)
    mean = torch.zeros(2, 3, 2, requires_grad=True)
    noise = torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, -1.0]]).expand(2, 3, 2)
    scale = 0.7 * size.sqrt()
    logp = (-((scale[..., None] * noise - mean) ** 2) / (2 * scale[..., None] ** 2)).mean(-1) - scale.log()
    given = {
        "old_logp": logp.detach(),
        "old_mean": mean.detach(),
        "mean": mean,
        "noise_scale": scale,
        "step_size": size,
    }
    loss, _ = make("grpo_guard", eps=0.0)(Batch(logp=logp, reward=[1.0, 0.0], group=[0, 0], **given))
    loss.backward()
    sign = torch.tensor([1.0, -1.0])[:, None, None]
    torch.testing.assert_close(mean.grad, -sign * noise / 2 / size[..., None] / 3 / 2)


def test_without_balance_and_at_unit_scale_it_is_grpo_where_the_mean_stands():
    batch = batch_of([[1, 0, 0], [0, 1]])
    batch = batch.replace(
        old_logp=batch.logp + 0.3 * batch.entropy, old_mean=batch.mean, noise_scale=torch.ones_like(batch.logp)
    )
    ours = make("grpo_guard", weight=None, ratio_low=0.8, ratio_high=1.2)
    theirs = make("grpo", regularizer=None, scale="population_std", eps=1e-4)
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_optional_kl():
    batch = batch_of([[1.0, 1.0]], lengths=[2, 2])  # no advantage
    recipe = make("grpo_guard").replace(regularizer=GaussianKL(beta=0.5))
    loss, _ = value_and_gradient(recipe, recipe.prepare(batch))
    shift = ((batch.mean - batch.ref_mean) ** 2).mean(-1) / (2 * batch.noise_scale**2)
    assert loss.item() == pytest.approx(0.5 * shift.mean().item())


def test_a_language_batch_is_refused_by_name():
    with pytest.raises(UsageError, match=r"StepBalance reads the column 'step_size' .* denoising sampler"):
        make("grpo_guard").prepare(Batch(logp=[[-1.0], [-2.0]], old_logp=[[-1.0], [-2.0]], reward=[1, 0], group=[0, 0]))
