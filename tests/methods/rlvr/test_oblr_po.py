"""Card: rlvr_core.md, oblr-po."""

import itertools

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.methods.rlvr.oblr_po import score_norm_squared
from upslope.testing import batch_of, value_and_gradient, with_observed

P, REWARD = np.array([0.7, 0.2, 0.1]), np.array([1.0, 0.0, 0.5])  # the card's bandit


def advantage(rewards, norms, **settings):
    recipe = make("oblr_po", norm="exact", **settings)
    return recipe.prepare(batch_of(rewards, grad_norm_squared=torch.tensor(norms))).advantage[:, 0].numpy()


def test_card_two_completions():
    np.testing.assert_allclose(advantage([[1.0, 0.0]], [1.0, 4.0]), [0.8, -0.2])
    np.testing.assert_allclose(advantage([[1.0, 0.0]], [1.0, 4.0], leave_one_out=True), [1.0, -1.0])


def test_card_bandit_norms_baseline_and_variances():
    log_probs = torch.tensor(np.log(P)).expand(3, 3)
    norms = score_norm_squared(log_probs, torch.arange(3)).numpy()
    np.testing.assert_allclose(norms, [0.14, 1.14, 1.34])
    drawn = [0] * 7 + [1] * 2 + [2]  # the distribution itself as a group of ten
    found = REWARD[drawn] - advantage([REWARD[drawn].tolist()], norms[drawn].tolist())
    np.testing.assert_allclose(found, 0.35870, atol=5e-6)

    def variance(baseline):
        gradients = (REWARD - baseline)[:, None] * (np.eye(3) - P)
        mean = P @ gradients
        return P @ (gradients**2).sum(1) - mean @ mean

    np.testing.assert_allclose([variance(b) for b in (found[0], P @ REWARD, 0)], [0.018565, 0.0890, 0.07775], atol=5e-5)
    assert all(variance(found[0] + move) > variance(found[0]) for move in (-0.01, 0.01))


@pytest.mark.parametrize(("leave_one_out", "unbiased"), [(True, True), (False, False)])
def test_leave_one_out_has_no_bias(leave_one_out, unbiased):
    """All 27 groups of three draws of the bandit, with their probabilities."""
    norms = (np.eye(3) - P) @ (np.eye(3) - P).T
    groups = list(itertools.product(range(3), repeat=3))
    chance = np.array([P[list(group)].prod() for group in groups])
    flat = np.array(groups).ravel()
    a = advantage(REWARD[np.array(groups)].tolist(), norms.diagonal()[flat].tolist(), leave_one_out=leave_one_out)
    gradient = chance @ (a[:, None] * (np.eye(3) - P)[flat]).reshape(len(groups), 3, 3).mean(1)
    expected = (P * REWARD) @ (np.eye(3) - P)
    assert (np.abs(gradient - expected).max() < 1e-12) == unbiased


def test_equal_norms_is_dr_grpo_and_with_leave_one_out_rloo():
    rewards = [[1, 0, 0.5], [1, 0, 0, 0]]
    batch = batch_of(rewards, grad_norm_squared=torch.full((7,), 0.3))
    for settings, other in [({}, make("dr_grpo")), ({"leave_one_out": True}, make("dr_grpo", advantage="rloo"))]:
        ours = make("oblr_po", norm="exact", **settings)
        results = [value_and_gradient(recipe, recipe.prepare(batch)) for recipe in (ours, other)]
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("norm", ["proxy", "length"])
def test_value_against_numpy(norm, leave_one_out):
    recipe = make("oblr_po", norm=norm, leave_one_out=leave_one_out)
    batch = with_observed(recipe, batch_of([[1, 0, 0.2], [0, 1, 1, 0.5]], seed=3))
    probability = batch.log_distribution.exp().numpy()
    chosen = np.eye(probability.shape[-1])[batch.tokens.numpy()]
    per_token = ((chosen - probability) ** 2).sum(-1) if norm == "proxy" else np.ones(batch.logp.shape)
    weight = (per_token * batch.mask.numpy()).sum(1)
    reward, group = batch.reward.numpy(), batch.group.numpy()
    expected = []
    for i in range(len(reward)):
        mates = [j for j in range(len(reward)) if group[j] == group[i] and not (leave_one_out and i == j)]
        expected.append(reward[i] - np.average(reward[mates], weights=weight[mates]))
    np.testing.assert_allclose(recipe.prepare(batch).advantage[:, 0], expected)


def test_degenerate_groups():
    np.testing.assert_allclose(advantage([[1.0, 0.0]], [0.0, 0.0]), [0.5, -0.5])  # no gradient anywhere: equal weights
    np.testing.assert_allclose(advantage([[1.0], [1.0, 0.0]], [1.0, 1.0, 0.0], leave_one_out=True), [0.0, 1.0, -1.0])


def test_what_is_read_and_observed():
    assert make("oblr_po").needs_before == {"reward", "group", "score_norm_squared"}
    assert make("oblr_po", norm="length").needs_before == {"reward", "group"}
    assert make("oblr_po", norm="exact").needs_before == {"reward", "group", "grad_norm_squared"}
    assert not make("oblr_po", norm="exact").observes()


def test_rate_factor():
    rule = make("oblr_po").update
    assert rule.ema == 0.9
    assert rule.rate_factor(3.0, 1.0) == 0.75
    assert rule.rate_factor(-3.0, 1.0) == 0.0 == rule.rate_factor(0.0, 0.0)
    assert rule.rate_factor(2.0, 0.0) == 1.0
    with pytest.raises(UsageError, match=r"SignalToNoise.ema is 1.0; it must be"):
        make("oblr_po", ema=1)
