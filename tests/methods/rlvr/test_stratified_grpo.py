"""Card: rlvr_core.md, stratified-grpo."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import UsageError, make
from upslope.testing import batch_of, finite_differences, value_and_gradient

CARD = [[1, 1, 0, 1, 0, 0, 0, 0]]
STRATUM = [0, 0, 0, 0, 1, 1, 1, 1]
BLENDED = [[1, 0, 0.3, 1, 0], [0, 1, 1, 0], [1]]
LABELS = [2, 7, 2, 2, 7, 2, 2, 7, 0, 2]


def advantage(rewards, stratum, **settings):
    recipe = make("stratified_grpo", **settings)
    return recipe.prepare(batch_of(rewards, stratum=stratum)).advantage[:, 0].numpy()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"alpha": 1.0, "scale": None}, [0.25, 0.25, -0.75, 0.25, 0, 0, 0, 0]),
        ({"alpha": 0.0, "scale": None}, [0.625, 0.625, -0.375, 0.625, -0.375, -0.375, -0.375, -0.375]),
        ({"alpha": 1.0}, [0.5, 0.5, -1.5, 0.5, 0, 0, 0, 0]),
        ({"alpha": 0.0}, [1.2076, 1.2076, -0.7246, 1.2076, -0.7246, -0.7246, -0.7246, -0.7246]),
        ({}, [0.64152, 0.64152, -1.34491, 0.64152, -0.14491, -0.14491, -0.14491, -0.14491]),
    ],
)
def test_card_numbers(settings, expected):
    np.testing.assert_allclose(advantage(CARD, STRATUM, **settings), expected, atol=5e-5)


def test_defaults():
    recipe = make("stratified_grpo")
    assert (recipe.advantage.alpha, recipe.advantage.eps) == (0.8, 1e-6)
    assert (recipe.regularizer.beta, recipe.regularizer.estimator) == (0.001, "k3")


def test_the_difference_of_the_two_advantages_is_the_offset_between_strata():
    difference = advantage(CARD, STRATUM, alpha=0.0, scale=None) - advantage(CARD, STRATUM, alpha=1.0, scale=None)
    np.testing.assert_allclose(difference, [0.375] * 4 + [-0.375] * 4)


def numpy_advantage(reward, group, stratum, alpha):
    def normalized(i, peers):
        return (reward[i] - reward[peers].mean()) / (reward[peers].std(ddof=1) + 1e-6) if peers.sum() > 1 else 0.0

    return np.array(
        [
            alpha * normalized(i, (group == group[i]) & (stratum == stratum[i]))
            + (1 - alpha) * normalized(i, group == group[i])
            for i in range(len(reward))
        ]
    )


def test_value_and_gradient_off_policy():
    batch = batch_of(BLENDED, seed=5, stratum=LABELS)
    batch = batch.replace(old_logp=batch.logp + 0.4 * (batch.entropy - 0.8))
    a = numpy_advantage(batch.reward.numpy(), batch.group.numpy(), batch.stratum.numpy(), 0.3)[:, None]
    mask, old, ref = batch.mask.numpy(), batch.old_logp.numpy(), batch.ref_logp.numpy()

    def loss_of(logp):
        ratio = np.exp(logp - old)
        loss = np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2)) + 0.5 * (np.exp(ref - logp) - (ref - logp) - 1)
        return np.mean((loss * mask).sum(1) / mask.sum(1))

    recipe = make("stratified_grpo", alpha=0.3, beta=0.5)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_of(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_of, batch.logp.numpy()) * mask, atol=1e-8)


@pytest.mark.parametrize("settings", [{"alpha": 0.0, "stratum": LABELS}, {"alpha": 0.7, "stratum": [3] * 10}])
def test_no_share_or_one_stratum_is_grpo(settings):
    grpo = make("grpo").prepare(batch_of(BLENDED)).advantage[:, 0]
    np.testing.assert_allclose(advantage(BLENDED, **settings), grpo)


@given(st.permutations([2, 7, 0]))
def test_names_of_strata_do_not_matter(names):
    renamed = [dict(zip([2, 7, 0], names, strict=True))[label] for label in LABELS]
    np.testing.assert_allclose(advantage(BLENDED, renamed), advantage(BLENDED, LABELS))


def test_within_a_stratum_mean_0_and_variance_1():
    found = advantage([[1, 0.2, 0.7, 0, 1, 0.4]], [0, 0, 0, 1, 1, 1], alpha=1.0, eps=0.0).reshape(2, 3)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(found.var(1, ddof=1), 1)


def test_alone_in_its_stratum_only_the_group_speaks():
    found = advantage([[1, 0, 0]], [0, 1, 1], alpha=0.6, scale=None)
    np.testing.assert_allclose(found, [0.4 * 2 / 3, -0.4 / 3, -0.4 / 3])


def test_a_failed_reward_is_no_peer():
    batch = batch_of([[1, 0, 0.5, 0.5]], stratum=[0, 0, 0, 1])
    part = make("stratified_grpo").advantage
    failed = part(batch.replace(valid=torch.tensor([True, True, False, True])))
    kept = part(batch.select(torch.tensor([0, 1, 3])))
    np.testing.assert_allclose(failed[[0, 1, 3]], kept)


def test_alpha_out_of_range_is_refused():
    with pytest.raises(UsageError, match=r"StratifiedBaseline\(alpha=1.5\): .* in \[0, 1\]"):
        make("stratified_grpo", alpha=1.5)
