"""Card: preference_distill_hybrid.md, g-opd; line 7 of its cross-identities."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.exact import ExactLab
from upslope.testing import batch_of, value_and_gradient

S, T, R = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.3, 0.1])


def advantage(s, extrapolation):
    """A of every word, [V]."""
    columns = {"logp": s, "old_logp": s, "teacher_logp": T, "ref_logp": R}
    batch = Batch(**{name: torch.tensor(np.log(column)).unsqueeze(1) for name, column in columns.items()})
    return make("g_opd", extrapolation=extrapolation).prepare(batch).advantage[:, 0].numpy()


def fixed_point(extrapolation):
    found = R ** (1 - extrapolation) * T**extrapolation
    return found / found.sum()


def test_card_numbers():
    assert make("g_opd").advantage.extrapolation == 1.25
    np.testing.assert_allclose(advantage(S, 1.25), [-0.382053, 0.405465, 0.866434], atol=5e-7)
    np.testing.assert_allclose(fixed_point(1.25), [0.470401, 0.295403, 0.234197], atol=5e-7)


@pytest.mark.parametrize("extrapolation", [0.0, 0.5, 1.0, 1.25, 2.0])
def test_at_its_fixed_point_the_mean_gradient_is_zero(extrapolation):
    s = fixed_point(extrapolation)
    np.testing.assert_allclose((s * advantage(s, extrapolation)) @ (np.eye(3) - s), 0, atol=1e-12)


def test_with_one_as_factor_it_is_opd_for_any_reference():
    batch = batch_of([[1, 0], [0, 0, 1]])
    ours, theirs = make("g_opd", extrapolation=1.0), make("opd")
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_in_the_lab_it_is_opd_with_the_fixed_point_as_the_teacher():
    lab = ExactLab(vocabulary=3, horizon=2, seed=4)
    draw = torch.Generator().manual_seed(7)
    teacher, ref = (lab.theta + torch.randn(lab.theta.shape, generator=draw, dtype=torch.float64) for _ in range(2))
    beyond = (-0.25 * ref.log_softmax(-1) + 1.25 * teacher.log_softmax(-1)).log_softmax(-1)
    ours = lab.estimate("g_opd", group_size=1, ref=ref, columns={"teacher_logp": lab.logp(teacher)})
    theirs = lab.estimate("opd", group_size=1, columns={"teacher_logp": lab.logp(beyond)})
    torch.testing.assert_close(ours.mean, theirs.mean)
