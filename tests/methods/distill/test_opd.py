"""Card: preference_distill_hybrid.md, opd; lines 5 and 6 of its cross-identities."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.exact import ExactLab
from upslope.parts.kl import kl_estimate
from upslope.testing import batch_of, finite_differences, value_and_gradient

S, T = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
REVERSE = [0.175945, -0.098118, -0.077827]  # gradient of KL(s || t) by the logits of s
LAB = ExactLab(vocabulary=3, horizon=3, seed=4, eos=0)
TEACHER = LAB.theta + torch.randn(LAB.theta.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
COLUMNS = {"teacher_logp": LAB.logp(TEACHER)}


def one_row_per_word(**settings):
    logp = torch.tensor(np.log(S)).unsqueeze(1)
    batch = Batch(logp=logp, old_logp=logp, teacher_logp=torch.tensor(np.log(T)).unsqueeze(1))
    return make("opd", **settings).prepare(batch)


def test_card_numbers():
    batch = one_row_per_word()
    np.testing.assert_allclose(batch.advantage[:, 0], [-0.336472, 0.405465, 0.693147], atol=5e-7)
    assert S @ batch.advantage[:, 0].numpy() == pytest.approx(-0.085123, abs=5e-7)


def mean_gradient(loss):
    """By the logits of s, of the mean over words drawn from s of loss(log-probs [3] of them)."""
    logits = torch.tensor(np.log(S), requires_grad=True)
    (torch.tensor(S) * loss(logits.log_softmax(-1))).sum().backward()
    return logits.grad.numpy()


def test_expected_gradients_of_three_losses_on_a_categorical():
    """The score function with A has the gradient of the reverse KL, k3 that of the forward KL, r k3 that of the reverse KL."""
    advantage, teacher = one_row_per_word().advantage[:, 0], torch.tensor(np.log(T))
    np.testing.assert_allclose(mean_gradient(lambda logp: -advantage * logp), REVERSE, atol=5e-7)
    np.testing.assert_allclose(mean_gradient(lambda logp: kl_estimate(logp, teacher, "k3")), S - T, atol=1e-12)
    weighted = mean_gradient(lambda logp: (logp - logp.detach()).exp() * kl_estimate(logp, teacher, "k3"))
    np.testing.assert_allclose(weighted, REVERSE, atol=5e-7)
    logits = torch.tensor(np.log(S), requires_grad=True)
    (logits.softmax(-1) @ (logits.log_softmax(-1) - teacher)).backward()
    np.testing.assert_allclose(logits.grad, REVERSE, atol=5e-7)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0], [0, 0, 1]], seed=3)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    mask, old, teacher = batch.mask.numpy(), batch.old_logp.numpy(), batch.teacher_logp.numpy()

    def loss_of(logp):
        return -((teacher - old) * np.exp(logp - old))[mask].mean()

    recipe = make("opd")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_of(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_of, batch.logp.numpy()) * mask, atol=1e-8)


def test_discounted_sum_over_the_tokens_that_follow():
    batch = batch_of([[0, 0]], lengths=[3, 2])
    batch = batch.replace(teacher_logp=batch.old_logp + torch.tensor([[0.2, -0.1, 0.3], [0.5, 0.5, 0.0]]).double())
    found = make("opd", discount=0.5, scale=2.0).prepare(batch).advantage
    np.testing.assert_allclose(found, [[0.45, 0.1, 0.6], [1.5, 1.0, 0.0]], atol=1e-12)


def test_the_teacher_itself_has_nothing_to_learn():
    batch = batch_of([[1, 0], [0, 0, 1]])
    recipe = make("opd")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch.replace(teacher_logp=batch.logp)))
    assert loss == 0
    assert not gradient.any()


def kl_at_prefixes(theta):
    """Expected sum over positions of KL(policy || teacher) given the prefix, prefixes drawn from the policy as it is."""
    reached = (LAB.probability(LAB.theta).detach().unsqueeze(1) * LAB.mask).unsqueeze(-1)
    ours, theirs = LAB.log_distribution(theta), LAB.log_distribution(TEACHER)
    return -(reached * ours.exp() * (ours - theirs)).sum()


@pytest.mark.parametrize(
    ("discount", "objective"), [(0.0, kl_at_prefixes), (1.0, lambda theta: -LAB.kl(theta, TEACHER))]
)
def test_the_mean_gradient_is_that_of_the_reverse_kl(discount, objective):
    recipe = make("opd", discount=discount, aggregate=make("reinforce").aggregate)
    found = LAB.estimate(recipe, group_size=1, columns=COLUMNS, target=LAB.gradient(LAB.theta, objective))
    assert found.exact
    assert found.relative_bias < 1e-10


def test_wrong_discount():
    with pytest.raises(UsageError, match=r"TeacherAdvantage\(discount=2\)"):
        make("opd", discount=2.0)
