"""Expert rows beside the policy's: which rows a term reads, whose rewards are the baseline."""

import numpy as np
import pytest
import torch

from upslope.batch import SOURCES
from upslope.parts.expert import ExpertRows, MixedBaseline, PolicyRows, sampled_now
from upslope.parts.likelihood import NegativeLogLikelihood
from upslope.parts.surrogate import EntropyLoss, ImportanceRatio
from upslope.testing import batch_of

TEACHER = SOURCES.index("teacher")
SOURCE = torch.tensor([0, 0, TEACHER, 0, TEACHER])
BATCH = batch_of([[0, 1, 1], [0, 1]], source=SOURCE)


def test_rows():
    assert ExpertRows()(BATCH).tolist() == [False, False, True, False, True]
    assert PolicyRows()(BATCH).tolist() == [True, True, False, True, False]


def test_every_source_is_given_or_sampled():
    batch = batch_of([[0.0] * len(SOURCES)], source=torch.arange(len(SOURCES)))
    given = {SOURCES[row] for row in ExpertRows()(batch).nonzero().flatten().tolist()}
    assert given == {"expert", "teacher"}
    assert torch.equal(PolicyRows()(batch), ~ExpertRows()(batch))
    assert {SOURCES[row] for row in sampled_now(batch).nonzero().flatten().tolist()} == {"policy", "tempered"}
    assert sampled_now(batch.replace(source=None)).all(), "rows of unknown origin are the policy's"


@pytest.mark.parametrize("scale", [None, "sample_std"])
def test_baseline_with_and_without_the_expert(scale):
    spread = {"all": [np.std([0, 1, 1], ddof=1)], "policy": [np.std([0, 1], ddof=1)]}
    mean = {"all": 2 / 3, "policy": 1 / 2}
    for among in ("all", "policy"):
        advantage = MixedBaseline(scale=scale, eps=0.0, among=among)(BATCH)
        divisor = spread[among][0] if scale else 1.0
        np.testing.assert_allclose(advantage[:3], (np.array([0, 1, 1]) - mean[among]) / divisor)
    assert MixedBaseline(scale=None, among="policy")(BATCH)[3:].tolist() == [0, 0], "one own row compares with nothing"


def test_a_failed_row_is_in_neither_baseline():
    batch = BATCH.replace(valid=torch.tensor([False, True, True, True, True]))
    assert MixedBaseline(scale=None)(batch)[1:3].tolist() == [0, 0]
    assert MixedBaseline(scale=None, among="policy")(batch)[1].item() == 0


def test_what_is_read():
    assert MixedBaseline().needs == {"reward", "group"}
    assert MixedBaseline(among="policy").needs == {"reward", "group", "source"}


@pytest.mark.parametrize("weighting", ["none", "probability", "uncertainty"])
def test_likelihood_weights_have_no_gradient(weighting):
    logp = torch.log(torch.tensor([[0.05, 0.5, 0.95]])).double().requires_grad_()
    batch = batch_of([[1]], lengths=[3]).replace(logp=logp)
    loss = NegativeLogLikelihood(weighting=weighting, coefficient=2.0)(batch)
    p = np.array([0.05, 0.5, 0.95])
    weight = {"none": np.ones(3), "probability": p, "uncertainty": p * (1 - p)}[weighting]
    np.testing.assert_allclose(loss.detach()[0], -2 * weight * np.log(p), rtol=1e-6)
    np.testing.assert_allclose(torch.autograd.grad(loss.sum(), logp)[0][0], -2 * weight, rtol=1e-6)


def test_ratio_and_entropy():
    batch = BATCH.replace(advantage=BATCH.reward, old_logp=BATCH.logp - 3)
    expected = -np.exp(3) * BATCH.reward.numpy()[:, None] * BATCH.mask.numpy()
    np.testing.assert_allclose(ImportanceRatio()(batch) * batch.mask, expected)
    np.testing.assert_allclose(EntropyLoss(0.1)(BATCH), -0.1 * BATCH.entropy)
