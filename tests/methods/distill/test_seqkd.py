"""Card: preference_distill_hybrid.md, seqkd; line 8 of its cross-identities."""

import numpy as np
import torch

from upslope import make
from upslope.exact import ExactLab
from upslope.parts.distill import generalized_jsd
from upslope.testing import batch_of, value_and_gradient

LAB = ExactLab(vocabulary=3, horizon=3, seed=4, eos=0)
TEACHER = LAB.theta + torch.randn(LAB.theta.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def forward_kl(theta):
    return -(LAB.probability(TEACHER) @ (LAB.logp(TEACHER) - LAB.logp(theta)).sum(1))


def word_level(theta):
    """gkd's loss with beta=0 on the teacher's completions, summed over tokens."""
    ours, theirs = LAB.log_distribution(theta), LAB.log_distribution(TEACHER)
    return -(LAB.probability(TEACHER).unsqueeze(1) * LAB.mask * generalized_jsd(ours, theirs, 0.0)).sum()


def test_the_mean_gradient_is_that_of_the_forward_kl_and_of_word_level_distillation():
    found = LAB.estimate("seqkd", group_size=1, old=TEACHER, target=LAB.gradient(LAB.theta, forward_kl))
    assert found.exact
    assert found.relative_bias < 1e-10
    torch.testing.assert_close(found.mean, LAB.gradient(LAB.theta, word_level))


def test_card_gradient():
    coin = ExactLab(vocabulary=3, horizon=1, seed=0)
    s, t = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.7, 0.2, 0.1], [0.5, 0.3, 0.2]))
    mean = coin.estimate("seqkd", group_size=1, theta=s, old=t).mean
    np.testing.assert_allclose(-mean, [[0.2, -0.1, -0.1]], atol=1e-12)


def test_value_and_gradient():
    batch = batch_of([[1, 1], [1]])
    loss, gradient = value_and_gradient(make("seqkd"), make("seqkd").prepare(batch))
    torch.testing.assert_close(loss, -batch.logp.sum() / 3)
    torch.testing.assert_close(gradient, -batch.mask.double() / 3)
