"""Card: preference_distill_hybrid.md, uni-opd."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.methods.distill.uni_opd import Balanced
from upslope.testing import batch_of, finite_differences, value_and_gradient

GAIN = [-0.19, -0.15, -0.11, -0.21, -0.16]
RIGHT = [1.0, 1.0, 0.0, 0.0, 0.0]


def row_means(gain=GAIN, **settings):
    """Mean advantage of each row, where the tokens of a row have these gains on average."""
    spread = torch.tensor([[0.3, -0.3]]).double()
    logp = torch.full((len(gain), 2), -1.0, dtype=torch.float64)
    batch = Batch(
        logp=logp, old_logp=logp, teacher_logp=logp + torch.tensor(np.asarray(gain)).unsqueeze(1) + spread, reward=RIGHT,
        group=torch.zeros(5), trajectory=torch.arange(5), prompt_key=torch.zeros(5, dtype=torch.int64),
    )  # fmt: skip
    return make("uni_opd", balanced=False, **settings).prepare(batch).advantage.mean(1).numpy()


def test_card_numbers():
    np.testing.assert_allclose(row_means(), [0.015, 0.055, -0.315, -0.415, -0.365], atol=1e-12)
    np.testing.assert_allclose(row_means(shift="right"), [0.22, 0.26, -0.11, -0.21, -0.16], atol=1e-12)
    assert row_means()[:2].mean() - row_means()[2:].mean() == pytest.approx(0.4)


def test_a_wide_enough_margin_is_left_alone_and_a_constant_changes_no_shift():
    np.testing.assert_allclose(row_means(delta=-0.02), GAIN, atol=1e-12)
    np.testing.assert_allclose(row_means(np.array(GAIN) + 0.7) - 0.7, row_means(), atol=1e-12)


def test_groups_are_balanced_at_random():
    batch = batch_of([[1, 1, 1, 1, 0, 0], [1, 1], [0, 1, 0, 0]])
    kept = Balanced()(batch)
    right = batch.reward > 0.5
    for group, (rights, wrongs) in enumerate([(2, 2), (2, 0), (1, 1)]):
        mine = batch.group == group
        assert (kept & mine & right).sum() == rights
        assert (kept & mine & ~right).sum() == wrongs
    choices = {tuple(Balanced()(batch.replace(step=torch.full((12,), s))).tolist()) for s in range(2, 40)}
    assert len(choices) > 10


def numpy_loss(batch, kept, logp):
    mask, old, teacher = batch.mask.numpy(), batch.old_logp.numpy(), batch.teacher_logp.numpy()
    group, right = batch.group.numpy(), batch.reward.numpy() > 0.5
    gain = ((teacher - old) * mask).sum(1) / mask.sum(1)
    tokens = []
    for g in set(group):
        ours, wrongs = (np.flatnonzero(kept & (group == g) & kind) for kind in (right, ~right))
        shift = max(0.4 - (gain[ours].mean() - gain[wrongs].mean()), 0) if len(ours) and len(wrongs) else 0
        for i in [*ours, *wrongs]:
            a = (teacher - old)[i] + (shift / 2 if right[i] else -shift / 2)
            r = np.exp(logp[i] - old[i])
            near = np.abs(batch.logp.numpy()[i] - teacher[i]) < 10
            tokens += list((near * np.maximum(-a * r, -a * np.clip(r, 0.8, 1.28)))[mask[i]])
    return np.mean(tokens)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1, 1], [0, 0, 1], [1, 1]], seed=5)
    far = torch.zeros_like(batch.logp)
    far[0, 0] = -20.0
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8), teacher_logp=batch.teacher_logp + far)
    recipe, kept = make("uni_opd"), Balanced()(batch).numpy()
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, kept, batch.logp.numpy()))
    expected = finite_differences(lambda logp: numpy_loss(batch, kept, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-7)
    assert not gradient[~torch.tensor(kept)].any()


def test_without_margin_and_balance_it_is_opd():
    batch = batch_of([[1, 0, 0], [0, 0, 1]])
    ours = make("uni_opd", delta=float("-inf"), balanced=False, far=float("inf"), rows=None)
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, make("opd"))]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
