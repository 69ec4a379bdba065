"""The critic's clipped loss: the card's number, NumPy, and where its gradient stops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import Batch
from upslope.parts.value import ClippedValue

VALUE = st.floats(-3, 3)


def loss_and_gradient(part, value, old_value, returns):
    value = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    batch = Batch(logp=torch.zeros(1, 1), value=value, old_value=[[old_value]], returns=[[returns]])
    loss = part(batch).sum()
    return loss.item(), torch.autograd.grad(loss, value)[0].item()


def test_card_number_and_its_gradient():
    assert loss_and_gradient(ClippedValue(0.2), 1.0, 0.5, 1.2) == (pytest.approx(0.125), 0.0)
    assert loss_and_gradient(ClippedValue(0.2), 0.5, 0.5, 1.2) == (pytest.approx(0.245), pytest.approx(-0.7))
    assert loss_and_gradient(ClippedValue(None), 1.0, 0.5, 1.2) == (pytest.approx(0.02), pytest.approx(-0.2))


@given(VALUE, VALUE, VALUE, st.floats(0.01, 2))
def test_equals_numpy(value, old_value, returns, clip):
    clipped = np.clip(value, old_value - clip, old_value + clip)
    expected = max((value - returns) ** 2, (clipped - returns) ** 2) / 2
    found, _ = loss_and_gradient(ClippedValue(clip), value, old_value, returns)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_statistics_count_the_clipped_tokens():
    batch = Batch(logp=torch.zeros(1, 2), value=[[1.0, 0.5]], old_value=[[0.5, 0.5]], returns=[[1.2, 1.2]])
    assert ClippedValue(0.2).stats(batch)["critic/clip_fraction"].tolist() == [[1.0, 0.0]]
    assert ClippedValue(None).stats(batch) == {}
