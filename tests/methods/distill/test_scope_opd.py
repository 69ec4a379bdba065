"""Card: preference_distill_hybrid.md, scope-opd."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.parts.aggregate import TokenSum
from upslope.testing import batch_of, finite_differences, value_and_gradient


def rows_of(student, teacher, reward, length=2):
    """A group with these perplexities, every token as likely as the others of its row."""
    columns = [-torch.tensor(ppl).double().log().unsqueeze(1).expand(-1, length) for ppl in (student, teacher)]
    group = torch.zeros(len(reward))
    return Batch(logp=columns[0], old_logp=columns[0], teacher_logp=columns[1], reward=reward, group=group)


def test_card_numbers():
    batch = rows_of([1.2, 2.6, 3.8, 1.0, 2.0, 3.0], [2.0, 2.0, 2.0, 4.5, 2.9, 1.7], [1, 1, 1, 0, 0, 0])
    a = make("scope_opd").prepare(batch).advantage[:, 0].numpy()
    np.testing.assert_allclose(a[:3], [0.158, 0.342, 0.5], atol=5e-4)
    np.testing.assert_allclose(a[3:] / np.log([1 / 4.5, 2 / 2.9, 3 / 1.7]), [0.192, 0.298, 0.509], atol=1e-3)


def numpy_loss(batch, logp, tau):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    old, teacher = batch.old_logp.numpy(), batch.teacher_logp.numpy()
    ppl = np.exp(-(np.where(mask, old, 0).sum(1) / mask.sum(1)))
    ppl_teacher = np.exp(-(np.where(mask, teacher, 0).sum(1) / mask.sum(1)))
    total = 0.0
    for g in set(group):
        for right in (True, False):
            rows = np.flatnonzero((group == g) & ((reward > 0.5) == right))
            w = ppl[rows] ** (1 / tau) if right else ppl_teacher[rows] ** (-1 / tau)
            for i, share in zip(rows, w / w.sum(), strict=True):
                ratio = np.exp(logp[i] - old[i])
                each = -ratio if right else ratio * (old[i] - teacher[i])
                total += share * each[mask[i]].sum()
    return total / len(set(group))


@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_value_and_gradient_off_policy(tau):
    batch = batch_of([[1, 0, 1, 0], [0, 0, 0], [1, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    recipe = make("scope_opd", tau=tau)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), tau))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, tau), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-7)


def test_wrong_ones_alike_are_opd_over_the_group_size():
    batch = batch_of([[0, 0, 0, 0]])
    ours = make("scope_opd", tau=float("inf"))
    theirs = make("opd", aggregate=TokenSum(scale=0.25))
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_right_one_on_policy_has_the_gradient_of_its_likelihood():
    batch = batch_of([[1], [1]])
    _, gradient = value_and_gradient(make("scope_opd"), make("scope_opd").prepare(batch))
    torch.testing.assert_close(gradient, -batch.mask.double() / 2)


def test_wrong_tau():
    with pytest.raises(UsageError, match="tau=0"):
        make("scope_opd", tau=0.0)
