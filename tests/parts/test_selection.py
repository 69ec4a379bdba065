import numpy as np
import pytest
import torch

from upslope import Batch, UsageError
from upslope.parts.selection import check_share, covariance, largest, number_of, token_uniform
from upslope.recipe import Part
from upslope.testing import batch_of


@pytest.mark.parametrize(
    ("share", "tokens", "number"), [(2e-4, 100_000, 20), (0.5, 3, 1), (2e-4, 10, 1), (0, 10, 0), (1, 4, 4), (0.5, 0, 0)]
)
def test_number_of(share, tokens, number):
    among = torch.zeros(1, tokens + 3, dtype=torch.bool)
    among[:, :tokens] = True
    assert number_of(share, among) == number


def test_a_percentage_is_refused():
    with pytest.raises(UsageError, match=r"Part\(share=2\): it is a fraction of the tokens, e\.g\. 0\.002"):
        check_share(Part(), 2.0)


def test_covariance_is_that_of_the_trained_tokens():
    batch = Batch(
        logp=[[-0.1, -2.0, -9.0], [-0.5, -9.0, -9.0]],
        mask=[[True, True, False], [True, False, False]],
        advantage=[1.0, -2.0],
    )
    of_tokens = np.cov([1, 1, -2], [-0.1, -2, -0.5], bias=True)[0, 1]
    assert float(covariance(batch).sum()) == pytest.approx(3 * of_tokens, rel=1e-5)
    assert not covariance(batch)[~batch.mask].any()


def test_largest_among_with_ties():
    score = torch.tensor([[3.0, 1.0, 2.0], [2.0, 2.0, 9.0]])
    among = torch.tensor([[True, True, True], [True, True, False]])
    ties = torch.tensor([[0.5, 0.5, 0.3], [0.2, 0.1, 0.0]])
    assert largest(score, 3, among, ties).tolist() == [[True, False, False], [True, True, False]]
    assert largest(score, 2, among, ties).tolist() == [[True, False, False], [False, True, False]]
    assert not largest(score, 0, among, ties).any()
    assert torch.equal(largest(score, 9, among, ties), among)


def test_random_numbers_belong_to_tokens_and_change_with_the_step():
    batch = batch_of([[1, 0, 1, 0]], lengths=[3, 3, 2, 1])
    one = token_uniform(batch, 0)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(token_uniform(batch.select(order), 0), one[order])
    assert torch.equal(token_uniform(batch.replace(mask=batch.mask), 0), one)
    assert one.unique().numel() == one.numel()
    assert (token_uniform(batch, 1) != one).all()
