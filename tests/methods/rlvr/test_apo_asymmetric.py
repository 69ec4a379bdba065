"""Card: rlvr_core.md, apo-asymmetric."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, diff, make
from upslope.parts.advantage import GroupBaseline
from upslope.testing import batch_of, finite_differences, value_and_gradient

REWARD = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)


@pytest.mark.parametrize(("rewards", "kappa"), [([1, 1, 1, 0], 0.8698), ([1, 1, 0, 0], 0.7431), ([1, 0, 0, 0], 0.4932)])
def test_card_kappa(rewards, kappa):
    weight = make("apo_asymmetric").prepare(batch_of([rewards])).kl_weight
    np.testing.assert_allclose(weight, np.where(np.array(rewards) > 0, kappa, 1), atol=5e-5)


@pytest.mark.parametrize("rewards", [[1, 1], [0, 0], [0.5, 0.2]])
def test_kappa_is_one_without_both_kinds(rewards):
    assert make("apo_asymmetric").prepare(batch_of([rewards])).kl_weight.tolist() == [1, 1]


@pytest.mark.parametrize(("excess", "factor"), [(100, 1.00100), (1000, 1.00995), (10000, 1.09516), (0, 1), (-10, 1)])
def test_card_stcr(excess, factor):
    mask = torch.arange(10020) < torch.tensor([[10], [30], [20 + excess], [20]])
    batch = Batch(logp=torch.zeros(mask.shape, dtype=torch.float64), mask=mask, reward=REWARD, group=[0] * 4)
    advantage = make("apo_asymmetric").advantage(batch)["advantage"]
    np.testing.assert_allclose(advantage[2] / advantage[3], factor, atol=5e-6)
    torch.testing.assert_close(advantage[[0, 1, 3]], GroupBaseline(eps=1e-9)(batch)[[0, 1, 3]])


def test_without_a_correct_answer_nothing_is_too_long():
    batch = batch_of([[0.5, 0.2, 0.1]], lengths=[1, 5, 9])
    part = make("apo_asymmetric", stcr_base=1.5).advantage
    torch.testing.assert_close(part(batch)["advantage"], GroupBaseline(eps=1e-9)(batch))


def test_defaults():
    recipe = make("apo_asymmetric")
    assert (recipe.regularizer.beta, recipe.regularizer.estimator, recipe.rollout.group_size) == (1e-3, "k3", 8)
    assert {line for line in diff("apo_asymmetric", "grpo").splitlines() if line[0] != " "} == {
        "advantage",
        "regularizer",
    }


def numpy_loss(batch, logp, base, beta):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    length, losses = mask.sum(1), []
    for i in range(len(reward)):
        mates = group == group[i]
        right = mates & (reward == 1)
        a, acc, kappa = (
            (reward[i] - reward[mates].mean()) / (reward[mates].std(ddof=1) + 1e-9),
            right.sum() / mates.sum(),
            1.0,
        )
        if a > 0 and 0 < acc < 1:
            kappa = 1 - np.exp(-np.e * acc)
        if a < 0 and right.any() and length[i] > length[right].mean():
            a *= 2 - base ** -(length[i] - length[right].mean())
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[mask[i]]
        u = (logp[i] - batch.ref_logp[i].numpy())[mask[i]]
        clipped = np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2))
        losses.append((clipped + beta * kappa * (np.exp(-u) - 1 + u)).mean())
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1], [0, 0], [1, 1]], seed=5)
    batch = batch.replace(
        old_logp=batch.logp + 0.3 * (batch.entropy - 0.8), ref_logp=batch.logp + 0.5 * (batch.entropy - 0.8)
    )
    recipe = make("apo_asymmetric", stcr_base=1.3, beta=0.4)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), 1.3, 0.4))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, 1.3, 0.4), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_a_failed_row_counts_neither_as_correct_nor_for_their_length():
    batch = batch_of([[1, 1, 0, 0]], lengths=[2, 9, 5, 2])
    valid = torch.tensor([True, False, True, True])
    part = make("apo_asymmetric", stcr_base=1.3).advantage
    failed, kept = part(batch.replace(valid=valid)), part(batch.select(valid))
    for name, column in kept.items():
        torch.testing.assert_close(failed[name][valid], column)


def test_kappa_one_and_no_stcr_is_grpo():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    ours = make("apo_asymmetric", sharpness=1e6, stcr_base=1.0)
    theirs = make("grpo", beta=1e-3, eps=1e-9)
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_base_below_one_is_refused():
    with pytest.raises(UsageError, match=r"AsymmetricAdvantage\(stcr_base=0.9"):
        make("apo_asymmetric", stcr_base=0.9)
