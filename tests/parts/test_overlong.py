"""Overlong shaping and filtering."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import Batch, UsageError, make
from upslope.parts.overlong import OverlongFilter, OverlongPenalty
from upslope.testing import batch_of, value_and_gradient


@given(st.integers(0, 30), st.integers(1, 20), st.integers(0, 20), st.floats(0, 3))
def test_penalty_equals_its_three_cases(length, cache, more, factor):
    longest = cache + more
    free = longest - cache
    expected = 0 if length <= free else (free - length) / cache if length <= longest else -1
    mask = torch.arange(31) < length
    mask = torch.stack([mask, torch.ones(31, dtype=torch.bool)])
    batch = Batch(logp=torch.zeros(2, 31), mask=mask, reward=[2.0, 0.0])
    found = OverlongPenalty(longest, cache, factor)(batch)
    assert found[0].item() == pytest.approx(2 + factor * expected, abs=1e-6)


def test_cache_beyond_the_limit_is_refused():
    with pytest.raises(UsageError, match=r"Choose 0 < cache <= max_length"):
        OverlongPenalty(max_length=10, cache=11)


def test_filter_leaves_truncated_rows_out_of_every_denominator_but_not_of_the_baseline():
    batch = batch_of([[1, 0, 0], [1, 1, 0]], lengths=[3, 2, 4, 1, 2, 2])
    truncated = torch.tensor([False, True, False, False, False, True])
    recipe = make("grpo@trl", rows=OverlongFilter(drop_truncated=True))
    prepared = recipe.prepare(batch.replace(truncated=truncated))
    loss, gradient = value_and_gradient(recipe, prepared)
    keep = (~truncated).numpy()
    advantage = make("grpo@trl").prepare(batch).advantage.numpy() * batch.mask.numpy()
    tokens = batch.mask.numpy()[keep].sum()
    assert float(loss) == pytest.approx(-advantage[keep].sum() / tokens)
    np.testing.assert_allclose(gradient, -advantage * keep[:, None] / tokens)


def test_filter_off_reads_nothing():
    batch = batch_of([[1, 0]]).replace(truncated=None)
    assert OverlongFilter()(batch).all()
    assert OverlongFilter().needs == frozenset()
    assert OverlongFilter(drop_truncated=True).needs == {"truncated"}
