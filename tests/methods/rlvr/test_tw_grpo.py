"""Card: rlvr_core.md, tw-grpo."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.methods.rlvr.tw_grpo import position_divergence
from upslope.parts.advantage import GroupBaseline
from upslope.testing import (
    batch_of,
    check_columns,
    check_extremes,
    check_invariances,
    finite_differences,
    value_and_gradient,
)


def test_card_divergence():
    log_probs = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]]).log()
    assert float(position_divergence(log_probs, torch.ones(2, 1, dtype=torch.bool))) == pytest.approx(1.33333, abs=5e-6)


def off_policy(**columns):
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5, **columns)
    return batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))


def numpy_weight(distribution, mask, group, alpha):
    weight = np.ones(mask.shape)
    for g in np.unique(group):
        mates, longest = group == g, mask[group == g].sum(1).max()
        lq = np.where(mask[mates][..., None], distribution[mates], -np.log(distribution.shape[-1]))[:, :longest]
        delta = np.clip(lq.mean(0) - lq, -11, 11)
        d = (np.exp(delta) - delta - 1).sum(-1).mean(0)
        weight[mates, :longest] = 1 + (alpha - 1) * (d - d.min()) / (d.max() - d.min() + 1e-8)
    return weight


def numpy_loss(batch, logp, distribution, eps=1e-6):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    weight, losses = numpy_weight(distribution, mask, group, 1.7), []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + eps)
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())
        losses.append((weight[i] * np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2)))[mask[i]])
    return np.concatenate(losses).mean()


def test_value_and_gradient_off_policy():
    batch, recipe = off_policy(), make("tw_grpo")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    distribution = batch.log_distribution.numpy()
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), distribution))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, distribution), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


@pytest.mark.parametrize("name", ["tw_grpo", "tw_grpo@released"])
def test_only_the_released_preset_has_a_gradient_through_the_weights(name):
    batch, recipe = off_policy(lengths=[1, 2, 3, 2, 2, 1, 2]), make(name)
    distribution = batch.log_distribution.clone().requires_grad_()
    loss, _ = recipe.loss(recipe.prepare(batch).replace(log_distribution=distribution))
    assert loss.requires_grad == (name == "tw_grpo@released")
    if loss.requires_grad:
        loss.backward()
        found = finite_differences(
            lambda x: numpy_loss(batch, batch.logp.numpy(), x, eps=1e-4), batch.log_distribution.numpy()
        )
        assert np.abs(found).max() > 1e-3
        np.testing.assert_allclose(distribution.grad, found, atol=1e-7)


def test_the_released_preset_keeps_the_contract():
    recipe, batch = make("tw_grpo@released"), off_policy()
    for check in (check_columns, check_invariances, check_extremes):
        check(recipe, batch)


def test_weights_run_from_one_to_alpha_in_each_group():
    batch = batch_of([[1, 0, 0, 1], [0, 0, 1]], lengths=[5, 4, 3, 5, 2, 3, 3])
    weight = make("tw_grpo", alpha=2.5).prepare(batch).weight
    for group in (0, 1):
        of_group = torch.where(batch.mask, weight, torch.nan)[batch.group == group].numpy()
        assert np.nanmin(of_group) == pytest.approx(1)
        assert np.nanmax(of_group) == pytest.approx(2.5)
        shared = [set(column[~np.isnan(column)]) for column in of_group.T]
        assert max(map(len, shared)) == 1  # the same at a position


@pytest.mark.parametrize("how", ["alpha", "equal"])
def test_alpha_one_or_equal_distributions_is_grpo_with_a_token_mean(how):
    batch = off_policy(lengths=[3, 3, 3, 3, 2, 2, 2])
    if how == "equal":
        batch = batch.replace(log_distribution=batch.log_distribution[:1].expand(7, -1, -1))
    ours, theirs = (
        make("tw_grpo", alpha=1.0 if how == "alpha" else 1.7),
        make("grpo", regularizer=None, aggregate="dapo"),
    )
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_impossible_tokens_give_finite_weights():
    log_probs = torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]], [[0.5, 0.5]]])
    log_probs[2] = log_probs[2].log()
    batch = Batch(logp=torch.zeros(3, 1), log_distribution=log_probs, group=[0, 0, 0])
    assert make("tw_grpo").weight(batch).isfinite().all()


def test_the_released_advantage():
    assert make("tw_grpo@released").advantage == GroupBaseline(eps=1e-4)
